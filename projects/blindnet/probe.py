"""Ask a network what would stand in any part of any picture, whether or not an object is there.

N: regions; C: classes; H, W: the picture; S: network input.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from scenekd.data.holes import areas, extents
from scenekd.errors import UserError
from scenekd.models import predict
from scenekd.predictor import Predictor
from scenekd.sample import Sample
from scenekd.teachers.options import our_classes

from .augmentation import build_augmentation
from .config import KEY
from .hiding import Hider, case_rng, plain_sample
from .model import BlindNet


@dataclass
class Probed:
    """One region and what the network expects there.

    Attributes:
        box: (4,) pixels of the picture. probabilities: (C,). share: of the picture in the hole's bounds.
        shown: (H, W, 3) uint8, the picture, in its hole what the network saw there. hole: (H, W) bool.
    """

    box: np.ndarray
    probabilities: np.ndarray
    share: float
    shown: np.ndarray
    hole: np.ndarray


@dataclass
class Sweep:
    """What the network expects in a hole at each place of a grid.

    Attributes:
        size: (width, height) of the hole in pixels of the picture.
        x, y: (columns,), (rows,) centres of the hole. probabilities: (rows, columns, C).
    """

    size: tuple[float, float]
    x: np.ndarray
    y: np.ndarray
    probabilities: np.ndarray

    def over_picture(self, grid: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        """(H, W) values for a hole that is centred at each pixel, of those (rows, columns) at the places of the grid:
        bilinear between them, outside of them the nearest."""
        columns = np.interp(np.arange(size[1]) + 0.5, self.x, np.arange(len(self.x))).astype(np.float32)
        rows = np.interp(np.arange(size[0]) + 0.5, self.y, np.arange(len(self.y))).astype(np.float32)
        across = np.repeat(columns[None], size[0], axis=0)
        down = np.repeat(rows[:, None], size[1], axis=1)
        return cv2.remap(np.ascontiguousarray(grid, np.float32), across, down, cv2.INTER_LINEAR)


class Probe:
    """A trained network that regions are hidden from exactly as objects were in training: the same resize, then the
    same shape, margin and fill, on the network's input.

    Args:
        predictor: of a network of blindnet.

    Attributes:
        classes: C names. shares: (C,) of the training objects. shape: of the holes, the first of ``MASK.SHAPES`` (for
            ``segment``, which needs an object, the box).

    Raises:
        UserError: the network is no blindnet, or looks at the labels of other objects, which a picture has not.
    """

    def __init__(self, predictor: Predictor) -> None:
        net, cfg = predictor.net, predictor.cfg
        if cfg.SYSTEM != "blindnet" or not isinstance(net, BlindNet):
            raise UserError(
                f"--region and --sweep: the network is of SYSTEM {cfg.SYSTEM}; take one of blindnet"
            )
        if net.wants_targets:
            raise UserError(
                f"--region and --sweep: {KEY}.NETWORK {cfg.MODEL.BLINDNET.NETWORK} looks at labels, "
                "which a picture alone has not; take another network"
            )
        self.net, self.device, self.hider, self.seed = net, predictor.device, Hider.from_config(cfg), cfg.SEED
        self.classes, self.batch = our_classes(cfg), cfg.TEST.BATCH_SIZE
        self.shape = "box" if self.hider.shapes[0] == "segment" else self.hider.shapes[0]
        self._transforms = build_augmentation(cfg, train=False)

    @property
    def shares(self) -> np.ndarray:
        return self.net.class_shares.cpu().numpy()

    def regions(self, image: np.ndarray, boxes: np.ndarray, name: str) -> list[Probed]:
        """Each region hidden alone.

        Args:
            image: (H, W, 3) uint8 RGB. boxes: (N, 4) pixels inside it. name: of the picture; noise and blobs follow
                from it.
        """
        height, width = image.shape[:2]
        found = []
        probabilities = self.probabilities(image, boxes, name)
        x1, y1, x2, y2 = self._picture_in(image, name)
        for (hidden, moved), box, row in zip(self._hidden(image, boxes, name), boxes, probabilities):
            assert hidden.hidden is not None
            hole = hidden.hidden.hole
            cut = hole[y1:y2, x1:x2].astype(np.uint8)
            large = cv2.resize(cut, (width, height), interpolation=cv2.INTER_NEAREST).astype(bool)
            filled = cv2.resize(hidden.image[y1:y2, x1:x2], (width, height), interpolation=cv2.INTER_LINEAR)
            bounds = extents(moved, self.shape, hole.shape[:2], self.hider.margin)
            share = float(areas(bounds)[0] / cut.size)
            found.append(Probed(box, row, share, np.where(large[..., None], filled, image), large))
        return found

    def probabilities(
        self, image: np.ndarray, boxes: np.ndarray, name: str, progress: bool = False
    ) -> np.ndarray:
        """(N, C) probability of each class in each region, in batches of ``TEST.BATCH_SIZE``; see :meth:`regions`."""
        rows, waiting = [], list[Tensor]()
        with tqdm(total=len(boxes), desc=name, unit="hole", disable=not progress, dynamic_ncols=True) as bar:
            for place, (hidden, _) in enumerate(self._hidden(image, boxes, name)):
                waiting.append(_pixels(hidden))
                if len(waiting) == self.batch or place == len(boxes) - 1:
                    rows.append(self._ask(torch.stack(waiting)))
                    bar.update(len(waiting))
                    waiting.clear()
        return np.concatenate(rows)

    def sweep(
        self, image: np.ndarray, size: tuple[float, float], stride: tuple[float, float], name: str
    ) -> Sweep:
        """A hole moved over the picture, with a progress bar.

        Args:
            image, name: as in :meth:`regions`. size: (width, height) of the hole in pixels of the picture.
            stride: at most so many pixels from one place to the next, across and down; the outermost holes touch the
                picture's edges.

        Raises:
            ValueError: the hole is larger than the picture; a size or a stride is not above 0.
        """
        height, width = image.shape[:2]
        if not (0 < size[0] <= width and 0 < size[1] <= height and min(stride) > 0):
            raise ValueError(f"a hole of {size} with steps of {stride} in a picture of {width}×{height}")
        left, top = (
            np.linspace(0, room, int(np.ceil(room / step)) + 1)
            for room, step in ((width - size[0], stride[0]), (height - size[1], stride[1]))
        )
        corner = np.stack(np.meshgrid(left, top), axis=-1).reshape(-1, 2)
        boxes = np.concatenate([corner, corner + size], axis=1).astype(np.float32)
        found = self.probabilities(image, boxes, name, progress=True)
        return Sweep(
            size, left + size[0] / 2, top + size[1] / 2, found.reshape(len(top), len(left), len(self.classes))
        )

    def _picture_in(self, image: np.ndarray, name: str) -> tuple[int, int, int, int]:
        """Where the picture is in the network's input, xyxy pixels: in all of it, or between a letterbox's borders."""
        whole = np.array([[0, 0, image.shape[1], image.shape[0]]], np.float32)
        place = self._transforms(plain_sample(image, whole, name), np.random.default_rng(0)).boxes
        assert place is not None
        x1, y1, x2, y2 = np.rint(place[0]).astype(int).tolist()
        return x1, y1, x2, y2

    def _hidden(self, image: np.ndarray, boxes: np.ndarray, name: str) -> Iterator[tuple[Sample, np.ndarray]]:
        """The network's input with each region hidden alone, and (1, 4) the region there."""
        moved = self._transforms(plain_sample(image, boxes, name), np.random.default_rng(0))
        for place in range(len(boxes)):
            one = moved.select(np.array([place]))
            yield self.hider.hide(one, 0, self.shape, case_rng(self.seed, f"{name}#{place}")), one.boxes

    def _ask(self, pictures: Tensor) -> np.ndarray:
        training = self.net.training
        self.net.eval()
        try:
            with torch.inference_mode():
                told = predict(self.net, pictures.to(self.device), None)
        finally:
            self.net.train(training)
        scores = torch.stack([each.class_scores for each in told if each.class_scores is not None])
        return scores.float().softmax(1).cpu().numpy()


def _pixels(hidden: Sample) -> Tensor:
    """(4, S, S) float32: RGB, and 255 in the hole."""
    assert hidden.hidden is not None
    pixels = np.concatenate([hidden.image, 255 * hidden.hidden.hole[..., None].astype(np.uint8)], axis=2)
    return torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1))).float()
