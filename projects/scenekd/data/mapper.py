"""From a record to what the network is told: read, choose sources, augment, make tensors."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ..errors import BadRecordError
from ..hidden import ALSO
from ..sample import TASKS, Sample, SourceWeights, Target
from ..sampling import draw_rng, record_index
from .box_sources import BoxSources
from .images import read_image
from .instance_masks import match_boxes, sample_masks, unknown_masks
from .memory import Memory
from .policy import GROUND_TRUTH, SourcePolicy, build_policy
from .records import Dataset, Record
from .soft import check_target, convert_soft, sample_soft, thin_out
from .transforms import Transform, build_transforms, identity_coordinates

if TYPE_CHECKING:
    from ..teachers.protocol import InstanceDetections

INSTANCES = "instance_segmentation"

logger = logging.getLogger(__name__)


class Mapper:
    """Maps a draw (training) or a record (testing) to an image and its target.

    Args:
        dataset: the records.
        train: indices are global draw indices: the record and the augmentation follow from (SEED, index).
            Otherwise they are record indices, and the image is only resized.
        teachers: a store for each task that the policy takes from a teacher.
        policy: by default built from ``cfg.DISTILL`` in training; ground truth alone in testing.
        soft_size: (h, w) at which the soft target is sampled; by default the network input's size.
        transforms: instead of those of ``cfg.INPUT``.
        instance_masks: whether masks of boxes are wanted; reading them takes time.
    """

    def __init__(
        self,
        dataset: Dataset,
        cfg: Any,
        *,
        train: bool,
        teachers: Mapping[str, Any] | None = None,
        policy: SourcePolicy | None = None,
        soft_size: tuple[int, int] | None = None,
        transforms: Transform | None = None,
        instance_masks: bool = False,
    ) -> None:
        self.dataset, self.train, self.seed, self.soft_size = dataset, train, cfg.SEED, soft_size
        self.teachers = dict(teachers or {})
        if policy is None:
            policy = build_policy(cfg, dataset.image_ids, self.teachers) if train else GROUND_TRUTH
        self.policy = policy
        self.transforms = transforms or build_transforms(cfg, train)
        self.skip_bad = cfg.DATASETS.ON_ERROR == "skip"
        self.box_sources = BoxSources(cfg)
        if train:
            self.box_sources.check_teacher("detection" in self.teachers)
        self.instance_masks = instance_masks
        self.mask_min_score = cfg.DISTILL.INSTANCE_SEGMENTATION.MIN_SCORE
        self.soft_target = cfg.DISTILL.SEGMENTATION.TARGET
        self.void = cfg.DISTILL.SEGMENTATION.VOID
        self.background = cfg.TEACHER.SEGMENTATION.BACKGROUND
        self.asks_online = train and cfg.DISTILL.TEACHER == "online"
        self._memory = Memory(cfg.DATASETS.CACHE_MB if train else 0)
        # In shared memory: the data workers, who read, and the process itself see one account.
        self._unusable = torch.zeros(len(dataset), dtype=torch.bool).share_memory_()

    def __len__(self) -> int:
        return len(self.dataset)

    def __call__(self, index: int) -> tuple[Tensor, Target]:
        """(3, h, w) uint8 RGB and its target; with a fourth channel, 255 in the hole, where an object is hidden.

        Raises:
            BadRecordError: the image is unusable; with ``ON_ERROR: skip`` only if all are.
        """
        sample = self.sample(index)
        return torch.from_numpy(network_pixels(sample)), self._target(sample)

    def sample(self, index: int) -> Sample:
        """The augmented sample of a draw, before it becomes tensors."""
        start = record_index(self.seed, index, len(self)) if self.train else index
        for step in range(len(self)):
            # an unusable image gives way to the next one of the list, whatever the worker
            position = (start + step) % len(self)
            try:
                sample = self._read(self.dataset.records[position], index)
            except BadRecordError as error:
                if not self.skip_bad:
                    raise
                self._note(position, error)
                continue
            return self._augment(sample, self.dataset.records[position], index)
        raise BadRecordError(f"{self.dataset.name}: none of its {len(self)} images can be read")

    def _augment(self, sample: Sample, record: Record, index: int) -> Sample:
        """The sample as draw ``index`` shows it; a subclass may do more to it."""
        return self.transforms(sample, draw_rng(self.seed, index))

    @property
    def skipped(self) -> set[str]:
        """Ids of the images that were found unusable, by this process and all its data workers."""
        return {self.dataset.records[i].image_id for i in self._unusable.nonzero().flatten().tolist()}

    def mark_skipped(self, image_ids: Collection[str]) -> None:
        """Take over what other processes, or the run before a resume, have found unusable."""
        for i, record in enumerate(self.dataset.records if image_ids else ()):
            if record.image_id in image_ids:
                self._unusable[i] = True

    def _note(self, position: int, error: BadRecordError) -> None:
        if not self._unusable[position]:
            self._unusable[position] = True
            logger.warning("skipped (%d so far): %s", int(self._unusable.sum()), error)

    def _read(self, record: Record, index: int) -> Sample:
        key, keep = record.image_id, self._memory.get
        image = keep(("image", key), lambda: read_image(record), _nbytes)
        height, width = image.shape[:2]
        if record.height is not None and (record.height, record.width) != (height, width):
            raise BadRecordError(
                f"{record.file_name}: the image is {width}×{height}, its annotation says "
                f"{record.width}×{record.height}; mend one of them"
            )
        tasks = TASKS if self.instance_masks else tuple(t for t in TASKS if t != INSTANCES)
        available = {t: (record.has(t), record.image_id in self.teachers.get(t, ())) for t in tasks}
        weights = self.policy.choose(record.image_id, index, available)
        sample = Sample(
            image=image,
            image_id=record.image_id,
            has_boxes=record.has_boxes,
            has_sem_seg=record.has_sem_seg,
            has_instance_masks=available.get(INSTANCES, (False, False))[0],
            has_class_label=record.has_class_label,
            has_teacher_boxes=available["detection"][1],
            has_teacher_masks=available.get(INSTANCES, (False, False))[1],
            weights=weights,
            file_name=record.file_name,
            presence=record.presence,
        )
        theirs = self._teacher_masks(record) if weights[INSTANCES][1] > 0 else None
        for name, array in self._boxes(record, weights, theirs).items():
            setattr(sample, name, array)
        if weights[INSTANCES][0] > 0 or theirs is not None:
            sample.masks = self._masks(record, sample, theirs)
        # A mask without weight still tells which of the teacher's pixels are void.
        void_labels = self.void == "labels" and weights.segmentation_teacher > 0 and record.has_sem_seg
        if weights.segmentation_gt > 0 or void_labels:
            size = (height, width)
            sample.sem_seg = keep(("mask", key), lambda: self.dataset.read_sem_seg(record, size), _nbytes)
        if weights["classification"][0] > 0:
            sample.class_label = record.class_label
        if weights.segmentation_teacher > 0:
            store = self.teachers["segmentation"]
            sample.soft_seg = keep(
                ("teacher", key), lambda: store.get_segmentation(key), lambda soft: soft.values.nbytes
            )
            check_target(sample.soft_seg.form, self.soft_target, self.background)
        return sample

    def _boxes(
        self, record: Record, weights: SourceWeights, theirs: InstanceDetections | None
    ) -> dict[str, np.ndarray]:
        """Boxes of the sources that count; one that does not must not steer the crop either.

        The teacher's boxes are the detection teacher's where it counts, else those of ``theirs``.
        """
        sources, parts = self.box_sources, [self.box_sources.none()]
        if max(weights.detection_gt, weights[INSTANCES][0]) > 0 and record.boxes is not None:
            keep = no_crowd(record)
            boxes, labels, difficult = record.boxes[keep], _given(record.labels), _given(record.difficult)
            parts.append(sources.ground_truth(boxes, labels[keep], difficult[keep]))
        asked = weights.detection_teacher > 0
        doubts = sources.doubts and (asked or (sources.doubts_of_ground_truth and weights.detection_gt > 0))
        found, store = None, self.teachers.get("detection")
        if (asked or doubts) and store is not None and record.image_id in store:
            found = store.get_detections(record.image_id)
        if asked and found is not None:
            parts.append(sources.teacher(found))
        elif theirs is not None:
            parts.append(sources.of_masks(theirs))
        columns = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        if doubts and found is not None:
            columns |= {"doubtful_boxes": found.boxes, "doubtful_scores": found.scores}
        return columns

    def _teacher_masks(self, record: Record) -> InstanceDetections:
        found: InstanceDetections = self.teachers[INSTANCES].get_instances(record.image_id)
        return found.keep(self.mask_min_score, None)

    def _masks(self, record: Record, sample: Sample, theirs: InstanceDetections | None) -> np.ndarray:
        """The masks of the sample's boxes: the record's, and ``theirs`` on the teacher's boxes, whichever
        teacher gave these."""
        size = sample.image.shape[:2]
        masks = unknown_masks(len(sample.boxes), (size[0], size[1]))
        if sample.weights[INSTANCES][0] > 0:
            own = self.dataset.read_instance_masks(record, (size[0], size[1]))
            masks[~sample.from_teacher] = own[no_crowd(record)]
        if theirs is not None:
            places = np.flatnonzero(sample.from_teacher)
            found = match_boxes(sample.boxes[places], sample.labels[places], theirs.boxes, theirs.labels)
            masks[places[found >= 0]] = theirs.masks(found[found >= 0])
        return masks

    def _target(self, sample: Sample) -> Target:
        soft_seg = soft_valid = masks = None
        size = sample.image.shape[:2]
        field = sample.coordinates if sample.coordinates is not None else identity_coordinates(*size)
        if sample.masks is not None:
            masks = torch.from_numpy(sample_masks(sample.masks, field, self.soft_size))
        if sample.soft_seg is not None:
            values, valid = sample_soft(sample.soft_seg, field, self.soft_size, self.background)
            soft_seg = torch.from_numpy(convert_soft(values, sample.soft_seg.form, self.soft_target))
            soft_valid = torch.from_numpy(valid)
        elif self.asks_online:
            soft_valid = torch.from_numpy(thin_out(field, self.soft_size)[1])
        hidden = sample.hidden
        return Target(
            image_id=sample.image_id,
            boxes=torch.from_numpy(sample.boxes),
            labels=torch.from_numpy(sample.labels),
            confidences=torch.from_numpy(sample.confidences),
            from_teacher=torch.from_numpy(sample.from_teacher),
            difficult=torch.from_numpy(sample.difficult),
            masks=masks,
            sem_seg=None if sample.sem_seg is None else torch.from_numpy(sample.sem_seg).long(),
            soft_seg=soft_seg,
            soft_valid=soft_valid,
            class_label=sample.class_label,
            has_class_label=sample.has_class_label,
            has_boxes=sample.has_boxes,
            has_sem_seg=sample.has_sem_seg,
            has_instance_masks=sample.has_instance_masks,
            has_teacher_boxes=sample.has_teacher_boxes,
            has_teacher_masks=sample.has_teacher_masks,
            weights=sample.weights,
            height=sample.height,
            width=sample.width,
            file_name=sample.file_name,
            class_probabilities=_tensor(sample.class_probabilities),
            box_weights=_tensor(sample.box_weights),
            doubtful_boxes=_tensor(sample.doubtful_boxes),
            doubtful_scores=_tensor(sample.doubtful_scores),
            hidden=None if hidden is None else hidden.place,
            visible=None if hidden is None else torch.from_numpy(hidden.visible),
            hidden_classes=None if hidden is None else torch.from_numpy(hidden.classes),
            presence=_tensor(sample.presence),
        )


def network_pixels(sample: Sample) -> np.ndarray:
    """(3, H, W) uint8 RGB of a sample; with a fourth channel, 255 in the hole, where an object is hidden."""
    channels = 3 if sample.hidden is None else 4
    pixels = np.empty((channels, *sample.image.shape[:2]), np.uint8)
    pixels[:3] = sample.image.transpose(2, 0, 1)
    if sample.hidden is not None:
        np.multiply(sample.hidden.hole, np.uint8(255), out=pixels[3])
        if sample.hidden.also is not None:
            pixels[3][sample.hidden.also & ~sample.hidden.hole] = ALSO
    return pixels


def _tensor(array: np.ndarray | None) -> Tensor | None:
    return None if array is None else torch.from_numpy(array)


def _nbytes(array: np.ndarray) -> int:
    return array.nbytes


def no_crowd(record: Record) -> np.ndarray:
    """(N,) bool: the boxes of single objects."""
    return ~_given(record.crowd) if record.crowd is not None else np.ones(len(_given(record.boxes)), bool)


def _given(array: np.ndarray | None) -> np.ndarray:
    if array is None:
        raise ValueError("a record with boxes needs labels and difficult flags")
    return array


def collate(batch: Sequence[tuple[Tensor, Target]]) -> tuple[Tensor, list[Target]]:
    """(B, 3, H, W) float32 RGB 0…255 (with a hole: 4 channels) and the targets."""
    return torch.stack([image for image, _ in batch]).float(), [target for _, target in batch]
