"""Masks, boxes and teachers through detectron2's own augmentations.

The un-augmented image holds its own coordinates as colours, so that where a pixel comes from can be read off the moved
image.
"""

from __future__ import annotations

import numpy as np
import pytest

from scenekd.data.instance_masks import sample_masks
from scenekd.data.soft import sample_soft
from scenekd.errors import UserError
from scenekd.sample import Sample, SoftSegmentation
from scenekd.sampling import draw_rng

pytest.importorskip("detectron2")
from detectron2.data import transforms as T  # noqa: E402
from fvcore.transforms.transform import GridSampleTransform, PadTransform  # noqa: E402
from test_mmseg_pipeline import BOX, CLASSES, HEIGHT, WIDTH, _calm, _labels  # noqa: E402

from scenekd.engines.detectron2_transforms import SceneKDAugmentation  # noqa: E402

pytestmark = pytest.mark.detectron2

CASES = {
    "ResizeShortestEdge, smaller": [T.ResizeShortestEdge(70, 100)],
    "ResizeShortestEdge, larger": [T.ResizeShortestEdge((150, 260), 400, "range")],
    "Resize": [T.Resize((300, 170))],
    "ResizeScale": [T.ResizeScale(0.5, 2.0, 150, 150)],
    "horizontal": [T.RandomFlip(prob=1.0)],
    "vertical": [T.RandomFlip(prob=1.0, horizontal=False, vertical=True)],
    "RandomCrop": [T.RandomCrop("absolute", (64, 80))],
    "RandomCrop, relative": [T.RandomCrop("relative_range", (0.5, 0.5))],
    "CategoryAreaConstraint": [T.RandomCrop_CategoryAreaConstraint("absolute", (64, 80), 0.75, 255)],
    "MinIoURandomCrop": [T.MinIoURandomCrop()],
    "FixedSizeCrop, which pads": [T.FixedSizeCrop((140, 150))],
    "RandomExtent": [T.RandomExtent((0.6, 1.4), (0.2, 0.2))],
    "rotation, larger canvas": [T.RandomRotation([-30, 30])],
    "rotation, same canvas": [T.RandomRotation([-30, 30], expand=False)],
    "colours move nothing": [
        T.RandomFlip(prob=1.0),
        T.RandomBrightness(1.0, 1.0),
        T.RandomContrast(1.0, 1.0),
    ],
    "crop, then pad over what was cut off": [
        T.RandomCrop("absolute", (60, 60)),
        PadTransform(20, 20, 20, 20),
        T.RandomCrop("absolute", (80, 80)),
    ],
    "the three together": [
        T.RandomCrop("relative", (0.8, 0.7)),
        T.ResizeShortestEdge((90, 120, 150), 300, "choice"),
        T.RandomFlip(),
    ],
}


def _sample(falling=False):
    x, y = (np.arange(WIDTH) + 0.5) / WIDTH, (np.arange(HEIGHT)[:, None] + 0.5) / HEIGHT
    image = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    image[..., 0], image[..., 1], image[..., 2] = np.rint(20 + 200 * x), np.rint(20 + 200 * y), 255
    if falling:
        image[..., :2] = 240 - image[..., :2]
    return Sample(
        image=image,
        image_id="a",
        boxes=np.asarray([BOX], np.float32),
        labels=np.asarray([2]),
        confidences=np.asarray([0.5], np.float32),
        from_teacher=np.asarray([True]),
        difficult=np.asarray([False]),
        sem_seg=_labels(),
        soft_seg=SoftSegmentation(
            np.eye(CLASSES, dtype=np.float32)[_labels()].transpose(2, 0, 1), "probabilities"
        ),
    )


