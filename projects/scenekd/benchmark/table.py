"""Running suites, and their rows as text and JSON."""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from ..registry import lookup, names
from .measure import MEMORY_METHOD, Row
from .options import Options

Suite = Callable[[Options], Iterator[Row]]


def run_suites(chosen: Sequence[str], options: Options, show: Callable[[str], None]) -> list[Row]:
    """Run the suites by name (all without names); each row is shown when it is there."""
    rows = []
    for name in chosen or names("benchmark"):
        suite: Suite = lookup("benchmark", name)
        for row in suite(options):
            rows.append(row)
            show(format_row(row))
    return rows


def header(machine: dict[str, Any], options: Options) -> str:
    """What stands above the rows."""
    lines = ["  ".join(f"{key} {value}" for key, value in machine.items())]
    if options.size != "full":
        lines.append(f"{options.size} sizes: preliminary, not comparable with the targets")
    lines.append("ratios: median [smallest … largest] of interleaved repeats; " + MEMORY_METHOD)
    return "\n".join(lines)


def format_row(row: Row) -> str:
    """Two lines: the number and its target; what is behind it."""
    head = f"{row.suite:<11}{row.name:<70} "
    if row.value is None:
        return f"{head}not measured: {row.detail}"
    text = f"{head}{_number(row.value)} {row.unit}"
    if row.low is not None and row.high is not None:
        text += f" [{_number(row.low)} … {_number(row.high)}]"
    if row.target is not None:
        sign = {">=": "≥", "<=": "≤"}[row.target[0]]
        text += f"   target {sign} {row.target[1]:g}: {'met' if row.met else 'NOT MET'}"
    return f"{text}\n{'':<11}  {row.detail}" if row.detail else text


def _number(value: float) -> str:
    if value and not math.isnan(value) and not 1e-2 <= abs(value) < 1e5:
        return f"{value:.2e}"
    return f"{value:.4g}"


def write_json(path: Path, machine: dict[str, Any], options: Options, rows: Sequence[Row]) -> None:
    """Everything, machine-readable; written to a temporary name, then renamed."""
    body = {
        "machine": machine,
        "size": options.size,
        "memory": MEMORY_METHOD,
        "rows": [dataclasses.asdict(row) | {"met": row.met} for row in rows],
    }
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(json.dumps(body, indent=2) + "\n", encoding="utf-8")
    os.replace(temporary, path)
