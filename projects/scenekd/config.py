"""Configuration: detectron2's keys where it has one; ours stand below SYSTEM, DATASETS, TEACHER, DISTILL and
MODEL.<system>.

YAML is read through fvcore's CfgNode: ``_BASE_`` inherits, ``KEY VALUE`` pairs override. The comment of a key
is its documentation. Systems add their own node with :func:`register_system_defaults`.
"""

from __future__ import annotations

import copy
import importlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import yaml
from fvcore.common.config import CfgNode as CN

from .errors import UserError

SYSTEMS = ("kd_mtl", "fcn_kd", "blindnet", "envise")

_AT_LEAST = {
    "SEED": 0,
    "INPUT.SIZE": 1,
    "DATALOADER.NUM_WORKERS": 0,
    "SOLVER.IMS_PER_BATCH": 1,
    "SOLVER.ACCUMULATE_STEPS": 1,
    "SOLVER.MAX_ITER": 0,
    "SOLVER.CHECKPOINT_PERIOD": 1,
    "SOLVER.LOG_PERIOD": 1,
    "TEST.BATCH_SIZE": 1,
    "TEST.EVAL_PERIOD": 0,
}

_SYSTEM_DEFAULTS: dict[str, Callable[[CN], None]] = {}


def register_system_defaults(system: str, add: Callable[[CN], None]) -> None:
    """``add(cfg)`` adds the system's nodes to a fresh configuration."""
    _SYSTEM_DEFAULTS[system] = add


def import_system(system: str) -> Any:
    """Import the package of a system, from a closed list: a config file never names a module to import."""
    if system not in SYSTEMS:
        raise UserError(f"SYSTEM: unknown system {system!r}; choose one of {', '.join(SYSTEMS)}")
    try:
        return importlib.import_module(system)
    except ModuleNotFoundError as error:
        if error.name != system:
            raise
        raise UserError(f"SYSTEM: {system} is not part of this release of SceneKD") from None


def import_systems() -> None:
    """Import every system that is installed, for its registered models and keys."""
    for system in SYSTEMS:
        try:
            importlib.import_module(system)
        except ModuleNotFoundError as error:
            if error.name != system:
                raise


def add_scenekd_config(cfg: CN) -> None:
    """Add SceneKD's own keys to ``cfg``, for example to detectron2's ``get_cfg()``; existing keys stay.

    ``MODEL.<system>`` is added for every system imported so far; ``import scenekd.engines.detectron2`` imports all.
    """
    defaults = _own_defaults()
    defaults.MODEL = CN()
    for add in _SYSTEM_DEFAULTS.values():
        add(defaults)
    _merge_missing(cfg, defaults)


def _merge_missing(cfg: CN, defaults: CN) -> None:
    for key, value in defaults.items():
        if key not in cfg and isinstance(value, CN):
            cfg[key] = type(cfg)()  # detectron2's nodes take only their own type from a file
        if key not in cfg:
            cfg[key] = copy.deepcopy(value)
        elif isinstance(value, CN) and isinstance(cfg[key], CN):
            _merge_missing(cfg[key], value)


