"""The frameworks' own data sets by name in ``DATASETS``, and ours in detectron2's catalogs.

A name in detectron2's DatasetCatalog works as it is. An MMSegmentation data set is given as its dictionary in
quotes: ``TRAIN: ("{'type': 'PascalVOCDataset', 'data_root': '…', 'ann_file': '…', …}",)``.
"""

from __future__ import annotations

import ast
import importlib.util
from collections.abc import Callable
from typing import Any

import numpy as np

from ..data.catalog import Dataset, Record, register_loader
from ..data.instance_masks import Outlines
from ..errors import UserError
from ..evaluation.mask_records import encode, region
from ..sample import IGNORE_INDEX

_BACKGROUND = "background"


def _in_detectron2(name: str, root: str) -> bool:
    if importlib.util.find_spec("detectron2") is None:
        return False
    import detectron2.data.datasets  # noqa: F401 - registers the built-in names
    from detectron2.data import DatasetCatalog

    return name in DatasetCatalog.list()


def _load_detectron2(name: str, root: str, classes: tuple[str, ...], on_error: str) -> Dataset:
    from detectron2.data import DatasetCatalog, MetadataCatalog

    try:
        items = DatasetCatalog.get(name)
    except FileNotFoundError as error:
        raise UserError(
            f"DATASETS: {name} is detectron2's, but {error.filename} is missing; set DETECTRON2_DATASETS"
        ) from None
    meta = MetadataCatalog.get(name)
    names = tuple(meta.get("thing_classes", ())) or tuple(meta.get("stuff_classes", ()))
    if not classes:
        classes = names
    if tuple(n for n in names if n != _BACKGROUND) != tuple(classes):
        raise UserError(f"DATASETS.CLASSES: differ from those of {name}; leave CLASSES empty to take its own")
    return Dataset(name=name, classes=tuple(classes), records=[_from_dict(item) for item in items])


def _from_dict(item: dict[str, Any]) -> Record:
    boxes = labels = difficult = crowd = None
    # What we registered ourselves says which labels exist, see _to_dict; elsewhere the keys do.
    if item.get("has_boxes", "annotations" in item):
        annotations = item["annotations"]
        boxes = np.array([_xyxy(a) for a in annotations], np.float32).reshape(-1, 4)
        labels = np.array([a["category_id"] for a in annotations], np.int64)
        crowd = np.array([bool(a.get("crowd", a.get("iscrowd", 0))) for a in annotations], bool)
        difficult = np.array([bool(a.get("iscrowd", 0)) for a in annotations], bool)
    return Record(
        image_id=str(item["image_id"]),
        file_name=item["file_name"],
        height=item.get("height"),
        width=item.get("width"),
        boxes=boxes,
        labels=labels,
        difficult=difficult,
        crowd=crowd,
        sem_seg_file=item.get("sem_seg_file_name"),
        object_masks=_outlines(item) if boxes is not None else None,
    )


def _outlines(item: dict[str, Any]) -> Outlines | None:
    outlines = [annotation.get("segmentation") or None for annotation in item["annotations"]]
    return Outlines(item["file_name"], outlines) if any(outlines) else None


def _xyxy(annotation: dict[str, Any]) -> list[float]:
    from detectron2.structures import BoxMode

    return BoxMode.convert(annotation["bbox"], annotation["bbox_mode"], BoxMode.XYXY_ABS)


def _is_mmseg_dict(name: str, root: str) -> bool:
    return name.lstrip().startswith("{")


def _load_mmseg(name: str, root: str, classes: tuple[str, ...], on_error: str) -> Dataset:
    from mmseg.registry import DATASETS
    from mmseg.utils import register_all_modules

    try:
        config = ast.literal_eval(name)
        register_all_modules(init_default_scope=False)
        # The scope is named, as a run before may have left another one behind.
        dataset = DATASETS.build({"_scope_": "mmseg", "pipeline": [], **config, "lazy_init": False})
    except (ValueError, SyntaxError, KeyError, TypeError, FileNotFoundError, AssertionError) as error:
        raise UserError(f"DATASETS: MMSegmentation cannot build {name}: {error}") from None
    result = from_mmseg(dataset, config["type"])
    if classes and tuple(classes) != result.classes:
        raise UserError(f"DATASETS.CLASSES: differ from those of {config['type']}; leave CLASSES empty")
    return result


