"""Map sizes and anchors against the paper's table, against torchvision's SSD generator, and by hand."""

import math

import pytest
import torch
from torchvision.models.detection.anchor_utils import DefaultBoxGenerator
from torchvision.models.detection.image_list import ImageList

from kd_mtl.anchors import anchor_grid, anchor_scales, block_sizes, prediction_sizes

TABLE = [  # size, x4, maps, scales, anchors
    (300, True, [75, 38, 19, 10, 5, 3, 1], [0.04, 0.10, 0.27, 0.44, 0.61, 0.78, 0.95], 45_390),
    (300, False, [38, 19, 10, 5, 3, 1], [0.10, 0.20, 0.3875, 0.575, 0.7625, 0.95], 11_640),
    (512, False, [64, 32, 16, 8, 4, 2, 1], [0.04, 0.10, 0.27, 0.44, 0.61, 0.78, 0.95], 32_766),
    (512, True, [128, 64, 32, 16, 8, 4, 2, 1], [0.02, 0.08, 0.225, 0.37, 0.515, 0.66, 0.805, 0.95], 131_070),
]


@pytest.mark.parametrize(("size", "x4", "maps", "scales", "total"), TABLE)
def test_table(size, x4, maps, scales, total):
    assert prediction_sizes(size, x4) == maps
    assert anchor_scales(maps)[:-1] == pytest.approx(scales)
    anchors = anchor_grid(size, x4).anchors()
    assert anchors.shape == (total, 4)
    assert anchors.dtype == torch.float32
    assert total == 6 * sum(m * m for m in maps)


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        (300, [75, 38, 19, 10, 5, 3, 2]),
        (512, [128, 64, 32, 16, 8, 4, 2, 1]),
        (128, [32, 16, 8, 4, 2, 1]),  # 4 cells at stride 32: ⌊log2 4⌋ = 2 blocks
        (64, [16, 8, 4, 2, 1]),
        (321, [81, 41, 21, 11, 6, 3, 2]),  # rounded up; ⌊log2 11⌋ = 3 blocks
    ],
)
def test_block_sizes(size, expected):
    assert block_sizes(size) == expected


def test_smallest_image():
    with pytest.raises(ValueError, match="at least 64"):
        block_sizes(63)


@pytest.mark.parametrize(
    ("size", "x4", "expected"),
    [
        (300, True, [0.0632, 0.1643, 0.3447, 0.5181, 0.6898, 0.8608, 1.0315]),
        # the last map's s′ is s + its last step: √(.95 · 1.1375) = 1.0395 and √(.95 · 1.095) = 1.0199
        (300, False, [*(math.sqrt(a * b) for a, b in [(0.1, 0.2), (0.2, 0.3875)]), None, None, None, 1.0395]),
        (512, True, [None] * 7 + [1.0199]),
    ],
)
def test_extra_squares(size, x4, expected):
    for cell, side in zip(anchor_grid(size, x4).shapes, expected, strict=True):
        assert cell[5][0] == cell[5][1]
        if side is not None:
            assert cell[5][0] / size == pytest.approx(side, abs=5e-5)


def test_first_cell_by_hand():
    # 300: the first cell's centre is at .5/38 · 300 = 3.947 px; s = 30 px; ratio 2: 30√2 × 30/√2.
    anchors = anchor_grid(300, False).anchors()
    centre, s = 150 / 38, 30.0
    wide, high, r3 = s * math.sqrt(2), s / math.sqrt(2), math.sqrt(3)
    sides = [(s, s), (wide, high), (high, wide), (s * r3, s / r3), (s / r3, s * r3), (s * math.sqrt(2),) * 2]
    for anchor, (width, height) in zip(anchors[:6].tolist(), sides, strict=True):
        expected = [centre - width / 2, centre - height / 2, centre + width / 2, centre + height / 2]
        assert anchor == pytest.approx(expected, abs=1e-4)
    assert (anchors[:6, :2] < 0).all()  # not clipped


@pytest.mark.parametrize(("size", "x4"), [(300, False), (300, True), (512, False), (128, True)])
def test_against_torchvision(size, x4):
    """SSD's generator has the same shapes in another order: s, √(s·s′), then ratios 2, 1/2, 3, 1/3."""
    maps = prediction_sizes(size, x4)
    generator = DefaultBoxGenerator([[2, 3]] * len(maps), scales=anchor_scales(maps), clip=False)
    images = ImageList(torch.zeros(1, 3, size, size), [(size, size)])
    theirs = generator(images, [torch.zeros(1, 1, m, m) for m in maps])[0].reshape(-1, 6, 4)
    ours = anchor_grid(size, x4).anchors().reshape(-1, 6, 4)
    torch.testing.assert_close(ours, theirs[:, [0, 2, 3, 4, 5, 1]], rtol=0, atol=1e-3)


def test_other_sizes_take_the_nearest_scales():
    # 128 px: the finest map has 16 cells, nearest (in ratio) to the 38 of the 300 network: .10, .20, … .95
    assert anchor_scales(prediction_sizes(128, False)) == pytest.approx([0.10, 0.20, 0.45, 0.70, 0.95, 1.20])
    # 640 px: 80 cells, nearest to 75; with x4 160 cells, nearest to 128
    assert anchor_scales(prediction_sizes(640, False))[:2] == pytest.approx([0.04, 0.10])
    assert anchor_scales(prediction_sizes(640, True))[:2] == pytest.approx([0.02, 0.08])
