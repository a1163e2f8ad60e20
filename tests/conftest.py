"""Shared fixtures: the real test data, and a tiny run on drawn scenes."""

from __future__ import annotations

import importlib.util
import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from scenekd.config import load_config

os.environ.setdefault("TQDM_DISABLE", "1")
torch.set_num_threads(1)

ENGINES = ["mmengine"]
if importlib.util.find_spec("detectron2") is not None:
    ENGINES.append("detectron2")

_TINY = """
SYSTEM: kd_mtl
DATASETS:
  ROOT: "{root}"
  CLASSES: ("person", "tree", "bird", "car", "house", "boat", "cup", "bottle", "cow", "kite")
  TRAIN: ("voc_seg_train",)
  TEST: ("voc_seg_val",)
  KEEP_SEM_SEG: 0.5
INPUT:
  SIZE: 64
MODEL:
  DEVICE: "cpu"
  BLITZNET:
    TRUNK: "resnet18"
    TRUNK_WIDTH: 8
    BLOCK_CHANNELS: (8, 16)
    STREAM_CHANNELS: 16
    NECK_CHANNELS: 8
    SEG_CHANNELS: 8
SOLVER:
  IMS_PER_BATCH: 4
  BASE_LR: 1.0e-3
  MAX_ITER: 10
  STEPS: (8,)
  WARMUP_ITERS: 5
  WEIGHT_DECAY: 1.0e-3
  CHECKPOINT_PERIOD: 4
  LOG_PERIOD: 1
  CLIP_GRADIENTS:
    ENABLED: True
    CLIP_VALUE: 2.0
TEST:
  BATCH_SIZE: 4
  BOOTSTRAP: 0
DATALOADER:
  NUM_WORKERS: 0
"""


@pytest.fixture(autouse=True)
def _own_logging() -> Iterator[None]:
    """A run sends our log to its folder, and some libraries silence loggers; each test finds them as new."""
    _reset_logging()
    yield
    _reset_logging()


def _reset_logging() -> None:
    logging.disable(logging.NOTSET)
    for name in [n for n in logging.root.manager.loggerDict if n.split(".")[0] == "scenekd"]:
        logging.getLogger(name).disabled = False
    logger = logging.getLogger("scenekd")
    logger.propagate = True
    logger.setLevel(logging.NOTSET)
    for handler in list(logger.handlers):
        logger.removeHandler(handler)
        handler.close()


@pytest.fixture(scope="session")
def test_data() -> Path:
    """The folder of real data; tests that need it skip where SCENEKD_TEST_DATA is unset."""
    folder = os.environ.get("SCENEKD_TEST_DATA")
    if not folder:
        pytest.skip("SCENEKD_TEST_DATA is not set")
    return Path(folder)


@pytest.fixture(scope="session")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small scenes data set: train 12, val 6."""
    from scenekd.data.scenes import generate_scenes

    root = tmp_path_factory.mktemp("scenes") / "data"
    generate_scenes(root, splits={"train": 12, "val": 6}, seed=3, progress=False)
    return root


@pytest.fixture
def plain_dumps(monkeypatch: pytest.MonkeyPatch) -> None:
    """MMEngine writes its configurations as they are: its formatter takes seconds for each of several copies."""
    monkeypatch.setattr("yapf.yapflib.yapf_api.FormatCode", lambda text, **_: (text, False))


@pytest.fixture
def train_until(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """``train_until(cfg, engine, iteration)``: a run that is interrupted after that step (0-based)."""
    from scenekd.engines.session import train_once
    from scenekd.recorder import Recorder

    after_step = Recorder.after_step

    def train(cfg: object, engine: str, last: int) -> None:
        def stop(self: Recorder, iteration: int, losses: dict[str, torch.Tensor]) -> None:
            after_step(self, iteration, losses)
            if iteration == last:
                raise KeyboardInterrupt

        with monkeypatch.context() as patched:
            patched.setattr(Recorder, "after_step", stop)
            with pytest.raises(KeyboardInterrupt):
                train_once(0, 0, 1, cfg, engine)

    return train


@pytest.fixture
def tiny_config(scenes: Path, tmp_path: Path) -> Callable[..., object]:
    """``tiny_config(folder, *overrides)``: a configuration of a few seconds' training."""
    file = tmp_path / "tiny.yaml"
    file.write_text(_TINY.format(root=scenes))

    def build(folder: str, *overrides: object) -> object:
        pairs = ["OUTPUT_DIR", str(tmp_path / folder), *map(str, overrides)]
        return load_config(file, pairs)

    return build
