"""The masked-token transformer: a picture is a row of patches, those under the hole are replaced by one learnt token,
and what comes out at their places is classified, as BERT does with words (the paper's section 5).

N: pictures; T: patches; D: channels of a token; C: classes. Dosovitskiy et al., ViT, 2021; Devlin et al., BERT, 2019;
Bao et al., BEiT, 2022, for the masked patches.
"""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scenekd.errors import UserError
from scenekd.nets.trunks import PIXEL_MEAN, PIXEL_STD

from .config import KEY
from .context import HoleConv2d
from .hole_geometry import GEOMETRY, hole_geometry
from .network import HiddenObjectNetwork, Inputs

READS = ("mean", "one")
ZOO = "timm"  # as a source of weights: timm's own, downloaded once


def hidden_tokens(hole: Tensor, patch: int) -> Tensor:
    """(N, T) bool: the patches under a hole (N, 1, H, W): those that it covers by half or more, and those that it
    covers most."""
    share = F.avg_pool2d(hole, patch).flatten(1)
    return (share >= 0.5) | ((share >= share.amax(dim=1, keepdim=True)) & (share > 0))


class HoledPatches(nn.Module):
    """Patches to tokens: (N, 4, H, W), a picture and its hole, to (N, T, D). Pixels of the hole are taken as 0 whatever
    stands there, and the tokens of :func:`hidden_tokens` are replaced.

    Args:
        proj: the convolution that makes tokens of RGB patches. norm: of the tokens.
    """

    def __init__(self, proj: nn.Conv2d, norm: nn.Module) -> None:
        super().__init__()
        self.patch = proj.kernel_size[0]
        self.proj, self.norm = HoleConv2d(proj), norm
        self.mask_token = nn.Parameter(torch.empty(proj.out_channels))
        nn.init.normal_(self.mask_token, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        pixels, hole = x[:, :3], x[:, 3:]
        tokens = self.norm(self.proj(torch.cat([pixels * (1 - hole), hole], dim=1)).flatten(2).mT)
        return torch.where(hidden_tokens(hole, self.patch)[..., None], self.mask_token, tokens)


class PatchTransformer(nn.Module):
    """A small ViT: pre-normalised layers with four times D hidden units, learnt positions that begin as sines.

    Args:
        image_size, patch: sides, the one a multiple of the other. width: D, a multiple of 4 and of ``heads``.

    Raises:
        ValueError: sides or widths that do not divide.
    """

    def __init__(self, image_size: int, *, patch: int, width: int, depth: int, heads: int) -> None:
        super().__init__()
        if patch < 1 or image_size % patch:
            raise ValueError(f"INPUT.SIZE must be a multiple of TOKEN_PATCH {patch}, got {image_size}")
        if width % 4 or heads < 1 or width % heads or depth < 1:
            raise ValueError(
                f"TOKEN_WIDTH must be a multiple of 4 and of TOKEN_HEADS, got {width} and {heads}, and TOKEN_DEPTH at "
                f"least 1, got {depth}"
            )
        self.width, self.prefix = width, 0
        self.patch_embed = HoledPatches(nn.Conv2d(3, width, patch, patch), nn.Identity())
        self.positions = nn.Parameter(sine_positions(image_size // patch, width))
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(
                width, heads, 4 * width, 0.0, F.gelu, batch_first=True, norm_first=True
            )
            for _ in range(depth)
        )
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        """(N, T, D) of (N, 4, H, W)."""
        tokens = self.patch_embed(x) + self.positions
        for layer in self.layers:
            tokens = layer(tokens)
        result: Tensor = self.norm(tokens)
        return result


def sine_positions(cells: int, width: int) -> Tensor:
    """(cells², width): a quarter of the channels each for sine and cosine of x, then of y, of wavelengths from 2π to
    20000π cells, as in Vaswani et al., Attention is all you need, 2017, section 3.5."""
    rates = torch.exp(torch.arange(width // 4) * (-math.log(10000.0) / max(width // 4, 1)))
    angles = torch.arange(cells)[:, None] * rates
    line = torch.cat([angles.sin(), angles.cos()], dim=1)
    x, y = line.repeat(cells, 1), line.repeat_interleave(cells, dim=0)
    return torch.cat([x, y], dim=1)


class TimmTransformer(nn.Module):
    """A vision transformer of timm's with :class:`HoledPatches` in place of its own patches.

    Args:
        name: timm's name of a plain ViT, for example ``vit_small_patch16_224``. image_size: side of the input.
        pretrained: ``timm`` for its own weights, the path of a file of them, or "".

    Raises:
        UserError: timm is missing, has no such model, it is no plain ViT, or its weights cannot be had.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, name: str, image_size: int, pretrained: str = "") -> None:
        super().__init__()
        if importlib.util.find_spec("timm") is None:
            raise UserError(f'{KEY}.VIT: {name} needs timm; pip install timm, or set it to ""')
        import timm

        if not timm.is_model(name):
            raise UserError(f"{KEY}.VIT: timm has no model {name!r}")
        options: dict[str, Any] = {}
        if pretrained not in ("", ZOO):
            if not Path(pretrained).is_file():
                raise UserError(f"{KEY}.VIT_WEIGHTS: {pretrained}: no such file; give timm, or a weight file")
            options["pretrained_cfg_overlay"] = {"file": pretrained}
        try:
            net: Any = timm.create_model(
                name,
                pretrained=bool(pretrained),
                img_size=image_size,
                num_classes=0,
                global_pool="",
                **options,
            )
        except (RuntimeError, OSError, ValueError, AssertionError, KeyError, TypeError) as error:
            reason = " ".join(str(error).split())[:200]
            raise UserError(f"{KEY}.VIT: {name} at INPUT.SIZE {image_size}: {reason}") from None
        embed: Any = getattr(net, "patch_embed", None)
        plain = isinstance(net, timm.models.vision_transformer.VisionTransformer)
        if not plain or not isinstance(getattr(embed, "proj", None), nn.Conv2d):
            raise UserError(f"{KEY}.VIT: {name} is no plain vision transformer; take vit_small_patch16_224")
        net.patch_embed = HoledPatches(embed.proj, embed.norm)
        self.net, self.width, self.prefix = net, net.embed_dim, net.num_prefix_tokens
        # Ours are normalised by ImageNet's statistics, and many of timm's transformers by others.
        ours, theirs = (torch.tensor(values).view(2, 3, 1, 1) for values in (_OURS, _statistics(net)))
        self.register_buffer("scale", ours[1] / theirs[1], persistent=False)
        self.register_buffer("shift", (ours[0] - theirs[0]) / theirs[1], persistent=False)

    @property
    def patch_embed(self) -> HoledPatches:
        """Its patches."""
        found: HoledPatches = self.net.patch_embed
        return found

    def forward(self, x: Tensor) -> Tensor:
        """(N, prefix + T, D) of (N, 4, H, W)."""
        pixels = x[:, :3] * self.scale + self.shift
        tokens: Tensor = self.net.forward_features(torch.cat([pixels, x[:, 3:]], dim=1))
        return tokens


_OURS = (PIXEL_MEAN, PIXEL_STD)


def _statistics(net: Any) -> tuple[tuple[float, ...], tuple[float, ...]]:
    return net.pretrained_cfg["mean"], net.pretrained_cfg["std"]


class MaskedTokenTransformer(HiddenObjectNetwork):
    """Tokens → what the hidden ones became → classes.

    Args:
        tokens: a :class:`PatchTransformer` or :class:`TimmTransformer`. num_classes: C.
        read: ``mean`` of the hidden tokens, or ``one``: that nearest to the hole's centre.
        geometry: whether place, size and proportions of the hole stand beside them as numbers, which tokens tell
            only by whole patches. dropout: before the classes.

    Raises:
        ValueError: no such ``read``.
    """

    def __init__(
        self,
        tokens: PatchTransformer | TimmTransformer,
        num_classes: int,
        *,
        read: str = "mean",
        geometry: bool = True,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if read not in READS:
            raise ValueError(f"TOKEN_READ must be one of {', '.join(READS)}, got {read!r}")
        self.tokens, self.read, self.geometry = tokens, read, geometry
        self.hidden = nn.Sequential(
            nn.Linear(tokens.width + GEOMETRY * geometry, tokens.width), nn.ReLU(), nn.Dropout(dropout)
        )
        self.classes = nn.Linear(tokens.width, num_classes)

    def forward(self, inputs: Inputs) -> Tensor:
        tokens = self.tokens(torch.cat([inputs.images, inputs.hole], dim=1))[:, self.tokens.prefix :]
        weights = read_weights(inputs.hole, self.tokens.patch_embed.patch, self.read).to(tokens.dtype)
        parts = [(weights[:, None] @ tokens)[:, 0]]
        if self.geometry:
            parts.append(hole_geometry(inputs.hole))
        scores: Tensor = self.classes(self.hidden(torch.cat(parts, dim=1)))
        return scores


def read_weights(hole: Tensor, patch: int, read: str) -> Tensor:
    """(N, T) of sum 1: how much each token counts. ``mean``: the hidden ones alike; ``one``: of them the one nearest to
    the centre of mass of the hole (N, 1, H, W), the first of equals."""
    hidden = hidden_tokens(hole, patch).float()
    if read == "mean":
        return hidden / hidden.sum(dim=1, keepdim=True).clamp(min=1)
    share = F.avg_pool2d(hole, patch)[:, 0]
    rows, columns = (torch.arange(n, device=hole.device, dtype=hole.dtype) for n in share.shape[1:])
    mass = share.sum(dim=(1, 2)).clamp(min=1e-6)
    y = (share.sum(dim=2) @ rows / mass)[:, None, None]
    x = (share.sum(dim=1) @ columns / mass)[:, None, None]
    distance = ((rows[:, None] - y) ** 2 + (columns - x) ** 2).flatten(1)
    nearest = distance.masked_fill(hidden == 0, float("inf")).argmin(dim=1)
    return F.one_hot(nearest, hidden.shape[1]).float()
