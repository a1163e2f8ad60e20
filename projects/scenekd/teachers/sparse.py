"""A dense teacher made sparse: what it would say if it were Mask R-CNN.

Mask R-CNN names objects: inside an object's mask the slot of its class holds the box confidence, everything else is 0.
To compare a sparse teacher with a dense one without comparing two networks, the dense output is cut into objects: the
connected regions of its likeliest class, background left out, each with its mean probability as confidence.

K: dense classes, background first; h, w: the teacher's own grid.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy import ndimage

from ..data.soft import convert_soft
from ..sample import SoftSegmentation
from .protocol import Detections, TeacherStore


def make_sparse(soft: SoftSegmentation) -> SoftSegmentation:
    """(K, h, w) ``scores``: each region of one likeliest class (4-connected) holds its mean probability, else 0.

    A teacher whose form is scores already is returned as it is.
    """
    if soft.form == "scores":
        return soft
    p = convert_soft(soft.values, soft.form, "probabilities")
    winner = p.argmax(axis=0)
    scores = np.zeros_like(p)
    for label in np.unique(winner[winner > 0]):
        regions, count = ndimage.label(winner == label)
        means = ndimage.mean(p[label], regions, np.arange(1, count + 1))
        inside = regions > 0
        scores[label][inside] = np.asarray(means, np.float32)[regions[inside] - 1]
    return SoftSegmentation(scores, "scores")


class SparseStore:
    """A store of dense outputs that gives them sparse (``TEACHER.SEGMENTATION.SPARSE``)."""

    def __init__(self, store: TeacherStore) -> None:
        self.store, self.classes = store, store.classes

    @property
    def info(self) -> dict[str, Any]:
        """Fields of the teacher; its form is scores."""
        return {**self.store.info, "form": "scores"}

    def __contains__(self, image_id: object) -> bool:
        return image_id in self.store

    def get_detections(self, image_id: str) -> Detections:
        """As the store has them."""
        return self.store.get_detections(image_id)

    def get_segmentation(self, image_id: str) -> SoftSegmentation:
        """The dense output of an image, made sparse."""
        return make_sparse(self.store.get_segmentation(image_id))
