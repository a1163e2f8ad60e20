"""Teachers look at images, and what they say is written; in one process or several.

Images are asked about in batches, the same in every run over the same images: who goes on with an unfinished
cache asks about whole batches again, so that an image's company, and with it the last bits of its record, does
not depend on where a run was cut. An image is read once for all teachers.
"""

from __future__ import annotations

import os
import queue
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.multiprocessing as multiprocessing

from ..data.images import read_image
from ..data.records import Record
from ..errors import BadRecordError, UserError
from ..models import choose_device
from .build import build_teacher, teacher_class_map
from .cache_builder import encode_output
from .context import build_context
from .images import image_state
from .label_map import ClassMap
from .manifest import Manifest
from .more import OneTeacher
from .options import SHAPING
from .protocol import Teacher, TeacherOutput
from .shards import ShardWriter

ON_CUDA = 8  # images at a time, where TEACHER.BATCH_SIZE leaves it open

Batch = Sequence[Record]


class Question(NamedTuple):
    """What is to be asked for one cache: its teacher, manifest and folder, the number of the run, and the ids of
    the images without a record."""

    teacher: OneTeacher
    manifest: Manifest
    folder: Path
    run: int
    wanted: frozenset[str]


class Answer(NamedTuple):
    """An image is done for all teachers, or was passed over for a ``problem``."""

    image_id: str
    problem: str


def make_batches(records: Sequence[Record], questions: Sequence[Question], cfg: Any) -> list[Batch]:
    """The batches that hold an image for which a record is wanted."""
    size = cfg.TEACHER.BATCH_SIZE or (ON_CUDA if choose_device(cfg).type == "cuda" else 1)
    batches = [records[start : start + size] for start in range(0, len(records), size)]
    wanted = frozenset[str]().union(*(question.wanted for question in questions))
    return [batch for batch in batches if any(record.image_id in wanted for record in batch)]


def build_networks(teachers: Sequence[OneTeacher]) -> list[Teacher]:
    """The network of each teacher; one for two tasks where both nodes describe the same and it does both."""

    def shape(one: OneTeacher) -> list[Any]:
        return [one.node.get(key, 0.0) for key in SHAPING]

    networks: list[Teacher] = []
    for one in teachers:
        for other, network in zip(teachers, networks):
            if one.task in network.tasks and shape(one) == shape(other):
                networks.append(network)
                break
        else:
            with one.naming():
                networks.append(build_teacher(one.cfg, one.task))
    return networks


class _Speaker:
    """A network and the shard in which its answers are written."""

    def __init__(self, question: Question, rank: int, network: Teacher):
        self.question, self.network = question, network
        one = question.teacher
        self.class_map = teacher_class_map(one.cfg, one.task, network.classes)
        self.context = build_context(one.cfg) if one.task == "detection" else None
        self.writer = ShardWriter(question.folder, question.run, rank)

    def speak(
        self,
        ids: Sequence[str],
        images: Sequence[np.ndarray],
        states: Sequence[Any],
        said: dict[int, list[TeacherOutput]],
    ) -> None:
        """Write what has no record yet; ``said`` holds, by network, what was said of this batch already."""
        if self.question.wanted.isdisjoint(ids):
            return
        if id(self.network) not in said:
            said[id(self.network)] = self.network.predict(images)
        for image_id, image, state, output in zip(ids, images, states, said[id(self.network)]):
            if image_id in self.question.wanted:
                mapped = _mapped(output, self.class_map, self.question.teacher.task)
                if self.context is not None:
                    mapped = self._with_context(image, mapped)
                self.writer.write(*encode_output(mapped, self.question.manifest, image_id, state))

    def _with_context(self, image: np.ndarray, output: TeacherOutput) -> TeacherOutput:
        """Only the boxes that are kept are hidden."""
        manifest, found = self.question.manifest, output.detections
        assert self.context is not None and found is not None
        found = self.context.mix(image, found.keep(manifest.min_score, manifest.max_boxes or None))
        return TeacherOutput(
            found.boxes, found.labels, found.scores, class_probabilities=found.class_probabilities
        )


