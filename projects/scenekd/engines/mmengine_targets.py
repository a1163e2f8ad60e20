"""What a batch of MMSegmentation's data samples tells a segmentor: masks of some images, teachers' outputs of some.

N: images; m: images with a mask; n: images with a teacher's output; K: dense classes; H, W: size of the batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from mmseg.structures import SegDataSample
from torch import Tensor

from ..errors import UserError
from ..losses.positions import IGNORE_INDEX
from ..sample import SourceWeights
from .mmengine_teacher import FORM, WEIGHTS

BOTH = SourceWeights(segmentation_gt=1.0, segmentation_teacher=1.0)  # where no policy chose


@dataclass
class Masks:
    """Masks of the images that have one and learn from it.

    Attributes:
        images: (m,) their places in the batch. labels: (m, H, W). weights: one an image, above 0.
    """

    images: list[int]
    labels: Tensor
    weights: list[float]


@dataclass
class SoftTargets:
    """A teacher's outputs of the images that have one and learn from it.

    Attributes:
        images: (n,) their places in the batch. values: (n, K, H, W). valid: (n, H, W) bool. weights: (n,).
        form: logits, probabilities or scores; empty where a pipeline does not tell.
    """

    images: list[int]
    values: Tensor
    valid: Tensor
    weights: Tensor
    form: str


def weights_of(sample: SegDataSample) -> SourceWeights:
    """The weights of the sources that SceneKDLoadTeacher chose for an image; 1 where there was none."""
    weights: SourceWeights = sample.metainfo.get(WEIGHTS, BOTH)
    return weights


def masks_of(samples: Sequence[SegDataSample], size: tuple[int, int]) -> Masks:
    """The masks of a batch. ``has_sem_seg`` tells which exist; without it, ``gt_sem_seg`` does.

    Raises:
        UserError: a mask has another size than the batch.
    """
    images, labels, weights = [], [], []
    for i, sample in enumerate(samples):
        exists = sample.metainfo.get("has_sem_seg", "gt_sem_seg" in sample)
        weight = weights_of(sample).segmentation_gt
        if not exists or weight <= 0:
            continue
        mask = sample.gt_sem_seg.data
        if tuple(mask.shape[-2:]) != size:
            raise UserError(
                f"SceneKDEncoderDecoder: a mask is {tuple(mask.shape[-2:])}, its image {size}; load labels before "
                "the image is resized, and pad both in the data preprocessor (SegDataPreProcessor with size)"
            )
        images.append(i)
        labels.append(mask[0])
        weights.append(weight)
    stacked = torch.stack(labels) if labels else torch.zeros((0, *size), dtype=torch.long)
    return Masks(images, stacked, weights)


def labels_of(masks: Masks, count: int, ignore_index: int = IGNORE_INDEX) -> Tensor:
    """(N, H, W) labels of all ``count`` images of a batch; 255 where there is none.

    Args:
        ignore_index: what void is in the masks.
    """
    labels = masks.labels.new_full((count, *masks.labels.shape[1:]), IGNORE_INDEX)
    if masks.images:
        labels[masks.images] = masks.labels.masked_fill(masks.labels == ignore_index, IGNORE_INDEX)
    return labels


def soft_targets_of(samples: Sequence[SegDataSample], size: tuple[int, int]) -> SoftTargets | None:
    """The teachers' outputs that SceneKDPackInputs packed; None where there is none.

    A data preprocessor pads images to the right and below; there nothing is valid.

    Raises:
        UserError: an output has another size than its image.
    """
    images = [
        i for i, s in enumerate(samples) if "gt_soft_seg" in s and weights_of(s).segmentation_teacher > 0
    ]
    if not images:
        return None
    first = samples[images[0]].gt_soft_seg.data
    values = first.new_zeros((len(images), len(first), *size), dtype=torch.float32)
    valid = torch.zeros((len(images), *size), dtype=torch.bool, device=first.device)
    for place, i in enumerate(images):
        soft, shape = samples[i].gt_soft_seg.data, _shape(samples[i], size)
        if len(soft) != len(first) or tuple(soft.shape[1:]) != shape:
            raise UserError(
                f"SceneKDEncoderDecoder: a teacher's output is {tuple(soft.shape)}, its image {shape}; leave "
                "SceneKDPackInputs's soft_size unset"
            )
        values[place, :, : shape[0], : shape[1]] = soft
        valid[place, : shape[0], : shape[1]] = samples[i].gt_soft_valid.data[0].bool()
    weights = values.new_tensor([weights_of(samples[i]).segmentation_teacher for i in images])
    return SoftTargets(images, values, valid, weights, samples[images[0]].metainfo.get(FORM, ""))


def shown_of(samples: Sequence[SegDataSample], size: tuple[int, int], device: torch.device) -> Tensor:
    """(N, H, W) bool: the pixels that show the image, not a pipeline's or a data preprocessor's padding."""
    shown = torch.zeros((len(samples), *size), dtype=torch.bool, device=device)
    for i, sample in enumerate(samples):
        height, width = _shape(sample, size)
        part = shown[i, :height, :width]
        part[:] = sample.gt_shown.data[0].bool().to(device) if "gt_shown" in sample else True
    return shown


def _shape(sample: SegDataSample, size: tuple[int, int]) -> tuple[int, int]:
    """Height and width before the data preprocessor padded."""
    height, width = sample.metainfo.get("img_shape", size)[:2]
    return int(height), int(width)
