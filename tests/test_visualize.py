"""Pictures: colours, what is drawn where, what a panel says of missing labels, curves."""

from __future__ import annotations

import io
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from scenekd import visualize
from scenekd.drawing import draw_masks, object_colours
from scenekd.sample import Prediction
from scenekd.visualize import View, blend_mask, colourise, draw_boxes, panel, stack_tiles
from scenekd.visualize_curves import bar_chart, evaluation_curves, loss_curves, running_mean

CLASSES = ("aeroplane", "bicycle", "bird")


def picture(height: int = 64, width: int = 96) -> np.ndarray:
    return np.full((height, width, 3), 90, np.uint8)


def test_colours_are_vocs() -> None:
    # VOC's development kit: 1 aeroplane (128, 0, 0), 2 bicycle (0, 128, 0), 15 person (192, 128, 128), void.
    mask = np.array([[0, 1, 2, 15, 255]], np.uint8)
    expected = [(0, 0, 0), (128, 0, 0), (0, 128, 0), (192, 128, 128), (224, 224, 192)]
    np.testing.assert_array_equal(colourise(mask)[0], expected)


def test_blend_greys_the_background_and_mixes_the_classes() -> None:
    mask = np.zeros((2, 2), np.uint8)
    mask[0, 0] = 1
    image = np.full((2, 2, 3), 100, np.uint8)
    mixed = blend_mask(image, mask, opacity=0.5)
    # background: 140 + .45 · 100 = 185; class 1: half of it and of (128, 0, 0): 156.5, 92.5, 92.5, to even
    np.testing.assert_array_equal(mixed[1, 1], [185, 185, 185])
    np.testing.assert_array_equal(mixed[0, 0], [156, 92, 92])
    with pytest.raises(ValueError, match="mask is"):
        blend_mask(image, mask[:1])


def test_box_is_drawn_on_its_border_in_the_colour_of_its_class() -> None:
    image = picture(200, 200)
    drawn = draw_boxes(image, np.array([[50.0, 60.0, 150.0, 160.0]]), np.array([1]), CLASSES)
    # The outermost line (x = 50 and x = 149) is white, the next is bicycle's green; inside nothing changes.
    np.testing.assert_array_equal(drawn[110, 50], [255, 255, 255])
    np.testing.assert_array_equal(drawn[110, 51], [0, 128, 0])
    np.testing.assert_array_equal(drawn[110, 149], [255, 255, 255])
    np.testing.assert_array_equal(drawn[110, 100], image[110, 100])
    assert (image == 90).all(), "the image itself must stay as it is"


@pytest.mark.parametrize("box", [(-20, -20, 5, 5), (95, 60, 300, 200), (10, 10, 10, 10), (90, 0, 96, 64)])
def test_boxes_at_and_beyond_the_border_are_drawn(box: tuple[int, ...]) -> None:
    drawn = draw_boxes(picture(), np.array([box], np.float32), np.array([0]), CLASSES, np.array([0.5]))
    assert drawn.shape == (64, 96, 3)
    assert (drawn != 90).any()


def test_the_surest_box_lies_on_top() -> None:
    boxes = np.array([[20.0, 40, 180, 180], [20.0, 40, 180, 180]])
    drawn = draw_boxes(picture(200, 200), boxes, np.array([0, 1]), CLASSES, np.array([0.9, 0.4]))
    np.testing.assert_array_equal(drawn[100, 21], [128, 0, 0])


def test_masks_are_filled_outlined_and_overlap_in_order() -> None:
    masks = np.zeros((2, 20, 20), bool)
    masks[0, 5:15, 5:15] = masks[1, 10:20, 10:20] = True
    colours = np.array([[200, 0, 0], [0, 100, 0]], np.uint8)
    drawn = draw_masks(np.full((20, 20, 3), 100, np.uint8), masks, colours, opacity=0.5, line=2)
    # grey: 70 + .65 · 100 = 135; filled: half of it and half of the colour, to even; two pixels of outline
    np.testing.assert_array_equal(drawn[0, 0], [135, 135, 135])
    np.testing.assert_array_equal(drawn[8, 8], [168, 68, 68])
    np.testing.assert_array_equal(drawn[5:7, 8], [[200, 0, 0]] * 2)
    # the second lies below, and is outlined along the image's border too
    np.testing.assert_array_equal(drawn[14, 14], [200, 0, 0])
    np.testing.assert_array_equal(drawn[16, 16], [68, 118, 68])
    np.testing.assert_array_equal(drawn[19, 15], [0, 100, 0])


