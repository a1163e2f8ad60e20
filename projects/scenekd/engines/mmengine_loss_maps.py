"""Distillation losses of whole maps and of labels, for ``loss_decode`` and ``distill`` of SceneKDEncoderDecoder.

n: images that have a target; K: dense classes; H, W: size of the logits, which is that of the images.
"""

from __future__ import annotations

from torch import Tensor

from ..losses.channel_wise import channel_wise_sums
from ..losses.correlation import correlation_sums
from ..losses.decoupled import decoupled_map
from ..losses.pair_wise import pair_wise_sums
from ..registry import register
from .mmengine_loss import DistillationLoss


@register("loss", "SceneKDCWDLoss")
class SceneKDCWDLoss(DistillationLoss):
    """T² / K · Σ_classes KL of the softmax over space, mean over images, see
    :func:`scenekd.losses.channel_wise.channel_wise_kd`.

    Args:
        temperature: T > 0. loss_weight, loss_name: see :class:`.mmengine_loss.DistillationLoss`.

    Raises:
        ValueError: an argument is outside its range.
    """

    def __init__(
        self, temperature: float = 4.0, loss_weight: float = 1.0, loss_name: str = "loss_cwd"
    ) -> None:
        super().__init__(loss_weight, loss_name)
        if not temperature > 0:
            raise ValueError(f"SceneKDCWDLoss: temperature must be positive, got {temperature}")
        self.temperature = temperature

    def sums(self, logits: Tensor, target: Tensor, valid: Tensor, **_: Tensor) -> tuple[Tensor, Tensor]:
        """Of each image, and which have a valid pixel."""
        return channel_wise_sums(logits, target, temperature=self.temperature, valid=valid)

    def extra_repr(self) -> str:
        return f"temperature={self.temperature}, loss_weight={self.loss_weight}"


@register("loss", "SceneKDPairWiseLoss")
class SceneKDPairWiseLoss(DistillationLoss):
    """Squared difference of the cosine similarities of all pairs of nodes, mean over pairs and images, see
    :func:`scenekd.losses.pair_wise.pair_wise_kd`.

    Args:
        scale: side of the pooled map over that of the image, in (0, 1]; 1/16 is the paper's half of a stride of 8.
        grid: pool to grid × grid nodes instead.
        loss_weight, loss_name: see :class:`.mmengine_loss.DistillationLoss`.

    Raises:
        ValueError: an argument is outside its range.
    """

    def __init__(
        self,
        scale: float = 0.0625,
        grid: int = 0,
        loss_weight: float = 1.0,
        loss_name: str = "loss_pair",
    ) -> None:
        super().__init__(loss_weight, loss_name)
        if not 0 < scale <= 1 or grid < 0:
            raise ValueError(
                f"SceneKDPairWiseLoss: scale must be in (0, 1], grid not negative; got {scale}, {grid}"
            )
        self.scale, self.grid = scale, grid

    def sums(self, logits: Tensor, target: Tensor, valid: Tensor, **_: Tensor) -> tuple[Tensor, Tensor]:
        """Of each image, and which have a valid pixel."""
        return pair_wise_sums(logits, target, scale=self.scale, grid=self.grid, valid=valid)

    def extra_repr(self) -> str:
        return f"scale={self.scale}, grid={self.grid}, loss_weight={self.loss_weight}"


@register("loss", "SceneKDDISTLoss")
class SceneKDDISTLoss(DistillationLoss):
    """T² · (β · inter + γ · intra) of 1 − Pearson's r, mean over images, see
    :func:`scenekd.losses.correlation.correlation_kd`. Pixels are correlated within each image, as images have weights.

    Args:
        temperature: T > 0. beta, gamma: ≥ 0. loss_weight, loss_name: see :class:`.mmengine_loss.DistillationLoss`.

    Raises:
        ValueError: an argument is outside its range.
    """

    def __init__(
        self,
        temperature: float = 1.0,
        beta: float = 1.0,
        gamma: float = 1.0,
        loss_weight: float = 1.0,
        loss_name: str = "loss_dist",
    ) -> None:
        super().__init__(loss_weight, loss_name)
        if not (temperature > 0 and beta >= 0 and gamma >= 0):
            raise ValueError(
                "SceneKDDISTLoss: temperature must be positive, beta and gamma not negative; "
                f"got {temperature}, {beta}, {gamma}"
            )
        self.temperature, self.beta, self.gamma = temperature, beta, gamma

    def sums(self, logits: Tensor, target: Tensor, valid: Tensor, **_: Tensor) -> tuple[Tensor, Tensor]:
        """Of each image, and which have a valid pixel."""
        return correlation_sums(
            logits,
            target,
            temperature=self.temperature,
            beta=self.beta,
            gamma=self.gamma,
            valid=valid,
            over="image",
        )

    def extra_repr(self) -> str:
        return (
            f"temperature={self.temperature}, beta={self.beta}, gamma={self.gamma}, "
            f"loss_weight={self.loss_weight}"
        )


@register("loss", "SceneKDDKDLoss")
class SceneKDDKDLoss(DistillationLoss):
    """T² · (α · TCKD + β · NCKD), mean over the labelled pixels of images that have a mask, too, see
    :func:`scenekd.losses.decoupled.decoupled_kd`.

    Args:
        temperature: T > 0. alpha, beta: ≥ 0. loss_weight, loss_name: see :class:`.mmengine_loss.DistillationLoss`.

    Raises:
        ValueError: an argument is outside its range.
    """

    takes_labels = True

    def __init__(
        self,
        temperature: float = 4.0,
        alpha: float = 1.0,
        beta: float = 8.0,
        loss_weight: float = 1.0,
        loss_name: str = "loss_dkd",
    ) -> None:
        super().__init__(loss_weight, loss_name)
        if not (temperature > 0 and alpha >= 0 and beta >= 0):
            raise ValueError(
                "SceneKDDKDLoss: temperature must be positive, alpha and beta not negative; "
                f"got {temperature}, {alpha}, {beta}"
            )
        self.temperature, self.alpha, self.beta = temperature, alpha, beta

    def sums(self, logits: Tensor, target: Tensor, valid: Tensor, **labels: Tensor) -> tuple[Tensor, Tensor]:
        """The pixels' losses, and their number."""
        classes = labels["labels"].masked_fill(~valid, 0)
        of_target, of_others = decoupled_map(
            logits, target, classes, temperature=self.temperature, valid=valid
        )
        loss = self.temperature**2 * (self.alpha * of_target + self.beta * of_others)
        return loss.masked_fill(~valid, 0).sum(dim=(1, 2)), valid.sum(dim=(1, 2))

    def extra_repr(self) -> str:
        return (
            f"temperature={self.temperature}, alpha={self.alpha}, beta={self.beta}, "
            f"loss_weight={self.loss_weight}"
        )
