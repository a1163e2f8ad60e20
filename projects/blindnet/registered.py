"""The masked-context classifier under a name in the frameworks' registries, trained by their own trainers.

A framework's loader gives whole pictures with boxes and classes; the objects are hidden here, on the network's input.

N: pictures; M: cases of a picture; C: classes; H, W: network input.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from fvcore.common.config import CfgNode
from torch import Tensor

from scenekd.config import build_config, get_cfg
from scenekd.data.voc import VOC_CLASSES
from scenekd.errors import UserError
from scenekd.hidden import ALSO, HiddenRegion, HiddenScores
from scenekd.registry import register
from scenekd.sample import Prediction, Sample, Target
from scenekd.sampling import STREAM_HIDE, draw_rng

from .config import KEY
from .data import learns_masks
from .hiding import Hider, case_rng, plain_sample
from .model import BlindNet, build_blindnet, build_network
from .network import HiddenObjectNetwork

NAME = "SceneKDMaskedContext"
_CHUNK = 32  # cases that are looked at together in an evaluation

logger = logging.getLogger(__name__)


class HidingBlindNet(BlindNet):
    """A :class:`.model.BlindNet` that hides the objects itself: ``net(images, targets)`` with images (N, 3, H, W) and
    targets with boxes and labels. A picture that has a hole already, of four channels, is taken as it is.

    In training one object of each picture is hidden, drawn from (seed, iteration, process, place in the batch) as the
    draws of our own runs are; a picture without a candidate is left out of the losses, and counted in ``left_out``. In
    evaluation every object is hidden once: a Prediction with ``hidden`` for each picture.

    Args:
        network, num_classes: see :class:`.model.BlindNet`. hider: the rules. seed: of the draws.
        class_weights: ``none`` alone, as nobody counts the classes of a framework's data set.

    Raises:
        UserError: other class weights.
    """

    def __init__(
        self,
        network: HiddenObjectNetwork,
        num_classes: int,
        *,
        hider: Hider,
        seed: int,
        class_weights: str = "none",
    ) -> None:
        super().__init__(network, num_classes, class_weights=class_weights)
        if class_weights != "none":
            raise UserError(f"{KEY}.CLASS_WEIGHTS: {class_weights}; {NAME} counts no classes; set it to none")
        self.hider, self.seed, self.wants_targets = hider, seed, True
        self.iteration, self.left_out = 0, 0

    def begin_step(self, iteration: int, iterations: int) -> None:
        """Told the step (0-based) by the framework's adapter."""
        self.iteration = iteration

    def forward(
        self, images: Tensor, targets: list[Target] | None = None
    ) -> dict[str, Tensor] | list[Prediction]:
        """See the class."""
        if images.shape[1] == 4:
            return super().forward(images, targets)
        if targets is None or len(targets) != len(images):
            raise ValueError("the objects to hide are told by a target for each picture")
        samples = _samples(images, targets)
        return (
            self._learn(images, targets, samples) if self.training else self._tell(images, targets, samples)
        )

    def _learn(self, images: Tensor, targets: list[Target], samples: list[Sample]) -> dict[str, Tensor]:
        shown, told = [], []
        for place, sample in enumerate(samples):
            index = (self.iteration * _world_size() + _rank()) * len(samples) + place
            rng = draw_rng(self.seed, index, STREAM_HIDE)
            chosen = self.hider.choose(sample, rng)
            if chosen is None:
                self._leave_out(sample.image_id)
                continue
            share = self.hider.share(self.iteration)
            image, target = self._hide(images[place], targets[place], sample, *chosen, rng, share)
            shown.append(image)
            told.append(target)
        if shown:
            return super().forward(torch.stack(shown), told)  # type: ignore[return-value]
        # Nothing to learn: the same losses of a hole in the middle, without weight.
        image, target = self._nothing(images[0], targets[0], samples[0])
        losses = super().forward(torch.stack([image] * len(images)), [target] * len(images))
        return {name: 0 * value for name, value in losses.items()}  # type: ignore[union-attr]

    def _nothing(self, image: Tensor, target: Target, sample: Sample) -> tuple[Tensor, Target]:
        height, width = sample.image.shape[:2]
        middle = np.array([[width / 4, height / 4, 3 * width / 4, 3 * height / 4]], np.float32)
        plain = plain_sample(sample.image, middle)
        boxes, labels = torch.from_numpy(middle).to(image.device), torch.zeros(1, dtype=torch.int64)
        told = dataclasses.replace(target, boxes=boxes, labels=labels.to(image.device))
        return self._hide(image, told, plain, 0, "box", draw_rng(self.seed, 0, STREAM_HIDE))

    def _tell(self, images: Tensor, targets: list[Target], samples: list[Sample]) -> list[Prediction]:
        size = (images.shape[-2], images.shape[-1])
        cases = [
            self.hider.cases(sample.image_id, sample.boxes, sample.labels, sample.difficult, size)
            for sample in samples
        ]
        every = [(place, case) for place, own in enumerate(cases) for case in own]
        rows = [self.class_shares.new_zeros((0, len(self.class_shares)))]
        for start in range(0, len(every), _CHUNK):
            pairs = []
            for place, case in every[start : start + _CHUNK]:
                rng = case_rng(self.seed, case.name)
                pairs.append(
                    self._hide(images[place], targets[place], samples[place], case.place, case.shape, rng)
                )
            shown, told = torch.stack([image for image, _ in pairs]), [target for _, target in pairs]
            rows.append(self.network(self.inputs(shown, told)))
        parts = torch.cat(rows).split([len(own) for own in cases])
        return [Prediction(size=size, hidden=HiddenScores(own, part)) for own, part in zip(cases, parts)]

    def _hide(
        self,
        image: Tensor,
        target: Target,
        sample: Sample,
        place: int,
        shape: str,
        rng: np.random.Generator,
        share: float = 1.0,
    ) -> tuple[Tensor, Target]:
        """(4, H, W) as the network takes it, and the target with what is hidden; outside the hole nothing changes."""
        if shape == "segment" and sample.masks is None:
            raise UserError(
                f"{NAME}: the shape segment needs masks of the boxes; give them (SceneKDLoadAnnotations with_masks="
                "True, a detectron2 mapper with gt_masks), or choose another shape"
            )
        also = self.hider.also if self.training else 0
        hidden = self.hider.hide(sample, place, shape, rng, share, also=also)
        region = hidden.hidden
        assert isinstance(region, HiddenRegion)
        hole = torch.from_numpy(region.hole).to(image.device)
        filled = torch.from_numpy(hidden.image).permute(2, 0, 1).to(image)
        channel, covered = 255 * hole[None].to(image), hole
        if region.also is not None:
            covered = hole | torch.from_numpy(region.also).to(image.device)
            channel = torch.where(hole, channel, ALSO * covered.to(image))
        shown = torch.cat([torch.where(covered, filled, image), channel])
        told = dataclasses.replace(
            target,
            masks=None,
            hidden=place,
            visible=torch.from_numpy(region.visible).to(image.device),
            hidden_classes=torch.from_numpy(region.classes).to(image.device),
        )
        return shown, told

    def _leave_out(self, image_id: str) -> None:
        if not self.left_out:
            logger.warning(
                "%s: image %s has no object that can be hidden (%s.MASK); such images are left out",
                NAME,
                image_id,
                KEY,
            )
        self.left_out += 1


