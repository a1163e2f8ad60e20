"""MMSegmentation's segmentors as bare networks: normalised RGB images in, the head's own logits out.

B: images; K: dense classes; H, W: network input; h, w: the decode head's grid.
"""

from __future__ import annotations

import copy
import logging
from typing import Any

import torch
from mmseg.models.decode_heads.cascade_decode_head import BaseCascadeDecodeHead
from mmseg.models.decode_heads.decode_head import BaseDecodeHead
from mmseg.models.segmentors import CascadeEncoderDecoder, EncoderDecoder
from torch import Tensor, nn

from ..errors import UserError
from ..nets.norms import convert_norm
from ..teachers.zoo_mmseg import build_segmentor, read_config

_PLAIN_DECODE = (EncoderDecoder.encode_decode, CascadeEncoderDecoder.encode_decode)
_PLAIN_PREDICT = (BaseDecodeHead.predict, BaseCascadeDecodeHead.predict)


class SegmentorLogits(nn.Module):
    """Backbone, neck and decode heads of an ``EncoderDecoder`` under their own names, so that its checkpoints fit.

    Args:
        segmentor: MMSegmentation's; its data preprocessor and auxiliary heads stay behind.
        bgr: whether it was made for BGR images. Images come as RGB all the same.
        name: of the config, for errors.
    """

    def __init__(self, segmentor: EncoderDecoder, *, bgr: bool, name: str) -> None:
        super().__init__()
        self.backbone = segmentor.backbone
        if segmentor.with_neck:
            self.neck = segmentor.neck
        self.decode_head = segmentor.decode_head
        self.bgr, self.name = bgr, name

    def forward(self, images: Tensor) -> Tensor:
        """(B, K, h, w) of (B, 3, H, W).

        Raises:
            UserError: the head gives something else than one map of logits.
        """
        features = self.backbone(images.flip(1) if self.bgr else images)
        if hasattr(self, "neck"):
            features = self.neck(features)
        if isinstance(self.decode_head, nn.ModuleList):
            first, *others = self.decode_head
            logits = first(features)
            for head in others:
                logits = head(features, logits)
        else:
            logits = self.decode_head(features)
        if not isinstance(logits, Tensor):
            raise UserError(
                f"{self.name}: its decode head gives no single map of logits; take another config"
            )
        return logits


def read_segmentor(name: str, key: str) -> Any:
    """MMSegmentation's config of a file, or of a name that it ships; ``key`` is named in errors."""
    return read_config(name, key)


def statistics(config: Any) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """(mean, deviation) of RGB in 0…1 by which the config's data preprocessor normalises; (0, 1/255) for none."""
    node = _preprocessor(config)
    mean: list[float] = list(node.get("mean") or [0.0] * 3)
    std: list[float] = list(node.get("std") or [1.0] * 3)
    order = slice(None, None, -1 if _is_bgr(config) else 1)
    return tuple(value / 255 for value in mean[order]), tuple(value / 255 for value in std[order])


def build_network(config: Any, outputs: int, name: str, key: str) -> SegmentorLogits:
    """The network of a config with so many outputs, from torch's random numbers.

    Its pretrained parts are left at random: they come by MODEL.WEIGHTS.

    Raises:
        UserError: it cannot be built, or is no ``EncoderDecoder`` whose head gives logits in one step.
    """
    config = copy.deepcopy(config)
    heads = config.model.get("decode_head", ())
    for head in heads if isinstance(heads, (list, tuple)) else [heads]:
        head.num_classes = outputs
        if "out_channels" in head:  # two classes in one plane
            head.out_channels = outputs
        for loss in _losses(head):
            loss.pop("class_weight", None)  # of the config's own classes
    config.model.pop("auxiliary_head", None)
    segmentor: Any = build_segmentor(config, torch.initial_seed() % 2**31, name)
    if not _is_plain(segmentor):
        raise UserError(
            f"{key}: {name} is a {type(segmentor).__name__} whose logits are not its decode head's alone; take a "
            "plain EncoderDecoder"
        )
    _initialise(segmentor)
    # MMSegmentation's configs name SyncBN, which torch has for accelerators only.
    convert_norm(segmentor, "SyncBN", kind=nn.SyncBatchNorm)
    return SegmentorLogits(segmentor, bgr=_is_bgr(config), name=name)


def _preprocessor(config: Any) -> Any:
    return config.model.get("data_preprocessor") or config.get("data_preprocessor") or {}


def _is_bgr(config: Any) -> bool:
    # MMSegmentation loads BGR; either conversion turns it round.
    node = _preprocessor(config)
    return not (node.get("bgr_to_rgb", False) or node.get("rgb_to_bgr", False))


def _losses(head: Any) -> list[Any]:
    losses = head.get("loss_decode", ())
    return list(losses) if isinstance(losses, (list, tuple)) else [losses]


def _is_plain(segmentor: Any) -> bool:
    """Whether the logits are those of the decode heads on backbone and neck, and nothing else."""
    kind = type(segmentor)
    if not isinstance(segmentor, EncoderDecoder) or kind.extract_feat is not EncoderDecoder.extract_feat:
        return False
    head = segmentor.decode_head
    heads = list(head) if isinstance(head, nn.ModuleList) else [head]
    known = all(isinstance(h, BaseDecodeHead) and type(h).predict in _PLAIN_PREDICT for h in heads)
    return known and kind.encode_decode in _PLAIN_DECODE


def _initialise(segmentor: Any) -> None:
    """MMSegmentation's own initialisation, without its log of every layer."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        segmentor.init_weights()
    finally:
        logging.disable(before)
