"""Parts for envise's tests: images that are one colour and noise, and a teacher that knows the colours."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from envise.online import OnlineDistiller
from envise.run import OnlineRun
from envise.stream import Stream, build_stream
from envise.students import build_student
from scenekd.config import build_config
from scenekd.data.records import Dataset, Record

SIZE = 8
COLOURS = ((200, 40, 40), (40, 200, 40), (40, 40, 200), (200, 200, 40), (40, 200, 200))
NAMES = ("red", "green", "blue", "yellow", "cyan")
PAIRS = "pairs: {warm: {inliers: [red, green, blue], outliers: [yellow, cyan]}}"


def colour_dataset(per_class: int = 40, seed: int = 0) -> Dataset:
    """``per_class`` images of each of the five colours."""
    rng = np.random.default_rng(seed)
    records = []
    for number in range(per_class * len(COLOURS)):
        label = number % len(COLOURS)
        noise = rng.integers(-30, 31, (SIZE, SIZE, 3))
        pixels = np.clip(np.array(COLOURS[label]) + noise, 0, 255).astype(np.uint8)
        records.append(Record(f"i{number}", "made", SIZE, SIZE, class_label=label, pixels=pixels))
    return Dataset("colours", NAMES, records)


class ColourTeacher:
    """The nearest colour; ``shift`` names each colour by that of so many places further, as a teacher that errs."""

    def __init__(self, shift: int = 0) -> None:
        self.asked, self.shift = 0, shift

    def features_and_logits(self, images: Tensor) -> tuple[Tensor, Tensor]:
        self.asked += len(images)
        features = torch.nn.functional.avg_pool2d(images, 4).requires_grad_()
        centres = torch.tensor(COLOURS, dtype=torch.float32)
        distance = (features.mean((2, 3))[:, None] - centres).square().sum(2)
        return features, torch.roll(-distance / 2000, self.shift, dims=1)

    def logits(self, images: Tensor) -> Tensor:
        return self.features_and_logits(images)[1].detach()


def envise_config(**nodes: object):
    """A run of seconds; ``nodes`` such as ``ONLINE={...}`` are laid over it."""
    tree: dict = {
        "SYSTEM": "envise",
        "MODEL": {"DEVICE": "cpu"},
        "INPUT": {"SIZE": SIZE},
        "STREAM": {"SAMPLES": 240},
        "SOLVER": {"BASE_LR": 0.01, "STEPS": (), "WARMUP_ITERS": 2, "MAX_ITER": 1000},
        "ONLINE": {
            "BATCH_SIZE": 10,
            "REPLAY_SIZE": 30,
            "REPLAY_BATCH": 10,
            "WINDOW": 40,
            "WINDOWS": 1,
            "CALIBRATION": 40,
            "AUDIT_SHARE": 0.3,
        },
    }
    for name, node in nodes.items():
        tree[name] = {**tree.get(name, {}), **node} if isinstance(node, dict) else node
    return build_config(tree, source="test")


def build_run(cfg, folder, *, stream: Stream | None = None, teacher=None, **options) -> OnlineRun:
    """A run over the colours, with its state in ``folder``."""
    stream = build_stream(cfg, colour_dataset()) if stream is None else stream
    distiller = OnlineDistiller(
        build_student(cfg, len(NAMES)), teacher or ColourTeacher(), len(NAMES), cfg, **options
    )
    return OnlineRun(stream, distiller, folder, seed=cfg.SEED)


def finish(run: OnlineRun) -> OnlineRun:
    """To the end of the stream."""
    while run.advance() is not None:
        pass
    return run
