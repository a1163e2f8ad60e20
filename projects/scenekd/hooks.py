"""What a system may add to a run beside its network: its own cases, mapper, results and pictures.

A system's package has ``HOOKS``, an object of a subclass; without it a run has the methods below as they are.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from fvcore.common.config import CfgNode

from .config import import_system
from .data.mapper import Mapper
from .data.records import Dataset

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
