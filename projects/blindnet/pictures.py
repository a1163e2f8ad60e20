"""Test cases as pictures: what was shown, and what the network takes it for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import cv2
import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import nn

from scenekd.data.mapper import Mapper, collate
from scenekd.drawing import TEXT, font
from scenekd.models import predict
from scenekd.report_panels import Picture
from scenekd.visualize import SIDE, stack_tiles

NAMES = 5  # classes listed
_RIM, _RIGHT, _INK = (255, 64, 64), (0, 130, 60), (40, 40, 40)


def case_pictures(net: nn.Module, mapper: Mapper, count: int) -> Iterator[Picture]:
    """One picture for each of ``count`` cases, evenly spaced over those of ``mapper``; the network keeps its mode."""
    places = np.unique(np.linspace(0, len(mapper) - 1, min(count, len(mapper))).round().astype(int))
    device = next(net.parameters()).device
    training = net.training
    net.eval()
    try:
        for place in places.tolist():
            record = mapper.dataset.records[place]
            images, targets = collate([mapper(place)])
            with torch.inference_mode():
                told = [target.to(device) for target in targets]
                scores = predict(net, images.to(device), told)[0].class_scores
            assert scores is not None and record.hidden is not None
            probabilities = scores.float().softmax(0).cpu().numpy()
            shown = images[0].byte().numpy().transpose(1, 2, 0)
            pixels = draw_case(shown, probabilities, record.hidden.label, mapper.dataset.classes)
            yield Picture(record.image_id, pixels)
    finally:
        net.train(training)


def draw_case(
    shown: np.ndarray,
    probabilities: np.ndarray,
    label: int,
    classes: Sequence[str],
    side: int = SIDE,
    *,
    heading: str = "",
) -> np.ndarray:
    """The picture with the hole's rim in red, and beside it the likeliest classes, the true one in green.

    Args:
        shown: (H, W, 4) uint8, RGB and the hole. probabilities: (C,). label: the true class. classes: C names.
        side: pixels of the picture's longer side. heading: above the classes; by default the true one.
    """
    scale = side / max(shown.shape[:2])
    size = max(1, round(shown.shape[1] * scale)), max(1, round(shown.shape[0] * scale))
    picture = cv2.resize(np.ascontiguousarray(shown[..., :3]), size, interpolation=cv2.INTER_LINEAR)
    hole = cv2.resize(np.ascontiguousarray(shown[..., 3]), size, interpolation=cv2.INTER_NEAREST)
    rim = cv2.dilate(hole, np.ones((3, 3), np.uint8)) != cv2.erode(hole, np.ones((3, 3), np.uint8))
    picture[rim] = _RIM
    said = Image.new("RGB", size, "white")
    draw, letters = ImageDraw.Draw(said), font(TEXT)
    draw.text((4, 4), heading or f"hidden: {classes[label]}", fill=_RIGHT, font=letters)
    order = np.argsort(-probabilities, kind="stable")[:NAMES]
    for row, k in enumerate(order.tolist()):
        ink = _RIGHT if k == label else _INK
        text = f"{row + 1}. {classes[k]} {100 * probabilities[k]:.0f} %"
        draw.text((4, 4 + (row + 2) * (TEXT + 5)), text, fill=ink, font=letters)
    return stack_tiles([[picture, np.asarray(said)]])
