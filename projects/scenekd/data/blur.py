"""Gaussian blur of the image; labels stay."""

from __future__ import annotations

import dataclasses
import math

import cv2
import numpy as np

from ..sample import Sample


class Blur:
    """Blur with probability ``prob`` by a Gaussian of σ drawn evenly, in pixels of the image as it is.

    Args:
        prob: chance for each image. sigma: range of σ, above 0.

    Raises:
        ValueError: a range that is empty or not above 0.
    """

    def __init__(self, prob: float, *, sigma: tuple[float, float] = (0.1, 2.0)) -> None:
        if not 0.0 < sigma[0] <= sigma[1]:
            raise ValueError(f"sigma must be 0 < min ≤ max, got {sigma}")
        self.prob, self.sigma = prob, (float(sigma[0]), float(sigma[1]))

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        if rng.random() >= self.prob:
            return sample
        sigma = float(rng.uniform(*self.sigma))
        side = 2 * math.ceil(3 * sigma) + 1  # beyond 3 σ nothing is left that eight bits could show
        image = cv2.GaussianBlur(sample.image, (side, side), sigma, borderType=cv2.BORDER_REFLECT_101)
        return dataclasses.replace(sample, image=image)
