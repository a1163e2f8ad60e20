"""Configuration: detectron2's keys where it has one; ours stand below SYSTEM, DATASETS, TEACHER, DISTILL and
MODEL.<system>.

YAML is read through fvcore's CfgNode: ``_BASE_`` inherits, ``KEY VALUE`` pairs override. The comment of a key
is its documentation. Systems add their own node with :func:`register_system_defaults`.
"""

from __future__ import annotations

import copy
import importlib
import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import yaml
from fvcore.common.config import CfgNode as CN

from .config_defaults import detectron2_defaults, own_defaults
from .errors import UserError
from .teachers.uri import is_uri, node_from_uri

SYSTEMS = ("kd_mtl", "fcn_kd", "blindnet", "envise")

# First line of the configuration in a checkpoint, where it is a framework's own.
_NATIVE = "# native configuration of "

_AT_LEAST = {
    "SEED": 0,
    "DATASETS.IMAGES_PER_CLASS": 0,
    "INPUT.SIZE": 1,
    "INPUT.PAD_CROP": 0,
    "DATALOADER.NUM_WORKERS": 0,
    "SOLVER.IMS_PER_BATCH": 1,
    "SOLVER.ACCUMULATE_STEPS": 1,
    "SOLVER.MAX_ITER": 0,
    "SOLVER.EMA.WARMUP": 0,
    "SOLVER.ASYNC_UPDATES.IMAGES": 0,
    "SOLVER.ASYNC_UPDATES.SHARED_IMAGES": 0,
    "SOLVER.CHECKPOINT_PERIOD": 1,
    "SOLVER.LOG_PERIOD": 1,
    "TEST.BATCH_SIZE": 1,
    "TEST.EVAL_PERIOD": 0,
    "TEACHER.BATCH_SIZE": 0,
    "TEACHER.SCORE_IMAGES": 0,
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
    defaults = own_defaults()
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


def get_cfg(system: str = "kd_mtl") -> CN:
    """A fresh configuration with the defaults of ``system``."""
    cfg = detectron2_defaults()
    _merge_missing(cfg, own_defaults())
    import_system(system)
    _SYSTEM_DEFAULTS[system](cfg)
    cfg.SYSTEM = system
    return cfg


def native_text(framework: str, text: str) -> str:
    """What a checkpoint holds as its configuration where a framework's own was trained."""
    return f"{_NATIVE}{framework}\n{text}"


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> CN:
    """Read a YAML file (with ``_BASE_``) and ``KEY VALUE`` pairs into a frozen configuration.

    Raises:
        UserError: the file is missing or not YAML, a key is unknown, or a value has the wrong type.
    """
    return build_config(read_config(path), overrides, source=str(path))


def read_config(path: str | Path) -> Any:
    """What a YAML file and its ``_BASE_`` say, as a tree of keys.

    Raises:
        UserError: the file is missing or not YAML.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such config file")
    try:
        return _ConfigFile.load_yaml_with_base(str(path))
    except OSError as error:
        raise UserError(f"{path}: _BASE_ leads to {error.filename}: {error.strerror}") from None
    except RecursionError:
        raise UserError(f"{path}: _BASE_ leads back to the file itself") from None
    except (yaml.YAMLError, UnicodeDecodeError, TypeError, AssertionError) as error:
        raise UserError(f"{path}: not a valid YAML config: {_reason(error)}") from None


class _ConfigFile(CN):
    """Reads files in which a teacher may stand as a URI; written out, a file and its base merge key by key."""

    @classmethod
    def _open_cfg(cls, filename: str) -> IO[str] | IO[bytes]:
        with super()._open_cfg(filename) as file:
            text = file.read()
        loaded = yaml.safe_load(text)
        nodes = loaded.get("TEACHER") if isinstance(loaded, dict) else None
        named = {k: v for k, v in nodes.items() if is_uri(v)} if isinstance(nodes, dict) else {}
        if not named:
            return io.StringIO(str(text))
        loaded["TEACHER"] |= {k: node_from_uri(v, f"{filename}: TEACHER.{k}") for k, v in named.items()}
        return io.StringIO(yaml.safe_dump(loaded))


def overlay_keys(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """A tree of keys with another laid over it; neither is changed."""
    merged = dict(below)
    for key, value in above.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = overlay_keys(merged[key], value) if both else value
    return merged


def config_from_text(text: str, overrides: Sequence[str] = (), *, source: str = "config") -> CN:
    """The configuration from its YAML text, for example the one inside a checkpoint."""
    if text.startswith(_NATIVE):
        framework = text.splitlines()[0].removeprefix(_NATIVE)
        raise UserError(
            f"{source}: was trained from a configuration of {framework}'s own; give one of SceneKD's for it"
        )
    try:
        loaded = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UserError(f"{source}: not a valid YAML config: {_reason(error)}") from None
    return build_config(loaded, overrides, source=source)


def build_config(loaded: Any, overrides: Sequence[str] = (), *, source: str) -> CN:
    """The frozen configuration of a tree of keys; ``source`` is named in errors."""
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
    """Merge ``KEY VALUE`` pairs, in place; whole nodes, such as a teacher by its URI, before single keys."""
    if len(overrides) % 2:
        raise UserError(f"overrides come in pairs KEY VALUE; {overrides[-1]!r} stands alone")
    try:
        pairs = [(key, text, _value_at(cfg, key)) for key, text in zip(overrides[::2], overrides[1::2])]
        for key, text, default in sorted(pairs, key=lambda pair: not isinstance(pair[2], CN)):
            value = _fit(CN._decode_cfg_value(text), default, key)
            keys = {f"{key}.{k}": v for k, v in value.items()} if isinstance(value, dict) else {key: value}
            for name, part in keys.items():
                cfg.merge_from_list([name, part])
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
    """``value`` as yacs takes it: a whole number is a float where one is due, a teacher's URI fills its node and is
    one of a list, and "no value" is refused."""
    if isinstance(value, str) and isinstance(default, CN) and "TYPE" in default:
        return node_from_uri(value, key)
    if is_uri(value) and isinstance(default, tuple):
        return (value,)
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
