"""Every transform moves image, boxes, mask and the teacher's soft output together."""

from __future__ import annotations

import dataclasses

import cv2
import numpy as np
import pytest
from voc_folder import bare_config

from scenekd.data.geometry import Frame, identity_coordinates, move_coordinates
from scenekd.data.soft import sample_soft
from scenekd.data.transforms import (
    Blur,
    Compose,
    DropSmallBoxes,
    Flip,
    IoUCrop,
    Letterbox,
    Photometric,
    Resize,
    Rotate,
    ScaleCrop,
    Shear,
    Transform,
    Windows,
    ZoomOut,
    build_transforms,
)
from scenekd.errors import UserError
from scenekd.sample import Sample, SoftSegmentation

HEIGHT, WIDTH = 90, 120
COLOURS = np.asarray([[20, 200, 30], [250, 10, 10], [10, 10, 250], [240, 240, 20]], np.uint8)
# label → box of its rectangle: three objects on background 0
RECTANGLES = {1: (10, 12, 50, 40), 2: (60, 20, 110, 80), 3: (15, 55, 45, 85)}


def _sample() -> Sample:
    labels = np.zeros((HEIGHT, WIDTH), np.uint8)
    for label, (x0, y0, x1, y1) in RECTANGLES.items():
        labels[y0:y1, x0:x1] = label
    one_hot = (labels[None] == np.arange(4)[:, None, None]).astype(np.float32)
    count = len(RECTANGLES)
    return Sample(
        image=COLOURS[labels],
        image_id="x",
        boxes=np.asarray(list(RECTANGLES.values()), np.float32),
        labels=np.asarray(list(RECTANGLES), np.int64),
        confidences=np.ones(count, np.float32),
        from_teacher=np.zeros(count, bool),
        difficult=np.zeros(count, bool),
        sem_seg=labels,
        soft_seg=SoftSegmentation(one_hot, "probabilities"),
        has_boxes=True,
        has_sem_seg=True,
    )


GEOMETRIC: dict[str, Transform] = {
    "zoom out": ZoomOut(1.0),
    "crop": IoUCrop(1.0),
    "flip": Flip(1.0),
    "shrink": Resize(51, 67),
    "grow": Resize(200, 170),
    "shrink as Pillow does": Resize(51, 67, antialias=True),
    "scale and crop": Windows([ScaleCrop(64, (50, 200)), Flip(0.5), Resize(64, 64, antialias=True)]),
    "scale and crop in a row": Compose(
        [ZoomOut(1.0, max_factor=2.0), ScaleCrop(64, (60, 90)), Resize(64, 64)]
    ),
    "letterbox": Windows([Letterbox(), Resize(96, 96)]),
    "letterbox, scale and crop": Windows([Letterbox(), ScaleCrop(64, (70, 70)), Flip(0.5), Resize(96, 96)]),
    "rotate": Rotate(40.0),
    "shear, unlike rotation": Shear(25.0),
    "all in a row": Compose([Photometric(), ZoomOut(1.0), IoUCrop(1.0), Flip(1.0), Resize(75, 75)]),
    "all at once": Windows([ZoomOut(1.0), IoUCrop(1.0), Flip(1.0), Resize(75, 75)]),
    "with rotation": Compose(
        [IoUCrop(1.0), Rotate(30.0), ZoomOut(1.0), Flip(1.0), Rotate(20.0), Resize(150, 140)]
    ),
}


def _interior(labels: np.ndarray, margin: int = 2) -> np.ndarray:
    """Pixels whose neighbourhood is all of one label: away from every edge of a region."""
    kernel = np.ones((2 * margin + 1, 2 * margin + 1), np.uint8)
    inside = cv2.erode(labels, kernel) == cv2.dilate(labels, kernel)
    inside[:margin] = inside[-margin:] = inside[:, :margin] = inside[:, -margin:] = False
    return inside


