"""A small student of fcn_kd on drawn scenes, and a teacher for it."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from scenekd import checkpoint
from scenekd.config import load_config
from scenekd.models import build_model
from scenekd.sample import Target

BASE = Path(__file__).parents[1] / "projects/fcn_kd/fcn_r50_voc.yaml"
CLASSES = ("person", "tree", "bird", "car", "house", "boat", "cup", "bottle", "cow", "kite")
ORDER = (3, 1, 0, 2, 9, 8, 7, 6, 5, 4)  # the teacher's k-th class is the student's ORDER[k]-th
TEACHER_SIZE = 48

_TINY = """
_BASE_: "{base}"
DATASETS:
  ROOT: "{root}"
  CLASSES: {classes}
  TRAIN: {train}
  TEST: {test}
INPUT:
  SIZE: 64
  SHORT_SIDE: (40, 120)
MODEL:
  DEVICE: "cpu"
  WEIGHTS: ""
  FCN_KD: {{NETWORK: "fcn_resnet18", TRUNK_WIDTH: 8, HEAD_CHANNELS: 8, OUTPUT_STRIDE: 16}}
SOLVER: {{IMS_PER_BATCH: 4, MAX_ITER: 6, CHECKPOINT_PERIOD: 3, LOG_PERIOD: 1, BASE_LR: 1.0e-3}}
TEST: {{BATCH_SIZE: 4, BOOTSTRAP: 0, VISUALIZE: 0}}
DATALOADER: {{NUM_WORKERS: 0}}
"""


def write_config(folder: Path, root: Path | str = "") -> Path:
    """The student's configuration, in a file; without a root, of no data."""
    sets = {"train": ("voc_seg_train",), "test": ("voc_seg_val",)} if root else {"train": (), "test": ()}
    file = folder / "tiny.yaml"
    file.write_text(_TINY.format(base=BASE, root=root, classes=CLASSES, **sets))
    return file


def read(file: Path, *overrides: object):
    """A configuration with ``KEY, VALUE, …``."""
    return load_config(file, [str(word) for word in overrides])


def losses(*specs: dict, source: str = "online") -> tuple[object, ...]:
    """Overrides for a list of losses."""
    return ("DISTILL.TEACHER", source, "DISTILL.LOSSES", list(specs))


def teacher_classes() -> tuple[str, ...]:
    """The student's in the teacher's order."""
    return tuple(CLASSES[k] for k in ORDER)


def save_teacher(file: Path, path: Path, *overrides: object) -> nn.Module:
    """A checkpoint of a network with other size, stride and order of classes than the student's."""
    keys = ("INPUT.SIZE", TEACHER_SIZE, "MODEL.FCN_KD.OUTPUT_STRIDE", 8, "SEED", 7)
    cfg = read(file, "DATASETS.CLASSES", teacher_classes(), *keys, *overrides)
    return save_network(cfg, path)


def save_network(cfg, path: Path) -> nn.Module:
    """The network of a configuration, its norms no longer as they begin and its logits apart, as a checkpoint."""
    net = build_model(cfg, pretrained=False)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.1, generator=generator)
                module.running_var.uniform_(0.5, 1.5, generator=generator)
        last = [m for m in net.modules() if isinstance(m, (nn.Conv2d, nn.Linear))][-1]
        last.weight *= 30
        last.bias.normal_(0, 1, generator=generator)
    checkpoint.save_model(net, cfg.dump(), path)
    return net.eval()


def taught_by(path: Path, task: str = "SEGMENTATION") -> tuple[object, ...]:
    """Overrides for a teacher from a checkpoint."""
    return (f"TEACHER.{task}", f"scenekd://{path}")


def student(cfg) -> nn.Module:
    """As a run makes it ready for training, but its network predicts as in evaluation: equal inputs, equal outputs."""
    net = build_model(cfg, pretrained=False)
    net.prepare_training(cfg)
    net.train()
    net.network.eval()
    return net


def images(size: int = 64) -> torch.Tensor:
    return torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(2)) * 255


def target(labels: torch.Tensor | None = None, class_label: int | None = None) -> Target:
    none = torch.zeros(0)
    boxes = (torch.zeros(0, 4), none.long(), none, none.bool(), none.bool())
    return Target(
        "x", *boxes, sem_seg=labels, class_label=class_label, has_class_label=class_label is not None
    )


def masks(size: int = 64) -> list[Target]:
    """Labels of two images, the upper rows void."""
    generator = torch.Generator().manual_seed(3)
    labels = torch.randint(0, len(CLASSES) + 1, (2, size, size), generator=generator)
    labels[:, :9] = 255
    return [target(one) for one in labels]
