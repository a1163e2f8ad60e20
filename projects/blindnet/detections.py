"""The detections that are to be re-scored: saved ones in COCO's results format, or those of a network that is asked.

N: detections of an image; D: of all images.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from fvcore.common.config import CfgNode

from scenekd.config import apply_overrides
from scenekd.data.coco import find_json
from scenekd.data.images import read_image
from scenekd.data.records import Dataset
from scenekd.errors import UserError
from scenekd.evaluation.coco_results import SavedDetections, read_results, result_entries
from scenekd.evaluation.predictions import DETECTIONS, category_ids
from scenekd.files import write_text
from scenekd.teachers.build import build_teacher, teacher_class_map
from scenekd.teachers.uri import is_uri

_AT_ONCE = 8  # images that a network is asked about


@dataclass
class Found:
    """Detections of a data set.

    Attributes:
        source: what they were read from. content: the file's entries, as they stand. saved: the same, by image.
    """

    dataset: Dataset
    source: str
    content: list[dict[str, Any]]
    saved: SavedDetections

    def __len__(self) -> int:
        return len(self.content)

    def positions(self) -> dict[str, list[int]]:
        """Image id → the places of its entries in the file, in their order."""
        places: dict[str, list[int]] = {}
        for position, entry in enumerate(self.content):
            places.setdefault(str(entry["image_id"]), []).append(position)
        return places

    def arrays(self, image_id: str) -> dict[str, np.ndarray]:
        """``boxes`` (N, 4) float64 xyxy, ``labels`` and ``scores`` (N,) of an image."""
        own = self.saved.entries[image_id]
        return {
            "boxes": np.array([entry.box for entry in own], np.float64).reshape(-1, 4),
            "labels": np.array([entry.label for entry in own], np.int64),
            "scores": np.array([entry.score for entry in own], np.float64),
        }

    def with_scores(self, scores: Sequence[float]) -> Found:
        """The same entries with other scores, (D,)."""
        content = [{**entry, "score": float(score)} for entry, score in zip(self.content, scores)]
        places = self.positions()
        entries = {
            image_id: [
                entry._replace(score=content[at]["score"]) for entry, at in zip(own, places.get(image_id, ()))
            ]
            for image_id, own in self.saved.entries.items()
        }
        return Found(self.dataset, self.source, content, SavedDetections(entries, self.saved.shapes))


def read_detections(source: str, dataset: Dataset, cfg: CfgNode, folder: Path) -> Found:
    """Detections of a data set.

    Args:
        source: a json of COCO's results format, a folder with ``detections.json``, a checkpoint of ours, or a network
            by URI (:mod:`scenekd.teachers.uri`), which is asked about every image; what it says is kept in ``folder``.

    Raises:
        UserError: nothing there, a broken file, no boxes in it, an image that the data set does not have, a category
            that the network does not know.
    """
    path = Path(source)
    if is_uri(source) or path.suffix in (".pth", ".pt"):
        path = _ask(source if is_uri(source) else f"scenekd://{source}", dataset, cfg, folder)
    elif path.is_dir():
        path /= DETECTIONS
    if not path.is_file():
        raise UserError(f"{path}: no such file; give a json of detections, a folder with one, or a detector")
    saved = read_results(path, dataset, category_ids(dataset, cfg))
    if "bbox" not in saved.shapes:
        raise UserError(f"{path}: its entries hold no bbox, which says what to hide")
    return Found(dataset, source, json.loads(path.read_bytes()), saved)


def _ask(uri: str, dataset: Dataset, cfg: CfgNode, folder: Path) -> Path:
    """Ask a network about every image, and write what it says."""
    asked = cfg.clone()
    asked.defrost()
    apply_overrides(asked, ["TEACHER.DETECTION", uri])
    teacher = build_teacher(asked, "detection")
    class_map = teacher_class_map(asked, "detection", teacher.classes)
    ids = category_ids(dataset, cfg)
    whole = find_json(dataset.name, cfg.DATASETS.ROOT) is not None  # COCO's image ids are numbers
    entries: list[dict[str, Any]] = []
    for start in range(0, len(dataset), _AT_ONCE):
        records = dataset.records[start : start + _AT_ONCE]
        for record, output in zip(records, teacher.predict([read_image(record) for record in records])):
            assert output.detections is not None
            boxes, labels, scores = class_map.detections(output.detections)
            for entry in result_entries(record.image_id, boxes.astype(np.float64), labels, scores):
                image_id = int(record.image_id) if whole else record.image_id
                entries.append({**entry, "image_id": image_id, "category_id": ids[entry["category_id"] - 1]})
    path = folder / f"detector_{dataset.name.replace(os.sep, '_')}.json"
    write_text(path, json.dumps(entries))
    return path
