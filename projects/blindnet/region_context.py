"""What the context says of any regions of a picture: each is hidden in turn, or several in one pass.

N: regions of a picture; G: passes of the trunk for it; C: classes; S: side of the network's input.

**Exact**: one picture with one hole for each region, one forward of the network for each.

**Grouped**: the regions of a picture are dealt to G groups (:func:`.hole_groups.group_holes`). The regions of a group
are hidden together and the trunk sees the picture once for all of them; for each region the small head then pools over
its own hole alone. Nothing of a region is shown to the pass that it is judged by, so the trunk's wide receptive field
cannot leak it; what it costs is that the regions of one group are no context for one another.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from scenekd.data.holes import areas, draw_hole, extents, fill_hole
from scenekd.errors import UserError
from scenekd.predictor import Predictor
from scenekd.sampling import STREAM_HIDE, draw_rng

from .augmentation import build_augmentation
from .config import KEY
from .hiding import Hider, plain_sample
from .hole_groups import group_holes
from .model import BlindNet


@dataclass
class _Job:
    """One picture: what the trunk is shown (G, 4, S, S) uint8, the holes (n, S, S) bool of the n regions that can be
    hidden, the group of each (n,), and their places (n,) among all N."""

    shown: np.ndarray
    holes: np.ndarray
    group: np.ndarray
    kept: np.ndarray
    count: int


class RegionContext:
    """Asks a trained network about regions.

    Args:
        predictor: of a blindnet network, see :func:`scenekd.predictor.open_predictor`.
        groups: G ≥ 1, passes of the trunk for a picture; 0: exact.
        batch_size: pictures in a forward.

    Raises:
        UserError: no network of this system, one that is told the labels of what is visible, or one whose trunk cannot
            be shared, with ``groups``.
    """

    def __init__(self, predictor: Predictor, *, groups: int = 0, batch_size: int = 64) -> None:
        net = predictor.net
        if not isinstance(net, BlindNet):
            raise UserError(f"SYSTEM: {predictor.cfg.SYSTEM!r}; the context comes from a network of blindnet")
        if net.wants_targets:
            raise UserError(
                f"{KEY}.NETWORK: it looks at the labels of what is visible, which detections are not"
            )
        if groups and not net.network.shares_trunk:
            raise UserError(
                f"{KEY}.RESCORE.GROUPS: {groups}; only the network 'context' shares its trunk; set it to 0"
            )
        if groups < 0:
            raise UserError(f"{KEY}.RESCORE.GROUPS: {groups}; it must be at least 0")
        self.predictor, self.net, self.groups, self.batch_size = predictor, net, groups, batch_size
        self.hider = Hider.from_config(predictor.cfg)
        self._transforms = build_augmentation(predictor.cfg, train=False)
        self.seed = predictor.cfg.SEED
        plain = [shape for shape in self.hider.shapes if shape != "segment"]  # no outline is known
        self.shape = "box" if "box" in plain or not plain else plain[0]
        net.eval()

    @property
    def pictures_at_once(self) -> int:
        """How many pictures make one call worth its while."""
        return max(1, self.batch_size // max(self.groups, 1)) if self.groups else 1

    @torch.inference_mode()
    def __call__(
        self, images: Sequence[np.ndarray], boxes: Sequence[np.ndarray], weights: Sequence[np.ndarray]
    ) -> list[np.ndarray]:
        """For each picture the (N, C) float64 probabilities of what stands in each region; a row of NaN where nothing
        can be said: the region lies outside the picture, or covers more of it than ``MASK.MAX_AREA``.

        Args:
            images: (H, W, 3) uint8 RGB. boxes: (N, 4) xyxy pixels of each. weights: (N,) ≥ 0, how much each region
                counts where they share passes, such as a detection's score.
        """
        jobs = [self._job(*one) for one in zip(images, boxes, weights)]
        if not any(len(job.kept) for job in jobs):
            return [np.full((job.count, self._classes), np.nan) for job in jobs]
        scores = (
            (self._shared(jobs) if self.groups else self._each(jobs)).double().softmax(dim=1).cpu().numpy()
        )
        ends = np.cumsum([len(job.kept) for job in jobs])
        found = []
        for job, part in zip(jobs, np.split(scores, ends[:-1])):
            rows = np.full((job.count, self._classes), np.nan)
            rows[job.kept] = part
            found.append(rows)
        return found

    def picture_without(self, image: np.ndarray, box: np.ndarray) -> np.ndarray:
        """(H, W, 4) uint8: a picture (H, W, 3) at its own size without one region (4,), and the hole as 255."""
        size, rng = (image.shape[0], image.shape[1]), draw_rng(self.seed, 0, STREAM_HIDE)
        hole = draw_hole(box, self.shape, size, rng, margin=self.hider.margin)
        return np.dstack([fill_hole(image, hole, self.hider.fill, rng), np.uint8(255) * hole])

    @property
    def _classes(self) -> int:
        return len(self.net.class_shares)

    def _job(self, image: np.ndarray, boxes: np.ndarray, weights: np.ndarray) -> _Job:
        sample = self._transforms(plain_sample(image, boxes), np.random.default_rng(0))
        shown, scaled = sample.image, sample.boxes
        size = (shown.shape[0], shown.shape[1])
        bounds = areas(extents(scaled, self.shape, size, self.hider.margin))
        kept = np.flatnonzero((bounds > 0) & (bounds <= self.hider.max_area * size[0] * size[1]))
        rng = draw_rng(
            self.seed, 0, STREAM_HIDE
        )  # of a blob or noise: what is said follows from the picture alone
        holes = np.zeros((len(kept), *size), bool)
        for hole, box in zip(holes, scaled[kept]):
            hole[:] = draw_hole(box, self.shape, size, rng, margin=self.hider.margin)
        group = group_holes(holes, weights[kept], self.groups) if self.groups else np.arange(len(kept))
        count = int(group.max(initial=-1)) + 1
        stack = np.empty((count, 4, *size), np.uint8)
        for g, picture in enumerate(stack):
            hidden = holes[group == g].any(axis=0)
            picture[:3] = fill_hole(shown, hidden, self.hider.fill, rng).transpose(2, 0, 1)
            np.multiply(hidden, np.uint8(255), out=picture[3])
        return _Job(stack, holes, group, kept, len(boxes))

    def _device(self, array: np.ndarray) -> Tensor:
        return torch.from_numpy(array).to(self.predictor.device).float()

    def _each(self, jobs: Sequence[_Job]) -> Tensor:
        shown = np.concatenate([job.shown for job in jobs])
        parts = []
        for start in range(0, len(shown), self.batch_size):
            inputs = self.net.inputs(self._device(shown[start : start + self.batch_size]))
            parts.append(self.net.network(inputs).float())
        return torch.cat(parts)

    def _shared(self, jobs: Sequence[_Job]) -> Tensor:
        network = self.net.network
        shown = np.concatenate([job.shown for job in jobs])
        maps = []
        for start in range(0, len(shown), self.batch_size):
            inputs = self.net.inputs(self._device(shown[start : start + self.batch_size]))
            maps.append(network.features(inputs))  # type: ignore[operator]
        features = torch.cat(maps)
        first = np.cumsum([0, *(len(job.shown) for job in jobs)])
        parts = []
        for job, offset in zip(jobs, first):
            if len(job.kept):
                own = features[torch.from_numpy(job.group + offset).to(features.device)]
                parts.append(network.classify(own, self._device(job.holes[:, None])).float())  # type: ignore[operator]
        return torch.cat(parts)
