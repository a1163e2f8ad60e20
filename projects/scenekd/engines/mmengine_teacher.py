"""Teachers in MMSegmentation's pipelines."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
from mmcv.transforms import BaseTransform

from ..data.box_sources import check_plain_boxes
from ..data.instance_masks import match_boxes, unknown_masks
from ..data.policy import build_policy
from ..data.soft import check_target
from ..errors import UserError
from ..sample import TASKS, SourceWeights
from ..teachers.build import open_store
from ..teachers.protocol import InstanceDetections, InstanceStore
from .mmengine_annotations import box_fields
from .mmengine_data import DATASET, image_id_of, own_config
from .mmengine_track import BOXES, MASKS, start_track

SOFT, TARGET, WEIGHTS = "scenekd_soft", "scenekd_target", "scenekd_weights"
FORM = "scenekd_soft_form"  # of what is packed
LOSS_KEYS = (
    "TEMPERATURE",
    "TEMPER_STUDENT",
    "CONFIDENCE",
    "TOP_K",
    "TAIL",
    "VOID",
)  # of DISTILL, read by the criterion


class SceneKDLoadTeacher(BaseTransform):
    """What teachers say of an image, read from their stores by its id (else the stem of its path).

    Args:
        teacher: ``TEACHER`` of our configuration, by its keys: ``dict(SEGMENTATION=dict(TYPE='folder', …))``.
        distill: ``DISTILL`` likewise; ``POLICY`` is fill_missing by default. ``per_batch`` needs SceneKD's own
            loader. fixed_subset needs a SceneKDDataset.
        classes: class names without background; empty: the 20 of VOC.

    Raises:
        UserError: no such store, one for other classes, or a policy that cannot be had here.
    """

    def __init__(
        self,
        teacher: dict[str, Any],
        distill: dict[str, Any] | None = None,
        classes: Sequence[str] = (),
    ) -> None:
        chosen = {task: {"POLICY": "fill_missing"} for task in teacher}
        for task, options in (distill or {}).items():
            for key in options:
                if key in LOSS_KEYS:
                    raise UserError(
                        f"SceneKDLoadTeacher: DISTILL.{task}.{key} is the loss's; give it to the model, such as "
                        f"SoftLabelCrossEntropy({key.lower()}=...)"
                    )
            chosen[task] = {**chosen.get(task, {}), **options}
        self.cfg = own_config(TEACHER=teacher, DISTILL=chosen, DATASETS={"CLASSES": tuple(classes)})
        for task, node in chosen.items():
            if node.get("POLICY") == "per_batch":
                raise UserError(f"DISTILL.{task}.POLICY: per_batch needs SceneKD's own loader; use combined")
        check_plain_boxes(self.cfg)
        self.stores = {task.lower(): open_store(self.cfg, task.lower()) for task in teacher}
        self._policy: Any = None

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        """The results with teachers' boxes, dense output and source weights."""
        image_id = image_id_of(results)
        has = {task: image_id in store for task, store in self.stores.items()}
        labels = {
            "detection": results.get("has_boxes", BOXES in results),
            "segmentation": results.get("has_sem_seg", "gt_seg_map" in results),
            "instance_segmentation": results.get("has_instance_masks", False),
        }
        available = {task: (there, has.get(task, False)) for task, there in labels.items()}
        weights: SourceWeights = self._policy_for(results).choose(image_id, 0, available)
        results.update(
            {"image_id": image_id, WEIGHTS: weights, "has_teacher_boxes": has.get("detection", False)}
        )
        results["has_teacher_masks"] = has.get("instance_segmentation", False)
        start_track(results)
        theirs = None
        if weights["instance_segmentation"][1] > 0:
            store = cast(InstanceStore, self.stores["instance_segmentation"])
            theirs = store.get_instances(image_id).keep(
                self.cfg.DISTILL.INSTANCE_SEGMENTATION.MIN_SCORE, None
            )
        if weights.detection_teacher > 0 or theirs is not None:
            self._add_boxes(results, image_id, None if weights.detection_teacher > 0 else theirs)
        if theirs is not None:
            self._add_masks(results, theirs)
        if weights.segmentation_teacher > 0:
            node = self.cfg.TEACHER.SEGMENTATION
            results[SOFT] = self.stores["segmentation"].get_segmentation(image_id)
            results[TARGET] = (self.cfg.DISTILL.SEGMENTATION.TARGET, node.BACKGROUND)
            check_target(results[SOFT].form, *results[TARGET])
        return results

    def _policy_for(self, results: dict[str, Any]) -> Any:
        if self._policy is None:
            dataset = results.get(DATASET)
            nodes = [self.cfg.DISTILL[task.upper()] for task in TASKS]
            if dataset is None and any(node.POLICY == "fixed_subset" for node in nodes):
                raise UserError("DISTILL: fixed_subset needs the ids of the whole set; use a SceneKDDataset")
            ids = () if dataset is None else dataset.image_ids
            self._policy = build_policy(self.cfg, ids, self.stores)
        return self._policy

    def _add_boxes(self, results: dict[str, Any], image_id: str, theirs: InstanceDetections | None) -> None:
        """The boxes of the detection teacher, or ``theirs``, those of the teacher of masks."""
        node = self.cfg.DISTILL.DETECTION if theirs is None else self.cfg.DISTILL.INSTANCE_SEGMENTATION
        found = self.stores["detection"].get_detections(image_id) if theirs is None else theirs
        found = found.keep(node.MIN_SCORE, None)
        boxes, labels, scores = found.boxes, found.labels, found.scores
        if not node.USE_CONFIDENCE:
            scores = np.ones_like(scores)
        none = np.zeros(len(boxes), bool)
        for key, value in box_fields(boxes, labels, scores, True, none).items():
            before = results.get(key)
            results[key] = value if before is None else np.concatenate([before, value])

    @staticmethod
    def _add_masks(results: dict[str, Any], theirs: InstanceDetections) -> None:
        """Masks on the teachers' boxes, beside those that the ground truth has."""
        boxes = results[BOXES]
        masks = unknown_masks(len(boxes), theirs.size)
        own = results.get(MASKS)
        if own is not None:
            masks[: len(own)] = own
        places = np.flatnonzero(results[f"{BOXES}_from_teacher"])
        labels = results[f"{BOXES}_labels"]
        found = match_boxes(boxes[places], labels[places], theirs.boxes, theirs.labels)
        masks[places[found >= 0]] = theirs.masks(found[found >= 0])
        results[MASKS] = masks
