"""Map sizes and anchors of BlitzNet (Dvornik et al., ICCV 2017; Liu et al., SSD, ECCV 2016).

Legend: level l has stride 2^(l+1), so block1 is stride 4 and block4 the trunk's last.

Any input size from 64 px works, by two rules that give the paper's maps and scales at 300 and 512:

- **Extra blocks**: with m cells a side at stride 32, ⌊log2 m⌋ blocks follow the trunk (m = 10: 3, m = 16: 4,
  m = 4, an image of 128 px: 2), that is as long as the map can be halved.
- **Scales**: the finest prediction map sets the two smallest scales (first, second), those of the paper's
  network whose finest map is nearest in ratio; from the second on, the scales rise in equal steps to .95.
"""

from __future__ import annotations

import math

from scenekd.anchor_grid import AnchorGrid

MIN_IMAGE_SIZE = 64
ANCHORS_PER_CELL = 6
ASPECT_RATIOS = (1.0, 2.0, 1 / 2, 3.0, 1 / 3)
LARGEST_SCALE = 0.95
# (finest map, the two smallest scales) of the paper's networks: 300; 300 x4; 512; 512 x4.
_SMALLEST_SCALES = ((38, (0.10, 0.20)), (75, (0.04, 0.10)), (64, (0.04, 0.10)), (128, (0.02, 0.08)))


def block_sizes(image_size: int) -> list[int]:
    """Cells a side of block1 (stride 4), block2, … to the deepest extra block: 300 → 75, 38, 19, 10, 5, 3, 2.

    Raises:
        ValueError: the image is smaller than 64 pixels.
    """
    if image_size < MIN_IMAGE_SIZE:
        raise ValueError(f"image size must be at least {MIN_IMAGE_SIZE}, got {image_size}")
    sizes = [math.ceil(image_size / stride) for stride in (4, 8, 16, 32)]
    for _ in range(sizes[-1].bit_length() - 1):  # ⌊log2 m⌋
        sizes.append(math.ceil(sizes[-1] / 2))
    return sizes


def prediction_sizes(image_size: int, x4: bool) -> list[int]:
    """Cells a side of the maps that predict, finest first: rev1 (with ``x4`` only), rev2, … and pool6."""
    return [*block_sizes(image_size)[0 if x4 else 1 : -1], 1]


def anchor_scales(map_sizes: list[int]) -> list[float]:
    """The scale of each prediction map, as a fraction of the image, and one more: that of the map that would
    follow, which the last map's larger square needs."""
    _, (first, second) = min(_SMALLEST_SCALES, key=lambda row: abs(math.log(row[0] / map_sizes[0])))
    step = (LARGEST_SCALE - second) / (len(map_sizes) - 2)
    return [first, *(second + step * i for i in range(len(map_sizes)))]


def anchor_shapes(scale: float, next_scale: float) -> list[tuple[float, float]]:
    """(width, height) of a cell's six anchors, as fractions of the image: ``scale`` at aspect ratio (w/h)
    1, 2, 1/2, 3, 1/3, then a square between this scale and the next."""
    shapes = [(scale * math.sqrt(ratio), scale / math.sqrt(ratio)) for ratio in ASPECT_RATIOS]
    between = math.sqrt(scale * next_scale)
    return [*shapes, (between, between)]


def anchor_grid(image_size: int, x4: bool) -> AnchorGrid:
    """The anchors of BlitzNet on a square input, see :func:`grid_of`."""
    return grid_of(image_size, prediction_sizes(image_size, x4))


def grid_of(image_size: int, map_sizes: list[int]) -> AnchorGrid:
    """The anchors of a square input and at least three square maps: map by map, finest first; cells row by row; a
    cell's six shapes innermost, as in :func:`anchor_shapes`. It is the order of the detection heads' output."""
    scales = anchor_scales(map_sizes)
    shapes = []
    for scale, next_scale in zip(scales, scales[1:]):
        cell = anchor_shapes(scale, next_scale)
        shapes.append(tuple((width * image_size, height * image_size) for width, height in cell))
    return AnchorGrid((image_size, image_size), tuple((size, size) for size in map_sizes), tuple(shapes))
