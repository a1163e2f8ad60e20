"""The live task of a configuration: the cascade, or a video that is segmented."""

from __future__ import annotations

import sys
from pathlib import Path

from fvcore.common.config import CfgNode

from scenekd.config import load_config
from scenekd.data.catalog import load_datasets
from scenekd.data.records import Dataset
from scenekd.errors import UserError
from scenekd.models import build_model, choose_device, load_initial_weights
from scenekd.predictor import Predictor, open_config
from scenekd.teachers.label_map import BACKGROUND
from scenekd.teachers.live_build import OnlineTeacher, build_online
from scenekd.teachers.options import our_classes

from .frame_learner import FrameLearner
from .key_frames import KEY
from .live import live_source
from .live_cascade import LiveCascade
from .live_segmentation import LiveSegmentation
from .run import OnlineRun
from .stream import build_frames
from .teachers import check_stream_overlap

TASK, SYSTEMS = "segmentation", ("fcn_kd", "kd_mtl")


def live_overrides(source: str | None, max_samples: int | None) -> list[str]:
    """``KEY VALUE`` pairs of a source that a command line names: the whole of it, in its own order; or with
    ``max_samples`` so much of the configuration's stream.

    Raises:
        UserError: no such source.
    """
    pairs = [] if max_samples is None else ["STREAM.SAMPLES", str(max_samples)]
    if source is None:
        return pairs
    own = ["STREAM.SOURCE", live_source(source), "STREAM.PAIRS", "", "STREAM.SHIFTS", "()"]
    return [*own, *(pairs or ["STREAM.SAMPLES", "0"])]


def build_task(cfg: CfgNode, *, packed: str = "auto") -> LiveCascade | LiveSegmentation:
    """Stream, teacher and student.

    Args:
        packed: as of :class:`.live_cascade.LiveCascade`.

    Raises:
        UserError: what is named is not there, or does not fit.
    """
    if cfg.MODEL.ENVISE.SEGMENTATION.CONFIG:
        if packed == "on":
            raise UserError(f"--packed on: the student of {KEY}.CONFIG is no binary network; leave it out")
        return build_segmentation(cfg)
    often = cfg.clone()
    often.defrost()
    often.ONLINE.CHECKPOINT_PERIOD = sys.maxsize  # states are written here, after the log
    often.freeze()
    run = OnlineRun.from_config(often)
    classes = run.stream.classes or getattr(run.distiller.teacher, "classes", ())
    return LiveCascade(run, cfg.OUTPUT_DIR, cfg.INPUT.SIZE, packed=packed, classes=classes)


def build_segmentation(cfg: CfgNode) -> LiveSegmentation:
    """A video, the teacher of ``TEACHER.SEGMENTATION``, and the student of ``MODEL.ENVISE.SEGMENTATION.CONFIG``.

    Raises:
        UserError: what is named is not there, or does not fit.
    """
    own = student_config(cfg)
    classes, device = our_classes(own), choose_device(cfg)
    named = cfg.clone()  # whose classes are the student's, and that names no data but the stream's
    named.defrost()
    named.DATASETS.CLASSES, named.DATASETS.TEST = classes, ()
    if cfg.STREAM.SOURCE:
        named.DATASETS.TRAIN = ()
    named.freeze()
    dataset = None if cfg.STREAM.SOURCE else _labelled(named)
    student = build_model(own)
    if TASK not in getattr(student, "tasks", ()):
        raise UserError(f"{KEY}.CONFIG: {cfg.MODEL.ENVISE.SEGMENTATION.CONFIG}: no network for segmentation")
    load_initial_weights(student, own.MODEL.WEIGHTS)
    predictor = Predictor(student.to(device), own, device)
    teacher = _teacher(named, check=dataset is not None)
    return LiveSegmentation(
        FrameLearner(predictor, teacher, cfg, num_classes=len(classes) + 1),
        build_frames(cfg, dataset),
        cfg.OUTPUT_DIR,
        seed=cfg.SEED,
        classes=(BACKGROUND, *classes),
        truth=dataset,
        judge=cfg.ONLINE.JUDGE_TEACHER,
    )


def student_config(cfg: CfgNode) -> CfgNode:
    """The student's own configuration, on the device and with the seed of ``cfg``; it starts from what that names in
    ``MODEL.WEIGHTS``, else from a checkpoint that the configuration was read from, else from its own.

    Raises:
        UserError: no such configuration, or of another system.
    """
    path, weights = cfg.MODEL.ENVISE.SEGMENTATION.CONFIG, cfg.MODEL.WEIGHTS
    is_checkpoint = Path(path).suffix == ".pth"
    own = (open_config if is_checkpoint else load_config)(path)
    if own.SYSTEM not in SYSTEMS:
        raise UserError(f"{KEY}.CONFIG: {path}: SYSTEM is {own.SYSTEM}; take one of {' or '.join(SYSTEMS)}")
    own.defrost()
    own.MODEL.WEIGHTS = weights or (path if is_checkpoint else own.MODEL.WEIGHTS)
    own.MODEL.DEVICE, own.SEED = cfg.MODEL.DEVICE, cfg.SEED
    own.freeze()
    return own


def _teacher(cfg: CfgNode, *, check: bool) -> OnlineTeacher:
    """Args:
    check: hold what it was trained on against the stream's images.
    """
    teacher = build_online(cfg, TASK)
    teacher.net.to(choose_device(cfg))
    if check:
        check_stream_overlap(cfg, teacher.trained_on, TASK)
    return teacher


def _labelled(cfg: CfgNode) -> Dataset:
    """The images of ``DATASETS.TRAIN`` with their masks, for the report."""
    return load_datasets(cfg.DATASETS.TRAIN, cfg, train=True)
