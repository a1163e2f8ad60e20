"""Export of a network in int8: TorchScript by torch's quantisation, ONNX by onnxruntime's.

``torch.export``, and torch's ONNX exporter that follows it, stop at the int8 weights, which are packed for one backend.
"""

from __future__ import annotations

import copy
import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from fvcore.common.config import CfgNode
from torch import Tensor, nn

from . import export_onnx
from .errors import UserError
from .export import TOLERANCE, Exported, Runner, compare, drawn_scenes, write_torchscript
from .export_graph import ExportGraph
from .files import replacing
from .predictor import Predictor
from .quantize import Int8Options, quantize, using
from .quantize_onnx import quantize_onnx
from .teachers.options import our_classes

FORMATS = ("torchscript", "onnx")


@torch.no_grad()
def export_int8(
    net: nn.Module,
    cfg: CfgNode,
    path: str | Path,
    batches: Sequence[Tensor],
    *,
    format: str = "torchscript",
    options: Int8Options | None = None,
    images: Sequence[np.ndarray] = (),
) -> Exported:
    """Quantise ``net`` with the calibration images of ``batches``, and write it as one file.

    A TorchScript file is read back and held against the int8 network that it was written from; it runs where
    ``torch.backends.quantized.engine`` is its backend, at load and after. An ONNX file is read back and run. How both
    differ from the float network is told, not judged.

    Args:
        net, cfg, images: as :func:`.export.export`.
        batches: (B, 3, S, S) RGB in 0…255. format: of :data:`FORMATS`.
        options: of TorchScript; ONNX takes none.

    Raises:
        UserError: a bad argument, a missing package, a network that is not quantised, a file that differs from what it
            was written from; nothing is written then, and a file that was there stays.
    """
    path = Path(path)
    if format not in FORMATS:
        raise UserError(f"--format: {format}: int8 is written as {' or '.join(FORMATS)}")
    if path.is_dir():
        raise UserError(f"--output: {path} is a folder; name a file")
    if format == "onnx":
        export_onnx.require_onnx()
        if options not in (None, Int8Options()):
            raise UserError(
                "--backend, --keep-float: belong to --format torchscript; leave them out with onnx"
            )
    graph = ExportGraph(copy.deepcopy(net).cpu(), nms=False).requires_grad_(False)
    about, prepare = graph.description(our_classes(cfg)), Predictor(net, cfg).prepare
    inputs = [prepare(image) for image in images or drawn_scenes()]
    with replacing(path) as temporary:
        if format == "onnx":
            runner, detail = _write_onnx(graph, temporary, about, batches)
            comparison, same = compare(graph, runner, inputs, float("inf")), same_class(graph, runner, inputs)
        else:
            quantized = quantize(net, batches, options)
            detail = quantized.describe()
            with using(quantized.backend):
                ours = ExportGraph(quantized.net, nms=False)
                about["quantization"] = json.dumps({"backend": quantized.backend, "layers": detail})
                runner, _ = write_torchscript(ours, temporary, about)
                comparison = compare(ours, runner, inputs, TOLERANCE)
                same = same_class(graph, runner, inputs)
        if comparison.problem:
            raise UserError(f"{path}: not written: {comparison.problem}")
    outputs = {name: graph.dimensions(name) for name in graph.names}
    return Exported(path, format, detail, outputs, comparison, runner, same)


def same_class(graph: ExportGraph, exported: Runner, inputs: Sequence[Tensor]) -> float:
    """The share of pixels, or of images, that ``exported`` and ``graph`` give the same class, 0…1."""
    shares = []
    for images in inputs:
        theirs = exported(images)
        for name, value in graph.named(images).items():
            shares.append(float((value.numpy().argmax(1) == theirs[name].argmax(1)).mean()))
    return float(np.mean(shares))


def _write_onnx(
    graph: ExportGraph, path: Path, about: Mapping[str, str], batches: Sequence[Tensor]
) -> tuple[Runner, str]:
    if not sum(len(batch) for batch in batches):
        raise UserError("--calibrate: no calibration images; give at least one")
    with tempfile.TemporaryDirectory(prefix="scenekd_float_") as folder:
        source = Path(folder) / "float.onnx"
        opset = export_onnx.write(graph, source, about, None)
        detail = quantize_onnx(source, path, batches)
    return export_onnx.Session(path), f"opset {opset}; {detail}"
