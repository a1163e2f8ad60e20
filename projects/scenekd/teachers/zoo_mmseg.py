"""MMSegmentation's segmentors as teachers: any config with its checkpoint.

Images are prepared as by MMSegmentation's ``inference_model``: by the config's ``test_pipeline`` and by the
segmentor's own preprocessor.

h, w: the grid of the decode head's last convolution, before it is enlarged, where the head ends in that plain
step with half-pixel centres and the whole image is seen at once; else the image's size.
"""

from __future__ import annotations

import copy
import urllib.error
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from torch import Tensor, nn

from .. import checkpoint
from ..errors import UserError, first_line
from .dense import background_first, object_classes, without_padding
from .frozen import RANDOM, NetworkTeacher, check_grid, require, to_array
from .protocol import TeacherOutput
from .uri import nearest

_KEY = "TEACHER.SEGMENTATION"


class MMSegTeacher(NetworkTeacher):
    """A segmentor.

    Args:
        name: a config file, or the name of one that MMSegmentation ships, such as
            ``fcn/fcn_r50-d8_4xb4-20k_voc12aug-512x512``.
        weights: a checkpoint; "" for the published one of a shipped config; "random" (seeded).
        classes: of the head, with "background" at its place if it has one; empty: as the checkpoint, or else
            the config's data set, says.
        grid: ``own``, the head's where that can be had; ``image``, what ``inference_model`` gives.

    Raises:
        UserError: no such config, weights that do not fit or cannot be had, classes that are not known.
    """

    tasks = ("segmentation",)

    def __init__(
        self,
        name: str,
        weights: str = "",
        *,
        classes: Sequence[str] = (),
        grid: str = "own",
        trained_on: Sequence[str] = (),
        device: torch.device | str = "cpu",
        amp: bool = False,
        seed: int = 0,
    ):
        check_grid(grid)
        cfg = read_config(name)
        net = build_segmentor(cfg, seed, name)
        state = {} if weights == RANDOM else checkpoint.read(weights or published(name))
        if state:
            _load(net, checkpoint.weights_of(state), weights or name)
        self._names = tuple(classes) or _class_names(state, cfg, name)
        self.classes = object_classes(self._names)
        self._take(net, device, amp)
        steps = _test_steps(cfg, name)
        self._pipeline = _compose(steps, cfg)
        self.grid = grid if grid == "image" or ends_in_enlarging(net) else "image"
        training = trained_on or (() if weights else training_data(name))
        self._describe("mmseg", name, training, "logits", grid=self.grid, pipeline=str(steps))

    def _ask(self, images: list[np.ndarray]) -> list[TeacherOutput]:
        # MMSegmentation's loaders give BGR.
        ready = [self._pipeline({"img": np.ascontiguousarray(image[:, :, ::-1])}) for image in images]
        data = {key: [one[key] for one in ready] for key in ("inputs", "data_samples")}
        net: Any = self.net
        data = net.data_preprocessor(data, False)
        if self.grid == "own":
            logits = net._forward(data["inputs"])
            shown = [self._shown(part.float(), sample.metainfo) for part, sample in _pairs(logits, data)]
        else:
            shown = [_logits_of(sample) for sample in net.predict(data["inputs"], data["data_samples"])]
        return [TeacherOutput(segmentation=self._soft(part)) for part in shown]

    def _shown(self, logits: Tensor, meta: dict[str, Any]) -> Tensor:
        """Without what the preprocessor padded at the right and below."""
        left, right, top, bottom = meta.get("padding_size", meta.get("img_padding_size", (0, 0, 0, 0)))
        if left or top or meta.get("flip"):
            raise UserError(f"{_KEY}.GRID: the test_pipeline moves the image about; set {_KEY}.GRID image")
        height, width = meta["img_shape"][:2]
        return without_padding(logits, (height, width), (height + bottom, width + right))

    def _soft(self, logits: Tensor) -> Any:
        try:
            return background_first(to_array(logits), self._names)
        except ValueError as error:
            raise UserError(f"{_KEY}.CLASSES: {error}; set the head's classes there, in its order") from None