@pytest.mark.parametrize("name", GEOMETRIC)
@pytest.mark.parametrize("seed", range(6))
def test_soft_target_mask_image_and_boxes_stay_together(name: str, seed: int) -> None:
    sample = GEOMETRIC[name](_sample(), np.random.default_rng(seed))
    field = identity_coordinates(HEIGHT, WIDTH) if sample.coordinates is None else sample.coordinates
    values, valid = sample_soft(sample.soft_seg, field)
    interior = _interior(sample.sem_seg)
    assert interior.sum() > 200
    padding = sample.sem_seg == 255
    assert not (valid & padding & interior).any()
    shown = interior & valid
    if name == "with rotation":
        # beside a slanting border that an earlier crop cut, interpolation loses a pixel of the field
        assert shown.sum() >= 0.97 * (interior & ~padding).sum()
    else:
        np.testing.assert_array_equal(shown, interior & ~padding)
    np.testing.assert_array_equal(values.argmax(axis=0)[shown], sample.sem_seg[shown])
    if "row" not in name:  # photometric distortion changes the colours
        clear = shown & _interior(sample.sem_seg, margin=8)  # enlarged edges are blurred over some pixels
        difference = np.abs(sample.image[clear].astype(int) - COLOURS[sample.sem_seg[clear]])
        assert difference.max(initial=0) <= 2
        assert (sample.image[padding & _interior(sample.sem_seg, margin=8)] == (123, 116, 103)).all()
    if "rotat" not in name:
        for label, box in zip(sample.labels, sample.boxes):
            rows, columns = np.nonzero(sample.sem_seg == label)
            around = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
            np.testing.assert_allclose(box, around, atol=1.0)


