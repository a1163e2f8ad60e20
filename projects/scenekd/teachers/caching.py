"""Ask teachers for every training image and cache what they say."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

from ..data.catalog import load_datasets
from ..data.records import Dataset, Record
from ..errors import UserError
from .asking import Question, ask, ask_in_processes, build_networks, make_batches
from .build import build_manifest, teacher_class_map
from .cache import CacheStore
from .cache_builder import CacheBuilder
from .more import OneTeacher, asked_teachers
from .options import cache_folder
from .protocol import Teacher

Progress = Callable[[int, int], None]  # (images that are there, images wanted)


@dataclass
class CacheReport:
    """What a run did: images asked and found there already, bytes of all records, what was skipped.

    ``fidelity`` holds the means over all records of KL at T = 1 and T = 4 and of the argmax agreement (dense
    teachers only); ``worst`` the image with the largest KL at T = 4, and its value.
    """

    task: str
    folder: str
    asked: int = 0
    found: int = 0
    bytes: int = 0
    skipped: list[str] = field(default_factory=list)
    fidelity: dict[str, float] = field(default_factory=dict)
    worst: tuple[str, float] | None = None

    def __str__(self) -> str:
        total = max(self.asked + self.found, 1)
        text = (
            f"{self.task}: {self.asked} images asked, {self.found} found in {self.folder}, "
            f"{self.bytes / total / 1024:.1f} KiB an image"
        )
        if self.skipped:
            text += f", {len(self.skipped)} skipped (first: {self.skipped[0]})"
        if self.fidelity and self.worst:
            text += (
                f"; KL {self.fidelity['kl_t1']:.1e} at T=1, {self.fidelity['kl_t4']:.1e} at T=4, "
                f"argmax {100 * self.fidelity['argmax']:.2f} %, worst {self.worst[0]} ({self.worst[1]:.1e})"
            )
        return text


def cache_teacher(cfg: Any, task: str, **options: Any) -> CacheReport:
    """:func:`cache_teachers` for the first teacher of one task."""
    return cache_teachers(cfg, (task,), **options)[0]


def cache_teachers(
    cfg: Any,
    tasks: Sequence[str],
    *,
    processes: int = 1,
    resume: bool = False,
    rebuild: bool = False,
    progress: Progress | None = None,
    dataset: Dataset | None = None,
) -> list[CacheReport]:
    """Fill the caches of ``cfg.TEACHER.<TASK>`` with all images of ``DATASETS.TRAIN`` (or of ``dataset``), and
    those of the further networks that ``TEACHER.DETECTION.MORE`` names; one report each.

    All teachers see an image when it is read, ``TEACHER.BATCH_SIZE`` images at a time. A finished cache that
    still fits is left as it is. One that is not finished needs ``resume``, which keeps all whole records and
    asks again for images that have changed; ``rebuild`` begins anew.

    Raises:
        UserError: see :class:`CacheBuilder`; an unfinished cache without ``resume``; an unusable image, unless
            ``DATASETS.ON_ERROR`` is ``skip``.
    """
    if processes < 1:
        raise UserError(f"--num-gpus: {processes} is no number of processes")
    teachers = asked_teachers(cfg, tasks)
    networks = build_networks(teachers)
    records = (dataset or load_datasets(cfg.DATASETS.TRAIN, cfg, train=False)).records
    with ExitStack() as stack:
        jobs = [_Job(one, network, records, rebuild, stack) for one, network in zip(teachers, networks)]
        for job in jobs:
            job.check(resume)
        networks = [network for job, network in zip(jobs, networks) if job.wanted]
        questions = [job.question() for job in jobs if job.wanted]
        batches = make_batches(records, questions, cfg)
        wanted = set[str]().union(*(question.wanted for question in questions))
        if processes == 1:
            answers = ask(cfg, questions, batches, networks=networks)
        else:
            networks.clear()  # each process builds its own
            answers = ask_in_processes(cfg, questions, batches, processes)
        for number, (image_id, problem) in enumerate(answers, start=1):
            for job in jobs:
                job.note(image_id, problem)
            if progress is not None:
                progress(len(records) - len(wanted) + number, len(records))
        for job in jobs:
            job.finish()
    return [job.report for job in jobs]


class _Job:
    """One cache in the making: its builder (locked until ``stack`` is closed) and the report of the run."""

    def __init__(
        self, one: OneTeacher, network: Teacher, records: list[Record], rebuild: bool, stack: ExitStack
    ):
        self.teacher, self.records = one, records
        self.report = CacheReport(one.task, str(cache_folder(one.cfg, one.task)))
        with one.naming():
            class_map = teacher_class_map(one.cfg, one.task, network.classes)
            manifest = build_manifest(one.cfg, one.task, network, class_map)
            builder = CacheBuilder(self.report.folder, manifest, rebuild=rebuild)
            self.builder = stack.enter_context(builder)
        self.builder.forget_changed(records)
        self.wanted = frozenset(r.image_id for r in records if r.image_id not in self.builder.done)
        self.report.found = len(records) - len(self.wanted)

    def check(self, resume: bool) -> None:
        """Refuse to go on with an unfinished cache unasked."""
        if self.builder.done and self.wanted and not resume:
            raise UserError(
                f"{self.report.folder}: holds {self.report.found} of {len(self.records)} images; add --resume "
                "to go on, or --rebuild to begin anew"
            )

    def question(self) -> Question:
        """What is to be asked, after the manifest of an unfinished cache is written."""
        self.builder.begin()
        builder = self.builder
        return Question(self.teacher, builder.manifest, builder.folder, builder.run, self.wanted)

    def note(self, image_id: str, problem: str) -> None:
        """Count an image that is done or was passed over."""
        if image_id not in self.wanted:
            return
        self.report.asked += not problem
        if problem:
            self.report.skipped.append(problem)
            self.records = [record for record in self.records if record.image_id != image_id]

    def finish(self) -> None:
        """Write the index, and measure what is there."""
        self.builder.finish([record.image_id for record in self.records])
        _measure(self.report)


def _measure(report: CacheReport) -> None:
    """Size and fidelity over all records."""
    store = CacheStore(report.folder)
    report.bytes = sum(entry.location.length for entry in store.manifest.records.values())
    sums: dict[str, float] = {}
    for image_id in store.image_ids:
        measured = store.read(image_id)[0]["data"].get("fidelity")
        if measured is None:
            return
        for name, value in measured.items():
            sums[name] = sums.get(name, 0.0) + value / len(store)
        if report.worst is None or measured["kl_t4"] > report.worst[1]:
            report.worst = (image_id, measured["kl_t4"])
    report.fidelity = sums
