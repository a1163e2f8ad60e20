"""Fourier convolutions: against explicit sums, what a shift does, what each part sees, gradients."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from scenekd.errors import UserError
from scenekd.nets.fourier import FourierConv2d, FourierTrunk, FourierUnit, SpectralTransform, local_channels
from scenekd.nets.trunks import build_trunk
from scenekd.nets.weights import load_pretrained


def _waves(length: int) -> torch.Tensor:
    """(length, length) orthonormal DFT matrix: exp(−2πi·jk/length) / √length."""
    index = torch.arange(length, dtype=torch.float64)
    angle = -2 * math.pi * index[:, None] * index / length
    return torch.complex(angle.cos(), angle.sin()) / math.sqrt(length)


def _unit(channels: int) -> FourierUnit:
    torch.manual_seed(0)
    unit = FourierUnit(channels).double().eval()
    nn.init.normal_(unit.conv.weight)
    nn.init.uniform_(unit.norm.running_mean)
    nn.init.uniform_(unit.norm.running_var, 0.5, 2.0)
    return unit


@pytest.mark.parametrize(("height", "width"), [(4, 6), (5, 7)])
def test_a_fourier_unit_is_sums_over_waves(height, width) -> None:
    """The transform as products with matrices of waves; mixing, normalisation and ReLU by their formulas on the
    frequencies 0…⌊W/2⌋ across; the others are conjugates at the opposite frequency, so that the result is real."""
    unit = _unit(2)
    x = torch.randn(1, 2, height, width, dtype=torch.float64)
    down, across = _waves(height), _waves(width)
    spectrum = (down @ x.to(torch.complex128) @ across.T)[..., : width // 2 + 1]
    parts = torch.cat([spectrum.real, spectrum.imag], dim=1)
    mixed = torch.einsum("ok,nkhw->nohw", unit.conv.weight[:, :, 0, 0], parts)
    mean, var = unit.norm.running_mean.view(-1, 1, 1), unit.norm.running_var.view(-1, 1, 1)
    mixed = ((mixed - mean) / (var + 1e-5).sqrt()).clamp(min=0)
    half = torch.complex(mixed[:, :2], mixed[:, 2:])
    rows = torch.zeros(1, 2, height, width // 2 + 1, dtype=torch.complex128)
    rows += down.conj() @ half  # back along the columns
    # Back along the rows: real part of the wave of frequency k, twice where −k is another frequency. The imaginary
    # parts of frequency 0 and, for an even width, W/2 have no counterpart, and do not count.
    result = torch.zeros_like(x)
    for k in range(width // 2 + 1):
        alone = k == 0 or 2 * k == width
        line = rows[..., k : k + 1]
        if alone:
            line = line.real.to(torch.complex128)
        result += (1 if alone else 2) * (line * across.conj()[k]).real
    torch.testing.assert_close(unit(x), result)


def test_a_point_of_light_passes_unchanged() -> None:
    """√(HW) at (0, 0) has the spectrum 1 everywhere, which ReLU and the identity leave alone: the point comes back."""
    unit = FourierUnit(1).eval()
    unit.norm = nn.Identity()
    with torch.no_grad():
        unit.conv.weight.copy_(torch.eye(2)[..., None, None])
    x = torch.zeros(1, 1, 6, 9)
    x[..., 0, 0] = math.sqrt(54)
    torch.testing.assert_close(unit(x), x)


def test_complex_mixing_commutes_with_circular_shifts() -> None:
    """A shift turns the phase of each frequency; multiplying by a + ib, ((a, −b), (b, a)) on real and imaginary part,
    commutes with that, and so does their sum over channels. ReLU does not: it is left out here."""
    unit = _unit(2)
    unit.norm, unit.relu = nn.Identity(), nn.Identity()
    a, b = torch.randn(2, 2, 2, dtype=torch.float64)
    with torch.no_grad():
        weight = torch.cat([torch.cat([a, -b], dim=1), torch.cat([b, a], dim=1)])
        unit.conv.weight.copy_(weight[..., None, None])
    x = torch.randn(1, 2, 5, 7, dtype=torch.float64)
    # Of frequency 0 only the real part of (a + ib)·X comes back, which is a shift-free statement for odd sides.
    shifted = torch.roll(x, (2, 3), dims=(2, 3))
    torch.testing.assert_close(unit(shifted), torch.roll(unit(x), (2, 3), dims=(2, 3)))


@torch.no_grad()
def test_local_part_sees_its_neighbourhood_and_global_part_everything() -> None:
    torch.manual_seed(0)
    conv = FourierConv2d(8, 8).eval()
    nn.init.constant_(conv.global_global.reduce[1].bias, 5.0)  # its ReLU lets everything pass
    x = torch.randn(1, 8, 16, 16)
    before = conv(x)
    near = x.clone()
    near[:, : conv.split_in, 8, 8] += 1
    moved = (conv(near) - before).abs().amax(dim=1)[0] > 1e-6
    assert moved[7:10, 7:10].all() and moved.sum() == 9
    whole = x.clone()
    whole[:, conv.split_in :, 8, 8] += 1
    changed = (conv(whole) - before).abs()
    local, everywhere = changed[0, :4].amax(dim=0) > 1e-6, changed[0, 4:].amax(dim=0) > 1e-6
    assert local.sum() == 9 and everywhere.float().mean() > 0.95


def test_gradients() -> None:
    torch.manual_seed(1)
    spectral = SpectralTransform(3, 4, stride=2).double().eval()
    for module in spectral.modules():  # away from the kinks of ReLU
        if isinstance(module, nn.BatchNorm2d):
            nn.init.constant_(module.bias, 5.0)
    x = torch.randn(1, 3, 6, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(spectral, x)


@pytest.mark.parametrize("output_stride", [32, 16, 8])
def test_maps_and_dilation(output_stride) -> None:
    torch.manual_seed(0)
    trunk = build_trunk("ffc18", width=4, output_stride=output_stride).eval()
    maps = trunk(torch.rand(1, 3, 96, 64))
    strides = [min(stride, output_stride) for stride in (4, 8, 16, 32)]
    assert [tuple(m.shape[1:]) for m in maps] == [
        (c, 96 // s, 64 // s) for c, s in zip((4, 8, 16, 32), strides)
    ]
    units = [stage[1].conv1.local_local.dilation[0] for stage in trunk.stages]
    assert units == {32: [1, 1, 1, 1], 16: [1, 1, 1, 2], 8: [1, 1, 2, 4]}[output_stride]


def test_half_precision_keeps_its_type() -> None:
    unit = FourierUnit(2).eval()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = unit(torch.rand(1, 2, 5, 6).bfloat16())
    assert found.dtype == torch.bfloat16 and torch.isfinite(found).all()


@pytest.mark.parametrize(
    ("channels", "ratio", "expected"), [(8, 0.5, 4), (8, 0.75, 2), (4, 0.01, 3), (4, 0.99, 1)]
)
def test_split(channels, ratio, expected) -> None:
    assert local_channels(channels, ratio) == expected


def test_errors() -> None:
    with pytest.raises(ValueError, match="global share"):
        FourierTrunk((1, 1, 1, 1), ratio=1.0)
    with pytest.raises(UserError, match="OUTPUT_STRIDE"):
        build_trunk("ffc18", output_stride=4)
    with pytest.raises(UserError, match="torchvision has no weights of ffc18"):
        load_pretrained(build_trunk("ffc18", width=4), "ffc18", "torchvision")