def ask(
    cfg: Any,
    questions: Sequence[Question],
    batches: Sequence[Batch],
    *,
    rank: int = 0,
    networks: Sequence[Teacher] = (),
) -> Iterator[Answer]:
    """Write a record for each image that is wanted; yields what became of it.

    Args:
        rank: of this process, for the name of its shards.
        networks: of the questions' teachers, where they are there already.
    """
    speakers: list[_Speaker] = []
    networks = networks or build_networks([question.teacher for question in questions])
    try:
        for question, network in zip(questions, networks):
            speakers.append(_Speaker(question, rank, network))
        wanted = frozenset[str]().union(*(question.wanted for question in questions))
        for batch in batches:
            ids, images, states = [], [], []
            for record in batch:
                try:
                    state, image = image_state(record.file_name), read_image(record)
                except BadRecordError as error:
                    if cfg.DATASETS.ON_ERROR != "skip":
                        raise
                    if record.image_id in wanted:
                        yield Answer(record.image_id, str(error))
                    continue
                ids.append(record.image_id)
                images.append(image)
                states.append(state)
            said: dict[int, list[TeacherOutput]] = {}
            for speaker in speakers:
                speaker.speak(ids, images, states, said)
            yield from (Answer(image_id, "") for image_id in ids if image_id in wanted)
    finally:
        for speaker in speakers:
            speaker.writer.close()


def _mapped(output: TeacherOutput, class_map: ClassMap, task: str) -> TeacherOutput:
    """An output in our classes."""
    if task == "instance_segmentation" and output.instances is not None:
        instances = class_map.instances(output.instances)
        return TeacherOutput(instances.boxes, instances.labels, instances.scores, masks=instances.masks())
    found, soft = output.detections, output.segmentation
    soft = None if soft is None else class_map.segmentation(soft)
    if found is None:
        return TeacherOutput(segmentation=soft)
    found = class_map.detections(found)
    return TeacherOutput(found.boxes, found.labels, found.scores, soft, found.class_probabilities)


def ask_in_processes(
    cfg: Any, questions: Sequence[Question], batches: Sequence[Batch], processes: int
) -> Iterator[Answer]:
    """As :func:`ask`; every process has teachers and shards of its own."""
    context = multiprocessing.get_context("spawn")
    messages = context.Queue()
    workers = []
    # Labels are not needed there, and those of foreign data sets may not travel.
    bare = [[Record(record.image_id, record.file_name) for record in batch] for batch in batches]
    threads = max(torch.get_num_threads() // processes, 1)
    for rank in range(min(processes, len(bare))):
        arguments = (cfg, questions, bare[rank::processes], rank, threads, os.getpid(), messages)
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
                        f"{questions[0].folder}: a process ended with code {failed[0]}; what is written is "
                        "kept, go on with --resume"
                    ) from None
                continue
            if image_id is None and problem:
                raise UserError(problem)
            if image_id is None:
                ended += 1
            else:
                yield Answer(image_id, problem)
        for worker in workers:
            worker.join()
    finally:
        for worker in workers:
            worker.terminate()


def _on(device: str, one: OneTeacher) -> OneTeacher:
    cfg = one.cfg.clone()
    cfg.defrost()
    cfg.MODEL.DEVICE = device
    return one._replace(cfg=cfg)


def _worker(
    cfg: Any,
    questions: Sequence[Question],
    batches: Sequence[Batch],
    rank: int,
    threads: int,
    parent: int,
    messages: Any,
) -> None:
    """One process: (image id, problem) for each image, then (None, "") or (None, the user's error)."""
    try:
        if torch.cuda.is_available() and cfg.MODEL.DEVICE in ("auto", "cuda"):
            device = f"cuda:{rank % torch.cuda.device_count()}"
            questions = [question._replace(teacher=_on(device, question.teacher)) for question in questions]
        torch.set_num_threads(threads)
        for answer in ask(cfg, questions, batches, rank=rank):
            if os.getppid() != parent:
                return  # nobody is left to finish the cache
            messages.put(tuple(answer))
        messages.put((None, ""))
    except UserError as error:
        messages.put((None, str(error)))
    except KeyboardInterrupt:
        pass
