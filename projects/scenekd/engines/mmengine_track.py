"""Following an image through MMSegmentation's pipelines, and a check that nothing else moved it."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..data.track import Track
from ..errors import UserError

TRACK, WITNESS, BOXES = "scenekd_track", "scenekd_witness", "gt_bboxes"
MASKS = f"{BOXES}_masks"  # of the boxes, on the un-augmented image; what starts like the boxes is selected with them
SUPPORTED = (
    "Resize",
    "RandomResize",
    "RandomChoiceResize",
    "ResizeShortestEdge",
    "ResizeToMultiple",
    "RandomCrop",
    "CenterCrop",
    "RandomFlip",
    "Pad",
    "RandomRotate",
    "RandomRotFlip",
)


def start_track(results: dict[str, Any]) -> None:
    """Follow the image from here on; done once for each image.

    Nothing is followed where labels are loaded after a resize, as MMSegmentation's test pipelines do.

    A witness goes through the pipeline as one of MMSegmentation's ``seg_fields``: if it is changed at the end,
    a transform moved the image where nothing else could follow.

    Raises:
        UserError: the image has been resized already.
    """
    if TRACK in results:
        return
    size = results["img"].shape[:2]
    if tuple(results["ori_shape"][:2]) != tuple(size):
        raise UserError(
            f"{results.get('img_path', 'pipeline')}: SceneKDLoadTeacher must come before the image is moved"
        )
    results[TRACK] = Track.start(*size)
    renew_witness(results)


def check_witness(results: dict[str, Any]) -> None:
    """Refuse a pipeline that moved the image outside :class:`SceneKDGeometry`.

    Raises:
        UserError: it did.
    """
    size = results["img"].shape[:2]
    if not np.array_equal(results[WITNESS], _pixel_numbers(*size)):
        raise UserError(
            "pipeline: the image was moved outside SceneKDGeometry, where boxes and teachers cannot follow; "
            f"move {', '.join(SUPPORTED[:5])}, … into SceneKDGeometry's transforms"
        )


def _pixel_numbers(height: int, width: int) -> np.ndarray:
    # float32, because OpenCV rotates no integers of 32 bits; exact up to 16 million pixels
    return np.arange(height * width, dtype=np.float32).reshape(height, width)


def renew_witness(results: dict[str, Any]) -> None:
    """The witness of an image that has just been moved rightly."""
    results[WITNESS] = _pixel_numbers(*results["img"].shape[:2])
    if WITNESS not in results.setdefault("seg_fields", []):
        results["seg_fields"].append(WITNESS)
