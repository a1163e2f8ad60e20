"""A run of envise over coloured images from a configuration, with a teacher that is a network."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from envise_parts import COLOURS, NAMES, PAIRS, colour_dataset, envise_config
from torch import Tensor, nn

from envise import run as envise_run
from envise.stream import build_stream
from envise.teachers import StreamTeacher
from scenekd.teachers.live_build import OnlineTeacher


@dataclass
class _Live:
    net: nn.Module
    names: tuple[str, ...] = NAMES
    trained_on: tuple[str, ...] = ()

    def logits(self, images: Tensor) -> Tensor:
        return self.net(images)


def nearest_colour() -> nn.Sequential:
    """−‖x − c‖² / 2000 of the mean colour x, but for what is the same for every colour c: (2 c·x − ‖c‖²) / 2000."""
    net = nn.Sequential(
        nn.Conv2d(3, 3, 4, 4, bias=False), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, len(NAMES))
    )
    centres = torch.tensor(COLOURS, dtype=torch.float32)
    with torch.no_grad():
        net[0].weight.copy_((torch.eye(3) / 16)[:, :, None, None].expand(3, 3, 4, 4))
        net[3].weight.copy_(2 * centres / 2000)
        net[3].bias.copy_(-centres.square().sum(1) / 2000)
    return net.eval().requires_grad_(False)


class StreamFolder:
    """``folder(name, **nodes)``: a configuration whose run ends in ``name``; 240 samples, outliers from 150 on."""

    def __init__(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.path = path
        (path / "pairs.yaml").write_text(PAIRS)
        monkeypatch.setattr(
            envise_run, "build_stream", lambda cfg: build_stream(cfg, colour_dataset(seed=cfg.SEED))
        )
        monkeypatch.setattr(envise_run, "build_stream_teacher", self._teacher)

    def _teacher(self, cfg: object, classes: tuple[str, ...] = ()) -> tuple[StreamTeacher, tuple[str, ...]]:
        return StreamTeacher(OnlineTeacher(_Live(nearest_colour()), range(5), 5)), classes or NAMES

    def __call__(self, name: str, **nodes: object):
        pair = {"PAIRS": str(self.path / "pairs.yaml"), "PAIR": "warm"}
        shift = {"SHIFTS": ({"AT": 150, "OUTLIER_SHARE": 0.4},)}
        stream = {**pair, **shift, **nodes.pop("STREAM", {})}  # type: ignore[dict-item]
        solver = {"LOG_PERIOD": 5, **nodes.pop("SOLVER", {})}  # type: ignore[dict-item]
        fixed = {"BASE_LR": 0.01, "STEPS": (), "WARMUP_ITERS": 2, "MAX_ITER": 1000}
        return envise_config(OUTPUT_DIR=str(self.path / name), STREAM=stream, SOLVER=fixed | solver, **nodes)
