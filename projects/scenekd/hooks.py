"""What a system may add to a run beside its network: its own cases, mapper, results and pictures.

A system's package has ``HOOKS``, an object of a subclass; without it a run has the methods below as they are.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
from fvcore.common.config import CfgNode

from .config import import_system
from .data.mapper import Mapper
from .data.records import Dataset
from .errors import UserError

if TYPE_CHECKING:
    from .experiment import Experiment
    from .report_panels import Picture

Results = dict[str, dict[str, Any]]


class Hooks:
    """The points at which a run asks its system."""

    def prepare_data(self, dataset: Dataset, cfg: CfgNode, *, train: bool) -> Dataset:
        """The records that are drawn in training, or evaluated one by one."""
        return dataset

    def build_mapper(self, dataset: Dataset, cfg: CfgNode, *, train: bool, **options: Any) -> Mapper:
        """The mapper of :meth:`prepare_data`'s records; ``options``: of :class:`.data.mapper.Mapper`."""
        return Mapper(dataset, cfg, train=train, **options)

    def hide_boxes(self, image: np.ndarray, boxes: np.ndarray, cfg: CfgNode) -> tuple[np.ndarray, np.ndarray]:
        """What a network of hidden objects is shown of an image, for each box with it hidden.

        Args:
            image: (H, W, 3) uint8 RGB. boxes: (N, 4) xyxy pixels of it. cfg: of the network.

        Returns:
            (n, 4, S, S) uint8, RGB and the hole, of the boxes that can be hidden; (N,) bool, which they are.

        Raises:
            UserError: the system has no such networks.
        """
        raise UserError(f"SYSTEM {cfg.SYSTEM}: its networks are not asked about what is hidden")

    def begin(self, experiment: Experiment) -> None:
        """Called in every process before training, once data and network can be had."""

    def complete(self, experiment: Experiment, results: Results) -> dict[str, bytes]:
        """Called once with the final results, in the main process: adds to them.

        Returns:
            caption → PNG, for the report.
        """
        return {}

    def panels(self, experiment: Experiment, count: int) -> Iterable[Picture] | None:
        """Pictures of ``count`` test cases; None for the panels that every run has."""
        return None


def hooks_of(cfg: CfgNode) -> Hooks:
    """The hooks of ``cfg.SYSTEM``."""
    hooks: Hooks = getattr(import_system(cfg.SYSTEM), "HOOKS", None) or Hooks()
    return hooks