def test_object_colours_differ() -> None:
    colours = object_colours(12).astype(int)
    apart = np.abs(colours[:, None] - colours).sum(axis=2) + 1000 * np.eye(12, dtype=int)
    assert apart.min() > 60
    np.testing.assert_array_equal(object_colours(5), object_colours(12)[:5])


def test_equal_objects_have_equal_colours_in_all_views() -> None:
    """The first view's two boxes come in another order in the second, which has masks; its third box is new."""
    boxes = np.array([[10.0, 10, 60, 60], [100, 100, 180, 180], [20, 120, 60, 190]])
    labels = np.array([0, 1, 2])
    masks = np.zeros((3, 200, 200), bool)
    masks[0, 120:160, 120:160] = True  # of the box that comes first there
    truth = View("truth", boxes[:2], labels[:2])
    order = [1, 0, 2]
    student = View("student", boxes[order] + 2, labels[order], np.array([0.9, 0.8, 0.7]), None, masks)
    drawn = panel(picture(200, 200), [truth, student], CLASSES, side=200)
    # one row, and no legend, as colours tell no classes: image, truth, student
    assert drawn.shape == (200 + 20 + 12, 3 * 206 + 6, 3)
    colours = object_colours(3)
    first, second = (drawn[26:, left : left + 200] for left in (212, 418))
    for tile, shift in ((first, 0), (second, 2)):
        np.testing.assert_array_equal(tile[40, 11 + shift], colours[0])
        np.testing.assert_array_equal(tile[140, 101 + shift], colours[1])
    np.testing.assert_array_equal(second[150, 23], colours[2])
    np.testing.assert_array_equal(second[120, 140], colours[1])  # the mask's outline
    np.testing.assert_array_equal(first[120, 140], [90, 90, 90])


def rows_of(drawn: np.ndarray, tile_height: int) -> int:
    return round((drawn.shape[0] - 6) / (tile_height + 20 + 6))


def test_panel_enlarges_small_images_and_lays_out_both_tasks() -> None:
    mask = np.zeros((64, 96), np.uint8)
    truth = View("ground truth", np.array([[0.0, 0, 48, 32]]), np.array([0]), None, mask)
    student = View("student", np.zeros((0, 4)), np.zeros(0, np.int64), np.zeros(0), mask)
    drawn = panel(picture(), [truth, View("teacher"), student], CLASSES, side=300)
    # A tile is 300 × 200 and a caption of 20; image, three views in a row; boxes and masks are two rows.
    assert drawn.shape == (2 * (200 + 20 + 6) + 6, 4 * (300 + 6) + 6, 3)
    # The box's right border, x = 48, is enlarged 300 / 96 times, to 150: its white line is at 149.
    tile = drawn[6 + 20 :, 6 + 306 :]
    np.testing.assert_array_equal(tile[60, 149], [255, 255, 255])
    # The teacher says nothing: a plain tile with grey words in both rows.
    plain = drawn[6 + 20 : 6 + 220, 6 + 2 * 306 : 6 + 2 * 306 + 300].reshape(-1, 3)
    assert (plain == 226).all(1).mean() > 0.9
    assert plain.min() < 150


def test_panel_of_one_task_has_one_row() -> None:
    boxes_only = View("student", np.array([[0.0, 0, 9, 9]]), np.array([2]), np.array([0.9]))
    drawn = panel(picture(), [boxes_only], CLASSES, side=300)
    assert drawn.shape == (200 + 20 + 12, 3 * 306 + 6, 3)


def test_boxes_below_the_score_are_counted_not_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    captions: list[str] = []
    original = visualize._Tiles.captioned

    def note(self: visualize._Tiles, tile: np.ndarray, caption: str) -> np.ndarray:
        captions.append(caption)
        return original(self, tile, caption)

    monkeypatch.setattr(visualize._Tiles, "captioned", note)
    scores = np.array([0.1, 0.3, 0.8])
    view = View("student", np.tile([[1.0, 1, 30, 30]], (3, 1)), np.array([0, 1, 2]), scores)
    panel(picture(), [view, View("teacher")], CLASSES, min_score=0.3)
    assert "student: 2 of 3 boxes ≥ 0.3" in captions
    assert "teacher: no boxes" in captions
    panel(picture(), [view], CLASSES, min_score=0.9)
    assert "student: 3 surest of 3 boxes, all < 0.9" in captions
    many = View("truth", np.ones((20, 4)), np.zeros(20, np.int64))
    panel(picture(), [many], CLASSES)
    assert "truth: 20 boxes; 12 drawn" in captions
    assert not any("mask" in caption for caption in captions)


