"""The runs of a study: one folder for every setting and seed, whichever rows share it."""

from __future__ import annotations

import enum
import functools
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fvcore.common.config import CfgNode

from .. import checkpoint
from ..config import build_config, overlay_keys, read_config
from ..errors import UserError
from ..files import write_text
from .identity import fingerprint, first_difference, settings_in, settings_of
from .keys import TIMES, with_key
from .presets import Preset
from .rows import Row, Table
from .same_time import steps_factor
from .spec import StudySpec

CONFIG = "run.yaml"  # the configuration of a run, written before it starts
RESULTS = "results.json"


class State(enum.Enum):
    """What a folder holds."""

    NEW = "not run"
    STARTED = "interrupted"
    DONE = "done"


@dataclass(frozen=True)
class Run:
    """One training (or scoring): ``name`` is its folder below the output."""

    name: str
    cfg: CfgNode
    row: Row

    @property
    def folder(self) -> Path:
        """Where its files lie."""
        return Path(self.cfg.OUTPUT_DIR)

    @property
    def config(self) -> Path:
        """Where its configuration lies."""
        return self.folder / CONFIG

    def results(self) -> dict[str, Any]:
        """What it scored."""
        content: dict[str, Any] = json.loads((self.folder / RESULTS).read_text(encoding="utf-8"))
        return content


class Runs:
    """Configurations and folders of every row under one preset.

    Args:
        overrides: ``KEY VALUE`` pairs for every run.
    """

    def __init__(
        self, spec: StudySpec, table: Table, preset: Preset, output: Path, overrides: Sequence[str] = ()
    ) -> None:
        self.spec, self.table, self.preset = spec, table, preset
        self.output, self.overrides = output, list(overrides)
        self._files: dict[Path, dict[str, Any]] = {}  # as read: many rows share a file
        self._fingerprints: dict[str, str] = {}

    def config(
        self,
        row: Row,
        seed: int,
        folder: str = "",
        *,
        validation: bool = False,
        keys: Mapping[str, Any] | None = None,
    ) -> CfgNode:
        """The frozen configuration of one run.

        Args:
            folder: below the output. validation: on the preset's validation split. keys: laid over the rest.

        Raises:
            UserError: a file is missing, or a key unknown.
        """
        overlays = self.preset.overlays(row.roles, validation=validation, common=row.common)
        pairs = [*self.overrides, "SEED", str(seed), "OUTPUT_DIR", str(self.output / folder)]
        if row.file not in self._files:
            self._files[row.file] = read_config(row.file)
        tree: Any = functools.reduce(overlay_keys, overlays, self._files[row.file])
        for key, value in row.settings.items():
            tree = with_key(tree, key, value)
        if row.same_time:
            tree = with_key(tree, f"SOLVER.MAX_ITER{TIMES}", steps_factor(row, self.output))
        tree = overlay_keys(tree, keys or {})
        return build_config(tree, pairs, source=str(row.file))

    def run(self, row: Row, seed: int, *, validation: bool = False) -> Run:
        """The run of a row and seed, in the folder of the first row with the same settings."""
        name = (
            f"{'validation' if validation else 'runs'}/{row.id if validation else self.owner(row)}/seed{seed}"
        )
        return Run(name, self.config(row, seed, name, validation=validation), row)

    def owner(self, row: Row) -> str:
        """The id of the first row of the table whose settings are those of ``row``."""
        return self._owners.get(self._fingerprint(row), row.id)

    @functools.cached_property
    def _owners(self) -> dict[str, str]:
        owners: dict[str, str] = {}
        for row in self.table.rows:
            if self.preset.why_unavailable(row):
                continue
            try:
                owners.setdefault(self._fingerprint(row), row.id)
            except UserError:
                continue  # told when the row itself is asked for
        return owners

    def _fingerprint(self, row: Row) -> str:
        if row.id not in self._fingerprints:
            settings = self.settings(self.config(row, 0))
            self._fingerprints[row.id] = row.kind + fingerprint(settings, seed=False)
        return self._fingerprints[row.id]

    def settings(self, cfg: CfgNode, name: str = "") -> dict[str, Any]:
        """What makes the run in the folder ``name`` what it is; see :mod:`.identity`."""
        return settings_of(cfg, name, self.spec.relevant)

    def state(self, run: Run) -> State:
        """What the folder of a run holds.

        Raises:
            UserError: results or a checkpoint of other settings, which are not overwritten.
        """
        there = [name for name in (RESULTS, checkpoint.LAST) if (run.folder / name).is_file()]
        if not there:
            return State.NEW
        was = settings_in(run.config, run.name, self.spec.relevant)
        difference = first_difference(was, self.settings(run.cfg, run.name))
        if difference:
            raise UserError(
                f"{run.folder}: holds {there[0]} of other settings ({difference}); delete the folder, or choose "
                "another --output"
            )
        return State.DONE if RESULTS in there else State.STARTED

    def finished(self, row: Row) -> dict[int, Run]:
        """Seed → run, of all seeds of a row whose results are there and fit; none where the row cannot be run."""
        found: dict[int, Run] = {}
        try:
            folders = sorted((self.output / "runs" / self.owner(row)).glob("seed*"))
            for folder in folders:
                run = self.run(row, int(folder.name.removeprefix("seed")))
                if self.state(run) is State.DONE:
                    found[run.cfg.SEED] = run
        except UserError:
            return {}
        return found

    def unique(self, rows: Iterable[Row], seeds: Iterable[int]) -> list[Run]:
        """The runs of some rows, each folder once; seed by seed, so that early pages are paired too."""
        rows = list(rows)
        found: dict[str, Run] = {}
        for seed in seeds:
            for row in rows:
                run = self.run(row, seed)
                found.setdefault(run.name, run)
        return list(found.values())


def write_config(run: Run) -> None:
    """Put a run's configuration into its folder."""
    write_text(run.config, run.cfg.dump())
