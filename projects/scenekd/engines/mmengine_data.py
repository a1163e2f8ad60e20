"""Our data sets in MMSegmentation's pipelines.

A pipeline is LoadImageFromFile, SceneKDLoadAnnotations, SceneKDLoadTeacher (where there is one), SceneKDGeometry
around all transforms that move pixels, transforms of colours, SceneKDPackInputs. All of them but the data set also
serve MMSegmentation's own data sets.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fvcore.common.config import CfgNode
from mmengine.dataset import BaseDataset

from ..config import add_scenekd_config
from ..data.catalog import Dataset, load_datasets
from ..errors import UserError
from ..evaluation.evaluator import Evaluator
from ..teachers.uri import node_from_uri

DATASET, RECORD = "scenekd_dataset", "scenekd_record"


def image_id_of(entry: Mapping[str, Any]) -> str:
    """The id of an image in results or meta information: ``image_id``, else the stem of its path, as MMSegmentation's
    own data sets have no ids."""
    given = entry.get("image_id")
    return Path(entry.get("img_path") or "").stem if given in (None, "") else str(given)


def own_config(**nodes: Any) -> CfgNode:
    """Our configuration with some nodes set, from the keywords of an MMEngine config.

    Raises:
        UserError: a key that we do not have.
    """
    cfg = CfgNode()
    add_scenekd_config(cfg)
    cfg.SEED, cfg.OUTPUT_DIR = 0, "./output"
    cfg.SOLVER = CfgNode({"IMS_PER_BATCH": 1})
    _merge(cfg, nodes, "")
    return cfg


def _merge(node: CfgNode, values: dict[str, Any], path: str) -> None:
    for key, value in values.items():
        if key not in node:
            raise UserError(f"{path}{key}: no such key; choose from {', '.join(node)}")
        if isinstance(node[key], CfgNode):
            named = node_from_uri(value, f"{path}{key}") if isinstance(value, str) else dict(value)
            _merge(node[key], named, f"{path}{key}.")
        else:
            node[key] = tuple(value) if isinstance(value, list) else value


def load_named(names: Sequence[str], options: dict[str, Any], *, train: bool) -> Dataset:
    """The data sets of SceneKD's catalog; ``options`` are the keys of ``DATASETS`` in lower case."""
    cfg = own_config(DATASETS={key.upper(): value for key, value in options.items()})
    return load_datasets(tuple(names), cfg, train=train)


def evaluator_of(
    names: Sequence[str],
    *,
    tasks: Sequence[str] = ("sem_seg", "bbox"),
    box_metric: str = "voc",
    bootstrap: int = 0,
    **options: Any,
) -> Evaluator:
    """Our evaluator of data sets by name; ``options`` as in :class:`SceneKDDataset`."""
    data = load_named(names, options, train=False)
    return Evaluator(data, tasks=tuple(tasks), box_metric=box_metric, bootstrap=bootstrap)


class SceneKDDataset(BaseDataset):
    """A data set of SceneKD's catalog by name, with boxes and masks; images without one kind of label stay.

    Args:
        names: names as in ``DATASETS.TRAIN``; several are concatenated.
        pipeline: see the module.
        test_mode: as in MMEngine; ``keep_boxes`` and ``keep_sem_seg`` do not apply then.
        indices: as in MMEngine: only the first images, or those listed.
        options: the keys of ``DATASETS`` in lower case: root, classes, on_error, keep_boxes, keep_sem_seg,
            keep_seed, max_images.
    """

    def __init__(
        self,
        names: Sequence[str],
        pipeline: Sequence[Any] = (),
        *,
        test_mode: bool = False,
        indices: int | Sequence[int] | None = None,
        **options: Any,
    ) -> None:
        names = (names,) if isinstance(names, str) else tuple(names)
        self.dataset = load_named(names, options, train=not test_mode)
        colours = self.dataset.palette[: len(self.dataset.classes) + 1]
        metainfo = {
            "classes": ("background", *self.dataset.classes),
            "palette": [tuple(int(c) for c in colour) for colour in colours],
            "reduce_zero_label": False,
        }
        super().__init__(metainfo=metainfo, pipeline=list(pipeline), test_mode=test_mode, indices=indices)

    def load_data_list(self) -> list[dict[str, Any]]:
        """One entry an image; boxes and masks follow in SceneKDLoadAnnotations."""
        return [
            {
                "number": number,
                "image_id": record.image_id,
                "img_path": record.file_name,
                "seg_map_path": record.sem_seg_file,
                "reduce_zero_label": False,
                "seg_fields": [],
            }
            for number, record in enumerate(self.dataset.records)
        ]

    def get_data_info(self, idx: int) -> dict[str, Any]:
        """The entry of an image with its record, which is kept out of MMEngine's serialised list."""
        info = super().get_data_info(idx)
        return {**info, DATASET: self.dataset, RECORD: self.dataset.records[info["number"]]}