@pytest.mark.parametrize("image_format", ["RGB", "BGR"])
@pytest.mark.parametrize("case", CASES)
def test_teacher_follows_every_augmentation(case, image_format):
    """The coordinates are those in the colours; the soft target's argmax is the warped label map; both show padding at
    the same place.

    Colours are rounded to 1/200 of the image, 0.8 pixels, some down, some to the nearest; over a rising and a falling
    image that cancels, so that the mean tells shifts of a fifth of a pixel. (Pillow's extent always rounds down, by the
    same amount everywhere if nothing is scaled: up to half a level is left, in 200, and half a pixel is still told.)
    """
    tolerance = 2.5e-3 if case == "RandomExtent" else 1.2e-3
    move = SceneKDAugmentation(CASES[case], image_format)
    for draw in range(4):
        sample, other = (move(_sample(falling), draw_rng(0, draw)) for falling in (False, True))
        labels, image, field = sample.sem_seg, sample.image.astype(float), sample.coordinates
        assert field.shape[:2] == labels.shape == image.shape[:2]
        assert (sample.height, sample.width) == (HEIGHT, WIDTH)
        values, valid = sample_soft(sample.soft_seg, field)
        seen = valid & (image[..., 2] == 255)  # less where padding is mixed in
        assert seen.sum() > 500
        for axis in (0, 1):
            colours = (image[..., axis][seen], 240.0 - other.image[..., axis][seen])
            errors = [(colour - 20) / 200 - field[..., axis][seen] for colour in colours]
            assert np.abs(errors).max() < 0.015 and abs(np.mean(errors)) < tolerance
        calm = _calm(labels, 3)
        assert calm.mean() > 0.3
        np.testing.assert_array_equal(valid[calm], labels[calm] != 255)
        calm &= valid
        np.testing.assert_array_equal(values.argmax(0)[calm], labels[calm])


@pytest.mark.parametrize("case", [c for c in CASES if "rotation" not in c and "cut off" not in c])
def test_boxes_follow(case):
    """The box surrounds what is still seen of it, to a pixel of the result, with all that belongs to it.

    (detectron2 clips boxes at the end, so that one may reach into padding over what was cut off.)
    """
    sample = SceneKDAugmentation(CASES[case])(_sample(), draw_rng(1, 0))
    rows, columns = np.nonzero(sample.sem_seg == 3)
    if not len(sample.boxes):
        assert not len(rows)
        return
    around = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    np.testing.assert_allclose(sample.boxes[0], around, atol=max(1.5, sample.image.shape[1] / WIDTH))
    assert sample.boxes.dtype == np.float32
    assert (sample.labels[0], sample.confidences[0], sample.from_teacher[0]) == (2, 0.5, True)


def test_masks_of_boxes_follow_alone():
    """Masks stay on the un-augmented image and are sampled by the coordinates, even where nothing else needs them."""
    sample = _sample()
    sample.masks = (sample.sem_seg == 3).astype(np.uint8)[None]
    sample.sem_seg = sample.soft_seg = None
    moved = SceneKDAugmentation([T.RandomFlip(prob=1.0)])(sample, draw_rng(0, 0))
    assert moved.coordinates is not None
    found = sample_masks(moved.masks, moved.coordinates, moved.image.shape[:2])
    np.testing.assert_array_equal(found[0] == 1, (_labels() == 3)[:, ::-1])


def test_a_box_outside_is_dropped():
    """Nothing of the box is in the crop: it goes, with its label; a mask that is missing stays missing."""
    sample = _sample()
    sample.sem_seg = None
    moved = SceneKDAugmentation([T.CropTransform(0, 0, 50, 50)])(sample, draw_rng(0, 0))
    assert len(moved.boxes) == len(moved.labels) == len(moved.confidences) == 0
    assert moved.sem_seg is None and moved.coordinates.shape == (50, 50, 2)


def test_draws_follow_from_the_generator():
    """The same draw moves alike, whatever state numpy is in; another draw moves otherwise."""
    move = SceneKDAugmentation([T.RandomCrop("absolute", (40, 40))])
    first, again, other = (move(_sample(), draw_rng(0, draw)).coordinates for draw in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert not np.allclose(first, other)


def test_what_is_no_affine_map_is_refused():
    """One that bends, one that moves no points; without mask and teacher nothing has to follow."""

    class Bend(T.Transform):
        def apply_image(self, img):
            return img

        def apply_coords(self, coords):
            coords[:, 0] = coords[:, 0] ** 2 / WIDTH
            return coords

    grid = GridSampleTransform(np.zeros((1, HEIGHT, WIDTH, 2), np.float32), "bilinear")
    with pytest.raises(UserError, match="Bend: moves points by no affine map"):
        SceneKDAugmentation([Bend()])(_sample(), draw_rng(0, 0))
    with pytest.raises(UserError, match="GridSampleTransform.*cannot say where points go"):
        SceneKDAugmentation([grid])(_sample(), draw_rng(0, 0))
    sample = _sample()
    sample.sem_seg = sample.soft_seg = None
    assert SceneKDAugmentation([Bend()])(sample, draw_rng(0, 0)).coordinates is None
