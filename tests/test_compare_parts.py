"""What a comparison is made of: error maps, gains with their intervals, chosen images, costs."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from fvcore.nn import FlopCountAnalysis
from torch import nn

from scenekd.compare.comparison import pair_seeds
from scenekd.compare.cost import Cost, count_flops, measure_costs
from scenekd.compare.gains import class_gains, image_intervals
from scenekd.compare.scoring import changes, choose_scored
from scenekd.compare.sources import Source
from scenekd.compare.tables import cost_notes, cost_table, gain_pieces
from scenekd.data.records import Dataset, Record
from scenekd.drawing import ERRORS, VOID, draw_errors
from scenekd.errors import UserError
from scenekd.evaluation.semantic import SegmentationRecords
from scenekd.visualize import View, panel


def test_error_map_tells_three_kinds_of_errors_and_void():
    truth = np.array([[0, 1, 1, 255], [0, 2, 0, 255]], np.uint8)
    mask = np.array([[0, 0, 2, 1], [3, 2, 0, 0]], np.uint8)
    drawn, share = draw_errors(np.full((2, 4, 3), 100, np.uint8), mask, truth)
    missed, invented, other = ERRORS.values()
    right = (185, 185, 185)  # 140 + .45 · 100
    expected = [[right, missed, other, VOID], [invented, right, right, VOID]]
    np.testing.assert_array_equal(drawn, expected)
    assert share == pytest.approx(3 / 6)  # of the pixels that are not void
    assert math.isnan(draw_errors(drawn, mask, np.full_like(truth, 255))[1])
    with pytest.raises(ValueError, match="the truth"):
        draw_errors(drawn, mask, truth[:1])


def test_panel_with_errors_has_one_more_row():
    """Columns: image, truth, network; rows: masks, errors. The network takes its left half for nothing."""
    truth = np.ones((60, 80), np.uint8)
    mask = truth.copy()
    mask[:, :40] = 0
    views = [View("ground truth", sem_seg=truth), View("student", sem_seg=mask)]
    image = np.full((60, 80, 3), 100, np.uint8)
    picture = panel(image, views, ("cat",), side=200, errors=True)
    tile, gap, caption = (150, 200), 6, 20
    height = max(tile[0], 170) + caption  # a tile has room for the legend
    assert picture.shape == (2 * (height + gap) + gap, 3 * (tile[1] + gap) + gap, 3)
    x, y = gap + 2 * (tile[1] + gap), 2 * gap + height + caption
    np.testing.assert_array_equal(picture[y + 50, x + 50], ERRORS["object missed"])
    np.testing.assert_array_equal(picture[y + 50, x + 150], (185, 185, 185))
    bare = [views[0], View("cache")]
    assert panel(image, bare, ("cat",), side=200, errors=True).shape == picture.shape


def test_gains_in_closed_form():
    """Over two pairs: b gains 1 and 3, so 2 ± t(.975, 1) · √2 / √2 = 2 ± 12.7062; a loses; c has too few images; d is
    never there."""
    before = [
        {"a": 50.0, "b": 10.0, "c": 5.0, "d": math.nan},
        {"a": 52.0, "b": 12.0, "c": 5.0, "d": math.nan},
    ]
    after = [{"a": 49.0, "b": 11.0, "c": 9.0, "d": math.nan}, {"a": 52.0, "b": 15.0, "c": 9.0, "d": math.nan}]
    images = {"a": 80, "b": 10, "c": 9, "d": 0}
    gains = class_gains(("x", before), ("y", after), images)
    assert [gain.name for gain in gains.classes] == ["b", "a"]
    assert gains.classes[0].mean == 2 and gains.classes[1].mean == -0.5
    assert gains.classes[0].interval == pytest.approx((2 - 12.7062, 2 + 12.7062), abs=1e-3)
    assert [gain.name for gain in gains.apart] == ["c"] and gains.undefined == ("d",)
    # of a and b: (−1 + 1) / 2 and (0 + 3) / 2
    assert gains.mean is not None and gains.mean.values == (0.0, 1.5)
    assert gains.over == "seeds"
    shown = "".join(gain_pieces(gains))
    assert "2 pairs of trainings" in shown and "Neither labelled nor predicted: d." in shown
    single = class_gains(("x", before[:1]), ("y", after[:1]), images)
    assert single.over == "" and single.classes[0].interval is None
    assert "One training on each side" in "".join(gain_pieces(single))
    known = {name: (-1.0, 2.0) for name in images}
    over_images = class_gains(("x", before[:1]), ("y", after[:1]), images, intervals=known)
    assert over_images.over == "images" and over_images.classes[0].interval == (-1, 2)
    assert over_images.apart[0].interval is None
    with pytest.raises(ValueError, match="needs a training"):
        class_gains(("x", []), ("y", []), images)


def _records(*shares: int) -> SegmentationRecords:
    """Images of ten pixels of one class, so many of which are found, the rest taken for background."""
    records = SegmentationRecords(("background", "cat"))
    for i, found in enumerate(shares):
        records.add(f"i{i}", np.repeat([1, 0], (found, 10 - found)), np.ones(10, np.uint8))
    return records


def test_intervals_over_images():
    """Equal images cannot vary: cat's IoU rises from .2 to .7 in every resample, background's stays 0. Unequal ones
    lie between the smallest and the largest change of an image."""
    found = image_intervals(_records(2, 2), _records(7, 7), counted=["cat"], resamples=50, seed=0)
    assert found["cat"] == pytest.approx((50, 50)) and found[""] == pytest.approx((50, 50))
    assert found["background"] == pytest.approx((0, 0))
    low, high = image_intervals(_records(2, 2, 2), _records(2, 5, 8), counted=["cat"], resamples=200, seed=0)[
        "cat"
    ]
    assert 0 <= low < 30 < high < 60.001


def test_scores_of_single_images():
    """Three of ten pixels right: pACC 30, IoU of cat 30, of background 0 of 7, their mean 15."""
    assert _records(3, 10).image_scores()["i0"] == pytest.approx({"mIoU": 15, "pACC": 30})
    assert _records(3, 10).image_scores()["i1"] == pytest.approx({"mIoU": 100, "pACC": 100})


def test_images_are_chosen_by_change_or_by_error():
    dataset = Dataset("d", ("cat",), [Record(name, "") for name in "abcde"])
    before = {"a": 50.0, "b": 90.0, "c": 10.0, "d": 40.0, "e": math.nan}
    after = {"a": 60.0, "b": 60.0, "c": 10.0, "d": 50.0, "e": math.nan}
    # changes: a +10, b −30, c 0, d +10; of equal ones the first by name
    choice = choose_scored(dataset, 3, ("kd", after), ("none", before))
    assert [record.image_id for record in choice.records] == ["b", "a", "d"]
    assert "from none to kd" in choice.how
    worst = choose_scored(dataset, 9, ("kd", after))
    assert [record.image_id for record in worst.records] == ["c", "d", "a", "b"]
    assert changes(before, after) == (2, 1)


def test_trainings_are_paired_by_seed():
    assert pair_seeds(("a", [0, 1, 2]), ("b", [2, 1, 7])) == [(1, 1), (2, 0)]
    assert pair_seeds(("a", [0]), ("b", [None])) == [(0, 0)]
    for first, second, message in (
        ([0, 0], [0, 1], "a: its trainings have seeds 0, 0"),
        ([0, 1], [None, 1], "b: its trainings have seeds unknown, 1"),
        ([0, 1], [2, 3], "no seed in common"),
    ):
        with pytest.raises(UserError, match=message):
            pair_seeds(("a", first), ("b", second))


class _Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(4)
        self.last = nn.Conv2d(4, 2, 1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.last(torch.relu(self.norm(self.conv(images))))


def test_flops_by_hand_and_by_fvcore():
    """3 × 3 × 3 × 4 multiply-accumulates and 4 × 2 at each of 8 × 6 pixels, two FLOPs each (a bias counts nothing):
    2 · 48 · (108 + 8) = 11,136. fvcore counts MACs."""
    net, images = _Net().eval(), torch.rand(1, 3, 8, 6)
    with torch.inference_mode():
        flops, uncounted = count_flops(lambda: net(images))
    assert flops == 11_136
    oracle = FlopCountAnalysis(net, images).unsupported_ops_warnings(False).by_operator()
    assert flops == 2 * oracle["conv"]
    assert uncounted["relu"] == 4 * 48
    assert sum("batch_norm" in name for name in uncounted) == 1


def test_costs():
    """Parameters 108 + 8 + 10; the state has 8 batch statistics and one count of 8 bytes more."""
    net = _Net().eval()
    image = np.zeros((8, 6, 3), np.uint8)

    source = Source("student", "", lambda record, image: image[..., 0], net=net, ask=lambda i: net(_input(i)))
    bare = Source("cache", "", source.label_map)
    direct = Source("teacher", "", source.label_map, net=net, ask=lambda i: net.forward(_input(i)))
    costs = measure_costs([source, bare, direct], image, rounds=3, warm_up=1)
    assert [cost.name for cost in costs] == ["student", "teacher"]
    cost = costs[0]
    assert (cost.size, cost.parameters, cost.flops) == ((8, 6), 126, 11_136)
    assert cost.bytes == 4 * (126 + 8) + 8
    assert cost.memory > cost.bytes + 4 * 4 * 48  # at least one map of 4 channels
    assert 0 < cost.seconds[1] <= cost.seconds[0] <= cost.seconds[2] and cost.rounds == 3
    assert not cost.whole and costs[1].whole and costs[1].flops == cost.flops
    text = "".join(cost_table(costs))
    assert "twice the MACs" in text and "batch_norm" in text and "teacher: with the preparation" in text
    assert cost_table([]) == []


def _input(image: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(image.transpose(2, 0, 1).copy())[None].float()


def test_nothing_is_hidden_where_nothing_is_left_out():
    notes = cost_notes([Cost("net", (1, 1), 0, 0, 0)])
    assert "net: nothing" in notes[1]
