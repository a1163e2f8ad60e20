"""What is known of drawn scenes beside their labels: the type of scene, and the true probabilities of each class.

C: classes; N: cases. The Bayes oracle is the best that any model can do: the generator's own posterior of the hidden
object's class (:func:`scenekd.data.scenes_model.class_probabilities`).
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from scenekd.data.records import Dataset
from scenekd.data.scenes import MANIFEST, SCENES_CLASSES, read_class_probabilities

# Name of the results → what the oracle is told beside the type of scene and the classes of the other objects.
ORACLES = {
    "oracle": "given_scene_and_box",
    "oracle_without_box": "given_scene_and_zone",
    "oracle_without_place": "given_scene",
    "oracle_without_scene": "given_objects",
}


def scene_records(dataset: Dataset) -> dict[str, dict[str, Any]]:
    """What :func:`scenekd.data.scenes.read_class_probabilities` tells of the pictures of a data set, by image id;
    empty where they are no drawn scenes."""
    found: dict[str, dict[str, Any]] = {}
    folders = {os.path.dirname(record.file_name) for record in dataset.records}
    for root in sorted({Path(folder).parent for folder in folders}):
        if (root / MANIFEST).is_file():
            for path in sorted((root / "ClassProbabilities").glob("*.jsonl")):
                found.update(read_class_probabilities(root, path.stem))
    return found


def scene_types(dataset: Dataset) -> dict[str, str]:
    """The type of scene of each picture, by image id; empty where it is not known."""
    return {image_id: record["scene"] for image_id, record in scene_records(dataset).items()}


def oracle_probabilities(dataset: Dataset) -> dict[str, np.ndarray]:
    """The true class probabilities of every case, (N, C), by the names of :data:`ORACLES`; empty where they are not
    known.

    Args:
        dataset: of cases, see :func:`.data.enumerate_objects`.
    """
    known = scene_records(dataset)
    cases = [record.hidden for record in dataset.records if record.hidden is not None]
    if not cases or any(case.picture not in known for case in cases):
        return {}
    if set(dataset.classes) != set(SCENES_CLASSES):  # the generator knows nothing of another class
        return {}
    columns = [SCENES_CLASSES.index(name) for name in dataset.classes]
    objects = [known[case.picture]["objects"][case.place] for case in cases]
    return {name: np.asarray([one[given] for one in objects])[:, columns] for name, given in ORACLES.items()}