def _pairs(logits: Any, data: dict[str, Any]) -> Any:
    if not isinstance(logits, Tensor):
        raise UserError(f"{_KEY}.GRID: this head gives no single map of logits; set {_KEY}.GRID image")
    return zip(logits, data["data_samples"])


def _logits_of(sample: Any) -> Tensor:
    logits: Tensor = sample.seg_logits.data.float()
    # One plane comes through a sigmoid; several come as they are.
    return torch.logit(logits, eps=1e-7) if len(logits) == 1 else logits


def ends_in_enlarging(net: Any) -> bool:
    """Whether a segmentor's last step is to enlarge the logits of its head, with half-pixel centres."""
    from mmseg.models.decode_heads.cascade_decode_head import BaseCascadeDecodeHead
    from mmseg.models.decode_heads.decode_head import BaseDecodeHead
    from mmseg.models.segmentors import EncoderDecoder

    if not isinstance(net, EncoderDecoder) or net.test_cfg.get("mode", "whole") != "whole":
        return False
    head: Any = net.decode_head[-1] if isinstance(net.decode_head, nn.ModuleList) else net.decode_head
    if not isinstance(head, BaseDecodeHead) or head.align_corners:
        return False
    plain = (BaseDecodeHead.predict, BaseCascadeDecodeHead.predict)
    return type(head).predict in plain and type(head).predict_by_feat is BaseDecodeHead.predict_by_feat


def read_config(name: str, key: str = "TEACHER.<TASK>.NAME") -> Any:
    """MMSegmentation's config of a file, or of a name that it ships; ``key`` is where the name stood, for errors.

    Raises:
        UserError: MMSegmentation is not installed, no such config, or one that cannot be read.
    """
    require("mmseg", "pip install onedl-mmsegmentation onedl-mmengine onedl-mmcv")
    from mmengine.config import Config

    path = Path(name) if Path(name).is_file() else _shipped().get(_stem(name))
    if path is None:
        close = ", ".join(nearest(_stem(name), _shipped(), 3))
        raise UserError(f"{key}: no MMSegmentation config {name!r}; the nearest it ships are {close}")
    try:
        cfg = Config.fromfile(path)
        cfg.model  # noqa: B018 - there must be one
    except (OSError, SyntaxError, KeyError, TypeError, AttributeError, ImportError) as error:
        raise UserError(f"{path}: no valid MMSegmentation config ({first_line(error)})") from None
    return cfg


def _stem(name: str) -> str:
    return name.removeprefix("configs/").removesuffix(".py")


def _config_folder() -> Path:
    import mmseg

    return Path(str(mmseg.__file__)).parent / ".mim" / "configs"


def _shipped() -> dict[str, Path]:
    """Name → file of the configs of whole networks that MMSegmentation ships."""
    folder = _config_folder()
    names = {str(path.relative_to(folder).with_suffix("")): path for path in sorted(folder.rglob("*.py"))}
    return {name: path for name, path in names.items() if not name.startswith("_base_")}


def _metadata(name: str) -> dict[str, Any]:
    """What MMSegmentation's model index says of a shipped config; empty where it says nothing."""
    path = _config_folder() / Path(_stem(name)).parent / "metafile.yaml"
    if not path.is_file():
        return {}
    models = (yaml.safe_load(path.read_text(encoding="utf-8")) or {}).get("Models", [])
    return next((model for model in models if model.get("Name") == Path(_stem(name)).name), {})


def training_data(name: str) -> tuple[str, ...]:
    """The data sets on which MMSegmentation trained a shipped config; empty where its index says nothing."""
    data = _metadata(name).get("Metadata", {}).get("Training Data", [])
    return (data,) if isinstance(data, str) else tuple(data)


