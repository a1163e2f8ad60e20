"""ONNX: writing a graph by torch's exporter, and running it with onnxruntime.

torch's exporter by ``torch.export`` is used; the older one by TorchScript lacks the nearest-neighbour resize with
half-pixel centres that our heads have.
"""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .errors import UserError
from .export_graph import INPUT, ROW, ExportGraph
from .nms import nms_by_class

PACKAGES = ("onnx", "onnxscript", "onnxruntime")
# torch's exporter writes 18 and up; the version converter of ONNX is relied on for nothing below.
MIN_OPSET = 18


def require_onnx() -> None:
    """UserError that names the missing package, where one is missing."""
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(
            f"--format onnx: needs {', '.join(missing)}; pip install {' '.join(missing)}, or take --format torchscript"
        )


def check_opset(opset: int) -> None:
    """UserError where no file of this opset can be written."""
    import onnx

    newest = onnx.defs.onnx_opset_version()
    if not MIN_OPSET <= opset <= newest:
        raise UserError(f"--opset: {opset}; choose {MIN_OPSET} to {newest}, or leave it out")


def write(graph: ExportGraph, path: Path, about: Mapping[str, str], opset: int | None) -> int:
    """Write ``graph`` as one file; returns its opset.

    Args:
        about: goes into the file's ``metadata_props``.
        opset: None: the exporter's own choice.

    Raises:
        UserError: the network, or the opset, is beyond the exporter.
    """
    dynamic = None if graph.nms else {"images": {0: torch.export.Dim("batch")}}
    try:
        with quietly():
            program: Any = torch.onnx.export(
                graph,
                # With two images the batch is not taken for a fixed one.
                (graph.example(1 if graph.nms else 2),),
                input_names=[INPUT],
                output_names=list(graph.names),
                opset_version=opset,
                dynamo=True,
                dynamic_shapes=dynamic,
                custom_translation_table={nms_by_class._opoverload: _nms_node},
                verbose=False,
            )
    except (RuntimeError, ValueError, NotImplementedError) as error:
        raise UserError(f"--format onnx: torch cannot export this network ({_first_line(error)})") from error
    model = program.model
    written = int(model.opset_imports[""])
    if opset is not None and written != opset:
        raise UserError(f"--opset: {opset}: the graph cannot be converted from {written}; leave it out")
    _name_dimensions(model, graph)
    model.metadata_props.update(about)
    model.producer_name, model.producer_version = "scenekd", about["scenekd_version"]
    program.save(str(path), external_data=False)
    return written


def _name_dimensions(model: Any, graph: ExportGraph) -> None:
    """Give the varying sizes of the outputs names to read; the exporter's are formulas of its unknowns."""
    import onnx_ir

    for value, name in zip(model.graph.outputs, graph.names):
        dimensions = graph.dimensions(name)
        if ROW in dimensions:
            value.shape = onnx_ir.Shape(dimensions)


def _nms_node(boxes: Any, scores: Any, labels: Any, iou_threshold: float, num_classes: int) -> Any:
    """:func:`.nms.nms_by_class` in ONNX's operators: NonMaxSuppression takes a score of every box for every class,
    which here is 0, and so no candidate, for all classes but the box's own."""
    op: Any = importlib.import_module("onnxscript").opset18
    one_hot = op.OneHot(
        labels, op.Constant(value_ints=[num_classes]), op.Constant(value_floats=[0.0, 1.0]), axis=0
    )
    first = op.Constant(value_ints=[0])
    chosen = op.NonMaxSuppression(
        op.Unsqueeze(boxes, first),
        op.Unsqueeze(op.Mul(one_hot, scores), first),
        op.Constant(value_ints=[np.iinfo(np.int32).max]),
        op.Constant(value_floats=[iou_threshold]),
        op.Constant(value_floats=[0.0]),
    )  # (m, 3): image, class, box
    return op.Gather(chosen, op.Constant(value_int=2), axis=1)


class Session:
    """A file, run by onnxruntime on the CPU: ``session(images)`` → arrays by name.

    Args:
        threads: for one node; 0: onnxruntime's choice.

    Raises:
        UserError: onnxruntime does not take the file.
    """

    def __init__(self, path: Path, threads: int = 0) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3  # errors
        options.intra_op_num_threads = threads
        try:
            self.session = onnxruntime.InferenceSession(
                str(path), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # its own exception types, which derive from Exception alone
            raise UserError(f"--format onnx: onnxruntime refuses the graph ({_first_line(error)})") from error
        self.names = [output.name for output in self.session.get_outputs()]

    def __call__(self, images: Tensor) -> dict[str, np.ndarray]:
        return dict(zip(self.names, self.session.run(None, {INPUT: images.numpy()})))


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Without the exporters' notes to their own developers; errors are raised all the same."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir", "torch.export")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels):
            logger.setLevel(level)


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines or [type(error).__name__])[0][:200]
