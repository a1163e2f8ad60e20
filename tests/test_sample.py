"""The containers that flow: resizing a prediction, moving a target, choosing boxes."""

from __future__ import annotations

import dataclasses

import cv2
import numpy as np
import pytest
import torch

from scenekd.sample import Prediction, Sample, SoftSegmentation, Target


def test_resize_scales_and_clips_boxes():
    """From 100 high, 200 wide to 50 high, 600 wide: x times 3, y times ½, then clipped to the image."""
    boxes = torch.tensor([[10.0, 20.0, 30.0, 40.0], [-5.0, -5.0, 250.0, 130.0]])
    labels, scores = torch.tensor([1, 0]), torch.tensor([0.9, 0.2])
    before = boxes.clone()
    resized = Prediction((100, 200), boxes, labels, scores).resize(50, 600)
    assert resized.size == (50, 600)
    assert resized.boxes.tolist() == [[30.0, 10.0, 90.0, 20.0], [0.0, 0.0, 600.0, 50.0]]
    assert torch.equal(resized.labels, labels)
    assert torch.equal(resized.scores, scores)
    assert torch.equal(boxes, before)
    assert resized.sem_seg is None


def test_resize_there_and_back():
    """Boxes inside the image come back."""
    boxes = torch.rand(20, 2).sort(0).values.repeat(1, 2) * 60
    there = Prediction((64, 64), boxes).resize(375, 500)
    torch.testing.assert_close(there.resize(64, 64).boxes, boxes)
    none = Prediction((64, 64), torch.zeros(0, 4)).resize(10, 20)
    assert none.boxes.shape == (0, 4)


@pytest.mark.parametrize("size", [(17, 31), (8, 9), (5, 40), (3, 4)])
def test_resize_logits_is_bilinear_with_half_pixel_centres(size):
    """Against OpenCV's bilinear resize, which has half-pixel centres and repeats the border."""
    logits = torch.randn(3, 8, 9, generator=torch.Generator().manual_seed(0))
    resized = Prediction((64, 72), sem_seg=logits).resize(*size)
    expected = cv2.resize(logits.permute(1, 2, 0).numpy(), size[::-1], interpolation=cv2.INTER_LINEAR)
    np.testing.assert_allclose(resized.sem_seg.permute(1, 2, 0).numpy(), expected, atol=1e-5)
    assert resized.boxes is None


def test_resize_by_hand():
    """Two cells 0 and 1 to four: centres at −¼, ¼, ¾, 1¼ of a cell, the outer two held at the border."""
    resized = Prediction((1, 2), sem_seg=torch.tensor([[[0.0, 1.0]]])).resize(1, 4)
    assert resized.sem_seg.tolist() == [[[0.0, 0.25, 0.75, 1.0]]]


def test_resize_half_precision():
    """Mixed precision's logits are resized in float32."""
    logits = torch.tensor([[[0.0, 1000.0]]], dtype=torch.float16)
    assert Prediction((1, 2), sem_seg=logits).resize(1, 4).sem_seg.dtype == torch.float32


def _target(**more):
    empty = torch.zeros(2, dtype=torch.bool)
    return Target(
        "a", torch.rand(2, 4), torch.tensor([0, 1]), torch.ones(2), empty, empty, height=5, width=6, **more
    )


def test_target_to_moves_every_tensor():
    """All tensors move, what is missing stays missing, and the original stays where it was."""
    target = _target(soft_seg=torch.rand(3, 2, 2), soft_valid=torch.ones(2, 2, dtype=torch.bool))
    moved = target.to("meta")
    for field in dataclasses.fields(Target):
        old, new = getattr(target, field.name), getattr(moved, field.name)
        if isinstance(old, torch.Tensor):
            assert new.device.type == "meta", field.name
            assert old.device.type == "cpu"
            assert (new.dtype, new.shape) == (old.dtype, old.shape)
        else:
            assert new is old or new == old
    assert moved.sem_seg is None
    assert torch.equal(target.to("cpu").boxes, target.boxes)


@pytest.mark.parametrize("form", ["logit", "", "softmax", None])
def test_soft_segmentation_forms(form):
    """Only the three forms exist; a misspelt one is never taken for another."""
    with pytest.raises(ValueError, match="form must be one of"):
        SoftSegmentation(np.zeros((2, 3, 3), np.float32), form)


def test_select_keeps_the_fields_of_a_box_together():
    """By mask and by index; the image and the original sample are untouched."""
    sample = Sample(
        image=np.zeros((4, 6, 3), np.uint8),
        image_id="x",
        boxes=np.arange(12, dtype=np.float32).reshape(3, 4),
        labels=np.array([5, 6, 7]),
        confidences=np.array([1.0, 0.5, 0.25], np.float32),
        from_teacher=np.array([False, True, True]),
        difficult=np.array([True, False, False]),
        has_boxes=True,
    )
    assert (sample.height, sample.width) == (4, 6)
    for keep in (np.array([True, False, True]), np.array([0, 2])):
        chosen = sample.select(keep)
        assert chosen.boxes[:, 0].tolist() == [0.0, 8.0]
        assert chosen.labels.tolist() == [5, 7]
        assert chosen.confidences.tolist() == [1.0, 0.25]
        assert chosen.from_teacher.tolist() == [False, True]
        assert chosen.difficult.tolist() == [True, False]
        assert chosen.has_boxes
        assert chosen.image is sample.image
    assert len(sample.select(np.zeros(3, bool)).boxes) == 0
    assert len(sample.boxes) == 3
