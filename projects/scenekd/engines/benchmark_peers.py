"""The frameworks' own code that the benchmark measures ours against. Import it lazily."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor


def mmseg_accumulate(num_classes: int) -> Callable[[Sequence[tuple[Tensor, Tensor]]], np.ndarray]:
    """A function of (prediction, label) pairs, (H, W) int64 each: MMSegmentation's ``IoUMetric`` takes them
    in one by one; returns its (K,) intersections."""
    from mmseg.evaluation import IoUMetric

    def accumulate(pairs: Sequence[tuple[Tensor, Tensor]]) -> np.ndarray:
        metric = IoUMetric(iou_metrics=["mIoU"], prefix="iou")
        metric.dataset_meta = {"classes": tuple(str(k) for k in range(num_classes))}
        for pred, label in pairs:
            metric.process({}, [{"pred_sem_seg": {"data": pred[None]}, "gt_sem_seg": {"data": label[None]}}])
        return torch.stack([result[0] for result in metric.results]).sum(0).numpy()

    return accumulate


def mmseg_pipeline(crop: int) -> Callable[[str, str], Tensor]:
    """A function of an image's and a mask's path: MMSegmentation's training pipeline for VOC (read, random
    resize, crop, flip, photometric distortion, pack), scaled from 512 to ``crop`` pixels."""
    from mmcv.transforms import Compose, LoadImageFromFile, RandomFlip, RandomResize
    from mmseg.datasets.transforms import LoadAnnotations, PackSegInputs, PhotoMetricDistortion, RandomCrop

    pipeline = Compose(
        [
            LoadImageFromFile(),
            LoadAnnotations(),
            RandomResize(scale=(4 * crop, crop), ratio_range=(0.5, 2.0), keep_ratio=True),
            RandomCrop(crop_size=(crop, crop), cat_max_ratio=0.75),
            RandomFlip(prob=0.5),
            PhotoMetricDistortion(),
            PackSegInputs(),
        ]
    )

    def run(image: str, mask: str) -> Tensor:
        info = {"img_path": image, "seg_map_path": mask, "reduce_zero_label": False, "seg_fields": []}
        packed: Any = pipeline(info)
        return packed["inputs"]

    return run


def has_detectron2() -> bool:
    """Whether detectron2 is installed."""
    return importlib.util.find_spec("detectron2") is not None


def detectron2_voc_ap(folder: Path, classes: Sequence[str], thresholds: Sequence[float]) -> np.ndarray:
    """(T, C) AP by detectron2's ``voc_eval``, which parses the ground truth anew, once.

    Args:
        folder: holds ``Annotations/<id>.xml``, ``list.txt`` and the detections as ``det_<class>.txt``.
    """
    module = importlib.import_module("detectron2.evaluation.pascal_voc_evaluation")
    module.parse_rec.cache_clear()
    paths = [str(folder / name) for name in ("det_{}.txt", "Annotations/{}.xml", "list.txt")]
    return np.array([[module.voc_eval(*paths, name, ovthresh=t)[2] for name in classes] for t in thresholds])
