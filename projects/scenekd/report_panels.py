"""Panels of test images: ground truth, teachers and networks side by side."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from .data.geometry import identity_coordinates
from .data.images import read_image
from .data.instance_masks import match_boxes
from .data.records import Dataset, Record
from .data.soft import sample_soft
from .errors import UserError
from .predictor import Predictor
from .sample import SoftSegmentation
from .teachers.build import build_teacher, open_store, teacher_class_map
from .teachers.options import NETWORKS, teacher_node
from .teachers.protocol import InstanceDetections
from .visualize import SIDE, View, panel

logger = logging.getLogger(__name__)


class Picture(NamedTuple):
    """A panel, (H, W, 3) uint8 RGB, and the id of its image."""

    image_id: str
    pixels: np.ndarray


class TeacherViews:
    """What the teachers of a configuration say about any image: read from their stores where they hold it,
    else the network is asked. Where neither can be had, the task stays empty and the log says why.

    Args:
        tasks: of :data:`scenekd.sample.TASKS`.

    Attributes:
        problems: task → why its last attempt at a store, or at the network, failed.
    """

    def __init__(self, cfg: Any, tasks: tuple[str, ...]) -> None:
        self.cfg, self.tasks = cfg, tasks
        self.problems: dict[str, str] = {}
        self._stores: dict[str, Any] = {}
        self._networks: dict[str, Any] = {}

    def __call__(self, record: Record, image: np.ndarray) -> View:
        """The teachers' view of an (H, W, 3) uint8 RGB image."""
        view, objects = View("teacher"), None
        for task in self.tasks:
            said = self._ask(task, record.image_id, image)
            if said is None:
                continue
            if task == "segmentation":
                view.sem_seg = dense_labels(said, (image.shape[0], image.shape[1]))
            elif task == "detection":
                view.boxes, view.labels, view.scores = said
            else:
                objects = said
        if objects is not None:
            _show_objects(view, objects)
        return view

    def _ask(self, task: str, image_id: str, image: np.ndarray) -> Any:
        store = self._once(self._stores, task, lambda: open_store(self.cfg, task))
        if store is not None and image_id in store:
            get = {
                "detection": "get_detections",
                "segmentation": "get_segmentation",
                "instance_segmentation": "get_instances",
            }[task]
            return getattr(store, get)(image_id)
        network = self.network(task)
        if network is None:
            return None
        output = network.predict([image])[0]
        class_map = teacher_class_map(self.cfg, task, network.classes)
        if task == "detection":
            return class_map.detections(output.detections)
        if task == "segmentation":
            return class_map.segmentation(output.segmentation)
        return class_map.instances(output.instances)

    def network(self, task: str) -> Any:
        """The network of a task's teacher; None where only its saved outputs, or nothing, can be had."""
        if teacher_node(self.cfg, task).TYPE not in NETWORKS:
            return None
        return self._once(self._networks, task, lambda: build_teacher(self.cfg, task))

    def _once(self, made: dict[str, Any], task: str, make: Any) -> Any:
        if task not in made:
            try:
                made[task] = make()
            except UserError as error:
                logger.info("report: no %s teacher: %s", task, error)
                self.problems[task] = str(error)
                made[task] = None
        return made[task]


def _show_objects(view: View, objects: InstanceDetections) -> None:
    """A teacher's masks on the boxes that the view has, where they are of the same objects; else on their own. So
    do they reach a student."""
    if view.boxes is None or view.labels is None:
        view.boxes, view.labels, view.scores = objects.boxes, objects.labels, objects.scores
        view.masks = objects.masks()
        return
    found = match_boxes(view.boxes, view.labels, objects.boxes, objects.labels)
    view.masks = np.zeros((len(found), *objects.size), bool)
    view.masks[found >= 0] = objects.masks(found[found >= 0])


def dense_labels(soft: SoftSegmentation, size: tuple[int, int]) -> np.ndarray:
    """The likeliest class of each pixel, (H, W) uint8; of scores, background counts 1 − the largest."""
    values, _ = sample_soft(soft, identity_coordinates(*size), background="explicit")
    return values.argmax(axis=0).astype(np.uint8)


def choose_records(dataset: Dataset, count: int) -> list[Record]:
    """``count`` records evenly spaced over those with the most kinds of labels: the same in every run."""
    kinds = [r.has_boxes + r.has_sem_seg + r.has_class_label for r in dataset.records]
    rich = [record for record, kind in zip(dataset.records, kinds) if kind == max(kinds)]
    places = np.unique(np.linspace(0, len(rich) - 1, min(count, len(rich))).round().astype(int))
    return [rich[i] for i in places]


def with_ground_truth(dataset: Dataset, record: Record, views: list[View]) -> list[View]:
    """The labels of a record before ``views``; what it lacks stays empty. Masks of its boxes are shown where one of
    ``views`` has some."""
    mask = dataset.read_sem_seg(record) if record.has_sem_seg else None
    truth = View("ground truth", record.boxes, record.labels, None, mask, class_label=record.class_label)
    if record.has_instance_masks and any(view.masks is not None for view in views):
        truth.masks = dataset.read_instance_masks(record) == 1
    return [truth, *views]


class PanelFolder:
    """Writes FOLDER/<image_id>.png, ground truth and what a network predicts, one image at a time.

    Args:
        dataset: holds the images' records.
    """

    def __init__(self, folder: str | Path, dataset: Dataset) -> None:
        self.folder, self.dataset = Path(folder), dataset
        self._records = {record.file_name: record for record in dataset.records}
        self.folder.mkdir(parents=True, exist_ok=True)

    def write(self, file_name: str, view: View) -> None:
        """Write the panel of the image in ``file_name``, for a view at the image's own size."""
        record = self._records[file_name]
        pixels = panel(
            read_image(record),
            with_ground_truth(self.dataset, record, [view]),
            self.dataset.classes,
            title=record.image_id,
            palette=self.dataset.palette,
        )
        Image.fromarray(pixels).save(self.folder / f"{record.image_id}.png")


def report_panels(
    predictors: Mapping[str, Predictor],
    dataset: Dataset,
    *,
    teachers: TeacherViews | None = None,
    count: int = 8,
    side: int = SIDE,
) -> Iterator[Picture]:
    """One panel for each of ``count`` images of ``dataset``: ground truth, teachers, and each network.

    Args:
        predictors: name of the column → network.
        teachers: no column without them.
        side: longer side of a tile in pixels.
    """
    for record in choose_records(dataset, count):
        image = read_image(record)
        views = []
        if teachers is not None and teachers.tasks:
            views.append(teachers(record, image))
        views += [View.of_prediction(name, predict(image)) for name, predict in predictors.items()]
        pixels = panel(
            image,
            with_ground_truth(dataset, record, views),
            dataset.classes,
            title=record.image_id,
            palette=dataset.palette,
            side=side,
        )
        yield Picture(record.image_id, pixels)
