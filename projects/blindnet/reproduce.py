"""The paper's experiments (Tiwari and Verma, Indiana University), what it and its proposal wish for, and the controls,
as a study; the rows are in ``experiments/``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fvcore.common.config import CfgNode

from scenekd.study.spec import Metric, StudySpec

from .config import KEY
from .study_figures import DRAWERS

TASK = "hidden_object"


def simplify(cfg: CfgNode, keys: dict[str, Any]) -> dict[str, Any]:
    """The keys without those that change neither a weight nor a score: what is drawn beside a curve, and re-scoring."""
    unread = (f"{KEY}.COMPARE", f"{KEY}.RESCORE.")
    return {key: value for key, value in keys.items() if not key.startswith(unread)}


STUDY = StudySpec(
    system="blindnet",
    title="The class behind the mask: the paper's experiments, measured rightly",
    folder=Path(__file__).with_name("experiments"),
    metrics=(
        Metric("top1", TASK),
        Metric("top5", TASK, compared=False),
        Metric("top10", TASK, compared=False),
        Metric("area", TASK, compared=False),
        Metric("balanced_accuracy", TASK),
        Metric("mean_rank", TASK, unit="", lower=True),
        Metric("log_loss", TASK, unit="nats", lower=True),
        Metric("ECE", TASK, lower=True, compared=False),
        Metric("gap_covered", TASK, compared=False),
        Metric("mAP", "multi_label"),
        Metric("box_mAP", "bbox", read=lambda cfg, numbers: float(numbers["mAP"])),
        Metric("mIoU", "sem_seg"),
    ),
    simplify=simplify,
    drawers=DRAWERS,
)
