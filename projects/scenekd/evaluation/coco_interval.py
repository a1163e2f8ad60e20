"""Bootstrap intervals of COCO AP, from the matches that pycocotools made once.

Shape shorthand: D: detections of one class; T: IoU thresholds; C: classes; B: resamples; I: images.
"""

from __future__ import annotations

import numpy as np
from pycocotools.cocoeval import COCOeval

from .arrays import defined_mean
from .average_precision import weighted_ap
from .statistics import Statistic, bootstrap_interval


def coco_ap_interval(evaluation: COCOeval, *, resamples: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """95 % percentile interval under resampling of the images; AP over all areas, IoU .50 to .95, in 0…1.

    Args:
        evaluation: after ``evaluate()``.

    Returns:
        low, high: (1 + C,), the mean over the classes first, then the classes in order of their category id.
    """
    statistic, images = coco_ap_statistic(evaluation), len(evaluation.params.imgIds)
    return bootstrap_interval(statistic, images, resamples=resamples, seed=seed)


def coco_ap_statistic(evaluation: COCOeval) -> Statistic:
    """COCO AP as a function of image weights: (B, I), in the order of the evaluation's image ids → (B, 1 + C) in 0…1,
    the mean over the classes first.

    Args:
        evaluation: after ``evaluate()``.
    """
    outcomes = [_outcomes(evaluation, k) for k in range(len(evaluation.params.catIds))]
    levels = np.asarray(evaluation.params.recThrs)

    def statistic(weights: np.ndarray) -> np.ndarray:
        per_class = np.stack(
            [
                np.mean(
                    [
                        weighted_ap(p, c, image, truth_images, weights, levels)
                        for p, c in zip(positive, counted)
                    ],
                    axis=0,
                )
                for positive, counted, image, truth_images in outcomes
            ],
            axis=1,
        )
        return np.concatenate([defined_mean(per_class)[:, None], per_class], axis=1)

    return statistic


def _outcomes(evaluation: COCOeval, k: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Class k by falling score: positive, counted (T, D) bool; image (D,); image of each countable box."""
    images, areas = len(evaluation.params.imgIds), len(evaluation.params.areaRng)
    # evalImgs is ordered by category, area range (the first is "all"), image; None where there is nothing.
    start = k * areas * images
    found = [(i, e) for i, e in enumerate(evaluation.evalImgs[start : start + images]) if e is not None]
    thresholds = len(evaluation.params.iouThrs)
    scores = np.concatenate([*(e["dtScores"] for _, e in found), np.zeros(0)])
    order = np.argsort(-scores, kind="stable")
    image = np.repeat([i for i, _ in found], [len(e["dtScores"]) for _, e in found])[order].astype(np.int64)
    none = np.zeros((thresholds, 0), bool)
    matched = np.concatenate([*(e["dtMatches"] > 0 for _, e in found), none], axis=1)[:, order]
    ignored = np.concatenate([*(e["dtIgnore"].astype(bool) for _, e in found), none], axis=1)[:, order]
    countable = [int(np.sum(e["gtIgnore"] == 0)) for _, e in found]
    truth_images = np.repeat([i for i, _ in found], countable).astype(np.int64)
    return matched & ~ignored, ~ignored, image, truth_images
