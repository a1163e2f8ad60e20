"""Ask a teacher for every training image and cache what it says; in one process or several."""

from __future__ import annotations

import os
import queue
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.multiprocessing as multiprocessing

from ..data.catalog import load_datasets
from ..data.images import read_image
from ..data.records import Dataset, Record
from ..errors import BadRecordError, UserError
from .build import build_manifest, build_teacher, teacher_class_map
from .cache import CacheStore
from .cache_builder import CacheBuilder, encode_output
from .images import image_state
from .label_map import ClassMap
from .manifest import Manifest
from .options import cache_folder
from .protocol import Teacher, TeacherOutput
from .shards import ShardWriter

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


def cache_teacher(
    cfg: Any,
    task: str,
    *,
    processes: int = 1,
    resume: bool = False,
    rebuild: bool = False,
    progress: Progress | None = None,
    dataset: Dataset | None = None,
) -> CacheReport:
    """Fill the cache of ``cfg.TEACHER.<TASK>`` with all images of ``DATASETS.TRAIN`` (or of ``dataset``).

    A finished cache that still fits is left as it is. One that is not finished needs ``resume``, which keeps
    all whole records and asks again for images that have changed; ``rebuild`` begins anew.

    Raises:
        UserError: see :class:`CacheBuilder`; an unfinished cache without ``resume``; an unusable image,
        unless
            ``DATASETS.ON_ERROR`` is ``skip``.
    """
    if processes < 1:
        raise UserError(f"--num-gpus: {processes} is no number of processes")
    teacher = build_teacher(cfg, task)
    class_map = teacher_class_map(cfg, task, teacher.classes)
    manifest = build_manifest(cfg, task, teacher, class_map)
    records = (dataset or load_datasets(cfg.DATASETS.TRAIN, cfg, train=False)).records
    report = CacheReport(task, str(cache_folder(cfg, task)))
    with CacheBuilder(cache_folder(cfg, task), manifest, rebuild=rebuild) as builder:
        builder.forget_changed(records)
        pending = [record for record in records if record.image_id not in builder.done]
        report.found = len(records) - len(pending)
        if builder.done and pending and not resume:
            raise UserError(
                f"{report.folder}: holds {report.found} of {len(records)} images; add --resume to go on, "
                "or --rebuild to begin anew"
            )
        if pending:
            builder.begin()
            if processes == 1:
                done = _ask(teacher, class_map, manifest, pending, builder.writer(), cfg)
            else:
                del teacher
                done = _ask_in_processes(cfg, task, manifest, pending, builder, processes)
            for image_id, problem in done:
                report.asked += not problem
                if problem:
                    report.skipped.append(problem)
                    records = [record for record in records if record.image_id != image_id]
                if progress is not None:
                    progress(report.found + report.asked + len(report.skipped), report.found + len(pending))
        builder.finish([record.image_id for record in records])
    _measure(report)
    return report


def _ask(
    teacher: Teacher,
    class_map: ClassMap,
    manifest: Manifest,
    records: Sequence[Record],
    writer: ShardWriter,
    cfg: Any,
) -> Iterator[tuple[str, str]]:
    """Write a record for each image; yields its id, and why it was skipped or ""."""
    try:
        for record in records:
            problem = ""
            try:
                state, image = image_state(record.file_name), read_image(record)
                output = _mapped(teacher.predict([image])[0], class_map)
                writer.write(*encode_output(output, manifest, record.image_id, state))
            except BadRecordError as error:
                if cfg.DATASETS.ON_ERROR != "skip":
                    raise
                problem = str(error)
            yield record.image_id, problem
    finally:
        writer.close()


def _mapped(output: TeacherOutput, class_map: ClassMap) -> TeacherOutput:
    """An output in our classes."""
    found, soft = output.detections, output.segmentation
    soft = None if soft is None else class_map.segmentation(soft)
    if found is None:
        return TeacherOutput(segmentation=soft)
    found = class_map.detections(found)
    return TeacherOutput(found.boxes, found.labels, found.scores, soft, found.class_probabilities)


def _ask_in_processes(
    cfg: Any, task: str, manifest: Manifest, records: Sequence[Record], builder: CacheBuilder, processes: int
) -> Iterator[tuple[str, str]]:
    """As ``_ask``; every process has a teacher and a shard of its own."""
    context = multiprocessing.get_context("spawn")
    messages = context.Queue()
    workers = []
    # Labels are not needed there, and those of foreign data sets may not travel.
    records = [Record(record.image_id, record.file_name) for record in records]
    threads = max(torch.get_num_threads() // processes, 1)
    for rank in range(min(processes, len(records))):
        place = (str(builder.folder), builder.run, rank)
        arguments = (cfg, task, manifest, records[rank::processes], place, threads, os.getpid(), messages)
        workers.append(context.Process(target=_worker, args=arguments, daemon=True))
    for worker in workers:
        worker.start()
    try:
        ended = 0
        while ended < len(workers):
            try:
                image_id, problem = messages.get(timeout=1.0)
            except queue.Empty:
                failed = [worker.exitcode for worker in workers if worker.exitcode]
                if failed:
                    raise UserError(
                        f"{builder.folder}: a process ended with code {failed[0]}; what is written is kept, "
                        "go on with --resume"
                    ) from None
                continue
            if image_id is None and problem:
                raise UserError(problem)
            if image_id is None:
                ended += 1
            else:
                yield image_id, problem
        for worker in workers:
            worker.join()
    finally:
        for worker in workers:
            worker.terminate()


def _worker(
    cfg: Any,
    task: str,
    manifest: Manifest,
    records: Sequence[Record],
    place: tuple[str, int, int],
    threads: int,
    parent: int,
    messages: Any,
) -> None:
    """One process: (image id, problem) for each image, then (None, "") or (None, the user's error).

    ``place``: folder of the cache, number of the run, rank of the process.
    """
    folder, run, rank = place
    try:
        if torch.cuda.is_available() and cfg.MODEL.DEVICE in ("auto", "cuda"):
            cfg = cfg.clone()
            cfg.defrost()
            cfg.MODEL.DEVICE = f"cuda:{rank % torch.cuda.device_count()}"
        torch.set_num_threads(threads)
        teacher = build_teacher(cfg, task)
        class_map = teacher_class_map(cfg, task, teacher.classes)
        writer = ShardWriter(Path(folder), run, rank)
        for message in _ask(teacher, class_map, manifest, records, writer, cfg):
            if os.getppid() != parent:
                return  # nobody is left to finish the cache
            messages.put(message)
        messages.put((None, ""))
    except UserError as error:
        messages.put((None, str(error)))
    except KeyboardInterrupt:
        pass


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
