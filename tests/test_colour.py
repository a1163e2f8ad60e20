"""Changes of colour against arithmetic, and the choice of one of several."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from scenekd.data.colour import ChannelShuffle, Clahe, Either, Gray, Posterize, RGBShift
from scenekd.sample import Sample


def _sample(seed: int = 0) -> Sample:
    image = np.random.default_rng(seed).integers(0, 256, (32, 40, 3), dtype=np.uint8)
    return Sample(image, "x", boxes=np.array([[1, 2, 30, 20]], np.float32), labels=np.array([3]))


def test_rgb_shift_adds_one_number_to_each_channel() -> None:
    sample, shifts = _sample(), set()
    for seed in range(40):
        moved = RGBShift(20.0)(sample, np.random.default_rng(seed)).image.astype(int)
        for channel in range(3):
            before = sample.image[..., channel].astype(int)
            inner = (before >= 20) & (before <= 235)  # elsewhere it may be clipped
            difference = np.unique((moved[..., channel] - before)[inner])
            assert len(difference) == 1 and abs(difference[0]) <= 20
            np.testing.assert_array_equal(moved[..., channel], np.clip(before + difference[0], 0, 255))
            shifts.add(int(difference[0]))
    assert min(shifts) < -15 and max(shifts) > 15


def test_channel_shuffle_reaches_every_order() -> None:
    sample = _sample()
    orders = set()
    for seed in range(60):
        moved = ChannelShuffle()(sample, np.random.default_rng(seed)).image
        orders.add(
            tuple(
                next(c for c in range(3) if np.array_equal(moved[..., k], sample.image[..., c]))
                for k in range(3)
            )
        )
    assert len(orders) == 6


def test_posterize_keeps_the_highest_bits() -> None:
    moved = Posterize(3)(_sample(), np.random.default_rng(0)).image
    np.testing.assert_array_equal(moved, _sample().image // 32 * 32)


def test_gray_is_luma_in_three_channels() -> None:
    moved = Gray()(_sample(), np.random.default_rng(0)).image
    luma = _sample().image @ np.array([0.299, 0.587, 0.114])
    np.testing.assert_allclose(moved, np.repeat(luma[..., None], 3, axis=2), atol=0.6)


def test_clahe_spreads_a_narrow_range_and_keeps_its_order_in_a_tile() -> None:
    """Values between 100 and 120, the same in all tiles: they spread, and brighter ones stay brighter."""
    tile = np.random.default_rng(0).integers(100, 121, (16, 16), dtype=np.uint8)
    image = np.repeat(np.tile(tile, (8, 8))[..., None], 3, axis=2)
    moved = Clahe()(Sample(image, "x"), np.random.default_rng(3)).image[48:64, 48:64, 0].astype(int)
    assert np.ptp(moved) > 1.5 * np.ptp(tile)
    levels = [moved[tile == value].mean() for value in np.unique(tile)]
    assert (np.diff(levels) > -1).all()


@pytest.mark.parametrize("transform", [RGBShift(20.0), ChannelShuffle(), Clahe(), Posterize(), Gray()])
def test_draws_come_from_the_generator_alone_and_labels_stay(transform) -> None:
    sample = _sample()
    before = sample.image.copy()
    first, second = (transform(sample, np.random.default_rng(5)) for _ in range(2))
    np.testing.assert_array_equal(first.image, second.image)
    np.testing.assert_array_equal(sample.image, before)
    assert first.image.dtype == np.uint8 and first.image.shape == before.shape
    assert first.boxes is sample.boxes and first.labels is sample.labels


def test_either_takes_one_by_its_probability() -> None:
    """.5 and .2: of 2000 draws about 1000, 400 and 600 take the first, the second and neither; three standard
    deviations of a binomial are 67, 54, 61."""

    def mark(value: int):
        return lambda sample, rng: dataclasses.replace(sample, image_id=str(value))

    one = Either([(0.5, mark(1)), (0.2, mark(2))])
    rng = np.random.default_rng(0)
    found = [one(Sample(np.zeros((1, 1, 3), np.uint8), "0"), rng).image_id for _ in range(2000)]
    for name, expected, spread in (("1", 1000, 67), ("2", 400, 54), ("0", 600, 61)):
        assert abs(found.count(name) - expected) < spread


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Either([(0.7, Gray()), (0.4, Gray())]), "at most 1"),
        (lambda: Either([(-0.1, Gray())]), "at least 0"),
        (lambda: RGBShift(-1), "negative"),
        (lambda: Clahe(0.5), "at least 1"),
        (lambda: Posterize(9), "1 to 8"),
    ],
)
def test_bad_values_are_refused(make, message) -> None:
    with pytest.raises(ValueError, match=message):
        make()
