"""int8 ONNX: a float file of ours, quantised by onnxruntime's own static quantisation.

torch's exporter stops at the packed int8 weights that torch's quantisation makes, so that the scales are found again,
on the same images: the mean over them of a map's smallest and of its largest value, which no single outlier decides
(onnxruntime's MinMax with CalibMovingAverage). Weights have a scale for each channel; the file holds QuantizeLinear and
DequantizeLinear around float operators (QDQ), which onnxruntime fuses to int8 ones when it loads it.
"""

from __future__ import annotations

import json
import logging
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from .errors import UserError, first_line
from .export_graph import INPUT
from .export_onnx import quietly, require_onnx


class _Reader:
    """The calibration images one by one, as onnxruntime asks for them."""

    def __init__(self, batches: Sequence[Tensor]) -> None:
        self._images: Iterator[Tensor] = (image for batch in batches for image in batch)

    def get_next(self) -> dict[str, Any] | None:
        image = next(self._images, None)
        return None if image is None else {INPUT: image[None].float().numpy()}


def quantize_onnx(source: Path, path: Path, batches: Sequence[Tensor]) -> str:
    """Write the int8 form of the float file ``source`` to ``path``, and say what is int8 in it.

    Args:
        batches: (B, 3, S, S) RGB in 0…255, at least one image in all.

    Raises:
        UserError: a missing package, or a graph beyond onnxruntime's quantisation.
    """
    require_onnx()
    import onnx
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    level = logging.root.level
    with tempfile.TemporaryDirectory(prefix="scenekd_int8_") as folder, quietly():
        ready = Path(folder) / "ready.onnx"
        try:
            logging.root.setLevel(logging.ERROR)  # its advice goes to the root logger
            # folds batch normalisation into convolutions; the shapes are in the file already
            quant_pre_process(str(source), str(ready), skip_symbolic_shape=True)
            slopes = any(node.op_type == "PRelu" for node in onnx.load(ready).graph.node)
            quantize_static(
                str(ready),
                str(path),
                _Reader(batches),
                quant_format=QuantFormat.QDQ,
                per_channel=True,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                # PRelu stays float, and then the maps around it, as in our own int8 by torch
                op_types_to_quantize=["Conv", "Gemm", "MatMul"] if slopes else None,
                extra_options={"CalibMovingAverage": True},
            )
        except Exception as error:  # its own exception types, and whatever a graph makes of its code
            raise UserError(
                f"--format onnx: onnxruntime cannot quantise this graph ({first_line(error)[:160]})"
            ) from error
        finally:
            logging.root.setLevel(level)
    model, original = onnx.load(path), onnx.load(source)
    images = sum(len(batch) for batch in batches)
    said = f"{_count(model)} layers in int8 (onnxruntime, {images} calibration images)"
    about = {entry.key: entry.value for entry in original.metadata_props}
    onnx.helper.set_model_props(model, about | {"quantization": json.dumps({"layers": said})})
    onnx.save(model, path)
    return said


def _count(model: Any) -> int:
    """Operators with weights that are kept in int8."""
    stored = {value.name for value in model.graph.initializer}
    made = {n.output[0] for n in model.graph.node if n.op_type == "DequantizeLinear" and n.input[0] in stored}
    return sum(len(n.input) > 1 and n.input[1] in made for n in model.graph.node)
