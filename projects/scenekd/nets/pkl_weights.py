"""detectron2's .pkl weight files: pickles of numpy arrays, under Caffe2's names or detectron2's own."""

from __future__ import annotations

import logging
import re
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .trunks import PIXEL_STD

_LOG = logging.getLogger(__name__)


def trunk_arrays(content: Any) -> dict[str, Tensor]:
    """The arrays of an unpickled detectron2 weight file as tensors under torchvision's names.

    Raises:
        ValueError: it is no dict of arrays.
    """
    if isinstance(content, dict):
        content = content.get("blobs", content.get("model", content))
    if not isinstance(content, dict):
        raise ValueError(f"a {type(content).__name__}, not a dict of arrays")
    arrays = {
        str(key): torch.from_numpy(value.astype(np.float32))
        for key, value in content.items()
        if isinstance(value, np.ndarray) and value.dtype.kind == "f"
    }
    if any(re.match(r"(res_)?conv1_|res\d_", key) for key in arrays):
        _LOG.info("Caffe's ResNets have their stride in the 1×1: STRIDE_IN_1X1 True fits them")
        return _from_caffe2(arrays)
    return {_from_detectron2_name(key): value for key, value in arrays.items()}


# Caffe2's branches of a unit and of its normalisation, in torchvision's names.
_CAFFE2_CONVS = {"branch1": "downsample.0", "branch2a": "conv1", "branch2b": "conv2", "branch2c": "conv3"}
_CAFFE2_NORMS = {"branch1": "downsample.1", "branch2a": "bn1", "branch2b": "bn2", "branch2c": "bn3"}
_BN_EPS = 1e-5


def _from_caffe2(arrays: dict[str, Tensor]) -> dict[str, Tensor]:
    """MSRA's ResNets as detectron2 ships them (R-50.pkl), for RGB input with torchvision's preprocessing.

    They see BGR in 0…255 without division by a deviation; turning conv1's channels round and multiplying them
    by the deviation gives the same response. Their normalisation is a folded scale and bias, so that the
    running mean is 0 and the variance 1 − ε. Their stride is in the 1×1 (``STRIDE_IN_1X1 True``).
    """
    state: dict[str, Tensor] = {}
    for key, value in arrays.items():
        if key == "conv1_w":
            deviation = 255 * torch.tensor(PIXEL_STD).view(1, 3, 1, 1)
            state["conv1.weight"] = value.flip(1) * deviation
        elif match := re.fullmatch(r"res_conv1_bn_([sb])", key):
            _put_affine(state, "bn1", match[1], value)
        elif match := re.fullmatch(r"res(\d)_(\d+)_(branch\w+)_(w|bn_s|bn_b)", key):
            unit = f"layer{int(match[1]) - 1}.{match[2]}"
            if match[4] == "w":
                state[f"{unit}.{_CAFFE2_CONVS.get(match[3], match[3])}.weight"] = value
            else:
                _put_affine(state, f"{unit}.{_CAFFE2_NORMS.get(match[3], match[3])}", match[4][-1], value)
    return state


def _put_affine(state: dict[str, Tensor], layer: str, which: str, value: Tensor) -> None:
    state[f"{layer}.{'weight' if which == 's' else 'bias'}"] = value
    state[f"{layer}.running_mean"] = torch.zeros_like(value)
    state[f"{layer}.running_var"] = torch.full_like(value, 1 - _BN_EPS)


def _from_detectron2_name(key: str) -> str:
    """detectron2's own ResNet names (of torchvision's files that it converted), in torchvision's:
    ``res2.0.conv1.norm.weight`` → ``layer1.0.bn1.weight``, ``shortcut.weight`` → ``downsample.0.weight``."""
    key = re.sub(r"^(backbone\.)?(bottom_up\.)?(stem\.(?=conv1))?", "", key)
    key = re.sub(r"^res(\d)\.", lambda match: f"layer{int(match[1]) - 1}.", key)
    key = re.sub(r"conv(\d)\.norm\.", r"bn\1.", key)
    return key.replace("shortcut.norm.", "downsample.1.").replace("shortcut.", "downsample.0.")
