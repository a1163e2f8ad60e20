"""BlitzNet300-R50, both tasks in one forward, against torchvision's SSD plus its FCN on the same trunk; and, by
:mod:`.benchmark_speed`, its images a second.

Two networks, each with its own ResNet-50, do what one does here. All take one 300 × 300 image, with random
weights, and end with boxes after NMS and a class map at the input's size. So that NMS has the same to do,
both post-processings are given the same class logits and offsets in place of the heads' own, which are
computed all the same.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor, nn
from torchvision.models import resnet50
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.models.detection.anchor_utils import DefaultBoxGenerator
from torchvision.models.detection.ssd import SSD
from torchvision.models.segmentation import fcn_resnet50
from torchvision.models.segmentation.fcn import FCN, FCNHead

from scenekd.benchmark.measure import Row, interleave
from scenekd.benchmark.options import Options
from scenekd.registry import register

from .benchmark_speed import run, speed_rows
from .blitznet import BlitzNet

NAME = "model"
SIZE = 300
CLASSES = 20


@register("benchmark", NAME)
def suite(options: Options) -> Iterator[Row]:
    """Images a second, then against the dilated FCN and against FCN at stride 32; on every device."""
    for device in options.devices:
        yield from speed_rows(options, NAME, device)
        yield from _on_device(options, device)
    if "cuda" not in options.devices:
        yield Row(NAME, "images a second on CUDA", detail="torch sees no GPU")


class SSDTrunk(nn.Module):
    """ResNet-50 at strides 8, 16, 32, and torchvision's SSD extra layers: maps of 38, 19, 10, 5, 3, 1."""

    out_channels = (512, 1024, 2048, 512, 256, 256)

    def __init__(self) -> None:
        super().__init__()
        layers = {"layer2": "0", "layer3": "1", "layer4": "2"}
        self.body = IntermediateLayerGetter(resnet50(weights=None), layers)
        self.extra = nn.ModuleList(
            [_extra(2048, 256, 512, stride=2), _extra(512, 128, 256, stride=2), _extra(256, 128, 256)]
        )

    def forward(self, x: Tensor) -> OrderedDict[str, Tensor]:
        maps = self.body(x)
        last = maps["2"]
        for i, layer in enumerate(self.extra):
            last = layer(last)
            maps[str(3 + i)] = last
        return maps


def _extra(channels: int, inner: int, out: int, stride: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(inner, out, 3, stride=stride, padding=1 if stride > 1 else 0)
    return nn.Sequential(nn.Conv2d(channels, inner, 1), nn.ReLU(inplace=True), conv, nn.ReLU(inplace=True))


class FixedOutputs(nn.Module):
    """Runs a detection head and answers with given outputs instead."""

    def __init__(self, head: nn.Module, answer: dict[str, Tensor] | tuple[Tensor, ...]) -> None:
        super().__init__()
        self.head, self.answer = head, answer

    def forward(self, maps: list[Tensor]) -> dict[str, Tensor] | tuple[Tensor, ...]:
        self.head(maps)
        return self.answer


class TwoNetworks(nn.Module):
    """torchvision's SSD and FCN, one after the other."""

    def __init__(self, class_logits: Tensor, offsets: Tensor, dilated: bool) -> None:
        super().__init__()
        boxes = DefaultBoxGenerator([[2, 3]] * 6, steps=[8, 16, 32, 60, 100, 300])
        self.ssd = SSD(SSDTrunk(), boxes, (SIZE, SIZE), CLASSES + 1)
        background_first = torch.cat([class_logits[..., -1:], class_logits[..., :-1]], -1)
        answer = {"cls_logits": background_first, "bbox_regression": offsets}
        self.ssd.head = FixedOutputs(self.ssd.head, answer)
        if dilated:
            self.fcn = fcn_resnet50(weights=None, weights_backbone=None, num_classes=CLASSES + 1)
        else:
            body = IntermediateLayerGetter(resnet50(weights=None), {"layer4": "out"})
            self.fcn = FCN(body, FCNHead(2048, CLASSES + 1))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """(N, 4) boxes and the (H, W) class map of one image in 0…1."""
        found = self.ssd([images[0]])[0]
        return found["boxes"], self.fcn(images)["out"][0].argmax(0)


def detector_answer(objects: int) -> tuple[Tensor, Tensor]:
    """Class logits (1, A, C + 1), background last, and offsets (1, A, 4): ``objects`` anchors see an
    object, the others background with near certainty."""
    generator = torch.Generator().manual_seed(0)
    anchors = 6 * sum(side * side for side in (38, 19, 10, 5, 3, 1))
    logits = torch.randn(1, anchors, CLASSES + 1, generator=generator)
    logits[..., -1] += 12
    chosen = torch.randperm(anchors, generator=generator)[:objects]
    logits[0, chosen, -1] -= 12
    logits[0, chosen, torch.randint(CLASSES, (objects,), generator=generator)] += 4
    return logits, torch.randn(1, anchors, 4, generator=generator) * 0.3


def blitznet(class_logits: Tensor, offsets: Tensor) -> BlitzNet:
    """The paper's network at 300 px, with the given answer of its detection head."""
    net = BlitzNet(image_size=SIZE, num_classes=CLASSES, trunk="resnet50")
    if class_logits.shape[1] != len(net.anchors):
        raise ValueError(f"{class_logits.shape[1]} anchors in the answer, {len(net.anchors)} in BlitzNet")
    net.detection = FixedOutputs(net.detection, (class_logits, offsets))  # type: ignore[assignment]
    return net.eval()


def _on_device(options: Options, device: str) -> Iterator[Row]:
    logits, offsets = (value.to(device) for value in detector_answer(200))
    candidates = int((logits.softmax(-1)[..., :-1] > 0.01).sum())
    net = blitznet(logits, offsets).to(device)
    images = torch.rand(1, 3, SIZE, SIZE, device=device)
    with torch.inference_mode():
        for dilated in options.pick((True, False), (True, False), (False,)):
            peer = TwoNetworks(logits, offsets, dilated).to(device).eval()
            ours, theirs = partial(run, net, 255 * images), partial(peer, images)
            counts = [len(ours()[0]), len(theirs()[0])]
            times = interleave(ours, theirs, repeats=options.repeats(9))
            detail = f"batch 1, {len(net.anchors):,} anchors in both, {candidates} scores over .01 for NMS, "
            detail += f"{counts[0]} and {counts[1]} boxes kept: {times.describe('SSD + FCN')}"
            name = "dilated FCN" if dilated else "stride-32 FCN"
            yield Row(
                NAME,
                f"BlitzNet300-R50 against SSD + {name}, {device}",
                *times.speedup,
                target=(">=", 3.0) if dilated else None,
                detail=detail,
            )
