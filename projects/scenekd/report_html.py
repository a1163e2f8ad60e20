"""Parts of a self-contained HTML page: every text is escaped, every picture is inside the file."""

from __future__ import annotations

import base64
import html
import io
import math
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; color: #222; max-width: 1280px;
       margin: 24px auto; padding: 0 16px; }
h1 { font-size: 24px; } h2 { font-size: 19px; margin-top: 32px; border-bottom: 1px solid #ddd; }
table { border-collapse: collapse; margin: 8px 0; display: block; overflow-x: auto; }
caption { text-align: left; color: #666; }
td, th { padding: 3px 12px 3px 0; text-align: left; border-bottom: 1px solid #eee; vertical-align: middle; }
td:not(.number) { min-width: 7em; }
td.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
.tiles { display: flex; flex-wrap: wrap; gap: 12px; }
.tile { border: 1px solid #ddd; border-radius: 6px; padding: 8px 16px; min-width: 110px; }
.tile b { display: block; font-size: 26px; } .tile span { color: #666; font-size: 13px; }
figure { margin: 8px 0 24px; } img { max-width: 100%; height: auto; }
pre { background: #f6f6f6; padding: 12px; overflow: auto; font-size: 13px; }
"""


class Markup(str):
    """Text that is HTML already; every other text is escaped where it is put in."""


def escape(value: Any) -> Markup:
    """A value as HTML text; :class:`Markup` stays as it is."""
    return value if isinstance(value, Markup) else Markup(html.escape(str(value)))


class Number(Markup):
    """A number; a table sets it to the right."""


def number(value: Any, digits: int = 2) -> Number:
    """A number, or a dash where there is none (None, NaN)."""
    if value is None or isinstance(value, float) and not math.isfinite(value):
        return Number("–")
    return Number(f"{value:.{digits}f}" if isinstance(value, float) else f"{value}")


def table(headers: Sequence[str], rows: Iterable[Sequence[Any]], caption: str = "") -> Markup:
    """A table; cells made by :func:`number` are set to the right."""
    head = "".join(f"<th>{escape(header)}</th>" for header in headers)
    body = "".join("<tr>" + "".join(map(_cell, row)) + "</tr>\n" for row in rows)
    title = f"<caption>{escape(caption)}</caption>" if caption else ""
    return Markup(f"<table>{title}<tr>{head}</tr>\n{body}</table>")


def _cell(cell: Any) -> str:
    side = ' class="number"' if isinstance(cell, Number) else ""
    return f"<td{side}>{escape(cell)}</td>"


def interval_bar(value: Any, interval: Sequence[Any] | None = None, width: int = 180) -> Markup:
    """A drawing on an axis of 0…100: a bar up to ``value``, and a line from low to high of ``interval``."""
    if value is None or not math.isfinite(value):
        return Markup("")
    scale = width / 100
    low, high = interval or (None, None)
    line = ""
    if low is not None and high is not None and math.isfinite(low) and math.isfinite(high):
        line = f'<line x1="{low * scale:.1f}" x2="{high * scale:.1f}" y1="6" y2="6" stroke="#222"/>'
    return Markup(
        f'<svg width="{width}" height="12"><rect width="{width}" height="12" fill="#f0f0f0"/>'
        f'<rect width="{value * scale:.1f}" height="12" fill="#7fb2d9"/>{line}</svg>'
    )


def figure(picture: np.ndarray | bytes, text: str = "") -> Markup:
    """A picture: (H, W, 3) uint8 RGB, or a finished PNG; ``text`` stands in for it where it is not shown."""
    kind, data = ("png", picture) if isinstance(picture, bytes) else ("jpeg", _jpeg(picture))
    source = f"data:image/{kind};base64,{base64.b64encode(data).decode('ascii')}"
    return Markup(f'<figure><img src="{source}" alt="{escape(text)}"></figure>')


def _jpeg(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    # 4:4:4, for thin coloured lines would bleed otherwise.
    Image.fromarray(pixels).save(buffer, format="JPEG", quality=88, subsampling=0)
    return buffer.getvalue()


def write_page(path: str | Path, title: str, sections: Iterable[tuple[str, Sequence[str]]]) -> Path:
    """Write a page of sections (heading, pieces of HTML), to a temporary name first; returns its path."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    body = [f"<h1>{escape(title)}</h1>"]
    for heading, pieces in sections:
        if pieces:
            body += [f"<h2>{escape(heading)}</h2>", *(escape(piece) for piece in pieces)]
    head = f'<meta charset="utf-8"><title>{escape(title)}</title><style>{_STYLE}</style>'
    text = f'<!DOCTYPE html>\n<html lang="en"><head>{head}</head>\n<body>\n' + "\n".join(body)
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        temporary.write_text(text + "\n</body></html>\n", encoding="utf-8")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return path
