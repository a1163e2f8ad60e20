"""Where teacher and student look for the teacher's answer, on a finished run: ``ONLINE.COMPARE_ATTENTION``.

N: samples; K: samples that are shown; S: side of an image; h, w: size of a map.
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass

import numpy as np
import torch

from scenekd.evaluation.attention_focus import focus_summary
from scenekd.losses.attention_maps import class_attention, last_linear, look_of, top_wrong_class
from scenekd.losses.attention_triplet import triplet_distances
from scenekd.sample import IGNORE_INDEX

from .answer_log import AnswerTable
from .compare import AT_ONCE
from .outcome import FEATURE_SAMPLES, evenly, images_of
from .phases import ANSWER
from .run import OnlineRun
from .views import AttentionSamples

SHOWN = 8
GRID = 64  # parts of the stream, of whose first samples the last that were answered are shown

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Gaze:
    """Maps of some samples, ≥ 0.

    Attributes:
        said: (N,) int64, the teacher's class. teacher: (N, h', w'), student: (N, h, w), both for that class.
        apart: (N,) squared distance of the two at length 1, 0…2; NaN where one of them is all zeros.
        contrast: (N,) the same of the student's maps for its own first and second class; NaN where the first is zeros.
    """

    said: np.ndarray
    teacher: np.ndarray
    student: np.ndarray
    apart: np.ndarray
    contrast: np.ndarray


def gaze(run: OnlineRun, positions: np.ndarray, kind: str) -> Gaze:
    """Of one sample or more, with the student as it stands.

    Args:
        kind: of the maps, see :func:`scenekd.losses.attention_maps.class_attention`.
    """
    student, teacher = run.distiller.student.eval(), run.distiller.teacher
    heads = last_linear(student), getattr(teacher, "head", None)
    parts = []
    for images in images_of(run, positions, AT_ONCE):
        with torch.enable_grad():
            own = look_of(*student.features_and_logits(images), heads[0])
            other = look_of(*teacher.features_and_logits(images), heads[1])
            said, top = other.logits.argmax(1), own.logits.argmax(1)
            asked, shared, first, second = (
                class_attention(*look, kind=kind).detach()
                for look in ((other, said), (own, said), (own, top), (own, top_wrong_class(own.logits, top)))
            )
        apart, _, counted = triplet_distances(shared, asked, shared)
        _, contrast, seen = triplet_distances(first, first, second)
        distances = apart.masked_fill(~counted, math.nan), contrast.masked_fill(~seen, math.nan)
        parts.append([one.cpu().numpy() for one in (said, asked, shared, *distances)])
    return Gaze(*(np.concatenate(part) for part in zip(*parts)))


def attention_results(run: OnlineRun, table: AnswerTable, kind: str) -> dict[str, float]:
    """The section of ``results.json``, of up to 1000 evenly chosen samples that were answered; empty where there are
    none, or where they do not come again.

    ``samples``, ``distance`` and ``contrast``: means as of :class:`Gaze`. Where masks are known: ``masks``, how many
    are, and over these in percent ``energy_teacher`` and ``energy_student``, the share of a map's sum on the object,
    ``pointing_teacher`` and ``pointing_student``, how often its peak lies there, and ``energy_uniform``, what a flat
    map would get in both. ``zero_maps_teacher`` and ``zero_maps_student``: maps of zeros, which have no energy. What a
    mask calls void counts as outside.
    """
    if not run.stream.can_reread:
        logger.warning("ONLINE.COMPARE_ATTENTION: frames of a video or camera do not come again; left out")
        return {}
    positions = evenly(table.position[table.phase == ANSWER], FEATURE_SAMPLES)
    if not len(positions):
        logger.warning("ONLINE.COMPARE_ATTENTION: the student answered no sample; left out")
        return {}
    seen = gaze(run, positions, kind)
    found = {"samples": len(positions), "distance": _mean(seen.apart), "contrast": _mean(seen.contrast)}
    masks = [run.stream.truth.mask(int(at)) for at in positions]
    known = [row for row, mask in enumerate(masks) if mask is not None]
    if not known:
        logger.warning(
            "ONLINE.COMPARE_ATTENTION: the data name no mask of any object; energy and pointing game are left out"
        )
        return found
    inside = torch.from_numpy(np.stack([mask for mask in masks if mask is not None]) == 1)
    found["masks"] = len(known)
    for who, maps in (("teacher", seen.teacher), ("student", seen.student)):
        summary = focus_summary(torch.from_numpy(maps[known]), inside)
        found |= {
            f"energy_{who}": summary["energy_in_mask"],
            f"pointing_{who}": summary["pointing_game"],
            f"zero_maps_{who}": summary["zero_maps"],
            "energy_uniform": summary["mask_share"],
        }
    return found


def attention_samples(run: OnlineRun, table: AnswerTable, kind: str) -> AttentionSamples | None:
    """Up to eight answered samples to be shown, evenly spaced over the end of the stream; None where there are none.

    They are the last of those that begin one in 64 parts of the whole stream, so that runs over one stream, each of
    which began to answer at its own time, show the same.
    """
    if not run.stream.can_reread:
        return None
    step = max(1, (run.stream.samples or len(table)) // GRID)
    answered = table.position[table.phase == ANSWER]
    positions = answered[answered % step == 0][-SHOWN:]
    if not len(positions):
        return None
    seen = gaze(run, positions, kind)
    images = run.stream.read(positions).permute(0, 2, 3, 1).numpy()
    unknown = np.full(images.shape[1:3], IGNORE_INDEX, np.uint8)
    masks = [run.stream.truth.mask(int(at)) for at in positions]
    return AttentionSamples(
        positions=positions,
        names=tuple(run.classes[label] if run.classes else str(label) for label in seen.said),
        images=images,
        masks=np.stack([unknown if mask is None else mask for mask in masks]),
        teacher=seen.teacher.astype(np.float32),
        student=seen.student.astype(np.float32),
    )


def _mean(values: np.ndarray) -> float:
    """Of what is known; NaN of nothing."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else math.nan
