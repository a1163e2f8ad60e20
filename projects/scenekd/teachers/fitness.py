"""How much a segmentation teacher's soft labels tell of the true ones, known before anyone learns from them.

A student is asked for the teacher's target: whatever form, temperature, background slot or sparsity the configuration
gives it. On the labelled images that target can be read as a forecast of the label. Its information is the share of
the label's uncertainty that it takes away,

    information = 1 − NLL(target) / NLL(class frequencies)

1 for the labels themselves, 0 for a target that knows no more than how frequent each class is, negative for one that
misleads: the thesis's uniform vector on the background does. (A skill score of the logarithmic kind, Good 1952; that it
foretells a student's gain is measured by the studies, not assumed.)

K: dense classes, background first.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ..data.mapper import Mapper
from ..data.policy import SourcePolicy, TaskPolicy
from ..data.records import Dataset
from ..losses.soft_label import pixel_confidence, soft_target
from ..losses.top_k import spread_tail
from ..sample import IGNORE_INDEX
from .protocol import TeacherStore

_LEAST = 1e-6  # a class that the target excludes costs ln 1e6, not infinity
_BOTH = SourcePolicy(TaskPolicy("ground_truth"), TaskPolicy("combined"))


@dataclass(frozen=True)
class Fitness:
    """What the target says of the labels, over ``pixels`` labelled pixels of ``images`` images, each pixel with the
    weight that ``DISTILL.SEGMENTATION.CONFIDENCE`` gives it.

    Attributes:
        information: see the module. accuracy: share of pixels whose likeliest class is the label, 0…1.
        nll, prior_nll: nats a pixel, of the target and of the class frequencies in these very labels.
    """

    information: float
    accuracy: float
    nll: float
    prior_nll: float
    pixels: int
    images: int


def segmentation_fitness(
    dataset: Dataset, store: TeacherStore, cfg: Any, *, max_images: int = 200
) -> Fitness | None:
    """The fitness of the target that ``cfg`` makes of the teacher in ``store``; None where no image has both.

    Args:
        dataset: labelled images, as the student will have them (its training set after ``KEEP_SEM_SEG``).
        max_images: the first so many of them that have a mask and a saved output.
    """
    mapper = Mapper(dataset, cfg, train=False, teachers={"segmentation": store}, policy=_BOTH)
    labelled = [i for i, r in enumerate(dataset.records) if r.has_sem_seg and r.image_id in store]
    nll = correct = 0.0
    pixels = 0
    counts = np.zeros(len(dataset.classes) + 1)
    for index in labelled[:max_images]:
        _, target = mapper(index)
        assert target.soft_seg is not None and target.sem_seg is not None
        keep = target.sem_seg != IGNORE_INDEX
        wanted, weight = _wanted(target.soft_seg[:, keep].T, cfg.DISTILL.SEGMENTATION)
        labels = target.sem_seg[keep]
        nll -= float((weight * wanted.gather(1, labels[:, None])[:, 0].clamp(min=_LEAST).log()).sum())
        correct += float((weight * (wanted.argmax(dim=1) == labels)).sum())
        counts += np.bincount(labels.numpy(), weight.double().numpy(), minlength=len(counts))
        pixels += len(labels)
    total = counts.sum()
    if not total:
        return None
    frequency = counts[counts > 0] / total
    prior = float(-(frequency * np.log(frequency)).sum())
    mean = nll / total
    information = 1 - mean / prior if prior > 0 else float("nan")
    return Fitness(information, correct / total, mean, prior, pixels, len(labelled[:max_images]))


def _wanted(values: torch.Tensor, node: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """(P, K) values of P pixels as the distribution that the loss asks for, and (P,) how much each pixel weighs."""
    wanted = soft_target(values, temperature=node.TEMPERATURE, target_is=node.TARGET)
    weight = pixel_confidence(values[..., None, None], target_is=node.TARGET, confidence=node.CONFIDENCE)
    return spread_tail(wanted, node.TOP_K) if node.TOP_K else wanted, weight[:, 0, 0]