def _samples(images: Tensor, targets: list[Target]) -> list[Sample]:
    """The pictures as our mapper has them before one is hidden."""
    pixels = images.round().clamp(0, 255).byte().permute(0, 2, 3, 1).cpu().numpy()
    return [
        Sample(
            image=picture,
            image_id=target.image_id,
            boxes=target.boxes.cpu().numpy(),
            labels=target.labels.cpu().numpy(),
            difficult=target.difficult.cpu().numpy(),
            masks=None if target.masks is None else target.masks.cpu().numpy(),
        )
        for picture, target in zip(pixels, targets)
    ]


def _world_size() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def _rank() -> int:
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


@register("model", NAME)
class RegisteredMaskedContext(HidingBlindNet):
    """A network of blindnet with its normalisation, which hides the objects of a detection batch itself.

    Args:
        network: ``context``, ``cnn``, ``unet``, or a control that does not see the picture.
        num_classes: C. image_size: side of the square input, which decides layers of ``cnn`` alone.
        pretrained: ``torchvision`` for ImageNet's weights of the trunk.
        mask: the keys of ``MODEL.BLINDNET.MASK`` in lower case. hide_seed: of what is hidden.
        options: the other keys of ``MODEL.BLINDNET`` in lower case: trunk, trunk_width, pool …

    Raises:
        UserError: no such key or network, a value out of range, or a key that says nothing here.
    """

    def __init__(
        self,
        *,
        network: str = "context",
        num_classes: int = len(VOC_CLASSES),
        image_size: int = 384,
        pretrained: str = "",
        mask: Mapping[str, Any] | None = None,
        hide_seed: int = 0,
        **options: Any,
    ) -> None:
        node = {"NETWORK": network, "MASK": dict(mask or {}), **options}
        tree = {
            "SYSTEM": "blindnet",
            "SEED": hide_seed,
            "INPUT": {"SIZE": image_size},
            "DATASETS": {"CLASSES": tuple(f"class {k}" for k in range(num_classes))},
            "MODEL": {"WEIGHTS": pretrained, "BLINDNET": _upper(node)},
        }
        cfg = build_config(tree, source=NAME)
        super().__init__(build_network(cfg), num_classes, **_hiding(cfg))
        if pretrained not in ("", "torchvision"):
            raise UserError(f"{NAME}: pretrained: {pretrained!r}; torchvision, or load_from a checkpoint")
        self.image_size = image_size
        if pretrained:
            self.load_trunk(pretrained)

    @classmethod
    def from_config(cls, cfg: CfgNode, *, pretrained: bool = True) -> BlindNet:
        """The network of ``cfg.MODEL.BLINDNET``.

        Raises:
            UserError: as the class.
        """
        options = _hiding(cfg)
        del options["class_weights"]  # build_blindnet gives it
        return build_blindnet(cfg, pretrained=pretrained, kind=functools.partial(HidingBlindNet, **options))


