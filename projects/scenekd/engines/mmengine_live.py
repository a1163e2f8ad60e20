"""Online teachers of SceneKDEncoderDecoder: any MMSegmentation configuration, a SceneKD checkpoint, torchvision."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from mmengine.config import Config
from mmengine.model import ImgDataPreprocessor
from mmengine.registry import DefaultScope
from mmseg.registry import DATASETS as SEG_DATASETS
from mmseg.registry import MODELS as SEG_MODELS
from mmseg.structures import SegDataSample
from mmseg.utils import get_classes, register_all_modules
from torch import Tensor, nn

from .. import checkpoint as checkpoints
from ..data.voc import VOC_CLASSES
from ..errors import UserError
from ..teachers.dense import dense_places
from ..teachers.frozen import RANDOM, freeze
from ..teachers.label_map import BACKGROUND
from ..teachers.live import TORCHVISION, LiveSceneKD, LiveTeacher, LiveTorchvision
from ..teachers.live_build import OnlineTeacher
from ..teachers.zoo_mmseg import published, read_config, training_data
from .mmengine_data import SceneKDDataset
from .mmengine_model import SceneKDDataPreprocessor


def build_live_teacher(
    config: str = "", checkpoint: str = "", classes: Sequence[str] | str = ()
) -> LiveTeacher:
    """A teacher that runs beside the student.

    Args:
        config: an MMSegmentation configuration (.py), or ``torchvision://NAME``; of a SceneKD checkpoint the YAML file,
            where the one inside it is not wanted.
        checkpoint: its weights, read without running code. For torchvision's own weights leave it out, or write
            ``torchvision://NAME`` here.
        classes: the teacher's dense classes, where neither its checkpoint nor its configuration tells: names, or one
            of MMSegmentation's lists, such as 'voc'.

    Raises:
        UserError: no such file, weights of another network, a detector, or nothing that tells the classes.
    """
    names = class_names(classes)
    if config.startswith(TORCHVISION) or checkpoint.startswith(TORCHVISION):
        named = config if config.startswith(TORCHVISION) else checkpoint
        weights = checkpoint if named is config else ""
        return LiveTorchvision(named.removeprefix(TORCHVISION), weights, names)
    if not checkpoint:
        raise UserError("teacher: checkpoint is missing; an untrained teacher teaches nothing")
    if config.endswith(".py"):
        return LiveMMSegmentation(config, checkpoint, names)
    return LiveSceneKD(checkpoint, config, names)


def build_online_teacher(
    student: Sequence[str],
    *,
    class_map: Sequence[Sequence[str]] = (),
    allow_unmapped: bool = False,
    **options: Any,
) -> OnlineTeacher:
    """A teacher that speaks in the student's classes, matched by name.

    Args:
        student: all its dense classes.
        class_map, allow_unmapped: as in :func:`..teachers.label_map.build_class_map`.
        options: of :func:`build_live_teacher`.

    Raises:
        UserError: see there; classes without counterpart; or an unknown option.
    """
    known = ("config", "checkpoint", "classes", "class_map", "allow_unmapped")
    for name in options:
        if name not in known:
            raise UserError(f"teacher: unknown key {name}; known: {', '.join(known)}")
    teacher = build_live_teacher(**options)
    places = dense_places(teacher.names, student, class_map, allow_unmapped=allow_unmapped, key="teacher")
    return OnlineTeacher(teacher, places, len(student), amp=None)


def class_names(classes: Sequence[str] | str) -> tuple[str, ...]:
    """Dense classes by their names, or by the name of one of MMSegmentation's lists.

    Raises:
        UserError: no such list.
    """
    if not isinstance(classes, str):
        return tuple(classes)
    try:
        return tuple(get_classes(classes))
    except ValueError:
        raise UserError(
            f"classes: MMSegmentation has no list {classes!r}; write the names, background first"
        ) from None


def zoo_segmentor(
    name: str, weights: str = "", classes: Sequence[str] = (), *, seed: int = 0
) -> LiveMMSegmentation:
    """A segmentor by what a teacher's node says of it, see :class:`..teachers.zoo_mmseg.MMSegTeacher`.

    Raises:
        UserError: no such config, weights that do not fit or cannot be had, or classes that are not known.
    """
    file = read_config(name).filename
    trained_on = () if weights else training_data(name)
    return LiveMMSegmentation(file, weights or published(name), classes, seed=seed, trained_on=trained_on)


class LiveMMSegmentation:
    """Any segmentor of MMSegmentation; it predicts as its own ``inference_model`` does.

    Args:
        checkpoint: a file, or "random": weights that follow from ``seed``.
    """

    def __init__(
        self,
        config: str,
        checkpoint: str,
        classes: Sequence[str] = (),
        *,
        seed: int = 0,
        trained_on: Sequence[str] = (),
    ) -> None:
        try:
            cfg = Config.fromfile(config)
        except (OSError, SyntaxError, KeyError, TypeError, ImportError, AttributeError) as error:
            raise UserError(f"{config}: {error}") from None
        if "model" not in cfg:
            raise UserError(f"{config}: names no model, so it is no MMSegmentation configuration")
        self.trained_on = tuple(trained_on)
        state = {} if checkpoint == RANDOM else checkpoints.read(checkpoint)
        self.names = tuple(classes) or _classes_of(cfg, state)
        if not self.names:
            raise UserError(
                f"{config}: neither it nor {checkpoint} tells the classes; add classes=(...) to teacher"
            )
        register_all_modules(init_default_scope=False)
        model = copy.deepcopy(cfg.model)
        if "backbone" not in model and "pretrained" in model:
            model["pretrained"] = (
                ""  # BlitzNet loads it when built, MMSegmentation's models when training begins
            )
        # What a student of ours learned with is nothing to it as a teacher.
        for option in ("teacher", "distill") if model.get("type") == "SceneKDEncoderDecoder" else ():
            model.pop(option, None)
        weights = checkpoints.weights_of(state)
        weights = {name: value for name, value in weights.items() if not name.startswith("distillation.")}
        scope = DefaultScope.overwrite_default_scope(cfg.get("default_scope", "mmseg"))
        with scope, torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            net: nn.Module = SEG_MODELS.build(model)
        if checkpoint != RANDOM:
            checkpoints.load_state(net, weights, checkpoint, strict=True)
        self.net = freeze(net)

    def logits(self, images: Tensor) -> Tensor:
        """At the images' size."""
        size = tuple(images.shape[-2:])
        meta = {"ori_shape": size, "img_shape": size, "pad_shape": size}
        samples = [SegDataSample(metainfo=meta) for _ in images]
        # MMSegmentation loads BGR images, and its data preprocessors take them from there.
        batch = {"inputs": list(images.flip(1)), "data_samples": samples}
        found = self.net(**self.net.data_preprocessor(batch, False), mode="predict")  # type: ignore[operator]
        return torch.stack([sample.seg_logits.data for sample in found])


