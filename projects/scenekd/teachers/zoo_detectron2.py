"""detectron2's model zoo as teachers: Faster and Mask R-CNN, Cascade, RetinaNet, Panoptic FPN, semantic FPN.

Images are prepared as by detectron2's DefaultPredictor: the shorter side is brought to INPUT.MIN_SIZE_TEST,
channels are in the order of INPUT.FORMAT, the network normalises.

h, w: the grid of the semantic head's last convolution, before it is enlarged (stride 4 of the network's input).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..array_pickle import read_weight_file
from ..errors import UserError, first_line
from .dense import background_first, object_classes, without_padding
from .detectron2_options import check_count, choose_head, head_probabilities, limit_boxes, set_suppression
from .frozen import RANDOM, NetworkTeacher, check_grid, require, to_array
from .masks import masks_to_scores
from .protocol import TeacherOutput
from .uri import nearest


class Detectron2Teacher(NetworkTeacher):
    """A network of detectron2's for one task.

    Args:
        name: a config of the model zoo, such as ``COCO-Detection/faster_rcnn_R_101_FPN_3x``, or a .yaml file.
        weights: "" for the zoo's own, a .pkl or .pth file, or "random" (seeded).
        task: detection, segmentation, or instance_segmentation, whose boxes come with their masks.
        classes: of the task, where the config's data set does not tell them; of a semantic head with
            "background" at its place, if it has one.
        head: the source of dense outputs: ``sem_seg``, the semantic head's logits; ``masks``, the instances'
            (form scores, at the image's size); ``auto``, the former where there is one.
        grid: ``own``, the semantic head's; ``image``, enlarged by detectron2 to the image's size.
        min_score, max_boxes: what the network itself keeps, before and after suppression; 0 boxes: no limit.

    Raises:
        UserError: no such config, weights that do not fit or cannot be had, a network that has not the task.
    """

    def __init__(
        self,
        name: str,
        weights: str = "",
        *,
        task: str,
        classes: Sequence[str] = (),
        head: str = "auto",
        grid: str = "own",
        min_score: float = 0.0,
        max_boxes: int = 100,
        trained_on: Sequence[str] = (),
        device: torch.device | str = "cpu",
        amp: bool = False,
        seed: int = 0,
    ):
        check_grid(grid)
        cfg = read_config(name)
        self.head = choose_head(cfg, task, head, name)
        limit_boxes(cfg, self.head, min_score, max_boxes)
        cfg.MODEL.DEVICE = str(device)
        net = _build(cfg, seed, name)
        if weights != RANDOM:
            _load(net, weights or _zoo_url(name), name)
        self._take(net, device, amp)
        self._vectors = head_probabilities(net) if self.head == "boxes" else None
        self.cfg, self.grid, self.tasks = cfg, grid, (task,)
        self._names = tuple(classes) or _class_names(cfg, self.head, name)
        self.classes = object_classes(self._names) if self.head == "sem_seg" else self._names
        form = {"sem_seg": "logits", "masks": "scores"}.get(self.head, "")
        training = trained_on or (() if weights else cfg.DATASETS.TRAIN)
        more: dict[str, Any] = {"head": self.head, "grid": grid} if self.head == "sem_seg" else {}
        more["input"] = [cfg.INPUT.FORMAT, cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST]
        self._describe("detectron2", name, training, form, **more)
        check_count(cfg, self.head, task, name, len(self._names))

    def set_nms(self, threshold: float, max_boxes: int) -> None:
        """Suppress at another IoU (1: hardly any) and keep the best ``max_boxes`` after it, for the cache."""
        set_suppression(self.net, threshold, max_boxes)
        self._info.extra["nms_threshold"] = threshold

    def prepare(self, image: np.ndarray) -> dict[str, Any]:
        """An (H, W, 3) uint8 RGB image as detectron2's networks take it."""
        from detectron2.data.transforms import ResizeShortestEdge

        side, limit = self.cfg.INPUT.MIN_SIZE_TEST, self.cfg.INPUT.MAX_SIZE_TEST
        if self.cfg.INPUT.FORMAT == "BGR":
            image = image[:, :, ::-1]
        pixels = ResizeShortestEdge([side, side], limit).get_transform(image).apply_image(image)
        tensor = torch.as_tensor(pixels.astype("float32").transpose(2, 0, 1)).to(self.device)
        return {"image": tensor, "height": image.shape[0], "width": image.shape[1]}

    def _ask(self, images: list[np.ndarray]) -> list[TeacherOutput]:
        batch = [self.prepare(image) for image in images]
        if self.head == "sem_seg":
            return [self._dense(logits, one) for logits, one in zip(*self._logits(batch))]
        return [self._instances(found["instances"]) for found in detect(self.net, batch)]

    def _instances(self, found: Any) -> TeacherOutput:
        boxes, scores = to_array(found.pred_boxes.tensor), to_array(found.scores)
        labels = found.pred_classes.cpu().numpy()
        if self.head == "boxes":
            rows = None if self._vectors is None else self._vectors.rows(found.pred_classes, found.scores)
            vectors = None if rows is None else to_array(rows)  # detectron2's background is last, too
            return TeacherOutput(boxes, labels, scores, class_probabilities=vectors)
        masks = found.pred_masks.cpu().numpy()
        if self.head == "instances":
            return TeacherOutput(boxes, labels, scores, masks=masks)
        return TeacherOutput(segmentation=masks_to_scores(masks, labels, scores, len(self.classes)))

    def _logits(self, batch: list[dict[str, Any]]) -> tuple[Tensor, list[dict[str, Any]]]:
        """(N, S, h', w') logits of the padded input, and the batch with the input's ``size``."""
        from detectron2.structures import ImageList

        net: Any = self.net
        pixels = [(one["image"] - net.pixel_mean) / net.pixel_std for one in batch]
        images = ImageList.from_tensors(
            pixels, net.backbone.size_divisibility, padding_constraints=net.backbone.padding_constraints
        )
        features, head = net.backbone(images.tensor), net.sem_seg_head
        logits = head.layers(features) if hasattr(head, "layers") else head(features, None)[0]
        padded = tuple(images.tensor.shape[-2:])
        sized = [one | {"size": size, "padded": padded} for one, size in zip(batch, images.image_sizes)]
        return logits.float(), sized

    def _dense(self, logits: Tensor, one: dict[str, Any]) -> TeacherOutput:
        if self.grid == "own":
            shown = without_padding(logits, one["size"], one["padded"])
        else:
            from detectron2.modeling.postprocessing import sem_seg_postprocess

            enlarged = F.interpolate(logits[None], one["padded"], mode="bilinear", align_corners=False)[0]
            shown = sem_seg_postprocess(enlarged, one["size"], one["height"], one["width"])
        return TeacherOutput(segmentation=background_first(to_array(shown), self._names))


def detect(net: Any, batch: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The instances of a batch; a Panoptic FPN is spared its semantic head."""
    from detectron2.modeling import GeneralizedRCNN

    if isinstance(net, GeneralizedRCNN):
        return GeneralizedRCNN.inference(net, batch)
    return net(batch)


def read_config(name: str) -> Any:
    """The detectron2 config of a name in the zoo, or of a .yaml file.

    Raises:
        UserError: detectron2 is not installed, no such config, or one that cannot be read.
    """
    require("detectron2", "see its INSTALL.md")
    from detectron2.config import get_cfg

    cfg, inside, stem = get_cfg(), zoo_configs(), name.removesuffix(".yaml")
    try:
        if stem in inside:
            cfg.merge_from_file(str(inside[stem]))  # the package's own files compute their anchors
        elif Path(name).is_file() and name.endswith(".yaml"):
            cfg.merge_from_file(name, allow_unsafe=False)
        else:
            close = ", ".join(nearest(stem, inside, 3))
            raise UserError(
                f"TEACHER.<TASK>.NAME: {name!r} is no YAML config of detectron2's zoo; the nearest are {close}"
            )
    except (KeyError, ValueError, AssertionError, OSError) as error:
        raise UserError(f"{name}: no valid detectron2 config ({first_line(error)})") from None
    except Exception as error:  # YAML's errors, whose module detectron2 chooses
        if type(error).__module__.split(".")[0] != "yaml":
            raise
        raise UserError(f"{name}: no plain YAML ({first_line(error)}); write its values out") from None
    return cfg


def zoo_configs() -> dict[str, Path]:
    """Name → file of the configs that detectron2 ships, those in Python aside."""
    import detectron2

    folder = Path(str(detectron2.__file__)).parent / "model_zoo" / "configs"
    return {str(path.relative_to(folder).with_suffix("")): path for path in sorted(folder.rglob("*.yaml"))}


def _class_names(cfg: Any, head: str, name: str) -> tuple[str, ...]:
    from detectron2.data import MetadataCatalog

    field = "stuff_classes" if head == "sem_seg" else "thing_classes"
    for dataset in (*cfg.DATASETS.TEST, *cfg.DATASETS.TRAIN):
        if dataset in MetadataCatalog.list() and hasattr(MetadataCatalog.get(dataset), field):
            return tuple(getattr(MetadataCatalog.get(dataset), field))
    raise UserError(f"{name}: its data sets tell no {field}; set TEACHER.<TASK>.CLASSES")


def _build(cfg: Any, seed: int, name: str) -> nn.Module:
    from detectron2.modeling import build_model

    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return build_model(cfg)
    except (KeyError, ValueError, AssertionError) as error:
        raise UserError(f"{name}: its network cannot be built ({first_line(error)})") from None


def _zoo_url(name: str) -> str:
    key = "TEACHER.<TASK>.WEIGHTS"
    try:
        from detectron2 import model_zoo
    except ModuleNotFoundError as error:
        raise UserError(f"{name}: its address needs {error.name} (setuptools < 82); or set {key}") from None
    try:
        return str(model_zoo.get_checkpoint_url(name.removesuffix(".yaml")))
    except RuntimeError:
        raise UserError(f"{name}: the zoo has no weights for it; set {key} to a .pkl or .pth file") from None


def _load(net: nn.Module, weights: str, name: str) -> None:
    """Load a file, or an address, with detectron2's own conversion of names, and without its unpickling."""
    from detectron2.checkpoint import DetectionCheckpointer

    class SafeCheckpointer(DetectionCheckpointer):
        def _load_file(self, filename: str) -> dict[str, Any]:
            return read_weight_file(filename)

        def _log_incompatible_keys(self, incompatible: Any) -> None:
            faults = [*incompatible.missing_keys, *(key for key, *_ in incompatible.incorrect_shapes)]
            if faults:
                raise UserError(
                    f"{weights}: weights of another network: {len(faults)} tensors of {name} are missing or of "
                    f"another shape, such as {faults[0]}; give the file that belongs to this config"
                )

    SafeCheckpointer(net).load(_local(weights, name))


def _local(weights: str, name: str) -> str:
    if "://" not in weights:
        if not Path(weights).is_file():
            raise UserError(f"{weights}: no such file; set TEACHER.<TASK>.WEIGHTS to weights of {name}")
        return weights
    from detectron2.utils.file_io import PathManager

    try:
        return str(PathManager.get_local_path(weights))
    except Exception as error:  # whatever the network and the disk may do
        raise UserError(
            f"{name}: its weights cannot be downloaded ({first_line(error)}); fetch {weights} elsewhere "
            "and set TEACHER.<TASK>.WEIGHTS to the file"
        ) from None
