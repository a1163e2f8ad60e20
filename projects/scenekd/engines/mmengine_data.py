"""Our data sets in MMSegmentation's pipelines: the data set, and the transform that loads its labels.

A pipeline is LoadImageFromFile, SceneKDLoadAnnotations, SceneKDLoadTeacher (where there is one), SceneKDGeometry
around all transforms that move pixels, transforms of colours, SceneKDPack.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from fvcore.common.config import CfgNode
from mmcv.transforms import BaseTransform
from mmengine.dataset import BaseDataset

from ..config import add_scenekd_config
from ..data.catalog import Dataset, Record, load_datasets
from ..errors import BadRecordError, UserError
from ..evaluation.evaluator import TASKS, Evaluator
from ..sample import IGNORE_INDEX
from .mmengine_track import BOXES, start_track

DATASET, RECORD = "scenekd_dataset", "scenekd_record"


def own_config(**nodes: Any) -> CfgNode:
    """Our configuration with some nodes set, from the keywords of an MMEngine config.

    Raises:
        UserError: a key that we do not have.
    """
    cfg = CfgNode()
    add_scenekd_config(cfg)
    cfg.SEED, cfg.OUTPUT_DIR = 0, "./output"
    cfg.SOLVER = CfgNode({"IMS_PER_BATCH": 1})
    _merge(cfg, nodes, "")
    return cfg


def _merge(node: CfgNode, values: dict[str, Any], path: str) -> None:
    for key, value in values.items():
        if key not in node:
            raise UserError(f"{path}{key}: no such key; choose from {', '.join(node)}")
        if isinstance(node[key], CfgNode):
            _merge(node[key], dict(value), f"{path}{key}.")
        else:
            node[key] = tuple(value) if isinstance(value, list) else value


def load_named(names: Sequence[str], options: dict[str, Any], *, train: bool) -> Dataset:
    """The data sets of SceneKD's catalog; ``options`` are the keys of ``DATASETS`` in lower case."""
    cfg = own_config(DATASETS={key.upper(): value for key, value in options.items()})
    return load_datasets(tuple(names), cfg, train=train)


def evaluator_of(
    names: Sequence[str],
    *,
    tasks: Sequence[str] = TASKS,
    box_metric: str = "voc",
    bootstrap: int = 0,
    **options: Any,
) -> Evaluator:
    """Our evaluator of data sets by name; ``options`` as in :class:`SceneKDDataset`."""
    data = load_named(names, options, train=False)
    return Evaluator(data, tasks=tuple(tasks), box_metric=box_metric, bootstrap=bootstrap)


class SceneKDDataset(BaseDataset):
    """A data set of SceneKD's catalog by name, with boxes and masks; images without one kind of label stay.

    Args:
        names: names as in ``DATASETS.TRAIN``; several are concatenated.
        pipeline: see the module.
        test_mode: as in MMEngine; ``keep_boxes`` and ``keep_sem_seg`` do not apply then.
        indices: as in MMEngine: only the first images, or those listed.
        options: the keys of ``DATASETS`` in lower case: root, classes, on_error, keep_boxes, keep_sem_seg,
            keep_seed, max_images.
    """

    def __init__(
        self,
        names: Sequence[str],
        pipeline: Sequence[Any] = (),
        *,
        test_mode: bool = False,
        indices: int | Sequence[int] | None = None,
        **options: Any,
    ) -> None:
        names = (names,) if isinstance(names, str) else tuple(names)
        self.dataset = load_named(names, options, train=not test_mode)
        colours = self.dataset.palette[: len(self.dataset.classes) + 1]
        metainfo = {
            "classes": ("background", *self.dataset.classes),
            "palette": [tuple(int(c) for c in colour) for colour in colours],
            "reduce_zero_label": False,
        }
        super().__init__(metainfo=metainfo, pipeline=list(pipeline), test_mode=test_mode, indices=indices)

    def load_data_list(self) -> list[dict[str, Any]]:
        """One entry an image; boxes and masks follow in SceneKDLoadAnnotations."""
        return [
            {
                "number": number,
                "image_id": record.image_id,
                "img_path": record.file_name,
                "seg_map_path": record.sem_seg_file,
                "reduce_zero_label": False,
                "seg_fields": [],
            }
            for number, record in enumerate(self.dataset.records)
        ]

    def get_data_info(self, idx: int) -> dict[str, Any]:
        """The entry of an image with its record, which is kept out of MMEngine's serialised list."""
        info = super().get_data_info(idx)
        return {**info, DATASET: self.dataset, RECORD: self.dataset.records[info["number"]]}


class SceneKDLoadAnnotations(BaseTransform):
    """Boxes and mask of an image of :class:`SceneKDDataset`.

    Adds gt_bboxes (N, 4) float32, gt_bboxes_labels (N,), gt_bboxes_scores (1.0), gt_bboxes_from_teacher,
    gt_bboxes_difficult, gt_seg_map (H, W) uint8 (255 everywhere where there is no mask), has_boxes, has_sem_seg.

    Raises:
        BadRecordError: the mask cannot be read, or the image has another size than its annotation.
    """

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        """The results with labels."""
        if RECORD not in results:
            raise UserError(
                "SceneKDLoadAnnotations: the data set must be a SceneKDDataset; else LoadAnnotations"
            )
        dataset, record = results[DATASET], results[RECORD]
        size = tuple(results["ori_shape"][:2])
        if record.height is not None and (record.height, record.width) != size:
            raise BadRecordError(
                f"{record.file_name}: read as {size[1]}×{size[0]}, its annotation says {record.width}×"
                f"{record.height}; give LoadImageFromFile color_type='color_ignore_orientation', or mend it"
            )
        results.update(has_boxes=record.has_boxes, has_sem_seg=record.has_sem_seg, **_boxes(record))
        if record.has_sem_seg:
            results["gt_seg_map"] = dataset.read_sem_seg(record, size)
        else:
            results["gt_seg_map"] = np.full(size, IGNORE_INDEX, np.uint8)
        results["seg_fields"].append("gt_seg_map")
        if tuple(results["img"].shape[:2]) == size:
            start_track(results)
        return results


def _boxes(record: Record) -> dict[str, np.ndarray]:
    boxes, labels, difficult = np.zeros((0, 4), np.float32), np.zeros(0, np.int64), np.zeros(0, bool)
    if record.boxes is not None and record.labels is not None and record.difficult is not None:
        keep = ~record.crowd if record.crowd is not None else np.ones(len(record.boxes), bool)
        boxes, labels, difficult = record.boxes[keep], record.labels[keep], record.difficult[keep]
    return box_fields(boxes, labels, np.ones(len(boxes)), False, difficult)


def box_fields(
    boxes: np.ndarray, labels: np.ndarray, scores: np.ndarray, teacher: bool, difficult: np.ndarray
) -> dict[str, np.ndarray]:
    """Boxes of one source as entries of MMSegmentation's results."""
    return {
        BOXES: np.asarray(boxes, np.float32),
        f"{BOXES}_labels": np.asarray(labels, np.int64),
        f"{BOXES}_scores": np.asarray(scores, np.float32),
        f"{BOXES}_from_teacher": np.full(len(boxes), teacher),
        f"{BOXES}_difficult": np.asarray(difficult, bool),
    }