def original_images(preprocessor: nn.Module, inputs: Tensor) -> Tensor:
    """(N, 3, H, W) RGB in 0…255 of what a data preprocessor made of BGR images.

    Raises:
        UserError: a data preprocessor of unknown kind.
    """
    if isinstance(preprocessor, SceneKDDataPreprocessor):
        return inputs
    if not isinstance(preprocessor, ImgDataPreprocessor):
        raise UserError(
            f"SceneKDEncoderDecoder: {type(preprocessor).__name__}: an online teacher needs the images before they "
            "were normalised; use SegDataPreProcessor"
        )
    if preprocessor._enable_normalize:
        inputs = inputs * preprocessor.std + preprocessor.mean
    return inputs if preprocessor._channel_conversion else inputs.flip(1)


def _classes_of(cfg: Config, state: dict[str, Any]) -> tuple[str, ...]:
    """The classes that a checkpoint or a configuration's data set names; empty where neither does."""
    meta = state.get("meta")
    if isinstance(meta, dict):
        found = (meta.get("dataset_meta") or {}).get("classes") or meta.get("CLASSES")
        if found:
            return tuple(found)
    for loader in ("train_dataloader", "val_dataloader", "test_dataloader"):
        dataset = (cfg.get(loader) or {}).get("dataset") or {}
        while "dataset" in dataset or "datasets" in dataset:  # repeated, concatenated
            dataset = dataset["dataset"] if "dataset" in dataset else dataset["datasets"][0]
        kind = dataset.get("type")
        known = SEG_DATASETS.get(kind) if isinstance(kind, str) else kind
        if known is SceneKDDataset:
            return (BACKGROUND, *(dataset.get("classes") or VOC_CLASSES))
        found = (dataset.get("metainfo") or {}).get("classes") or getattr(known, "METAINFO", {}).get(
            "classes"
        )
        if found:
            return tuple(found)
    return ()
