"""One evaluation of one data set: predictions in, percentages out. Used by both engines and by the tools.

Every image adds one record per task, keyed by its image id, so what a distributed sampler pads counts once.
Images without ground truth of a task are no part of that task's numbers.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from fvcore.common.config import CfgNode
from torch import Tensor

from ..data.coco import find_json
from ..data.records import Dataset, Record
from ..errors import UserError
from ..sample import Prediction
from .arrays import to_numpy
from .baseline import TrivialPredictor
from .classification import ClassificationRecords
from .coco_api import CocoRecords, CocoTruth
from .detection import DetectionRecords
from .error_analysis import ErrorRecords
from .hidden_objects import HiddenObjectRecords
from .image_records import ImageRecords
from .mask_records import MaskRecords
from .multi_label import MultiLabelRecords
from .semantic import SegmentationRecords

ERRORS = "bbox_errors"  # beside the tasks: what the wrong boxes are
TASKS = ("sem_seg", "bbox", "segm", "classification", "hidden_object", "multi_label")
METRIC_OF = {
    "detection": "bbox",
    "segmentation": "sem_seg",
    "instance_segmentation": "segm",
    "classification": "classification",
    "hidden_object": "hidden_object",
    "multi_label": "multi_label",
}
_HAS = {task: name for name, task in METRIC_OF.items()} | {ERRORS: "detection"}
BOX_METRICS = ("voc", "voc07", "coco")

logger = logging.getLogger(__name__)

State = dict[str, dict[str, Any]]


class Evaluator:
    """Scores predictions against the ground truth of ``dataset``.

    Args:
        dataset: its masks are read when their image is added.
        tasks: of :data:`TASKS`; what nothing is predicted for is left out of the summary.
        box_metric: ``voc`` (area), ``voc07`` (11 points), ``coco`` (pycocotools). Masks of boxes (``segm``) are
            always scored by pycocotools.
        bootstrap: resamples of the images for 95 % intervals; 0: none.
        seed: of the resamples.
        coco_truth: for ``coco``; by default made of the records.
        mask_truth: for ``segm``; by default the masks of the records, read when their image is added.
        error_analysis: with ``bbox``, tell the kinds of wrong boxes too (:mod:`.error_analysis`).
    """

    def __init__(
        self,
        dataset: Dataset,
        *,
        tasks: Sequence[str] = ("sem_seg", "bbox"),
        box_metric: str = "voc",
        bootstrap: int = 0,
        seed: int = 0,
        coco_truth: CocoTruth | None = None,
        mask_truth: CocoTruth | None = None,
        error_analysis: bool = False,
    ) -> None:
        for task in tasks:
            if task not in TASKS:
                raise UserError(f"TEST.METRICS: {task!r} is none of {', '.join(TASKS)}")
        if box_metric not in BOX_METRICS:
            raise UserError(f"TEST.BOX_METRIC: {box_metric!r} is none of {', '.join(BOX_METRICS)}")
        self.dataset = dataset
        self.tasks = tuple(tasks)
        self.box_metric = box_metric
        self.bootstrap, self.seed = bootstrap, seed
        self.coco_truth: CocoTruth | None = None
        if box_metric == "coco" and "bbox" in tasks:
            self.coco_truth = coco_truth or CocoTruth.from_records(dataset)
        self.mask_truth = mask_truth
        self.error_analysis = error_analysis and "bbox" in tasks
        self._by_id = {record.image_id: record for record in dataset.records}
        self.reset()

    @classmethod
    def from_config(cls, dataset: Dataset, cfg: CfgNode, tasks: Sequence[str] | None = None) -> Evaluator:
        """From ``TEST`` and ``SEED``; with ``BOX_METRIC coco`` a COCO data set's own json is the truth."""
        tasks = cfg.TEST.METRICS if tasks is None else tasks
        truth = None
        if cfg.TEST.BOX_METRIC == "coco" or "segm" in tasks:
            # Several data sets have several files with colliding ids: there the records are the truth.
            path = find_json(dataset.name, cfg.DATASETS.ROOT)
            truth = CocoTruth.from_json(path, dataset) if path is not None else None
        return cls(
            dataset,
            tasks=tasks,
            box_metric=cfg.TEST.BOX_METRIC,
            bootstrap=cfg.TEST.BOOTSTRAP,
            seed=cfg.SEED,
            coco_truth=truth,
            mask_truth=truth,
            error_analysis=cfg.TEST.ERROR_ANALYSIS,
        )

    def reset(self) -> None:
        """Forget all records."""
        classes = self.dataset.classes
        self._masks = SegmentationRecords(("background", *classes))
        self._boxes: DetectionRecords | CocoRecords = (
            DetectionRecords(classes, use_07_metric=self.box_metric == "voc07")
            if self.coco_truth is None
            else CocoRecords(classes, self.coco_truth)
        )
        self._objects = MaskRecords(classes, self.mask_truth)
        self._whole = ClassificationRecords(classes)
        self._hidden = HiddenObjectRecords(classes)
        self._shown = MultiLabelRecords(classes)
        every: dict[str, ImageRecords[Any]] = {
            "sem_seg": self._masks,
            "bbox": self._boxes,
            "segm": self._objects,
            "classification": self._whole,
            "hidden_object": self._hidden,
            "multi_label": self._shown,
        }
        self._records = {task: every[task] for task in self.tasks}
        self._errors = ErrorRecords(classes)
        if self.error_analysis:
            self._records[ERRORS] = self._errors

    def add(self, image_id: str, prediction: Prediction) -> None:
        """Record one image from a prediction at the image's original size."""
        logits = prediction.sem_seg
        self.add_arrays(
            image_id,
            boxes=prediction.boxes,
            labels=prediction.labels,
            scores=prediction.scores,
            masks=prediction.masks,
            sem_seg=None if logits is None else logits.argmax(0),
            class_scores=prediction.class_scores,
        )

    def add_arrays(
        self,
        image_id: str,
        *,
        boxes: np.ndarray | Tensor | None = None,
        labels: np.ndarray | Tensor | None = None,
        scores: np.ndarray | Tensor | None = None,
        masks: np.ndarray | Tensor | None = None,
        sem_seg: np.ndarray | Tensor | None = None,
        class_scores: np.ndarray | Tensor | None = None,
    ) -> None:
        """Record one image; None where the task is not predicted.

        Args:
            boxes, labels, scores: (N, 4) xyxy pixels of the original image, (N,), (N,).
            masks: (N, H, W) bool of the boxes, at the original size.
            sem_seg: (H, W) class indices at the original size.
            class_scores: (C,) logits of the whole image, or of the object that is hidden from it.

        Raises:
            ValueError: no such image in the data set.
            UserError: a prediction of the wrong size, not finite, or with an unknown class.
        """
        record = self._by_id.get(image_id)
        if record is None:
            raise ValueError(f"the data set {self.dataset.name} has no image {image_id!r}")
        try:
            if boxes is not None and "bbox" in self.tasks and record.has_boxes:
                prediction = {"boxes": boxes, "labels": labels, "scores": scores}
                target = {"boxes": record.boxes, "labels": record.labels}
                if record.difficult is not None:
                    target["difficult"] = record.difficult
                self._boxes.add(image_id, prediction, target)
                if self.error_analysis:
                    self._errors.add(image_id, prediction, target)
            if masks is not None and "segm" in self.tasks and record.has_instance_masks:
                self._add_objects(record, {"masks": masks, "labels": labels, "scores": scores})
            if sem_seg is not None and "sem_seg" in self.tasks and record.has_sem_seg:
                self._add_mask(image_id, to_numpy(sem_seg))
            if class_scores is not None and "classification" in self.tasks and record.class_label is not None:
                self._whole.add(image_id, class_scores, record.class_label)
            if class_scores is not None and "hidden_object" in self.tasks and record.hidden is not None:
                self._hidden.add(image_id, class_scores, record.hidden)
            if class_scores is not None and "multi_label" in self.tasks and record.presence is not None:
                self._shown.add(image_id, class_scores, record.presence)
        except ValueError as error:
            raise UserError(f"prediction for image {image_id}: {error}") from None

    def _add_mask(self, image_id: str, predicted: np.ndarray) -> None:
        if image_id in self._masks:
            return
        truth = self.dataset.read_sem_seg(self._by_id[image_id])
        if predicted.shape != truth.shape:
            raise ValueError(
                f"the map is {_size(predicted)}, the ground truth {_size(truth)} (height × width)"
            )
        self._masks.add(image_id, predicted, truth)

    def _add_objects(self, record: Record, prediction: dict[str, Any]) -> None:
        if record.image_id in self._objects:
            return
        target = None
        if self.mask_truth is None:
            target = {"boxes": record.boxes, "labels": record.labels, "difficult": record.difficult}
            target["masks"] = self.dataset.read_instance_masks(record)
        self._objects.add(record.image_id, prediction, target)

    def state(self) -> State:
        """The records of this process, for :meth:`merge` in another."""
        return {task: records.state() for task, records in self._records.items()}

    def merge(self, states: Sequence[Mapping[str, Mapping[str, Any]]]) -> None:
        """Take in the states of other processes (this one's may be among them)."""
        for state in states:
            for task, part in state.items():
                self._records[task].merge(part)

    def summarize(self) -> dict[str, dict[str, Any]]:
        """``{"sem_seg": {...}, "bbox": {...}, …}`` by :data:`TASKS`, in percent; see the ``summary`` of each task's
        records.

        Raises:
            UserError: images of the data set were not predicted.
        """
        result = {}
        for task, records in self._records.items():
            expected = [r.image_id for r in self.dataset.records if r.has(_HAS[task])]
            missing = [image_id for image_id in expected if image_id not in records]
            if not expected:
                logger.warning("%s: no image of %s has ground truth for it", task, self.dataset.name)
            elif 0 < len(missing) < len(expected):
                raise UserError(
                    f"{task}: {len(missing)} of {len(expected)} images of {self.dataset.name} were not "
                    f"predicted ({', '.join(missing[:3])}{', …' if len(missing) > 3 else ''}); "
                    "predict every image"
                )
            elif not missing:
                result[task] = records.summary(bootstrap=self.bootstrap, seed=self.seed)
        if not result:
            count, tasks = len(self.dataset.records), " or ".join(self.tasks)
            if not any(record.has(_HAS[task]) for record in self.dataset.records for task in self._records):
                raise UserError(
                    f"nothing to evaluate: none of the {count} images of {self.dataset.name} has ground truth of "
                    f"{tasks}; name another data set in DATASETS.TEST"
                )
            raise UserError(
                f"nothing to evaluate: none of the {count} images of {self.dataset.name} was predicted for {tasks}"
            )
        return result


def trivial_baseline(
    train_dataset: Dataset, test_dataset: Dataset, evaluator: Evaluator | None = None
) -> dict[str, dict[str, Any]]:
    """Score the predictor that looks at no image (:mod:`.baseline`), drawn from the training labels.

    Args:
        evaluator: of ``test_dataset``, without records; by default one with the default metrics.

    Returns:
        as :meth:`Evaluator.summarize`; a task without training labels is left out.

    Raises:
        ValueError: the data sets have different classes.
        UserError: no task has labels in both.
    """
    if train_dataset.classes != test_dataset.classes:
        raise ValueError("the training and the test set have different classes")
    evaluator = evaluator or Evaluator(test_dataset)
    predictor = TrivialPredictor(train_dataset)
    for record in test_dataset.records:
        evaluator.add_arrays(record.image_id, **predictor.predict(*record.size()))
    return evaluator.summarize()


def _size(mask: np.ndarray) -> str:
    return " × ".join(map(str, mask.shape))
