"""The doctor's look at a configuration by itself: mistakes that train without a word and spoil the result."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .data.policy import POLICIES, build_policy
from .doctor_findings import Finding, error, run_checks, warning
from .errors import UserError
from .models import NO_FILE, choose_device
from .teachers.protocol import TASKS


def check_settings(cfg: Any) -> list[Finding]:
    """All checks that need neither data nor teachers."""
    return run_checks(
        [
            ("device and weights", lambda: check_start(cfg)),
            ("learning-rate schedule", lambda: check_schedule(cfg)),
            ("batch", lambda: check_batch(cfg)),
            ("policies", lambda: check_policies(cfg)),
            ("weights of sources and losses", lambda: check_weights(cfg)),
            ("temperature", lambda: check_temperature(cfg)),
            ("padding", lambda: check_padding(cfg)),
        ]
    )


def check_start(cfg: Any) -> list[Finding]:
    """The device, and the checkpoint to start from."""
    findings = []
    try:
        choose_device(cfg)
    except UserError as reason:
        findings.append(error(str(reason)))
    weights = cfg.MODEL.WEIGHTS
    if weights not in NO_FILE and not Path(weights).is_file():
        findings.append(error(f"MODEL.WEIGHTS: {weights}: no such file", 'set it, or MODEL.WEIGHTS ""'))
    return findings


def check_schedule(cfg: Any) -> list[Finding]:
    """Learning rates that are zero, never reached or never lowered."""
    solver, findings = cfg.SOLVER, []
    if solver.BASE_LR <= 0:
        findings.append(error(f"SOLVER.BASE_LR is {solver.BASE_LR}: nothing is learned", "set it above 0"))
    late = [step for step in solver.STEPS if step >= solver.MAX_ITER]
    if late and solver.LR_SCHEDULER_NAME == "WarmupMultiStepLR":
        what = f"SOLVER.STEPS {tuple(late)} lie beyond SOLVER.MAX_ITER {solver.MAX_ITER} and never happen"
        findings.append(warning(what, f"scale them, for example SOLVER.STEPS ({solver.MAX_ITER * 3 // 4},)"))
    if solver.WARMUP_ITERS >= solver.MAX_ITER:
        what = f"SOLVER.WARMUP_ITERS {solver.WARMUP_ITERS} does not end before MAX_ITER {solver.MAX_ITER}"
        findings.append(warning(what, "the full learning rate is never reached; lower WARMUP_ITERS"))
    return findings


def check_batch(cfg: Any) -> list[Finding]:
    """Batches that do not divide, and a share of a batch that is none or all of it."""
    images, parts = cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.ACCUMULATE_STEPS
    if images < 1 or parts < 1 or images % parts:
        what = f"SOLVER.IMS_PER_BATCH {images} does not divide into SOLVER.ACCUMULATE_STEPS {parts}"
        return [error(what, "choose a multiple")]
    findings = []
    for task in TASKS:
        node = cfg.DISTILL[task.upper()]
        chosen = int(images * node.FRACTION + 1e-9)
        if node.POLICY == "per_batch" and 0 < node.FRACTION < 1 and chosen == 0:
            what = f"DISTILL.{task.upper()}.FRACTION {node.FRACTION} of a batch of {images} is no image"
            findings.append(warning(what, f"set it to {1 / images:.3g} or more"))
    return findings


def check_policies(cfg: Any) -> list[Finding]:
    """Policies without a teacher, teachers without a policy."""
    findings = []
    for task in TASKS:
        key, node = task.upper(), cfg.DISTILL[task.upper()]
        has_teacher = bool(cfg.TEACHER[key].TYPE)
        if node.POLICY not in POLICIES:
            findings.append(error(f"DISTILL.{key}.POLICY: {node.POLICY!r} is none of {', '.join(POLICIES)}"))
        elif node.POLICY != "ground_truth" and not has_teacher:
            what = f"DISTILL.{key}.POLICY {node.POLICY} needs a teacher, and TEACHER.{key} names none"
            findings.append(error(what, f"set TEACHER.{key}.TYPE, or DISTILL.{key}.POLICY ground_truth"))
        elif node.POLICY == "ground_truth" and has_teacher:
            what = f"TEACHER.{key} is set, but DISTILL.{key}.POLICY ground_truth takes nothing from it"
            findings.append(warning(what, "choose another policy, unless this is the run without a teacher"))
    if not findings:
        try:
            build_policy(cfg, ["any"], teachers=TASKS)
        except UserError as reason:
            findings.append(error(str(reason)))
    return findings


def check_weights(cfg: Any) -> list[Finding]:
    """A source or a loss that is named and counts for nothing."""
    findings = []
    for task in TASKS:
        key, node = task.upper(), cfg.DISTILL[task.upper()]
        for name in ("GT_WEIGHT", "TEACHER_WEIGHT"):
            if node.POLICY == "combined" and node[name] == 0:
                what = f"DISTILL.{key}.{name} is 0: the combined loss has one source only"
                findings.append(warning(what, "raise it, or say so with POLICY ground_truth or teacher"))
        if node.POLICY in ("fixed_subset", "per_batch") and node.FRACTION == 0:
            what = f"DISTILL.{key}.FRACTION is 0: no image takes the teacher"
            findings.append(warning(what, "raise it, or choose POLICY ground_truth"))
    for system, node in cfg.MODEL.items():
        if isinstance(node, Mapping) and any(weight == 0 for weight in node.get("LOSS_WEIGHTS", ())):
            what = f"MODEL.{system}.LOSS_WEIGHTS {tuple(node['LOSS_WEIGHTS'])} switches a loss off"
            findings.append(warning(what, f"leave the task out with MODEL.{system}.TASKS, or raise it"))
    return findings


def scores_target_peak(num_classes: int, temperature: float) -> float:
    """Probability of the class in softmax(scores / T), where a box of confidence 1 covers the pixel:
    e^(1/T) / (e^(1/T) + C), C object classes and background."""
    return 1 / (1 + num_classes * math.exp(-1 / temperature))


def check_temperature(cfg: Any) -> list[Finding]:
    """Temperatures that leave no target, or no shape of one."""
    node = cfg.DISTILL.SEGMENTATION
    if node.TEMPERATURE <= 0:
        return [error(f"DISTILL.SEGMENTATION.TEMPERATURE is {node.TEMPERATURE}", "set it above 0")]
    if node.POLICY == "ground_truth" or node.TARGET != "scores":
        return []
    peak = scores_target_peak(len(cfg.DATASETS.CLASSES) or 20, node.TEMPERATURE)
    if peak >= 0.25:
        return []
    what = (
        f"DISTILL.SEGMENTATION.TEMPERATURE {node.TEMPERATURE:g}: softmax of scores in 0…1 gives a pixel that "
        f"the teacher is sure of a target of {peak:.2f}"
    )
    return [warning(what, "the thesis chose 0.4; or set DISTILL.SEGMENTATION.TARGET probabilities")]


def check_padding(cfg: Any) -> list[Finding]:
    """Padding that is taught as background."""
    inp = cfg.INPUT
    if inp.ZOOM_OUT_PROB > 0 and inp.ZOOM_OUT_FILL_SEG == 0:
        what = "INPUT.ZOOM_OUT_FILL_SEG 0: the padding around an image is taught as background"
        return [warning(what, "set it to 255 (void)")]
    return []