def test_very_flat_images_keep_room_for_the_legend() -> None:
    drawn = panel(picture(8, 400), [View("gt", sem_seg=np.full((8, 400), 3, np.uint8))], CLASSES, side=300)
    assert drawn.shape[0] == 170 + 20 + 12


def test_stack_tiles_places_them_with_gaps() -> None:
    black, red = np.zeros((4, 5, 3), np.uint8), np.full((4, 5, 3), (255, 0, 0), np.uint8)
    stacked = stack_tiles([[black, red]])
    assert stacked.shape == (4 + 12, 2 * 5 + 18, 3)
    np.testing.assert_array_equal(stacked[6, 6], [0, 0, 0])
    np.testing.assert_array_equal(stacked[6, 5 + 12], [255, 0, 0])
    np.testing.assert_array_equal(stacked[6, 5 + 6], [255, 255, 255])


def test_view_of_a_prediction_takes_the_likeliest_class() -> None:
    logits = torch.tensor([[[0.0, 3.0]], [[1.0, 2.0]]])
    prediction = Prediction((1, 2), torch.ones(1, 4), torch.tensor([1]), torch.tensor([0.5]), logits)
    view = View.of_prediction("student", prediction)
    assert view.sem_seg is not None and view.sem_seg.tolist() == [[1, 0]]
    assert view.labels is not None and view.labels.dtype == np.int64
    nothing = View.of_prediction("student", Prediction((1, 2)))
    assert nothing.boxes is None and nothing.sem_seg is None and nothing.masks is None
    prediction.masks = torch.ones(1, 1, 2, dtype=torch.bool)
    assert View.of_prediction("student", prediction).masks.shape == (1, 1, 2)  # type: ignore[union-attr]


def test_running_mean() -> None:
    # Width 1: the mean of up to three neighbours; at the ends of two.
    np.testing.assert_allclose(running_mean(np.array([0.0, 3.0, 6.0, 0.0]), 1), [1.5, 3, 3, 3])


def size_of(png: bytes | None) -> tuple[int, int]:
    assert png is not None
    with Image.open(io.BytesIO(png)) as image:
        assert image.format == "PNG"
        return image.size


def test_curves_are_drawn_from_the_lines_that_have_them() -> None:
    lines = [
        {"iteration": i, "lr": 1e-3, "total_loss": 1 / i, "loss_seg": 1 / i, "time": 0.1}
        for i in range(1, 130)
    ]
    evaluations = [{"iteration": i, "sem_seg/mIoU": 10.0 + i, "bbox/mAP": None} for i in (50, 100)]
    assert loss_curves(evaluations) is None
    assert evaluation_curves([*lines, evaluations[0]]) is None, "one point is no curve"
    three = size_of(loss_curves([*lines, *evaluations]))  # total, segmentation, learning rate: three in a row
    two = size_of(evaluation_curves([*lines, *evaluations]))  # mIoU and the empty mAP
    assert three[0] == 3 * 390 and two[0] == 2 * 390
    assert size_of(loss_curves([{"iteration": 1, "total_loss": math.nan, "lr": 0.1}]))[0] == 2 * 390


def test_bar_chart_takes_missing_values() -> None:
    series = {"mIoU": [30.0, math.nan], "mAP": [10.0, 12.0]}
    assert size_of(bar_chart(["a", "b"], series, {"mIoU": 5.0}))[0] == 2 * 390


def test_panel_of_a_real_image(test_data: Path) -> None:
    from scenekd.data.catalog import load_dataset
    from scenekd.data.images import read_image

    dataset = load_dataset("voc_seg_val", root=str(test_data / "voc_mini"))
    record = dataset.records[0]
    view = View("ground truth", record.boxes, record.labels, None, dataset.read_sem_seg(record))
    drawn = panel(read_image(record), [view], dataset.classes, side=300)
    # 2007_000033: three aeroplanes on 366 × 500; a tile is 300 × 220
    assert drawn.shape == (2 * (220 + 26) + 6, 2 * 306 + 6, 3)
    red = (drawn == (128, 0, 0)).all(2)
    assert red[26:246, 312:612].sum() > 500, "the boxes' lines in aeroplane's colour"
    assert red[246:, :306].any(), "aeroplane's colour in the legend"
