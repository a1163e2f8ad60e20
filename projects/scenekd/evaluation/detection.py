"""Detection by VOC's average precision: one call over lists, and one record per image.

Shape shorthand: N: detections of one image; M: its ground-truth boxes; C: object classes; T: IoU thresholds.

Boxes are continuous and 0-based, as everywhere in SceneKD, so a width is x2 − x1. That agrees exactly with
the devkit's rule (1-based corners that both belong to the box, widths x2 − x1 + 1), because loading subtracts
1 from xmin and ymin only: the widths and overlaps are the same numbers. ``inclusive=True`` applies the + 1,
for boxes that are still in the form of a VOC file.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .arrays import defined_mean, to_numpy
from .average_precision import PrecisionRecall
from .image_records import ImageRecords
from .matching_voc import Boxes, Matches, concatenate, match
from .statistics import Statistic, bootstrap_interval

IOU_THRESHOLDS = tuple(round(0.5 + 0.05 * i, 2) for i in range(10))


def voc_ap(
    predictions: Sequence[Mapping[str, Any]],
    targets: Sequence[Mapping[str, Any]],
    *,
    num_classes: int,
    iou_threshold: float | Sequence[float] = 0.5,
    use_07_metric: bool = False,
    inclusive: bool = False,
) -> np.ndarray:
    """Average precision per class by VOC's rules.

    Detections are taken by falling score over all images (stable). Each looks at the box of its class that it
    overlaps most. If that IoU is above the threshold, strictly, a first detection of the box is a true
    positive and a further one a false positive; on a "difficult" box it is neither. Everything else is a
    false positive.

    Args:
        predictions: per image ``boxes`` (N, 4) xyxy, ``scores`` (N,), ``labels`` (N,) in 0…C−1.
        targets: per image ``boxes`` (M, 4), ``labels`` (M,), and optionally ``difficult`` (M,) bool.
        num_classes: C.
        iou_threshold: in 0…1; or several, matched in one pass.
        use_07_metric: VOC2007's mean over eleven recall levels; otherwise the area under the curve.
        inclusive: widths are x2 − x1 + 1 (see the module).

    Returns:
        (C,) float64 in 0…1, or (T, C) for a sequence of thresholds; NaN for a class without countable ("not
        difficult") ground truth.

    Raises:
        ValueError: lists of different length, shapes that disagree, a value that is not finite, a box whose
            corners are swapped, a label outside 0…C−1, a threshold outside 0…1.
    """
    if len(predictions) != len(targets):
        raise ValueError(f"{len(predictions)} predictions for {len(targets)} targets")
    if num_classes < 1:
        raise ValueError(f"num_classes must be at least 1, got {num_classes}")
    several = not np.isscalar(iou_threshold)
    thresholds = [float(t) for t in np.atleast_1d(iou_threshold)]
    if not all(0 <= t <= 1 for t in thresholds):
        raise ValueError(f"iou_threshold must lie in 0…1, got {iou_threshold}")
    matches = _match_lists(predictions, targets, num_classes, inclusive)
    curve = PrecisionRecall(matches, num_classes)
    result = curve.average_precision(thresholds, use_07_metric=use_07_metric)
    return result if several else result[0]


def right_boxes(
    prediction: Mapping[str, Any], target: Mapping[str, Any], *, num_classes: int, iou_threshold: float = 0.5
) -> tuple[np.ndarray, np.ndarray]:
    """Which boxes of one image are true positives by VOC's rules, and which count at all.

    Args:
        prediction, target: as in :func:`voc_ap`.

    Returns:
        (N,) bool each, in the order of the prediction; a box on a "difficult" one does not count.
    """
    curve = PrecisionRecall(_match_lists([prediction], [target], num_classes, False), num_classes)
    right, counted = np.zeros((2, len(curve.order)), bool)
    right[curve.order], counted[curve.order] = curve.flags(iou_threshold)
    return right, counted


def _match_lists(
    predictions: Sequence[Mapping[str, Any]],
    targets: Sequence[Mapping[str, Any]],
    num_classes: int,
    inclusive: bool,
) -> Matches:
    detections = _flatten("prediction", predictions, num_classes)
    scores = _joined([to_numpy(p["scores"]) for p in predictions], np.float64)
    if scores.shape != detections.labels.shape or not np.isfinite(scores).all():
        raise ValueError("scores must be finite, one for each box")
    truth = _flatten("target", targets, num_classes)
    difficult = _joined(
        [to_numpy(t["difficult"]) if "difficult" in t else np.zeros(len(t["labels"]), bool) for t in targets],
        bool,
    )
    if difficult.shape != truth.labels.shape:
        raise ValueError("difficult must hold one value for each box")
    return match(detections, scores, truth, difficult, num_classes=num_classes, inclusive=inclusive)


def _joined(parts: list[np.ndarray], dtype: Any) -> np.ndarray:
    return np.concatenate([*parts, np.zeros(0)]).astype(dtype)


def _flatten(name: str, images: Sequence[Mapping[str, Any]], num_classes: int) -> Boxes:
    boxes = [to_numpy(image["boxes"]).reshape(-1, 4) for image in images]
    labels = [to_numpy(image["labels"]).reshape(-1) for image in images]
    lengths = [len(b) for b in boxes]
    if lengths != [len(x) for x in labels]:
        raise ValueError(f"a {name} needs one label for each box")
    flat_boxes = np.concatenate([*boxes, np.zeros((0, 4))]).astype(np.float64)
    flat_labels = _joined(labels, np.int64)
    if not np.isfinite(flat_boxes).all():
        raise ValueError(f"{name} boxes must be finite")
    if (flat_boxes[:, 2:] < flat_boxes[:, :2]).any():
        raise ValueError(f"{name} boxes must be (x1, y1, x2, y2) with x1 ≤ x2 and y1 ≤ y2")
    if flat_labels.size and not 0 <= flat_labels.min() <= flat_labels.max() < num_classes:
        raise ValueError(f"{name} labels must lie in 0…{num_classes - 1}")
    return Boxes(np.repeat(np.arange(len(images)), lengths), flat_labels, flat_boxes)


class DetectionRecords(ImageRecords[Matches]):
    """What VOC AP needs of every image.

    Args:
        classes: C names.
        use_07_metric, inclusive: as in :func:`voc_ap`.
    """

    def __init__(
        self, classes: Sequence[str], *, use_07_metric: bool = False, inclusive: bool = False
    ) -> None:
        super().__init__(classes)
        self.use_07_metric = use_07_metric
        self.inclusive = inclusive

    def add(self, image_id: str, prediction: Mapping[str, Any], target: Mapping[str, Any]) -> None:
        """Match one image (dicts as in :func:`voc_ap`); an image that is there already is left as it is."""
        if image_id not in self._records:
            matches = _match_lists([prediction], [target], len(self.classes), self.inclusive)
            self._records[image_id] = matches

    def summary(self, *, bootstrap: int = 0, seed: int = 0) -> dict[str, Any]:
        """Percentages; means are over the classes with countable ground truth, NaN where there is none.

        ``mAP`` and ``AP50``: VOC's mean AP at IoU .5, two names for one number; ``AP75``; ``AP``: the mean
        over IoU .50, .55 … .95; ``AP-<name>``: at IoU .5.

        Args:
            bootstrap: resamples of the images for the 95 % intervals ``mAP_interval``, ``AP50_interval`` and
                ``AP-<name>_interval`` = [low, high]; 0: none.
        """
        parts = self._sorted()
        curve = PrecisionRecall(concatenate(parts), len(self.classes))
        per_class = 100 * curve.average_precision(IOU_THRESHOLDS, use_07_metric=self.use_07_metric)
        means = defined_mean(per_class)
        result: dict[str, Any] = {
            "mAP": float(means[0]),
            "AP": float(means.mean()),
            "AP50": float(means[0]),
            "AP75": float(means[IOU_THRESHOLDS.index(0.75)]),
        }
        result.update({f"AP-{name}": float(ap) for name, ap in zip(self.classes, per_class[0])})
        if bootstrap:
            low, high = bootstrap_interval(
                self._statistic(curve, 100), len(parts), resamples=bootstrap, seed=seed
            )
            for k, key in enumerate(["mAP", *(f"AP-{name}" for name in self.classes)]):
                result[f"{key}_interval"] = [float(low[k]), float(high[k])]
            result["AP50_interval"] = list(result["mAP_interval"])
        return result

    def ap_statistic(self) -> Statistic:
        """AP at IoU .5 as a function of image weights: (B, I), in the order of the image ids → (B, 1 + C) in 0…1, the
        mean over the classes first."""
        return self._statistic(PrecisionRecall(concatenate(self._sorted()), len(self.classes)), 1)

    def _statistic(self, curve: PrecisionRecall, scale: float) -> Statistic:
        def statistic(weights: np.ndarray) -> np.ndarray:
            ap = scale * curve.weighted_average_precision(weights, 0.5, use_07_metric=self.use_07_metric)
            return np.concatenate([defined_mean(ap)[:, None], ap], axis=1)

        return statistic
