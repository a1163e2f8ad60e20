"""From a name in ``DATASETS`` to records. Names of VOC, COCO and classification are built in; other loaders plug in.

A loader is (predicate, function): ``predicate(name, root) -> bool`` says whether the name is its own, and
``function(name, root, classes, on_error) -> Dataset`` loads it.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ..errors import UserError
from .classification import is_classification_name, load_classification
from .coco import is_coco_name, load_coco
from .records import Dataset, Record
from .subset import stable_subset, subset_of_classes
from .voc import is_voc_name, load_voc

__all__ = [
    "Dataset",
    "Record",
    "assert_disjoint",
    "availability_report",
    "load_dataset",
    "load_datasets",
    "register_loader",
    "with_class_names",
]

Predicate = Callable[[str, str], bool]
Loader = Callable[[str, str, tuple[str, ...], str], Dataset]

logger = logging.getLogger(__name__)

_LOADERS: list[tuple[Predicate, Loader]] = [
    (lambda name, root: is_voc_name(name), load_voc),
    (is_coco_name, load_coco),
    (lambda name, root: is_classification_name(name), load_classification),
]


def register_loader(predicate: Predicate, load: Loader) -> None:
    """Plug in a loader; those registered earlier are asked first, the built-in ones before all."""
    if (predicate, load) not in _LOADERS:
        _LOADERS.append((predicate, load))


def load_dataset(
    name: str,
    cfg: Any = None,
    *,
    root: str | None = None,
    classes: Sequence[str] | None = None,
    on_error: str | None = None,
) -> Dataset:
    """Load one data set by name.

    Args:
        cfg: a configuration or its DATASETS node; the keywords win over it.
        on_error: ``raise``, or ``skip`` to leave unusable images out (``Dataset.skipped`` tells them).

    Raises:
        UserError: unknown name, nothing found, or an unusable image (``BadRecordError``).
    """
    node = getattr(cfg, "DATASETS", cfg)
    root = getattr(node, "ROOT", "") if root is None else root
    names = tuple(getattr(node, "CLASSES", ()) if classes is None else classes)
    on_error = getattr(node, "ON_ERROR", "raise") if on_error is None else on_error
    if on_error not in ("raise", "skip"):
        raise UserError(f"DATASETS.ON_ERROR: {on_error!r} is neither raise nor skip")
    for predicate, load in _LOADERS:
        if predicate(name, root):
            dataset = load(name, root, names, on_error)
            if dataset.skipped:
                logger.warning(
                    "%s: %d images skipped; first: %s", name, len(dataset.skipped), dataset.skipped[0]
                )
            return dataset
    raise UserError(
        f"DATASETS: unknown data set {name!r} below {root or 'the default folders'}; use "
        "voc[YEAR]_seg|main|aug_<list>, coco_<stem of annotations/*.json>, "
        "cifar10|cifar100|tiny_imagenet|folder_<split>, "
        "or a name that detectron2 or MMSegmentation knows"
    )


def with_class_names(cfg: Any) -> Any:
    """The configuration with ``DATASETS.CLASSES`` from the files, where it is empty and its data are for
    classification; else as it is. A network, and its checkpoint, then know their classes.

    Raises:
        UserError: see :func:`load_dataset`.
    """
    names = (*cfg.DATASETS.TEST, *cfg.DATASETS.TRAIN)
    if cfg.DATASETS.CLASSES or not names or not is_classification_name(names[0]):
        return cfg
    named = cfg.clone()
    named.defrost()
    named.DATASETS.CLASSES = load_dataset(names[0], cfg).classes
    named.freeze()
    return named


def load_datasets(names: Sequence[str], cfg: Any, *, train: bool) -> Dataset:
    """Load and concatenate ``names``; an image that several of them hold is taken once.

    ``DATASETS.MAX_IMAGES`` cuts each of them. With ``train``, ``IMAGES_PER_CLASS`` takes so many images of each
    class, and the ``KEEP_…`` shares leave labels only on a part of the images that have them: the same ids in every
    run with the same KEEP_SEED. Then ``REQUIRE_LABELS`` leaves out the images without labels of any of its tasks.

    Raises:
        UserError: see :func:`load_dataset`; no names; different classes; one id for two different images;
            ``REQUIRE_LABELS`` names no task, or no image is left.
    """
    if not names:
        raise UserError(
            f"DATASETS.{'TRAIN' if train else 'TEST'}: names no data set, for example ('voc_seg_train',)"
        )
    node = cfg.DATASETS
    parts = [load_dataset(name, node) for name in names]
    for part in parts:
        if part.classes != parts[0].classes:
            raise UserError(
                f"DATASETS: {part.name} and {parts[0].name} have different classes; set DATASETS.CLASSES"
            )
    merged: dict[str, Record] = {}
    for part in parts:
        for record in part.records[: node.MAX_IMAGES or None]:
            first = merged.setdefault(record.image_id, record)
            if first.file_name != record.file_name:
                raise UserError(
                    f"DATASETS: image id {record.image_id!r} stands for {first.file_name} and "
                    f"{record.file_name}; rename one of them"
                )
    records = list(merged.values())
    if train:
        records = _with_labels(_keep_labels(_keep_images(records, node), node), node)
    return Dataset(
        name="+".join(names),
        classes=parts[0].classes,
        records=records,
        palette=parts[0].palette,
        skipped=[line for part in parts for line in part.skipped],
        clipped=sum(part.clipped for part in parts),
        groups=parts[0].groups,
    )


_KEEP = {
    "KEEP_BOXES": "has_boxes",
    "KEEP_SEM_SEG": "has_sem_seg",
    "KEEP_INSTANCE_MASKS": "has_instance_masks",
    "KEEP_CLASS_LABELS": "has_class_label",
}

_LABELS = {
    "detection": "has_boxes",
    "segmentation": "has_sem_seg",
    "instance_segmentation": "has_instance_masks",
    "classification": "has_class_label",
}


def _class_labels(records: list[Record]) -> dict[str, int]:
    return {record.image_id: record.class_label for record in records if record.class_label is not None}


def _keep_images(records: list[Record], node: Any) -> list[Record]:
    """``IMAGES_PER_CLASS`` images of each class, and those without a class."""
    number = node.IMAGES_PER_CLASS
    if not number:
        return records
    labels = _class_labels(records)
    kept = subset_of_classes(labels, node.KEEP_SEED, number=number, salt="IMAGES_PER_CLASS")
    return [record for record in records if record.class_label is None or record.image_id in kept]


def _keep_labels(records: list[Record], node: Any) -> list[Record]:
    keep: dict[str, set[str]] = {}
    for key, has in _KEEP.items():
        fraction = node[key]
        if not 0.0 <= fraction <= 1.0:
            raise UserError(f"DATASETS.{key}: {fraction} is no share between 0 and 1")
        if key == "KEEP_CLASS_LABELS":  # a share of each class, so that none is lost by chance
            keep[key] = subset_of_classes(_class_labels(records), node.KEEP_SEED, fraction=fraction, salt=key)
            continue
        labelled = [record.image_id for record in records if getattr(record, has)]
        keep[key] = stable_subset(labelled, fraction, node.KEEP_SEED, salt=key)
    kept = []
    for record in records:
        changes: dict[str, Any] = {}
        if record.image_id not in keep["KEEP_BOXES"]:
            changes = {"boxes": None, "labels": None, "difficult": None, "crowd": None}
        if record.image_id not in keep["KEEP_BOXES"] & keep["KEEP_INSTANCE_MASKS"]:
            changes["object_masks"] = None
        if record.image_id not in keep["KEEP_SEM_SEG"]:
            changes |= {"sem_seg_file": None, "segmentation": None}
        if record.image_id not in keep["KEEP_CLASS_LABELS"]:
            changes["class_label"] = None
        kept.append(dataclasses.replace(record, **changes))
    return kept


def _with_labels(records: list[Record], node: Any) -> list[Record]:
    """Those from which ``REQUIRE_LABELS`` can learn without a teacher; all of them where it is empty."""
    tasks = tuple(node.REQUIRE_LABELS)
    unknown = [task for task in tasks if task not in _LABELS]
    if unknown:
        raise UserError(f"DATASETS.REQUIRE_LABELS: {unknown[0]!r} is no task; use {', '.join(_LABELS)}")
    kept = [record for record in records if not tasks or any(getattr(record, _LABELS[t]) for t in tasks)]
    if tasks and not kept:
        raise UserError(
            f"DATASETS.REQUIRE_LABELS: none of the {len(records)} training images has labels of "
            f"{' or '.join(tasks)}; add labelled images, or take the key out"
        )
    if len(kept) < len(records):
        logger.info("%d of %d training images are used: the others have no labels", len(kept), len(records))
    return kept


def assert_disjoint(train: Dataset, test: Dataset) -> None:
    """Refuse a training set that shares an image id with the test set.

    Raises:
        UserError: they overlap (``DATASETS.ALLOW_OVERLAP`` is for the caller to heed).
    """
    shared = sorted(set(train.image_ids) & set(test.image_ids))
    if shared:
        raise UserError(
            f"DATASETS: {len(shared)} of the {len(test)} test images of {test.name} are in {train.name} too "
            f"({', '.join(shared[:3])}{', …' if len(shared) > 3 else ''}); choose disjoint splits, "
            "or set DATASETS.ALLOW_OVERLAP True"
        )


def availability_report(dataset: Dataset) -> str:
    """Which labels exist, per task and class: a table to print (the thesis's table 7, and the classes)."""
    records, total = dataset.records, len(dataset)
    boxes = sum(record.has_boxes for record in records)
    masks = sum(record.has_sem_seg for record in records)
    both = sum(record.has_boxes and record.has_sem_seg for record in records)
    lines = [
        f"{dataset.name}: {total} images, {len(dataset.skipped)} skipped, {dataset.clipped} boxes clipped",
        f"{'task':<16}{'labelled':>10}{'missing':>10}{'missing %':>11}",
    ]
    counts = [("detection", boxes), ("segmentation", masks), ("both", both)]
    if objects := sum(record.has_instance_masks for record in records):
        counts.append(("object masks", objects))
    labelled = _class_labels(records)
    if labelled:
        counts.append(("classification", len(labelled)))
    for task, count in counts:
        lines.append(
            f"{task:<16}{count:>10}{total - count:>10}{100 * (total - count) / max(total, 1):>11.1f}"
        )
    if labelled and not boxes:
        per_class = np.bincount(list(labelled.values()), minlength=len(dataset.classes))
        groups = dataset.groups or ("",) * len(dataset.classes)
        lines += ["", f"{'class':<24}{'images':>10}  group".removesuffix("" if dataset.groups else "  group")]
        return "\n".join(
            lines + [f"{n:<24}{k:>10}  {g}".rstrip() for n, k, g in zip(dataset.classes, per_class, groups)]
        )
    lines += ["", f"{'class':<16}{'images':>10}{'boxes':>10}{'difficult':>11}"]
    table = np.zeros((len(dataset.classes), 3), np.int64)
    for record in records:
        if record.labels is not None and record.difficult is not None:
            table[np.unique(record.labels), 0] += 1
            np.add.at(table[:, 1], record.labels, 1)
            np.add.at(table[:, 2], record.labels[record.difficult], 1)
    for name, (images, number, difficult) in zip((*dataset.classes, "all"), [*table, table.sum(axis=0)]):
        lines.append(f"{name:<16}{boxes if name == 'all' else images:>10}{number:>10}{difficult:>11}")
    return "\n".join(lines)
