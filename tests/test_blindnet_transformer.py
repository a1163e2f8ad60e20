"""The masked-token transformer: which tokens are hidden, that nothing leaks, its positions, timm's networks."""

from __future__ import annotations

import math

import pytest
import torch
from blindnet_parts import blind_config
from torch import nn

from blindnet import build_model
from blindnet.network import Inputs
from blindnet.transformer import (
    HoledPatches,
    MaskedTokenTransformer,
    PatchTransformer,
    hidden_tokens,
    read_weights,
    sine_positions,
)
from scenekd.errors import UserError

NODE = "MODEL.BLINDNET"


def _hole(*box: int, size: int = 32) -> torch.Tensor:
    x1, y1, x2, y2 = box
    hole = torch.zeros(1, 1, size, size)
    hole[..., y1:y2, x1:x2] = 1
    return hole


@pytest.mark.parametrize(
    ("box", "expected"),
    [
        ((8, 0, 16, 8), {1}),  # one patch of 8 × 8 exactly
        ((4, 0, 16, 8), {0, 1}),  # half of the first, all of the second
        ((5, 0, 16, 8), {1}),  # three eighths of the first
        ((9, 9, 11, 11), {5}),  # none by half: that which is covered most
        ((6, 8, 10, 10), {4, 5}),  # two alike
    ],
)
def test_hidden_tokens(box, expected) -> None:
    """Patches 0…15 of a picture of 32 pixels, row by row."""
    assert set(hidden_tokens(_hole(*box), 8)[0].nonzero().flatten().tolist()) == expected


def test_mean_and_one() -> None:
    hole = _hole(0, 0, 24, 8)  # patches 0, 1, 2; the centre of mass lies in 1
    assert read_weights(hole, 8, "mean")[0, :4].tolist() == pytest.approx([1 / 3, 1 / 3, 1 / 3, 0])
    assert read_weights(hole, 8, "one")[0].nonzero().flatten().tolist() == [1]


def test_hidden_tokens_are_the_mask_token_and_the_hole_is_dark() -> None:
    torch.manual_seed(0)
    patches = HoledPatches(nn.Conv2d(3, 4, 8, 8), nn.Identity())
    nn.init.normal_(patches.proj.hole_weight)
    hole = _hole(5, 0, 16, 8)
    picture = torch.randn(1, 3, 32, 32)
    tokens = patches(torch.cat([picture, hole], dim=1))[0]
    torch.testing.assert_close(tokens[1], patches.mask_token)
    dark = torch.cat([picture * (1 - hole), hole], dim=1)[0, :, :8, :8]
    weight = torch.cat([patches.proj.weight, patches.proj.hole_weight], dim=1)
    torch.testing.assert_close(tokens[0], (weight * dark).sum(dim=(1, 2, 3)) + patches.proj.bias)


@pytest.mark.parametrize("overrides", [(), (f"{NODE}.VIT", "vit_tiny_patch16_224")])
@pytest.mark.parametrize("read", ["mean", "one"])
def test_nothing_under_the_hole_leaks(overrides, read) -> None:
    """Whatever the pixels under the hole are, the scores are the same to the last bit, and their gradient is 0; a
    pixel beside it counts."""
    if overrides:
        pytest.importorskip("timm")
    small = (f"{NODE}.TOKEN_PATCH", 16, f"{NODE}.TOKEN_WIDTH", 24, f"{NODE}.TOKEN_DEPTH", 2)
    net = build_model(
        blind_config(f"{NODE}.NETWORK", "transformer", f"{NODE}.TOKEN_READ", read, *small, *overrides)
    )
    net = net.network.eval()
    hole = _hole(10, 12, 41, 50, size=64)
    picture = torch.randn(1, 3, 64, 64, requires_grad=True)
    scores = net(Inputs(picture, hole))
    other = torch.where(hole.bool(), torch.randn(1, 3, 64, 64), picture)
    assert torch.equal(scores, net(Inputs(other, hole)))
    scores.square().sum().backward()
    inside = hole[0, 0].bool()
    assert not picture.grad[0, :, inside].any() and picture.grad[0, :, ~inside].abs().mean() > 0
    assert picture.grad[0, :, 12, 9].any()


def test_hidden_places_differ_by_their_position_alone() -> None:
    """Two holes in an even picture, without the geometry beside them: the scores differ, as the mask tokens stand at
    other places."""
    torch.manual_seed(0)
    tokens = PatchTransformer(32, patch=8, width=8, depth=1, heads=2)
    net = MaskedTokenTransformer(tokens, 5, geometry=False).eval()
    even = torch.zeros(1, 3, 32, 32)
    first, second = (net(Inputs(even, _hole(*box))) for box in ((0, 0, 8, 8), (16, 16, 24, 24)))
    assert not torch.allclose(first, second)
    with torch.no_grad():
        tokens.positions.zero_()
    first, second = (net(Inputs(even, _hole(*box))) for box in ((0, 0, 8, 8), (16, 16, 24, 24)))
    torch.testing.assert_close(first, second)


def test_sine_positions_in_closed_form() -> None:
    """Width 8: rates 1 and 1/100. Cell (row 1, column 2): sin and cos of x = 2, then of y = 1."""
    found = sine_positions(3, 8)[1 * 3 + 2]
    expected = [f(c * r) for c in (2, 1) for f in (math.sin, math.cos) for r in (1.0, 0.01)]
    torch.testing.assert_close(found, torch.tensor(expected))


def test_timm_sees_its_own_statistics() -> None:
    """With timm's tokens before any hole: our normalised picture becomes timm's (mean and deviation ½)."""
    pytest.importorskip("timm")
    net = build_model(blind_config(f"{NODE}.NETWORK", "transformer", f"{NODE}.VIT", "vit_tiny_patch16_224"))
    tokens = net.network.tokens
    grey = torch.full((1, 4, 64, 64), 127.5)
    grey[:, 3] = 0
    pixels = net.inputs(grey).images * tokens.scale + tokens.shift
    torch.testing.assert_close(pixels, torch.zeros_like(pixels), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ((f"{NODE}.TOKEN_PATCH", 24), "TOKEN_PATCH"),
        ((f"{NODE}.TOKEN_WIDTH", 30), "TOKEN_WIDTH"),
        ((f"{NODE}.TOKEN_READ", "cls"), "TOKEN_READ"),
        ((f"{NODE}.VIT", "vit_of_nobody"), "timm has no model|needs timm"),
        ((f"{NODE}.VIT", "resnet18"), "no plain vision transformer|INPUT.SIZE|needs timm"),
        (
            (f"{NODE}.VIT", "vit_tiny_patch16_224", f"{NODE}.VIT_WEIGHTS", "nowhere.pth"),
            "nowhere.pth: no such file|needs timm",
        ),
        (("MODEL.WEIGHTS", "torchvision"), "another network"),
    ],
)
def test_bad_values_are_refused(overrides, message) -> None:
    with pytest.raises(UserError, match=message):
        build_model(blind_config(f"{NODE}.NETWORK", "transformer", *overrides))
