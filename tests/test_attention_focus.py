"""Attention against object masks, by hand."""

import math

import pytest
import torch

from scenekd.evaluation.attention_focus import energy_in_mask, focus_summary, pointing_game

# A mask of the left half of 2 × 4 pixels.
LEFT = torch.zeros(1, 2, 4, dtype=torch.bool)
LEFT[:, :, :2] = True


def test_energy_in_mask():
    maps = torch.zeros(4, 2, 4)
    maps[0, 0, 0], maps[0, 1, 3] = 3, 1  # three quarters inside
    maps[1] = 1  # even: half, the mask's share
    maps[2, :, 2:] = 5  # all outside; the last map is empty
    found = energy_in_mask(maps, LEFT.expand(4, -1, -1))
    assert found[:3].tolist() == [0.75, 0.5, 0] and found[3].isnan()
    # Enlarging (1, 0) to four pixels gives 1, ¾, ¼, 0: 1.75 of 2 are on the left.
    assert energy_in_mask(torch.tensor([[[1.0, 0]]]), LEFT).item() == pytest.approx(1.75 / 2)


def test_pointing_game():
    maps = torch.zeros(4, 2, 4)
    maps[0, 1, 1] = 2
    maps[1, 0, 2] = 2  # one pixel beside the mask
    maps[2, 0, :3] = 1  # of three equal ones two lie in it; all eight of the last do by halves
    masks = LEFT.expand(4, -1, -1)
    assert pointing_game(maps, masks).tolist() == pytest.approx([1, 0, 2 / 3, 1 / 2])
    assert pointing_game(maps, masks, tolerance=1).tolist() == pytest.approx([1, 1, 1, 3 / 4])


def test_summary():
    maps = torch.zeros(3, 2, 4)
    maps[0, 0, 0] = maps[1, 0, 0] = maps[1, 0, 3] = 1  # the last is empty
    found = focus_summary(maps, LEFT.expand(3, -1, -1))
    # Energy 1 and ½: mean ¾, sd √(2 · 1/16). Hits 1, ½, ½: mean ⅔, sd √((1/9 + 2/36)/2).
    assert found == pytest.approx(
        {
            "mask_share": 50,
            "zero_maps": 100 / 3,
            "energy_in_mask": 75,
            "energy_in_mask_sd": 100 * math.sqrt(1 / 8),
            "pointing_game": 200 / 3,
            "pointing_game_sd": 100 * math.sqrt(1 / 12),
        }
    )
    one = focus_summary(maps[:1], LEFT)
    assert one["energy_in_mask"] == 100 and math.isnan(one["energy_in_mask_sd"])


@pytest.mark.parametrize(
    "call",
    [
        lambda: energy_in_mask(-torch.ones(1, 2, 4), LEFT),
        lambda: energy_in_mask(torch.full((1, 2, 4), math.nan), LEFT),
        lambda: energy_in_mask(torch.ones(2, 2, 4), LEFT),
        lambda: energy_in_mask(torch.ones(1, 2, 4), LEFT.int()),
        lambda: pointing_game(torch.ones(1, 2, 4), LEFT, tolerance=-1),
    ],
)
def test_refuses(call):
    with pytest.raises(ValueError):
        call()