def from_mmseg(dataset: Any, name: str) -> Dataset:
    """Images and masks of a data set of MMSegmentation's.

    Raises:
        UserError: its first class is not the background.
    """
    names = tuple(dataset.metainfo["classes"])
    if not names or names[0] != _BACKGROUND:
        raise UserError(f"DATASETS: {name} has no background class first; SceneKD's masks need one")
    records = []
    for index in range(len(dataset)):
        info = dataset.get_data_info(index)
        stem = info["img_path"].rsplit("/", 1)[-1].rsplit(".", 1)[0]
        records.append(
            Record(image_id=stem, file_name=info["img_path"], sem_seg_file=info.get("seg_map_path"))
        )
    return Dataset(name=name, classes=names[1:], records=records)


def register_in_detectron2(
    dataset: Dataset | Callable[[], Dataset], name: str, *, object_masks: bool = False
) -> str:
    """Make ``dataset`` known to detectron2's catalogs under ``name``, with classes and colours; returns the name.

    A function is called when the data set is first used; its metadata is known from then on. With ``object_masks``
    the masks of the boxes are read and told, as COCO's run lengths.
    """
    from detectron2.data import DatasetCatalog, MetadataCatalog

    def describe(data: Dataset) -> None:
        colours = [tuple(int(c) for c in colour) for colour in data.palette[: len(data.classes) + 1]]
        MetadataCatalog.get(name).set(
            thing_classes=list(data.classes),
            thing_colors=colours[1:],
            stuff_classes=[_BACKGROUND, *data.classes],
            stuff_colors=colours,
            ignore_label=IGNORE_INDEX,
        )

    def items() -> list[dict[str, Any]]:
        data = dataset if isinstance(dataset, Dataset) else dataset()
        describe(data)
        return [_to_dict(record, data if object_masks else None) for record in data.records]

    if name in DatasetCatalog.list():
        DatasetCatalog.remove(name)
        MetadataCatalog.pop(name, None)
    DatasetCatalog.register(name, items)
    if isinstance(dataset, Dataset):
        describe(dataset)
    return name


def _to_dict(record: Record, masks: Dataset | None = None) -> dict[str, Any]:
    """A record as detectron2 wants it. ``annotations`` is always there, as its loader asks for it in every image
    where the first one has it; ``has_boxes`` and ``has_sem_seg`` say which labels exist. Difficult boxes are marked
    ``iscrowd``, which its COCO evaluator ignores. ``masks`` is the data set where masks of the boxes are wanted."""
    from detectron2.structures import BoxMode

    height, width = record.size()
    item: dict[str, Any] = {
        "file_name": record.file_name,
        "image_id": record.image_id,
        "height": height,
        "width": width,
        "has_boxes": record.has_boxes,
        "has_sem_seg": record.sem_seg_file is not None,
        "annotations": [],
    }
    if record.sem_seg_file:
        item["sem_seg_file_name"] = record.sem_seg_file
    if record.boxes is not None and record.labels is not None and record.difficult is not None:
        crowd = record.crowd if record.crowd is not None else np.zeros(len(record.boxes), bool)
        item["annotations"] = [
            {
                "bbox": [float(v) for v in box],
                "bbox_mode": BoxMode.XYXY_ABS,
                "category_id": int(label),
                "iscrowd": int(difficult or group),
                "crowd": int(group),
            }
            for box, label, difficult, group in zip(record.boxes, record.labels, record.difficult, crowd)
        ]
        if masks is not None and record.has_instance_masks:
            for annotation, mask in zip(item["annotations"], masks.read_instance_masks(record)):
                inside, known = region(np.asarray(annotation["bbox"]), mask)
                annotation["segmentation"] = encode(inside)
                annotation["iscrowd"] = int(annotation["iscrowd"] or not known)
    return item


register_loader(_is_mmseg_dict, _load_mmseg)
register_loader(_in_detectron2, _load_detectron2)
