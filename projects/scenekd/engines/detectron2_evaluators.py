"""detectron2's own evaluators on our data sets (``TEST.EVALUATOR framework``)."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from detectron2.evaluation import COCOEvaluator, DatasetEvaluator, DatasetEvaluators, SemSegEvaluator
from detectron2.utils import comm
from fvcore.common.config import CfgNode

from ..data.catalog import Dataset
from ..evaluation.evaluator import Evaluator
from ..evaluation.hidden_pictures import HiddenPictures
from ..report_panels import PanelFolder
from ..visualize import View
from .datasets import register_in_detectron2
from .detectron2_parts import SceneKDEvaluator


class _MaskedOnly(SemSegEvaluator):
    """detectron2's evaluator, for the images that have a mask."""

    def process(self, inputs: Any, outputs: Any) -> None:
        pairs = [(i, o) for i, o in zip(inputs, outputs) if i["file_name"] in self.input_file_to_gt_file]
        if pairs:
            super().process(*zip(*pairs))


class _Percent(DatasetEvaluator):
    """Adds our names for the headline numbers, so that both evaluators' results read alike."""

    def __init__(self, evaluator: DatasetEvaluator, tasks: Sequence[str], aliases: dict[str, str]) -> None:
        self.evaluator, self.tasks, self.aliases = evaluator, tuple(tasks), aliases

    def reset(self) -> None:
        self.evaluator.reset()

    def process(self, inputs: Any, outputs: Any) -> None:
        self.evaluator.process(inputs, outputs)

    def evaluate(self) -> Any:
        results = self.evaluator.evaluate()
        if not results:
            return {}
        named = {}
        for task in self.tasks:
            numbers = named[task] = dict(results[task])
            for ours, theirs in self.aliases.items():
                if theirs in numbers:
                    numbers[ours] = numbers[theirs]
        return named


class PanelEvaluator(DatasetEvaluator):
    """Draws every image that is evaluated; scores nothing."""

    def __init__(self, panels: PanelFolder) -> None:
        self.panels = panels

    def reset(self) -> None:
        """Nothing is kept."""

    def process(self, inputs: Any, outputs: Any) -> None:
        """Draw the images of a batch."""
        for item, output in zip(inputs, outputs):
            view = View("network")
            if "sem_seg" in output:
                view.sem_seg = output["sem_seg"].argmax(0).cpu().numpy().astype("uint8")
            if "instances" in output:
                found = output["instances"].to("cpu")
                view.boxes, view.labels = found.pred_boxes.tensor.numpy(), found.pred_classes.numpy()
                view.scores = found.scores.numpy()
                view.masks = found.pred_masks.numpy() if found.has("pred_masks") else None
            self.panels.write(item["file_name"], view)

    def evaluate(self) -> None:
        """No result."""


class SceneKDHiddenObjectEvaluator(DatasetEvaluator):
    """How high SceneKDMaskedContext ranks the true class of every object that it hides, see
    :mod:`scenekd.evaluation.hidden_objects`; cases are keyed by image and object, and merged over processes.

    Args:
        classes: C names, such as the metadata's ``thing_classes``.
        bootstrap: resamples of the images for 95 % intervals, which stay in ``latest``; 0: none. seed: of them.
    """

    def __init__(self, classes: Sequence[str], *, bootstrap: int = 0, seed: int = 0) -> None:
        self.pictures = HiddenPictures(classes, bootstrap=bootstrap, seed=seed)
        self.latest: dict[str, dict[str, Any]] = {}

    def reset(self) -> None:
        """Forget all images."""
        self.pictures.reset()

    def process(self, inputs: list[dict[str, Any]], outputs: list[dict[str, Any]]) -> None:
        """Record all that was hidden in each image."""
        for item, output in zip(inputs, outputs):
            self.pictures.add(str(item["image_id"]), output.get("hidden_objects"))

    def evaluate(self) -> dict[str, dict[str, Any]]:
        """``{"hidden_object": …}``, in every process: what is one number, as detectron2 wants it; all stays in
        ``latest``."""
        self.pictures.merge(comm.all_gather(self.pictures.state()))
        self.latest = self.pictures.summarize()
        own = self.latest["hidden_object"]
        return {"hidden_object": {k: v for k, v in own.items() if isinstance(v, (int, float))}}


def framework_evaluators(data: Dataset, cfg: CfgNode, tasks: tuple[str, ...]) -> DatasetEvaluators:
    """SemSegEvaluator and COCOEvaluator for the tasks, on ``data`` registered under a name of its own; ours for
    what detectron2 does not know."""
    objects = [task for task in ("bbox", "segm") if task in tasks]
    name = register_in_detectron2(data, f"scenekd/{data.name}", object_masks="segm" in tasks)
    evaluators: list[DatasetEvaluator] = []
    if "sem_seg" in tasks:
        with_masks = Dataset(
            name=data.name,
            classes=data.classes,
            records=[record for record in data.records if record.has_sem_seg],
            palette=data.palette,
        )
        masks = register_in_detectron2(with_masks, f"scenekd/{data.name}/masks")
        evaluators.append(_Percent(_MaskedOnly(masks), ("sem_seg",), {"pixel_accuracy": "pACC"}))
    if objects:
        folder = Path(cfg.OUTPUT_DIR) / "coco_evaluator"
        # An old *_coco_format.json in the folder would be used for another data set.
        shutil.rmtree(folder, ignore_errors=True)
        coco = COCOEvaluator(name, tasks=tuple(objects), output_dir=str(folder), use_fast_impl=False)
        evaluators.append(_Percent(coco, objects, {"mAP": "AP"}))
    own = tuple(task for task in ("classification", "hidden_object", "multi_label") if task in tasks)
    if "hidden_object" in own and all(record.hidden is None for record in data.records):
        # Whole pictures: the network hides their objects itself.
        own = tuple(task for task in own if task != "hidden_object")
        evaluators.append(SceneKDHiddenObjectEvaluator(data.classes))
    if own:
        evaluators.append(SceneKDEvaluator(Evaluator.from_config(data, cfg, own)))
    return DatasetEvaluators(evaluators)
