"""VOC average precision against detectron2's evaluator, on full-precision detections with distinct scores."""

import importlib

import numpy as np
import pytest
from test_detection import random_case

from scenekd.evaluation.detection import IOU_THRESHOLDS, voc_ap

pytestmark = pytest.mark.detectron2

OBJECT = (
    "<object><name>{name}</name><pose>x</pose><truncated>0</truncated><difficult>{difficult:d}</difficult>"
    "<bndbox><xmin>{0:d}</xmin><ymin>{1:d}</ymin><xmax>{2:d}</xmax><ymax>{3:d}</ymax></bndbox></object>"
)


@pytest.mark.parametrize("use_07_metric", [False, True])
def test_equal_at_every_threshold(tmp_path, use_07_metric):
    pytest.importorskip("detectron2")
    voc_eval = importlib.import_module("detectron2.evaluation.pascal_voc_evaluation").voc_eval
    predictions, targets = random_case(num_images=60, seed=11)
    (tmp_path / "list.txt").write_text("".join(f"{i:04d}\n" for i in range(60)))
    for i, t in enumerate(targets):
        objects = (
            OBJECT.format(*box.astype(int), name=f"class{label}", difficult=bool(difficult))
            for box, label, difficult in zip(t["boxes"], t["labels"], t["difficult"])
        )
        (tmp_path / f"{i:04d}.xml").write_text(f"<annotation>{''.join(objects)}</annotation>")
    for label in range(4):
        rows = [
            " ".join([f"{i:04d}", repr(float(p["scores"][n])), *(repr(float(v)) for v in p["boxes"][n])])
            for i, p in enumerate(predictions)
            for n in np.flatnonzero(p["labels"] == label)
        ]
        (tmp_path / f"det_class{label}.txt").write_text("\n".join(rows))
    # The file's corners are pixels that belong to the box, hence inclusive.
    ours = voc_ap(
        predictions,
        targets,
        num_classes=4,
        iou_threshold=IOU_THRESHOLDS,
        use_07_metric=use_07_metric,
        inclusive=True,
    )
    for row, threshold in zip(ours, IOU_THRESHOLDS):
        for label in range(4):
            *_, oracle = voc_eval(
                str(tmp_path / "det_{}.txt"),
                str(tmp_path / "{}.xml"),
                str(tmp_path / "list.txt"),
                f"class{label}",
                ovthresh=threshold,
                use_07_metric=use_07_metric,
            )
            assert row[label] == pytest.approx(oracle, abs=1e-6)
