"""The thesis's experiments (A. Hernandez Munuera, TU Berlin 2019) as a study; the rows are in ``experiments/``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fvcore.common.config import CfgNode

from scenekd.report import teacher_tasks
from scenekd.study.spec import Metric, StudySpec
from scenekd.teachers.protocol import TASKS


def simplify(cfg: CfgNode, keys: dict[str, Any]) -> dict[str, Any]:
    """The keys without those that the policies leave unread: a fraction of 0 is ground truth, one of 1 the teacher
    alone, and who learns from no teacher is not told apart by it.
    """
    kept = dict(keys)
    for task in TASKS:
        name = task.upper()
        node = cfg.DISTILL[name]
        if task not in teacher_tasks(cfg):
            for key in keys:
                if key.startswith((f"DISTILL.{name}.", f"TEACHER.{name}.")):
                    del kept[key]
            continue
        if node.POLICY not in ("fixed_subset", "per_batch"):
            del kept[f"DISTILL.{name}.FRACTION"]
        elif node.FRACTION == 1:
            kept[f"DISTILL.{name}.POLICY"] = "teacher"
            del kept[f"DISTILL.{name}.FRACTION"]
        if node.POLICY != "fixed_subset" or node.FRACTION == 1:
            del kept[f"DISTILL.{name}.SUBSET_SEED"]
        if node.POLICY != "combined":
            del kept[f"DISTILL.{name}.GT_WEIGHT"], kept[f"DISTILL.{name}.TEACHER_WEIGHT"]
    return kept


STUDY = StudySpec(
    system="kd_mtl",
    title="The thesis's experiments beside ours",
    folder=Path(__file__).with_name("experiments"),
    metrics=(Metric("mAP", "bbox", "AP-"), Metric("mIoU", "sem_seg", "IoU-")),
    simplify=simplify,
)