def _upper(tree: Mapping[str, Any]) -> dict[str, Any]:
    return {k.upper(): _upper(v) if isinstance(v, Mapping) else v for k, v in tree.items()}


def _hiding(cfg: CfgNode) -> dict[str, Any]:
    """What a HidingBlindNet wants beside its network.

    Raises:
        UserError: a key of our own runs, which would say nothing here.
    """
    node = cfg.MODEL.BLINDNET
    if node.MASK.DRAW != "image":
        raise UserError(
            f"{KEY}.MASK.DRAW: {node.MASK.DRAW}; the framework's loader draws images; set it to image"
        )
    if node.PERMUTE_TARGETS:
        raise UserError(f"{KEY}.PERMUTE_TARGETS: {NAME} sees no whole data set; set it to False")
    if node.COMPARE:
        raise UserError(f"{KEY}.COMPARE: {NAME} draws no curve; leave it empty")
    if node.AUGMENT != get_cfg("blindnet").MODEL.BLINDNET.AUGMENT:
        raise UserError(f"{KEY}.AUGMENT: the framework's pipeline augments; leave these keys as they are")
    if learns_masks(cfg):
        raise UserError(f"{KEY}.PIXEL_TARGET: masks do not reach {NAME}; set it to boxes")
    return {"hider": Hider.from_config(cfg), "seed": cfg.SEED, "class_weights": node.CLASS_WEIGHTS}
