"""Export of a trained network: ONNX, TorchScript or ``torch.export``, held against PyTorch before it counts."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from fvcore.common.config import CfgNode
from torch import Tensor, nn

from . import export_onnx
from .data.scenes import draw_random_scene
from .errors import UserError
from .export_check import Comparison
from .export_graph import ExportGraph
from .export_onnx import quietly
from .files import replacing
from .predictor import Predictor
from .teachers.options import our_classes

FORMATS = ("onnx", "torchscript", "torch_export")
TOLERANCE = 1e-4
METADATA = "metadata.json"  # the extra file of the two formats of torch

Runner = Callable[[Tensor], Mapping[str, np.ndarray]]


@dataclass
class Exported:
    """What :func:`export` has written.

    Attributes:
        path: the file. format: of :data:`FORMATS`. detail: the version of the format, or "".
        outputs: name → shape, with names for sizes that vary.
        comparison: how it differs from PyTorch.
        run: what was read back: images → arrays by name.
        same_class: of a file in int8, the share of answers (pixels, or images) whose class is the float network's.
    """

    path: Path
    format: str
    detail: str
    outputs: dict[str, list[int | str]]
    comparison: Comparison
    run: Runner
    same_class: float | None = None


def export(
    net: nn.Module,
    cfg: CfgNode,
    path: str | Path,
    *,
    format: str = "onnx",
    nms: bool = False,
    opset: int | None = None,
    images: Sequence[np.ndarray] = (),
    tolerance: float | None = None,
) -> Exported:
    """Write ``net`` as a graph from (B, 3, S, S) float32 RGB in 0…255 to boxes and dense logits.

    The file is written under a temporary name, read back, run, compared, and only then named ``path``.

    Args:
        net: as :class:`.export_graph.ExportGraph` takes it; a copy on the CPU is exported.
        cfg: for ``INPUT`` and the class names.
        nms: with the network's own detection output, for one image; else as the heads say it, for any number.
        opset: of ONNX; None: the exporter's choice.
        images: (H, W, 3) uint8 RGB, on which it is compared; none: two drawn scenes.
        tolerance: largest difference from PyTorch, relative to an output's largest value where that is above 1.
            None: :data:`TOLERANCE`, or what the network's own rounding in float32 excuses: an untrained one may
            have logits in the thousands, and boxes that any rounding turns.

    Raises:
        UserError: a bad argument, a missing package, a network beyond the exporter, or a difference above
            ``tolerance``; nothing is written then, and a file that was there stays.
    """
    path = Path(path)
    _check_arguments(path, format, opset, tolerance)
    graph = ExportGraph(copy.deepcopy(net).cpu(), nms=nms).requires_grad_(False)
    about = graph.description(our_classes(cfg))
    prepare = Predictor(net, cfg).prepare
    inputs = [prepare(image) for image in images or drawn_scenes()]
    with torch.no_grad(), replacing(path) as temporary:
        runner, detail = _WRITERS[format](graph, temporary, about, opset)
        comparison = compare(graph, runner, inputs, TOLERANCE if tolerance is None else tolerance)
        if comparison.problem and tolerance is None:
            comparison.rounding = compare(graph, _in_float64(graph), inputs, TOLERANCE)
        if comparison.problem:
            raise UserError(f"{path}: not written: {comparison.problem}")
    outputs = {name: graph.dimensions(name) for name in graph.names}
    return Exported(path, format, detail, outputs, comparison, runner)


@torch.no_grad()
def compare(graph: ExportGraph, exported: Runner, inputs: Sequence[Tensor], tolerance: float) -> Comparison:
    """Run both sides on each input and, where the graph takes several images at once, on the first two together."""
    comparison = Comparison(tolerance)
    batches = list(inputs)
    if not graph.nms:
        batches.append(torch.cat([inputs[0], inputs[-1]]))
    for batch in batches:
        ours = {name: value.numpy() for name, value in graph.named(batch).items()}
        theirs = exported(batch)
        if graph.nms:
            comparison.add_detections(ours, theirs, batch.shape[-1], graph.probabilities(batch)[0].numpy())
        else:
            comparison.add(ours, theirs)
    return comparison


def _check_arguments(path: Path, format: str, opset: int | None, tolerance: float | None) -> None:
    if format not in FORMATS:
        raise UserError(f"--format: {format!r}; choose one of {', '.join(FORMATS)}")
    if path.is_dir():
        raise UserError(f"--output: {path} is a folder; name a file")
    if format == "torch_export" and path.suffix != ".pt2":
        raise UserError(f"--output: {path}: torch.export.load reads files in .pt2; name it so")
    if tolerance is not None and not tolerance >= 0:
        raise UserError(f"--tolerance: {tolerance}; give a number from 0 on")
    if format == "onnx":
        export_onnx.require_onnx()
        if opset is not None:
            export_onnx.check_opset(opset)
    elif opset is not None:
        raise UserError(f"--opset: belongs to --format onnx; leave it out with {format}")


def _in_float64(graph: ExportGraph) -> Runner:
    double = copy.deepcopy(graph).double()
    return lambda images: {name: value.numpy() for name, value in double.named(images.double()).items()}


def drawn_scenes() -> list[np.ndarray]:
    """Two images to compare on, where none are given."""
    rng = np.random.default_rng(0)
    return [draw_random_scene(rng).picture.image for _ in range(2)]


def _write_onnx(
    graph: ExportGraph, path: Path, about: Mapping[str, str], opset: int | None
) -> tuple[Runner, str]:
    written = export_onnx.write(graph, path, about, opset)
    return export_onnx.Session(path), f"opset {written}"


def write_torchscript(
    graph: ExportGraph, path: Path, about: Mapping[str, str], opset: int | None = None
) -> tuple[Runner, str]:
    """Write ``graph`` as TorchScript; gives what was written, read back, and a word on the format (none)."""
    with quietly():
        # The boxes of a made-up image may differ in their order from one run to the next where scores are equal, so
        # that torch's own check is not asked; ours follows.
        traced = torch.jit.trace(graph, (graph.example(1),), check_trace=False)
        torch.jit.save(traced, str(path), _extra_files={METADATA: json.dumps(dict(about))})
        return _by_name(graph, torch.jit.load(str(path))), ""


def _write_torch_export(
    graph: ExportGraph, path: Path, about: Mapping[str, str], opset: int | None
) -> tuple[Runner, str]:
    dynamic = None if graph.nms else {"images": {0: torch.export.Dim("batch")}}
    with quietly():
        # With two images the batch is not taken for a fixed one.
        program = torch.export.export(graph, (graph.example(1 if graph.nms else 2),), dynamic_shapes=dynamic)
        with open(path, "wb") as file:
            torch.export.save(program, file, extra_files={METADATA: json.dumps(dict(about))})
        with open(path, "rb") as file:
            return _by_name(graph, torch.export.load(file).module()), ""


def _by_name(graph: ExportGraph, module: Callable[[Tensor], Sequence[Tensor]]) -> Runner:
    return lambda images: {name: value.numpy() for name, value in zip(graph.names, module(images))}


_WRITERS = {"onnx": _write_onnx, "torchscript": write_torchscript, "torch_export": _write_torch_export}
