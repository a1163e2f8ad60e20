"""The paper's experiments (U. B. Karli, Koç University 2019) as a study, the rows it lacks, and a comparison of
distillation losses; the rows are in ``experiments/``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fvcore.common.config import CfgNode

from scenekd.losses.distillation_options import read_entries
from scenekd.sample import TASKS
from scenekd.study.spec import Metric, StudySpec


def simplify(cfg: CfgNode, keys: dict[str, Any]) -> dict[str, Any]:
    """The keys without those that are left unread: who learns from no teacher is not told apart by it (Hinton's loss at
    α = 0 is plain training to the bit), and a teacher that is asked online has no policies.
    """
    if not _learns(cfg):
        return {key: value for key, value in keys.items() if not key.startswith(("DISTILL.", "TEACHER."))}
    kept = dict(keys)
    if cfg.DISTILL.TEACHER == "online":
        policies = tuple(f"DISTILL.{task.upper()}." for task in TASKS)
        kept = {key: value for key, value in keys.items() if not key.startswith(policies)}
    kept["DISTILL.LOSSES"] = [[entry.kind, entry.options] for entry in read_entries(cfg.DISTILL.LOSSES)]
    return kept


def _learns(cfg: CfgNode) -> bool:
    """Whether a teacher changes anything."""
    source = cfg.DISTILL.TEACHER
    if source == "none" or not cfg.DISTILL.LOSSES:
        return False  # a teacher of whom nothing is learned is refused
    if source == "cached" and cfg.DISTILL.SEGMENTATION.POLICY == "teacher":
        return True  # which leaves the labels out
    return any(entry.kind != "hinton" or entry["ALPHA"] > 0 for entry in read_entries(cfg.DISTILL.LOSSES))


STUDY = StudySpec(
    system="fcn_kd",
    title="Small networks by distillation: the paper's experiments beside ours",
    folder=Path(__file__).with_name("experiments"),
    metrics=(Metric("mIoU", "sem_seg", "IoU-"), Metric("accuracy", "classification")),
    simplify=simplify,
)
