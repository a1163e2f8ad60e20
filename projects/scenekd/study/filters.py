"""A row that trains nothing: a detection teacher's mAP against the threshold that its boxes must reach.

The threshold is chosen here, on images apart from those that score the students.
"""

from __future__ import annotations

from typing import Any

from ..config import load_config
from ..data.catalog import load_datasets
from ..evaluation.evaluator import Evaluator
from ..results import describe_run, write_results
from ..teachers.build import open_store
from .runs import RESULTS, Run, write_config
from .stages import run_tool

THRESHOLDS = (0.0, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 0.5)


def score_filters(run: Run) -> dict[str, Any]:
    """Ask the teacher for its boxes on ``DATASETS.TRAIN`` and score them above each threshold.

    Returns:
        What is written to ``results.json``: ``{"filters": [{"threshold", "mAP" (percent), "boxes" (mean over the
        images), "AP-<class>" …}, …], "meta": …}``.
    """
    write_config(run)
    run_tool("cache_teacher.py", "--config-file", str(run.config), "--task", "detection", "--resume")
    cfg = load_config(run.config)
    data = load_datasets(cfg.DATASETS.TRAIN, cfg, train=False)
    store = open_store(cfg, "detection", records=data.records)
    lines = []
    for threshold in THRESHOLDS:
        evaluator = Evaluator(data, tasks=("bbox",))
        kept = 0
        for record in data.records:
            boxes, labels, scores = store.get_detections(record.image_id)
            keep = scores >= threshold
            kept += int(keep.sum())
            evaluator.add_arrays(record.image_id, boxes=boxes[keep], labels=labels[keep], scores=scores[keep])
        found = evaluator.summarize()["bbox"]
        classes = {key: value for key, value in found.items() if key.startswith("AP-")}
        lines.append(
            {"threshold": threshold, "mAP": found["mAP"], "boxes": kept / len(data.records), **classes}
        )
    meta = describe_run(cfg, "none", scored={"names": list(cfg.DATASETS.TRAIN), "images": len(data.records)})
    results: dict[str, Any] = {"filters": lines}
    write_results(run.folder / RESULTS, results, meta)
    return results