def published(name: str) -> str:
    """The local file of a shipped config's checkpoint, fetched where it is not there."""
    url = _metadata(name).get("Weights", "")
    if not url:
        raise UserError(f"{_KEY}.WEIGHTS: set it to a checkpoint of {name}; no published one is known")
    target = Path(torch.hub.get_dir()) / "checkpoints" / Path(url).name
    if target.is_file():
        return str(target)
    digest = target.stem.rpartition("-")[2]  # the file's name ends with the start of its hash
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(url, str(target), digest if len(digest) == 8 else None)
    except (urllib.error.URLError, OSError, RuntimeError) as error:
        raise UserError(
            f"{name}: its checkpoint cannot be downloaded ({first_line(error)}); fetch {url} elsewhere and "
            f"set {_KEY}.WEIGHTS to the file, or place it in {target.parent}"
        ) from None
    return str(target)


def _class_names(state: dict[str, Any], cfg: Any, name: str) -> tuple[str, ...]:
    """As a checkpoint of MMSegmentation's 1.x or 0.x says, or the class of the config's test data."""
    from mmseg.registry import DATASETS

    meta = state.get("meta") or {}
    found = (meta.get("dataset_meta") or {}).get("classes") or meta.get("CLASSES")
    if not found:
        kind = cfg.get("test_dataloader", {}).get("dataset", {}).get("type", "")
        dataset = DATASETS.get(kind) if isinstance(kind, str) and kind else None
        found = getattr(dataset, "METAINFO", {}).get("classes")
    if not found:
        raise UserError(f"{name}: neither checkpoint nor config tells the classes; set {_KEY}.CLASSES")
    return tuple(found)


def _scope(cfg: Any) -> Any:
    from mmengine.registry import DefaultScope
    from mmseg.utils import register_all_modules

    register_all_modules(init_default_scope=False)
    return DefaultScope.overwrite_default_scope(cfg.get("default_scope", "mmseg"))


def build_segmentor(cfg: Any, seed: int, name: str) -> nn.Module:
    """The segmentor, without what its parts would load before training.

    Raises:
        UserError: it cannot be built.
    """
    from mmseg.registry import MODELS

    model = copy.deepcopy(cfg.model)
    for node in (model, *(part for part in model.values() if isinstance(part, dict))):
        for key in ("pretrained", "init_cfg"):
            if key in node:
                node[key] = None
    try:
        with _scope(cfg), torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return MODELS.build(model)
    except (KeyError, TypeError, AssertionError, ImportError, ValueError, RuntimeError) as error:
        raise UserError(f"{name}: its model cannot be built ({first_line(error)})") from None


def _load(net: nn.Module, weights: dict[str, Tensor], source: str) -> None:
    report = checkpoint.load_state(net, weights, source)
    # Auxiliary heads serve training alone.
    faults = [key for key in (*report.missing, *report.mismatched) if not key.startswith("auxiliary_head")]
    if faults:
        raise UserError(
            f"{source}: weights of another network: {len(faults)} tensors are missing or of another shape, "
            f"such as {faults[0]}; give the checkpoint that belongs to this config"
        )


def _test_steps(cfg: Any, name: str) -> list[dict[str, Any]]:
    """The steps of the test pipeline on images at hand, as ``inference_model`` takes them."""
    steps = cfg.get("test_pipeline") or cfg.get("test_dataloader", {}).get("dataset", {}).get("pipeline")
    if not steps:
        raise UserError(f"{name}: has no test_pipeline; add one, as MMSegmentation's own configs do")
    kept = [dict(copy.deepcopy(step)) for step in steps if step["type"] != "LoadAnnotations"]
    kept[0]["type"] = "LoadImageFromNDArray"
    return kept


def _compose(steps: list[dict[str, Any]], cfg: Any) -> Any:
    from mmengine.dataset import Compose

    with _scope(cfg):
        return Compose(copy.deepcopy(steps))