def _own_defaults() -> CN:
    cfg = CN()
    cfg.SYSTEM = "kd_mtl"

    data = cfg.DATASETS = CN()
    data.TRAIN = ()  # names; several are concatenated
    data.TEST = ()
    data.ROOT = ""  # a VOCdevkit, a VOC-layout folder, or a folder with COCO's images and annotations
    data.CLASSES = ()  # class names without background; empty: the 20 VOC names
    data.ON_ERROR = "raise"  # raise | skip: unusable images are left out, counted and reported
    data.KEEP_BOXES = 1.0  # share of the training images that keep their boxes, chosen by image id
    data.KEEP_SEM_SEG = 1.0  # share of the training images that keep their mask, chosen by image id
    data.KEEP_SEED = 0
    data.MAX_IMAGES = 0  # take only the first images of each split; 0: all
    data.ALLOW_OVERLAP = False  # let a training image stand in the test set, or in a teacher's training set

    inp = cfg.INPUT = CN()
    inp.SIZE = 300  # network input is SIZE × SIZE
    inp.PHOTOMETRIC = True
    inp.ZOOM_OUT_PROB = 0.5
    inp.ZOOM_OUT_MAX = 4.0
    inp.ZOOM_OUT_PER_RUN = False  # the thesis's code tosses the coin once per run; ours once per image
    inp.ZOOM_OUT_FILL_SEG = 255  # label of the padded border: 255 void, 0 background (the repository's)
    inp.CROP_PROB = 1.0  # the IoU crop; one of its choices is the whole image
    inp.FLIP_PROB = 0.5
    inp.MIN_BOX_SIDE = 2.0  # pixels of the network input

    teacher = cfg.TEACHER = CN()
    for task in ("DETECTION", "SEGMENTATION"):
        node = teacher[task] = CN()
        node.TYPE = ""  # "", torchvision, scenekd, folder, thesis
        node.NAME = ""  # torchvision: model name, for example maskrcnn_resnet50_fpn
        node.WEIGHTS = ""  # checkpoint, weight file, folder; "" for the zoo's own; "random" for none
        node.CONFIG = ""  # scenekd: YAML of the teacher; "" reads the one inside the checkpoint
        node.CLASSES = ()  # the teacher's class names; empty: known from its type
        node.CLASS_MAP = ()  # pairs (teacher name, our name or "background"), beside the built-in synonyms
        node.ALLOW_UNMAPPED = False  # teacher classes without a counterpart become background
        node.TRAINED_ON = ()  # data sets that the teacher was trained on, checked against DATASETS.TEST
        node.CACHE = ""  # folder of the cache; "": OUTPUT_DIR/teacher_cache/<task>
        node.BACKGROUND = "none"  # none | explicit: background slot of a sparse teacher = 1 − max confidence
        node.MIN_SCORE = 0.0  # boxes below are not stored
        node.MAX_BOXES = 100  # boxes stored an image

    distill = cfg.DISTILL = CN()
    for task in ("DETECTION", "SEGMENTATION"):
        node = distill[task] = CN()
        node.POLICY = (
            "ground_truth"  # ground_truth | teacher | fill_missing | fixed_subset | per_batch | combined
        )
        node.FRACTION = 1.0  # fixed_subset, per_batch: share of the images that take the teacher
        node.SUBSET_SEED = 0
        node.GT_WEIGHT = 0.5  # combined
        node.TEACHER_WEIGHT = 0.5
    distill.DETECTION.MIN_SCORE = 0.001  # teacher boxes below are dropped; 0 keeps all
    distill.DETECTION.USE_CONFIDENCE = True  # False: teacher boxes weigh like ground truth
    distill.SEGMENTATION.TARGET = "probabilities"  # probabilities | logits | scores (the thesis's)
    distill.SEGMENTATION.TEMPERATURE = 1.0

    return cfg


def _detectron2_defaults() -> CN:
    """The keys that detectron2 has too, with the same names and meaning."""
    cfg = CN()
    cfg.VERSION = 2
    cfg.SEED = 0
    cfg.OUTPUT_DIR = "./output"
    cfg.CUDNN_BENCHMARK = False
    cfg.WANDB = False  # mirror the event writers' numbers to Weights & Biases, where wandb is installed

    cfg.MODEL = CN()
    cfg.MODEL.DEVICE = "auto"  # auto: cuda where there is one, else cpu
    cfg.MODEL.WEIGHTS = ""  # checkpoint to start from

    cfg.DATALOADER = CN()
    cfg.DATALOADER.NUM_WORKERS = 2

    solver = cfg.SOLVER = CN()
    solver.OPTIMIZER = "ADAM"  # ADAM | ADAMW | SGD
    solver.IMS_PER_BATCH = 32  # in one optimizer step, over all processes
    solver.ACCUMULATE_STEPS = 1  # IMS_PER_BATCH is run through the network in so many parts
    solver.BASE_LR = 1e-4
    solver.LR_SCHEDULER_NAME = "WarmupMultiStepLR"  # WarmupMultiStepLR | WarmupCosineLR | WarmupPolyLR
    solver.POLY_POWER = 0.9
    solver.MAX_ITER = 65000
    solver.STEPS = (40000, 50000)
    solver.GAMMA = 0.1
    solver.WARMUP_ITERS = 0
    solver.WARMUP_FACTOR = 1.0 / 1000
    solver.WARMUP_METHOD = "linear"
    solver.MOMENTUM = 0.9
    solver.NESTEROV = False
    solver.WEIGHT_DECAY = 5e-5
    solver.WEIGHT_DECAY_NORM = 0.0
    solver.WEIGHT_DECAY_BIAS = 0.0
    solver.CLIP_GRADIENTS = CN()
    solver.CLIP_GRADIENTS.ENABLED = False
    solver.CLIP_GRADIENTS.CLIP_TYPE = "full_model"  # full_model (one norm over all) | value
    solver.CLIP_GRADIENTS.CLIP_VALUE = 1.0
    solver.CLIP_GRADIENTS.NORM_TYPE = 2.0
    solver.AMP = CN()
    solver.AMP.ENABLED = False
    solver.CHECKPOINT_PERIOD = 5000  # iterations; last.pth is written, for --resume
    solver.LOG_PERIOD = 20

    test = cfg.TEST = CN()
    test.EVAL_PERIOD = 0  # iterations; 0: only at the end
    test.BATCH_SIZE = 1
    test.EVALUATOR = "native"  # native | framework
    test.METRICS = ("sem_seg", "bbox")  # of the tasks that the model has
    test.BOX_METRIC = "voc"  # voc: area AP at IoU .5; voc07: 11-point; coco: pycocotools
    test.BEST_METRIC = ""  # for example sem_seg/mIoU: keeps model_best.pth
    test.BOOTSTRAP = 1000  # resamples of the images for the intervals; 0: none
    test.EXPECTED_RESULTS = []  # [task, metric, value, tolerance], checked after the run
    test.VISUALIZE = 8  # images shown in the report
    return cfg


