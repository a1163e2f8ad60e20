"""Runs a script of ``tools/`` in this process, as its command line would."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

from scenekd.errors import run_cli


def load_tool(name: str) -> ModuleType:
    """``tools/<name>.py`` as a module."""
    path = Path(__file__).parents[1] / "tools" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"tool_{name}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def edited(text: str, changes: dict[str, str]) -> str:
    """``text`` with each key, which must stand in it once, replaced by its value."""
    for old, new in changes.items():
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    return text


class ToolRunner:
    """``run(arguments…)``: the exit code of the tool."""

    def __init__(self, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
        self.module, self.monkeypatch = load_tool(name), monkeypatch

    def __call__(self, *arguments: object) -> int:
        self.monkeypatch.setattr("sys.argv", ["tool", *map(str, arguments)])
        try:
            run_cli(self.module.main)
        except SystemExit as stop:
            return int(stop.code or 0)
        return 0
