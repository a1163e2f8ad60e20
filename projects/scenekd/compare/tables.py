"""Gains of the classes, and what networks cost, as parts of a page and for programs."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch

from ..benchmark.options import machine
from ..report_html import Markup, Number, escape, figure, number, table
from ..visualize_curves import Bar, gain_chart
from .cost import Cost
from .gains import IMAGES, SEEDS, Gain, Gains

_SHOWN = 6  # operations named


def gain_pieces(gains: Gains) -> list[Markup]:
    """The chart of one comparison, with what is to be known of it."""
    if not (gains.classes or gains.apart):
        return [Markup("<p>No class has a score with both.</p>")]
    groups = {}
    if gains.classes:
        bars = [_bar(gain) for gain in gains.classes]
        if gains.mean is not None:
            mean = dataclasses.replace(gains.mean, name=f"mean of {len(gains.classes)} classes")
            bars.insert(0, dataclasses.replace(_bar(mean), label=mean.name))
        groups["classes (test images)"] = bars
    if gains.apart:
        groups[f"(fewer than {gains.min_images} test images: noise, in no mean)"] = [
            _bar(gain) for gain in gains.apart
        ]
    title = f"IoU: {gains.after} − {gains.before}, in points"
    shown = [figure(gain_chart(groups, title), title), Markup(f"<p>{escape(_basis(gains))}</p>")]
    if gains.undefined:
        names = ", ".join(gains.undefined)
        shown.append(Markup(f"<p>{escape(f'Neither labelled nor predicted: {names}.')}</p>"))
    return shown


def _bar(gain: Gain) -> Bar:
    dots = gain.values if len(gain.values) > 1 else ()
    return Bar(f"{gain.name} ({gain.images})", gain.mean, dots, gain.interval)


def _basis(gains: Gains) -> str:
    one = (gains.classes or gains.apart)[0]
    if gains.over == SEEDS:
        return (
            f"Bars: mean over {len(one.values)} pairs of trainings; dots: each pair; lines: 95 % interval "
            "(Student's t), not corrected for the number of classes. Nothing is claimed of a class whose line crosses "
            "zero."
        )
    if gains.over == IMAGES:
        return (
            "One training on each side: nothing can be claimed of the method. Lines: 95 % interval over the test "
            "images (bootstrap), which says how sure the difference of these two networks is, not what another seed "
            "would give."
        )
    return "One training on each side: nothing can be claimed."


def cost_table(costs: Sequence[Cost]) -> list[Markup]:
    """One line a network, and how it was measured; nothing without any."""
    if not costs:
        return []
    lines = []
    for cost in costs:
        middle, low, high = (1000 * value for value in cost.seconds)
        lines.append(
            (
                cost.name,
                f"{cost.size[1]} × {cost.size[0]}",
                number(cost.parameters / 1e6, 3),
                number(cost.flops / 1e9, 3),
                number(cost.bytes / 1e6, 2),
                number(middle, 1),
                Number(f"{low:.1f} … {high:.1f}"),
                number(cost.memory / 2**20, 1),
            )
        )
    headers = (
        *("network", "input, width × height", "parameters, M", "GFLOPs", "size, MB"),
        *("latency, ms", "fastest … slowest", "memory, MiB"),
    )
    return [table(headers, lines), *(Markup(f"<p>{escape(note)}</p>") for note in cost_notes(costs))]


def cost_notes(costs: Sequence[Cost]) -> list[str]:
    """How the numbers were measured, and what they leave out."""
    about = machine(torch.get_num_threads())
    devices = {cost.device for cost in costs}
    where = about["gpu"] if "cuda" in devices else about["cpu"]
    notes = [
        f"One image a batch, the network's forward pass alone. Latency: median of {costs[0].rounds} calls after "
        f"a warm-up, the networks in turn, on {where}, {about['threads']} of {about['cores']} cores, load "
        f"{about['load'][0]}. Size: weights and batch statistics, in 10⁶ bytes. Memory: these, and what "
        "torch holds beside them at its peak.",
        "FLOPs: torch.utils.flop_counter; a multiplication and an addition are two (twice the MACs). Convolutions, "
        "matrix products and attention count; left out, with the number of values that each computes: "
        + "; ".join(f"{cost.name}: {_uncounted(cost)}" for cost in costs)
        + ".",
    ]
    whole = [cost.name for cost in costs if cost.whole]
    if whole:
        notes.append(f"{' and '.join(whole)}: with the preparation of the image, which cannot be told apart.")
    return notes


def _uncounted(cost: Cost) -> str:
    named = [f"{name.strip('_')} {_thousands(values)}" for name, values in cost.uncounted.items()]
    more = f" and {len(named) - _SHOWN} more" if len(named) > _SHOWN else ""
    return (", ".join(named[:_SHOWN]) + more) or "nothing"


def _thousands(values: int) -> str:
    return f"{values / 1e6:.1f} M" if values >= 1e5 else f"{values / 1e3:.1f} k"


def gains_json(gains: Gains) -> dict[str, Any]:
    """As :class:`.gains.Gains`, in points."""
    content = dataclasses.asdict(gains)
    for entry in (*content["classes"], *content["apart"], *([content["mean"]] if content["mean"] else [])):
        entry["gain"] = sum(entry["values"]) / len(entry["values"])
    return content


def costs_json(costs: Sequence[Cost]) -> dict[str, Any]:
    """As :class:`.cost.Cost`, with the machine."""
    return {"machine": machine(torch.get_num_threads()), "networks": [dataclasses.asdict(c) for c in costs]}
