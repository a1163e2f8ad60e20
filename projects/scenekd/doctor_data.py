"""The doctor's look at the data of a configuration, and at what the training loader makes of it."""

from __future__ import annotations

from typing import Any

from .data.catalog import assert_disjoint
from .data.mapper import INSTANCES
from .doctor_facts import Facts
from .doctor_findings import Finding, error, run_checks, warning, without_repeats
from .doctor_targets import check_targets
from .doctor_teachers import check_boxes, check_soft, check_stores, check_teacher_data
from .errors import UserError
from .hooks import hooks_of

DRAWS = 32  # of the training loader; few images may have a mask


def check_data(cfg: Any, config_file: str = "CONFIG") -> list[Finding]:
    """All checks of data and saved teacher outputs."""
    facts = Facts(cfg, config_file)
    findings = run_checks([("data sets", lambda: check_sets(facts))])
    if facts.train is None:
        findings = without_repeats(findings)
        return [*findings, warning("without the training set, labels and teachers were not looked at")]
    findings += run_checks(
        [
            ("training and test images are apart", lambda: check_overlap(facts)),
            ("labels", lambda: check_labels(facts)),
        ]
    )
    if facts.policy and facts.policy.teacher_tasks:
        findings += run_checks(
            [
                ("teachers' caches", lambda: check_stores(facts)),
                ("teachers' training data", lambda: check_teacher_data(facts)),
                ("teachers' boxes", lambda: check_boxes(facts)),
                ("teachers' soft labels", lambda: check_soft(facts)),
            ]
        )
    return without_repeats(findings + run_checks([("training loader", lambda: check_loader(facts))]))


def check_sets(facts: Facts) -> list[Finding]:
    """Data sets that cannot be loaded, or leave images out."""
    findings = []
    for name in ("train", "test"):
        if not facts.cfg.DATASETS[name.upper()]:
            findings.append(warning(f"DATASETS.{name.upper()} names no data set"))
            continue
        dataset = getattr(facts, name)
        findings += facts.problems.get(name, [])
        if dataset is not None and dataset.skipped:
            what = f"{dataset.name}: {len(dataset.skipped)} images are left out; first: {dataset.skipped[0]}"
            findings.append(warning(what))
    return findings


def check_overlap(facts: Facts) -> list[Finding]:
    """Images in both the training and the test set."""
    if facts.train is None or facts.test is None:
        return [warning("no training or no test set: whether they overlap was not looked at")]
    try:
        assert_disjoint(facts.train, facts.test)
    except UserError as reason:
        return [(warning if facts.cfg.DATASETS.ALLOW_OVERLAP else error)(str(reason))]
    return []


def check_labels(facts: Facts) -> list[Finding]:
    """Tasks without a label to learn from, and missing labels to fill that are not missing."""
    findings: list[Finding] = []
    for task in facts.tasks if facts.train is not None else ():
        assert facts.train is not None
        labelled = sum(record.has(task) for record in facts.train.records)
        key, policy = f"DISTILL.{task.upper()}.POLICY", facts.cfg.DISTILL[task.upper()].POLICY
        if not labelled and policy == "ground_truth":
            what = f"no image of {facts.train.name} has labels for {task}: nothing teaches it"
            findings.append(warning(what, f"choose another split, or {key} teacher"))
        elif (
            2 * labelled < len(facts.train)
            and policy == "ground_truth"
            and facts.cfg.DISTILL.TEACHER != "online"
        ):
            what = (
                f"{labelled} of {len(facts.train)} images have labels for {task}: the others teach it nothing"
            )
            fix = f"if they teach no other task either: DATASETS.REQUIRE_LABELS \"('{task}',)\"; or {key} fill_missing"
            findings.append(warning(what, fix))
        if labelled == len(facts.train) and policy == "fill_missing":
            what = f"{key} fill_missing: every image has labels for {task}, so the teacher is never asked"
            findings.append(warning(what, "choose combined, or another policy"))
    return findings


def check_loader(facts: Facts) -> list[Finding]:
    """The first draws of the training loader, as the network would get them."""
    if facts.train is None or facts.policy is None:
        return []
    stores = {task: facts.store(task) for task in facts.policy.teacher_tasks}
    if any(store is None for store in stores.values()):
        return []
    try:
        hooks = hooks_of(facts.cfg)
        records = hooks.prepare_data(facts.train, facts.cfg, train=True)
        mapper = hooks.build_mapper(records, facts.cfg, train=True, teachers=stores, policy=facts.policy)
        targets = [mapper(index)[1] for index in range(DRAWS)]
    except UserError as reason:
        return [error(str(reason))]
    tasks = [task for task in facts.tasks if task != INSTANCES]  # the mapper reads no masks of boxes here
    return check_targets(targets, facts.classes, facts.cfg.DISTILL.SEGMENTATION.TARGET, tasks)
