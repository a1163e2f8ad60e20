"""ESPNetv2: its units by hand, and its authors' weights to the figures that go with them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from tool_runner import ToolRunner
from torch import nn

from fcn_kd.espnetv2 import EESP, SCALES, Downsampler, ESPNetv2, PyramidPool, widths
from scenekd import checkpoint

CONFIG = Path(__file__).parents[1] / "projects/fcn_kd/espnetv2_voc.yaml"


def test_widths_are_the_paper_s():
    """Table 1 of the paper, the levels of 112, 56, 28 and 14 pixels."""
    assert {scale: widths(scale) for scale in SCALES} == {
        0.5: (16, 32, 64, 128),
        1.0: (32, 64, 128, 256),
        1.5: (32, 96, 192, 384),
        2.0: (32, 128, 256, 512),
    }


def linear(module: nn.Module) -> nn.Module:
    """Every PReLU the identity, every convolution's weight 1 over its inputs; norms divide by √(1 + ε)."""
    for part in module.modules():
        if isinstance(part, nn.PReLU):
            nn.init.ones_(part.weight)
        elif isinstance(part, nn.Conv2d):
            nn.init.constant_(part.weight, 1 / part.weight.shape[1])
    return module.eval()


@torch.no_grad()
@pytest.mark.parametrize("dilations", [(1, 2, 3, 4), (1, 1, 2, 3)])
def test_branches_are_dilated_and_added_up(dilations):
    """16 channels, 4 branches of 4. An impulse of 1 in every channel is reduced to 1; branch b then shows, d_j pixels
    beside it, one for each of the branches 0 … b that is dilated by d_j, and b + 1 at its place, where all have their
    middle tap. The identity adds 1 there."""
    unit = linear(EESP(16, 16, dilations=dilations))
    unit.conv_1x1_exp.conv.weight.copy_(torch.eye(4)[..., None, None].repeat(4, 1, 1, 1))
    x = torch.zeros(1, 16, 11, 11)
    x[..., 5, 5] = 1
    said = unit(x)[0].view(4, 4, 11, 11)
    for b in range(4):
        for distance in range(1, 6):
            expected = sum(d == distance for d in dilations[: b + 1])
            torch.testing.assert_close(
                said[b, :, 5, 5 + distance], torch.full((4,), float(expected)), atol=1e-3, rtol=0
            )
        torch.testing.assert_close(said[b, :, 5, 5], torch.full((4,), b + 2.0), atol=1e-3, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("size", [(64, 64), (33, 50)])
def test_a_strided_unit_keeps_its_averaged_input_and_sees_the_image(size):
    """Its first channels are the average-pooled input, the others EESP's; the image, halved as often as the map was,
    adds its mean of three channels to all (3×3 and 1×1 with weights of a third)."""
    unit = linear(Downsampler(16, 48))
    nn.init.zeros_(unit.inp_reinf[0].conv.weight)
    unit.inp_reinf[0].conv.weight[:, :, 1, 1] = 1 / 3  # the middle tap alone
    image = torch.rand(1, 3, *size)
    x = torch.rand(1, 16, *(-(-side // 4) for side in size))
    small = image
    for _ in range(3):
        small = F.avg_pool2d(small, 3, stride=2, padding=1)
    out = unit(x, image)
    assert out.shape == (1, 48, *(-(-side // 8) for side in size))
    seen = small.mean(1, keepdim=True)
    torch.testing.assert_close(out[:, :16], F.avg_pool2d(x, 3, 2, 1) + seen, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(out[:, 16:], unit.eesp(x) + seen, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_a_pyramid_pool_of_an_even_map_is_even():
    """Depth-wise middle taps alone: every size of an even map shows its value, so the logits are pooled + bias."""
    pool = linear(PyramidPool(6, 2, 3, last=True))
    for stage in pool.stages:
        nn.init.zeros_(stage.weight)
        stage.weight[:, :, 1, 1] = 1
    nn.init.zeros_(pool.merge_layer[2].cbr[0].weight)
    pool.merge_layer[2].cbr[0].weight[:, :, 1, 1] = (
        1  # the five sizes of a channel, shuffled together: 5 times it
    )
    pool.merge_layer[3].bias.copy_(torch.tensor([0.0, 1.0, 2.0]))
    said = pool(torch.full((1, 6, 9, 13), 0.5))
    expected = torch.tensor([2.5, 3.5, 4.5]).view(1, 3, 1, 1).expand(1, 3, 9, 13)
    torch.testing.assert_close(said, expected, atol=1e-3, rtol=0)


def test_the_published_size():
    """789,253 parameters with 21 outputs at scale 2.0."""
    net = ESPNetv2(21)
    assert sum(parameter.numel() for parameter in net.parameters()) == 789_253
    with torch.no_grad():
        assert net.eval()(torch.rand(1, 3, 63, 100)).shape == (1, 21, 32, 50)


@pytest.mark.parametrize(("outputs", "scale"), [(1, 2.0), (21, 0.0)])
def test_arguments_out_of_range(outputs, scale):
    with pytest.raises(ValueError, match="two outputs or more and a scale above 0"):
        ESPNetv2(outputs, scale=scale)


def test_the_authors_weights_have_these_names(test_data):
    """Strictly: no name more, none less."""
    net = ESPNetv2(21)
    path = test_data / "weights_voc_seg/espnetv2_s_2.0_pascal_256x256.pth"
    report = checkpoint.load_weights(net, path, strict=True)
    assert report.matched == len(net.state_dict()) == 526


@pytest.mark.slow
def test_the_authors_weights_reach_their_figures(test_data, tmp_path, monkeypatch):
    """On the 110 images of voc_mini's val: 56.08 mIoU and 91.46 % of the pixels, at 256 × 256 as they were trained."""
    results = tmp_path / "results.json"
    code = ToolRunner("test", monkeypatch)(
        CONFIG,
        test_data / "weights_voc_seg/espnetv2_s_2.0_pascal_256x256.pth",
        *(
            "--out",
            results,
            "DATASETS.ROOT",
            test_data / "voc_mini/VOCdevkit",
            "OUTPUT_DIR",
            tmp_path / "run",
        ),
        *("MODEL.DEVICE", "cpu", "DATALOADER.NUM_WORKERS", 0, "TEST.BOOTSTRAP", 0),
    )
    assert code == 0
    scores = json.loads(results.read_text())["sem_seg"]
    assert scores["mIoU"] == pytest.approx(56.08, abs=0.1)
    assert scores["pACC"] == pytest.approx(91.46, abs=0.01)