def get_cfg(system: str = "kd_mtl") -> CN:
    """A fresh configuration with the defaults of ``system``."""
    cfg = _detectron2_defaults()
    _merge_missing(cfg, _own_defaults())
    import_system(system)
    _SYSTEM_DEFAULTS[system](cfg)
    cfg.SYSTEM = system
    return cfg


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> CN:
    """Read a YAML file (with ``_BASE_``) and ``KEY VALUE`` pairs into a frozen configuration.

    Raises:
        UserError: the file is missing or not YAML, a key is unknown, or a value has the wrong type.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such config file")
    try:
        loaded = CN.load_yaml_with_base(str(path))
    except OSError as error:
        raise UserError(f"{path}: _BASE_ leads to {error.filename}: {error.strerror}") from None
    except RecursionError:
        raise UserError(f"{path}: _BASE_ leads back to the file itself") from None
    except (yaml.YAMLError, UnicodeDecodeError, TypeError, AssertionError) as error:
        raise UserError(f"{path}: not a valid YAML config: {_reason(error)}") from None
    return _build(loaded, overrides, str(path))


def config_from_text(text: str, overrides: Sequence[str] = (), *, source: str = "config") -> CN:
    """The configuration from its YAML text, for example the one inside a checkpoint."""
    try:
        loaded = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UserError(f"{source}: not a valid YAML config: {_reason(error)}") from None
    return _build(loaded, overrides, source)


def _build(loaded: Any, overrides: Sequence[str], source: str) -> CN:
    if not isinstance(loaded, dict):
        raise UserError(f"{source}: holds no keys; a config is a YAML mapping")
    cfg = get_cfg(loaded.get("SYSTEM", "kd_mtl"))
    try:
        cfg.merge_from_other_cfg(CN(_fit(loaded, cfg)))
    except (KeyError, ValueError, AssertionError) as error:
        raise UserError(f"{source}: {_reason(error)}") from None
    apply_overrides(cfg, overrides)
    for key, least in _AT_LEAST.items():
        if (value := _value_at(cfg, key)) < least:
            raise UserError(f"{source}: {key} is {value}; it must be at least {least}")
    cfg.freeze()
    return cfg


def apply_overrides(cfg: CN, overrides: Sequence[str]) -> None:
    """Merge ``KEY VALUE`` pairs, in place."""
    if len(overrides) % 2:
        raise UserError(f"overrides come in pairs KEY VALUE; {overrides[-1]!r} stands alone")
    try:
        for key, text in zip(overrides[::2], overrides[1::2]):
            value = CN._decode_cfg_value(text)
            cfg.merge_from_list([key, _fit(value, _value_at(cfg, key), key)])
    except (KeyError, ValueError, AssertionError) as error:
        raise UserError(f"command line: {_reason(error)}") from None


def _value_at(cfg: CN, key: str) -> Any:
    node: Any = cfg
    for part in key.split("."):
        if not isinstance(node, CN) or part not in node:
            raise KeyError(f"Non-existent config key: {key}")
        node = node[part]
    return node


def _fit(value: Any, default: Any, key: str = "") -> Any:
    """``value`` as yacs takes it: a whole number is a float where one is due, and "no value" is refused."""
    if isinstance(value, dict) and isinstance(default, CN):
        return {str(k): _fit(v, default.get(k), f"{key}.{k}".lstrip(".")) for k, v in value.items()}
    if value is None and default is not None:
        raise ValueError(f"no value for config key: {key}")
    if type(value) is int and isinstance(default, float):
        return float(value)
    return value


def _reason(error: Exception) -> str:
    # A KeyError's own text is quoted; YAML's runs over several lines.
    return " ".join(str(error.args[0] if isinstance(error, KeyError) else error).split())
