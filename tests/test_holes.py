"""Holes: what each shape covers, what each fill leaves of the object, partial holes."""

from __future__ import annotations

import numpy as np
import pytest

from scenekd.data.geometry import MEAN_COLOUR
from scenekd.data.holes import (
    FILLS,
    SHAPES,
    areas,
    covered_shares,
    draw_hole,
    extents,
    fill_hole,
    hole_shares,
)

SIZE = (60, 80)  # height, width
BOX = np.array([20.0, 10.0, 40.0, 50.0])  # 20 wide, 40 high, centre (30, 30)


def _rng() -> np.random.Generator:
    return np.random.default_rng(5)


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ("box", [20, 10, 40, 50]),
        ("segment", [20, 10, 40, 50]),
        ("square", [10, 10, 50, 50]),  # 40 wide about (30, 30)
        # The half diagonal is √(10² + 20²) = 22.36: 30 ± 22.36, rounded outward.
        ("circle", [7, 7, 53, 53]),
        # 1.3 times that is 29.07; the picture ends at 0 and 60.
        ("blob", [0, 0, 60, 60]),
    ],
)
def test_extents(shape, expected) -> None:
    assert extents(BOX[None], shape, SIZE).tolist() == [expected]


def test_extents_round_outward_and_are_clipped() -> None:
    boxes = np.array([[19.7, 10.2, 39.5, 49.9], [-5, -5, 5, 5], [90, 10, 99, 20]])
    assert extents(boxes, "box", SIZE).tolist()[:2] == [[19, 10, 40, 50], [0, 0, 5, 5]]
    assert areas(extents(boxes, "box", SIZE)).tolist() == [21 * 40, 25, 0]
    assert extents(boxes[:1], "box", SIZE, margin=2).tolist() == [[17, 8, 42, 52]]


@pytest.mark.parametrize("shape", SHAPES)
def test_a_hole_covers_its_box_and_stays_in_its_extent(shape) -> None:
    hole = draw_hole(BOX, shape, SIZE, _rng())
    x1, y1, x2, y2 = extents(BOX[None], shape, SIZE)[0]
    assert hole[10:50, 20:40].all()
    outside = hole.copy()
    outside[y1:y2, x1:x2] = False
    assert not outside.any()


def test_areas_of_holes() -> None:
    assert draw_hole(BOX, "box", SIZE, _rng()).sum() == 800
    assert draw_hole(BOX, "square", SIZE, _rng()).sum() == 1600
    # π · 22.36² = 1571, and the border is drawn outward by up to a pixel.
    assert 1571 <= draw_hole(BOX, "circle", SIZE, _rng()).sum() < 1571 * 1.08


def test_a_blob_is_drawn_from_the_generator() -> None:
    first, again = (draw_hole(BOX, "blob", SIZE, _rng()) for _ in range(2))
    other = draw_hole(BOX, "blob", SIZE, np.random.default_rng(6))
    assert (first == again).all() and (first != other).any()


def test_a_segment_is_the_objects_own_pixels() -> None:
    segment = np.zeros(SIZE, bool)
    segment[20:30, 25:30] = True
    assert (draw_hole(BOX, "segment", SIZE, _rng(), segment=segment) == segment).all()
    wider = draw_hole(BOX, "segment", SIZE, _rng(), segment=segment, margin=1)
    assert wider.sum() == 12 * 7  # a pixel on each side
    # Without a pixel of it in the picture the box is hidden.
    assert draw_hole(BOX, "segment", SIZE, _rng(), segment=np.zeros(SIZE, bool)).sum() == 800


def test_a_partial_hole_is_a_window_of_it() -> None:
    part = draw_hole(BOX, "box", SIZE, _rng(), share=0.25)
    assert part.sum() == 10 * 20  # half of each side
    assert not part[:, :20].any() and not part[:10].any()
    places = {
        tuple(np.argwhere(draw_hole(BOX, "box", SIZE, np.random.default_rng(k), share=0.25))[0])
        for k in range(5)
    }
    assert len(places) > 1


@pytest.mark.parametrize(
    ("box", "options", "message"),
    [
        ([90, 10, 99, 20], {}, "outside the picture of 80×60"),
        (BOX, {"share": 0.0}, "share"),
        (BOX, {"share": 1.5}, "share"),
        (BOX, {"margin": -1}, "margin"),
    ],
)
def test_what_cannot_be_hidden_is_refused(box, options, message) -> None:
    with pytest.raises(ValueError, match=message):
        draw_hole(np.asarray(box, float), "box", SIZE, _rng(), **options)


def test_shares_under_a_hole() -> None:
    boxes = np.array([[20, 10, 40, 50], [30, 10, 50, 50], [50, 0, 60, 5], [70, 10, 70, 20]], float)
    hole = draw_hole(BOX, "box", SIZE, _rng())
    expected = [1.0, 0.5, 0.0, 0.0]  # itself, half of a neighbour, none, an empty box
    assert hole_shares(hole, boxes).tolist() == expected
    assert covered_shares(np.array([20, 10, 40, 50]), boxes).tolist() == expected
    assert covered_shares(extents(boxes, "box", SIZE), boxes).shape == (4, 4)


@pytest.mark.parametrize("fill", FILLS)
def test_a_fill_changes_the_hole_alone(fill) -> None:
    image = np.random.default_rng(0).integers(0, 256, (*SIZE, 3), dtype=np.uint8)
    before, hole = image.copy(), draw_hole(BOX, "box", SIZE, _rng())
    shown = fill_hole(image, hole, fill, _rng())
    assert (image == before).all() and (shown[~hole] == image[~hole]).all()
    assert (shown[hole] != image[hole]).mean() > 0.9


@pytest.mark.parametrize("fill", ["zero", "mean", "noise", "inpaint"])
def test_nothing_of_the_object_is_left(fill) -> None:
    """Two pictures that differ in the hole alone look the same."""
    rng, hole = np.random.default_rng(0), draw_hole(BOX, "box", SIZE, _rng())
    first = rng.integers(0, 256, (*SIZE, 3), dtype=np.uint8)
    second = first.copy()
    second[hole] = 255 - first[hole]
    assert (fill_hole(first, hole, fill, _rng()) == fill_hole(second, hole, fill, _rng())).all()
    if fill == "mean":
        assert (fill_hole(first, hole, fill, _rng())[hole] == MEAN_COLOUR).all()


def test_a_blur_leaks() -> None:
    """It is named so: the colour of what was hidden comes through."""
    hole = draw_hole(BOX, "box", SIZE, _rng())
    pictures = [np.full((*SIZE, 3), value, np.uint8) for value in (0, 0)]
    pictures[1][hole] = 255
    shown = [fill_hole(picture, hole, "blur", _rng())[hole].mean() for picture in pictures]
    assert shown[0] == 0 and shown[1] > 100


def test_unknown_names_are_refused() -> None:
    with pytest.raises(ValueError, match="shape must be one of"):
        extents(BOX[None], "star", SIZE)
    with pytest.raises(ValueError, match="fill must be one of"):
        fill_hole(np.zeros((*SIZE, 3), np.uint8), np.zeros(SIZE, bool), "paint", _rng())