@pytest.mark.parametrize("size", [(25, 25), (50, 25)])
def test_a_smaller_soft_target_is_that_of_the_nearest_resized_labels(size: tuple[int, int]) -> None:
    import torch
    import torch.nn.functional as F

    sample = GEOMETRIC["all at once"](_sample(), np.random.default_rng(2))
    values, valid = sample_soft(sample.soft_seg, sample.coordinates, size)
    labels = F.interpolate(
        torch.from_numpy(sample.sem_seg)[None, None].float(), size=size, mode="nearest-exact"
    )
    small = labels[0, 0].numpy().astype(np.uint8)
    interior = _interior(sample.sem_seg)
    rows, columns = ((2 * np.arange(out) + 1) * 75 // (2 * out) for out in size)
    sure = interior[rows][:, columns] & (small != 255)
    assert sure.sum() > 30
    assert valid[sure].all()
    np.testing.assert_array_equal(values.argmax(axis=0)[sure], small[sure])


@pytest.mark.parametrize("seed", range(8))
def test_windows_drawn_at_once_equal_those_in_a_row(seed: int) -> None:
    steps = [ZoomOut(0.5), IoUCrop(1.0), Flip(0.5), Resize(300, 300)]
    row = Compose(steps)(_sample(), np.random.default_rng(seed))
    once = Windows(steps)(_sample(), np.random.default_rng(seed))
    assert row.labels.tolist() == once.labels.tolist()
    # the picture's borders are rounded to whole pixels of the result, so everything within a pixel
    np.testing.assert_allclose(row.boxes, once.boxes, atol=1.0)
    assert (row.sem_seg != once.sem_seg).mean() < 0.03
    # in fractions of the image, a pixel of the result is at least 1/300 of the window
    step = np.abs(np.diff(once.coordinates, axis=1)[..., 0]).max()
    assert np.abs(row.coordinates - once.coordinates)[once.sem_seg != 255].max() <= 1.01 * max(step, 1 / 300)


@pytest.mark.parametrize("name", [*GEOMETRIC, "built"])
def test_equal_generators_give_equal_samples(name: str) -> None:
    transform = GEOMETRIC.get(name) or build_transforms(bare_config(), train=True)
    first, second = (transform(_sample(), np.random.default_rng([4, 0, 9])) for _ in range(2))
    for field in ("image", "boxes", "labels", "sem_seg", "coordinates"):
        np.testing.assert_array_equal(getattr(first, field), getattr(second, field))


def test_the_input_is_not_changed() -> None:
    sample = _sample()
    before = dataclasses.replace(sample, image=sample.image.copy(), boxes=sample.boxes.copy())
    build_transforms(bare_config(), train=True)(sample, np.random.default_rng(0))
    np.testing.assert_array_equal(sample.image, before.image)
    np.testing.assert_array_equal(sample.boxes, before.boxes)
    assert sample.coordinates is None


def test_zoom_out_places_the_image_on_the_mean_colour() -> None:
    sample = ZoomOut(1.0, min_factor=2.0, max_factor=2.0)(_sample(), np.random.default_rng(0))
    assert sample.image.shape == (2 * HEIGHT, 2 * WIDTH, 3)
    x0, y0 = (sample.boxes[0, :2] - RECTANGLES[1][:2]).astype(int)
    np.testing.assert_array_equal(sample.image[y0 : y0 + HEIGHT, x0 : x0 + WIDTH], _sample().image)
    assert (sample.sem_seg == 255).sum() == 3 * HEIGHT * WIDTH
    # continued linearly: two pixels left of the image stand at −1.5 pixels of its width
    if x0 >= 2:
        assert sample.coordinates[0, x0 - 2, 0] == pytest.approx(-1.5 / WIDTH, abs=1e-6)


def test_zoom_out_is_tossed_for_each_image_or_once_per_run() -> None:
    def shares(transform: ZoomOut) -> float:
        return float(
            np.mean(
                [transform(_sample(), np.random.default_rng(i)).image.shape[0] > HEIGHT for i in range(60)]
            )
        )

    assert 0.3 < shares(ZoomOut(0.5)) < 0.7
    assert {shares(ZoomOut(0.5, per_run_seed=seed)) for seed in range(8)} == {0.0, 1.0}


def test_zoom_out_can_fill_with_background() -> None:
    sample = ZoomOut(1.0, fill_seg=0)(_sample(), np.random.default_rng(0))
    assert not (sample.sem_seg == 255).any()


@pytest.mark.parametrize("seed", range(30))
def test_a_crop_keeps_the_boxes_whose_centre_is_inside_and_reaches_the_overlap(seed: int) -> None:
    sample = _sample()
    frame = Frame.of(sample)
    IoUCrop(1.0, min_overlaps=(0.3,))(sample, np.random.default_rng(seed))
    IoUCrop(1.0, min_overlaps=(0.3,)).propose(frame, np.random.default_rng(seed))
    x0, y0, x1, y1 = frame.x0, frame.y0, frame.x1, frame.y1
    assert 0 <= x0 < x1 <= WIDTH
    assert 0 <= y0 < y1 <= HEIGHT
    if (x0, y0, x1, y1) == (0, 0, WIDTH, HEIGHT):
        assert frame.keep.all()
        return
    area, aspect = (x1 - x0) * (y1 - y0) / (WIDTH * HEIGHT), (x1 - x0) / (y1 - y0)
    assert 0.29 < area < 1.01
    assert 0.48 < aspect < 2.06
    best = 0.0
    for (bx0, by0, bx1, by1), kept in zip(sample.boxes, frame.keep):
        assert kept == (x0 < (bx0 + bx1) / 2 < x1 and y0 < (by0 + by1) / 2 < y1)
        both = max(0, min(x1, bx1) - max(x0, bx0)) * max(0, min(y1, by1) - max(y0, by0))
        union = (x1 - x0) * (y1 - y0) + (bx1 - bx0) * (by1 - by0) - both
        best = max(best, both / union * kept)
    assert best >= 0.3


def test_a_crop_after_zoom_out_of_an_image_without_boxes_still_shows_the_image() -> None:
    empty = _sample().select(np.zeros(3, bool))
    transform = Windows([ZoomOut(1.0, min_factor=4.0), IoUCrop(1.0), Resize(60, 60)])
    for seed in range(40):
        assert (transform(empty, np.random.default_rng(seed)).sem_seg != 255).any()


@pytest.mark.parametrize(
    ("short", "window", "padding"),
    [
        (180, 30, 0),  # twice as large: 60 pixels show 30
        (90, 60, 0),  # as it is
        (45, 120, 30),  # half as large: 120 pixels show all of the width, and 30 rows more than the height
    ],
)
def test_a_scaled_crop_shows_so_much(short: int, window: int, padding: int) -> None:
    """Of an image of 90 × 120 at another short side, 60 × 60."""
    frame = Frame.of(_sample())
    ScaleCrop(60, (short, short)).propose(frame, np.random.default_rng(1))
    assert (frame.x1 - frame.x0, frame.y1 - frame.y0) == (window, window)
    assert 0 <= frame.x0 <= max(0, WIDTH - window)
    assert 0 <= frame.y0 <= max(0, HEIGHT - window)
    sample = Resize(60, 60)(frame.render(_sample()), np.random.default_rng(0))
    # the image stands at the upper end; what is below it is void
    void = (sample.sem_seg == 255).all(axis=1)
    assert void.sum() == 60 * padding // window
    assert not void[: 60 - void.sum()].any()
    assert len(sample.boxes) == frame.keep.sum()


def test_short_sides_are_drawn_from_the_whole_range() -> None:
    sides = set()
    for seed in range(200):
        frame = Frame.of(_sample())
        ScaleCrop(90, (88, 92)).propose(frame, np.random.default_rng(seed))
        sides.add(frame.x1 - frame.x0)
    # 90 · 90 / 88 … 90 · 90 / 92, rounded
    assert sides == {92, 91, 90, 89, 88}


def test_antialias_is_pillow_s_bilinear_filter() -> None:
    from PIL import Image

    pixels = np.random.default_rng(0).integers(0, 255, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    sample = dataclasses.replace(_sample(), image=pixels)
    for size in ((40, 50), (200, 170)):
        expected = np.asarray(Image.fromarray(pixels).resize(size[::-1], Image.Resampling.BILINEAR))
        resized = Resize(*size, antialias=True)(sample, np.random.default_rng(0))
        np.testing.assert_array_equal(resized.image, expected)
        plain = Resize(*size)(sample, np.random.default_rng(0))
        np.testing.assert_array_equal(resized.sem_seg, plain.sem_seg)
        np.testing.assert_array_equal(resized.coordinates, plain.coordinates)


def test_a_blur_spreads_each_pixel_by_a_gaussian_and_leaves_the_labels() -> None:
    """A white pixel on black, σ 1: 255 / (2π) = 40.6 stays at its place, e^(−1/2) of that beside it."""
    pixels = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    pixels[40, 50] = 255
    sample = dataclasses.replace(_sample(), image=pixels)
    blurred = Blur(1.0, sigma=(1.0, 1.0))(sample, np.random.default_rng(0))
    # the sampled Gaussian's weights sum to 1 only when divided by their sum, 2.5066 for σ 1, so 40.6 and 24.6
    np.testing.assert_allclose(blurred.image[40, 50], 40.6, atol=1.0)
    np.testing.assert_allclose(blurred.image[40, 51], 24.6, atol=1.0)
    np.testing.assert_allclose(blurred.image[41, 50], 24.6, atol=1.0)
    assert blurred.image.astype(int).sum() == pytest.approx(3 * 255, rel=0.1)
    assert blurred.sem_seg is sample.sem_seg
    assert blurred.boxes is sample.boxes
    assert pixels[40, 51, 0] == 0
    share = np.mean([Blur(0.5)(sample, np.random.default_rng(i)) is not sample for i in range(200)])
    assert 0.35 < share < 0.65


def test_the_augmentation_of_fcn_is_built_by_the_configuration() -> None:
    cfg = bare_config()
    cfg.INPUT.update(SIZE=48, SHORT_SIDE=(26, 104), BLUR_PROB=0.5, ANTIALIAS=True, PHOTOMETRIC=False)
    cfg.INPUT.ZOOM_OUT_PROB = cfg.INPUT.CROP_PROB = 0.0
    transform = build_transforms(cfg, train=True)
    shown = []
    for seed in range(60):
        sample = transform(_sample(), np.random.default_rng(seed))
        assert sample.image.shape == (48, 48, 3)
        shown.append(np.ptp(sample.coordinates[..., 1]) * 48 / 47)
    # the window's height over the image's: 48 / 104 at the least, 48 / 26 at the most
    assert min(shown) == pytest.approx(48 / 104, abs=0.06)
    assert max(shown) == pytest.approx(48 / 26, abs=0.3)


def test_resize_of_a_box_is_exact_arithmetic() -> None:
    sample = Resize(180, 60)(_sample(), np.random.default_rng(0))
    np.testing.assert_allclose(sample.boxes, _sample().boxes * [0.5, 2, 0.5, 2])


def test_flip_twice_is_the_identity() -> None:
    rng = np.random.default_rng(0)
    sample = Flip(1.0)(Flip(1.0)(_sample(), rng), rng)
    np.testing.assert_array_equal(sample.image, _sample().image)
    np.testing.assert_allclose(sample.boxes, _sample().boxes)
    np.testing.assert_allclose(sample.coordinates, identity_coordinates(HEIGHT, WIDTH), atol=1e-6)


def test_a_quarter_turn_of_a_square_image_is_numpy_s() -> None:
    class Quarter:
        def random(self) -> float:
            return 0.0

        def uniform(self, low: float, high: float) -> float:
            return 90.0

    pixels = np.random.default_rng(0).integers(0, 255, (31, 31, 3), dtype=np.uint8)
    box = np.asarray([[2, 5, 10, 9]], np.float32)
    one = dict(labels=np.ones(1, np.int64), confidences=np.ones(1, np.float32))
    flags = dict(from_teacher=np.zeros(1, bool), difficult=np.zeros(1, bool))
    sample = Sample(pixels, "x", boxes=box, sem_seg=pixels[..., 0].copy(), **one, **flags)
    turned = Rotate(90.0)(sample, Quarter())  # type: ignore[arg-type]
    # OpenCV's positive angle turns anticlockwise, as np.rot90 does: (x, y) → (y, 31 − x)
    np.testing.assert_array_equal(turned.image, np.rot90(pixels))
    np.testing.assert_array_equal(turned.sem_seg, np.rot90(pixels[..., 0]))
    np.testing.assert_allclose(turned.boxes, [[5, 21, 9, 29]], atol=1e-4)
    np.testing.assert_allclose(turned.coordinates, np.rot90(identity_coordinates(31, 31)), atol=1e-6)


def test_boxes_with_a_short_side_are_dropped() -> None:
    sample = _sample()
    sample.boxes = np.asarray([[0, 0, 1.9, 50], [0, 0, 2, 2], [0, 0, 50, 1]], np.float32)
    assert DropSmallBoxes(2.0)(sample, np.random.default_rng(0)).labels.tolist() == [2]


def test_move_coordinates_continues_an_affine_field_exactly() -> None:
    y, x = np.mgrid[0:5, 0:7].astype(np.float32)
    field = np.stack([0.1 * x + 0.03 * y - 0.2, 0.2 * y - 0.01 * x + 0.3], axis=2)
    xs, ys = np.asarray([-3.0, 0.25, 8.5]), np.asarray([-1.5, 2.0])
    expected = np.stack(
        [0.1 * xs[None] + 0.03 * ys[:, None] - 0.2, 0.2 * ys[:, None] - 0.01 * xs[None] + 0.3], axis=2
    )
    np.testing.assert_allclose(move_coordinates(field, xs, ys), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("ZOOM_OUT_PROB", 1.5),
        ("CROP_PROB", -0.1),
        ("ZOOM_OUT_MAX", 0.5),
        ("ZOOM_OUT_FILL_SEG", 7),
        ("BLUR_PROB", 2.0),
        ("SHORT_SIDE", (9, 3)),
        ("SHORT_SIDE", (9,)),
    ],
)
def test_settings_out_of_range_name_their_key(key: str, value: float) -> None:
    cfg = bare_config()
    cfg.INPUT[key] = value
    with pytest.raises(UserError, match=f"INPUT.{key}"):
        build_transforms(cfg, train=True)


def test_testing_only_resizes() -> None:
    sample = build_transforms(bare_config(), train=False)(_sample(), np.random.default_rng(0))
    assert sample.image.shape == (300, 300, 3)
    np.testing.assert_allclose(sample.boxes, _sample().boxes * [2.5, 300 / 90, 2.5, 300 / 90], rtol=1e-6)
