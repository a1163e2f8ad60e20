"""The doctor's look at soft labels, targets and teachers themselves; usable on any, without a configuration.

K: dense classes, background first; C: object classes; h, w: a grid; N: boxes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from torch import nn

from .data.soft import check_target
from .doctor_findings import Finding, error, warning
from .errors import UserError
from .sample import SoftSegmentation, Target

_TOLERANCE = 1e-3  # of a sum of probabilities; caches hold about 3 digits
_SHARE = 0.99  # of the cells that must agree, so that a few odd ones do not hide a mistake


def check_teacher(module: nn.Module) -> list[Finding]:
    """A teacher that is in training mode, or takes gradients.

    In training mode dropout makes its answers random, and batch normalisation changes with what it is asked.
    """
    findings = []
    training = [name or "the network" for name, part in module.named_modules() if part.training]
    if training:
        what = f"the teacher is in training mode ({len(training)} modules, such as {training[0]})"
        findings.append(error(what, "call eval() on it, as scenekd.teachers.frozen.freeze does"))
    learning = [name for name, parameter in module.named_parameters() if parameter.requires_grad]
    if learning:
        what = f"the teacher takes gradients ({len(learning)} parameters, such as {learning[0]})"
        findings.append(warning(what, "call requires_grad_(False) on it"))
    return findings


def looks_like_probabilities(values: np.ndarray) -> bool:
    """Whether (K, h, w) values lie in 0…1 and sum to 1 over K nearly everywhere."""
    if values.min() < -_TOLERANCE or values.max() > 1 + _TOLERANCE:
        return False
    return bool((np.abs(values.sum(axis=0) - 1) < _TOLERANCE).mean() >= _SHARE)


def looks_softmaxed_twice(values: Sequence[np.ndarray]) -> bool:
    """Whether probabilities went through a softmax: then none exceeds e / (e + K − 1), for the softmax's
    arguments lay in 0…1."""
    bound = math.e / (math.e + len(values[0]) - 1)
    return all(looks_like_probabilities(v) and v.max() <= bound + _TOLERANCE for v in values)


def check_soft_labels(
    labels: Sequence[SoftSegmentation], num_classes: int, target: str, background: str = "none"
) -> list[Finding]:
    """Soft labels whose values are not what their form says, or not what the loss expects.

    Args:
        num_classes: C. target: ``DISTILL.SEGMENTATION.TARGET``. background: of a sparse teacher.
    """
    if not labels:
        return []
    values, form = [label.values for label in labels], labels[0].form
    if any(len(v) != num_classes + 1 for v in values):
        what = f"the teacher has {len(values[0])} dense classes, DATASETS.CLASSES and background make "
        return [error(f"{what}{num_classes + 1}", "set DATASETS.CLASSES, or TEACHER.SEGMENTATION.CLASSES")]
    if not all(np.isfinite(v).all() for v in values):
        return [error("the teacher's soft labels hold NaN or infinity", "cache them again with --rebuild")]
    findings = []
    try:
        check_target(form, target, background)
    except UserError as reason:
        findings.append(error(str(reason)))
    dense = sum(looks_like_probabilities(v) for v in values) >= _SHARE * len(values)
    if dense and form != "probabilities":
        what = f"the teacher's {form} are probabilities: they would go through a softmax once more"
        findings.append(error(what, "save its logits, or declare the form probabilities"))
    if not dense and form == "probabilities":
        what = "the teacher's probabilities do not lie in 0…1 with the sum 1: they may be logits"
        findings.append(error(what, "save them after a softmax, or declare the form logits"))
    if form == "scores" and not dense and any(v.min() < 0 or v.max() > 1 for v in values):
        findings.append(
            error("the teacher's scores lie outside 0…1: they may be logits", "declare that form")
        )
    if dense and looks_softmaxed_twice(values):
        most = max(float(v.max()) for v in values)
        what = f"no soft label is surer than {most:.3f}: the softmax of probabilities, not of logits"
        findings.append(error(what, "save the teacher's output before its last softmax"))
    if form == "scores" and target == "scores" and background == "none":
        what = f"where no mask is, the target is 1/{num_classes + 1} for every class (the thesis's form)"
        findings.append(warning(what, "TEACHER.SEGMENTATION.BACKGROUND explicit makes it background"))
    return findings


def check_targets(
    targets: Sequence[Target],
    num_classes: int,
    target: str = "probabilities",
    tasks: Sequence[str] = ("detection", "segmentation"),
) -> list[Finding]:
    """Targets of a batch that would spoil a loss in silence.

    Args:
        num_classes: C. target: form of ``soft_seg``. tasks: that the images should teach.
    """
    findings = []
    soft = [t for t in targets if t.soft_seg is not None]
    unmasked = [t.image_id for t in soft if t.soft_valid is None]
    if unmasked:
        what = f"soft labels without a valid mask ({unmasked[0]}): padding and void would be distilled"
        findings.append(error(what, "set Target.soft_valid to where the image is shown"))
    for t in soft:
        if t.soft_valid is None or t.soft_seg is None:
            continue
        values = t.soft_seg[:, t.soft_valid]
        if not values.isfinite().all():
            findings.append(error(f"the soft labels of {t.image_id} hold NaN or infinity"))
        elif target == "probabilities" and values.numel() and (values.sum(0) - 1).abs().max() > 0.01:
            findings.append(error(f"the soft labels of {t.image_id} are not probabilities where valid"))
    for t in targets:
        labels = t.labels[(t.labels < 0) | (t.labels >= num_classes)]
        if len(labels):
            findings.append(
                error(f"box label {int(labels[0])} of {t.image_id} is outside 0…{num_classes - 1}")
            )
    for task in tasks:
        if targets and not any(any(t.weights[task]) for t in targets):
            what = f"none of the first {len(targets)} images teaches {task}: no label, or no weight"
            findings.append(warning(what, f"see DISTILL.{task.upper()} and the labels that exist"))
    return findings
