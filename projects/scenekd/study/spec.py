"""What a system says of its study."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fvcore.common.config import CfgNode

from ..config import import_system
from ..errors import UserError
from .identity import Simplify

# (series of the figure, table, row id → seed → run) → PNG; None where nothing of it was run
Drawer = Callable[[Any, Any, Mapping[str, Mapping[int, Any]]], "bytes | None"]


@dataclass(frozen=True)
class Metric:
    """A number of ``results.json``.

    Attributes:
        name: as in the rows file and on the page. task: key of ``results.json``.
        per_class: prefix of its per-class numbers, from which the study takes its own mean over the classes
            with enough test images; empty: ``results[task][name]`` as it is.
        unit: of it; empty: a number without one. lower: whether less is better.
        compared: whether rows are compared in it, beside being shown it.
        read: what makes it of a run's configuration and its task's numbers, NaN where it cannot be told; None:
            ``results[task][name]``.
    """

    name: str
    task: str
    per_class: str = ""
    unit: str = "%"
    lower: bool = False
    compared: bool = True
    read: Callable[[CfgNode, Mapping[str, Any]], float] | None = None

    @property
    def label(self) -> str:
        """Of an axis."""
        return f"{self.name} in {self.unit}" if self.unit else self.name


@dataclass(frozen=True)
class StudySpec:
    """A system's study.

    Attributes:
        title: of the page.
        folder: of the experiments; ``rows.yaml`` and ``presets/<name>.yaml`` lie in it.
        metrics: in the order of the page's columns.
        simplify: see :func:`.identity.settings_of`; called by :meth:`relevant`.
        drawers: the system's own kinds of figures, beside those of :mod:`.figures`: kind → what draws it, called with
            the figure, the table and the finished runs.
    """

    system: str
    title: str
    folder: Path
    metrics: tuple[Metric, ...]
    simplify: Simplify | None = None
    drawers: Mapping[str, Drawer] = field(default_factory=dict)

    def metric(self, name: str) -> Metric:
        """By its name."""
        return next(metric for metric in self.metrics if metric.name == name)

    def relevant(self, cfg: CfgNode, keys: dict[str, Any]) -> dict[str, Any]:
        """The settings that tell runs apart: of ``TEST.METRICS`` those on the page, whose scores no other can change,
        so that results stand when the library learns to measure something else; then ``simplify``.
        """
        shown = {metric.task for metric in self.metrics}
        keys = {**keys, "TEST.METRICS": sorted(shown.intersection(cfg.TEST.METRICS))}
        return self.simplify(cfg, keys) if self.simplify else keys


def find_study(system: str) -> StudySpec:
    """The study of a system, from the closed list of systems.

    Raises:
        UserError: no such system, or it has no study.
    """
    import_system(system)
    try:
        spec = importlib.import_module(f"{system}.reproduce").STUDY
    except ModuleNotFoundError as error:
        if error.name != f"{system}.reproduce":
            raise
        raise UserError(f"{system}: has no experiments to reproduce in this release of SceneKD") from None
    assert isinstance(spec, StudySpec)
    return spec
