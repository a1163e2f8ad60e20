"""The pixel-id and the multi-label network: losses and scores in closed form, their targets."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from blindnet_parts import blind_config, dataset, picture

from blindnet import build_model
from blindnet.data import HidingMapper, prepare_data
from blindnet.multi_label import scene_classes, scene_loss
from blindnet.network import Inputs
from blindnet.pixel_id import class_ids, pixel_loss
from blindnet.registered import RegisteredMaskedContext
from scenekd.data.mapper import collate
from scenekd.errors import UserError

NODE = "MODEL.BLINDNET"


def _config(network: str, *overrides: object):
    small = (f"{NODE}.NETWORK", network, f"{NODE}.TRUNK_WIDTH", 4, "INPUT.FLIP_PROB", 0.0)
    return blind_config(*small, *overrides)


def _masked_picture():
    """Two objects, the smaller on top of the other, and a void row; 64 pixels, so nothing is resized."""
    mask = np.zeros((64, 64), np.uint8)
    mask[0:32, 0:32] = 4
    mask[10:20, 10:30] = 5
    mask[63] = 255
    return picture("a", [(3, [0, 0, 32, 32]), (4, [10, 10, 30, 20])], segmentation=mask.copy), mask


def test_pixel_loss_in_closed_form() -> None:
    """Three pixels of two classes: p = ½ in the hole, label 0 (ln 2, weight 5 · 1); p = ¾, label 1 (ln 4/3, weight
    1 · 3); unknown (weight 0). (5 ln 2 + 3 ln 4/3) / 8, whatever the number of such pixels."""
    for repeats in (1, 4):
        logits = (
            torch.tensor([[0.0, 0.0, 7.0], [0.0, math.log(3), 0.0]]).view(1, 2, 1, 3).repeat(1, 1, repeats, 1)
        )
        truth = torch.tensor([0, 1, 255]).view(1, 1, 3).repeat(1, repeats, 1)
        hole = torch.tensor([1.0, 0, 0]).view(1, 1, 3).repeat(1, repeats, 1)
        found = pixel_loss(logits, truth, hole, 5.0, torch.tensor([1.0, 3.0]))
        assert found.item() == pytest.approx((5 * math.log(2) + 3 * math.log(4 / 3)) / 8)


def test_pixel_loss_without_a_known_pixel_is_zero() -> None:
    logits = torch.randn(1, 3, 2, 2, requires_grad=True)
    loss = pixel_loss(logits, torch.full((1, 2, 2), 255), torch.ones(1, 2, 2), 5.0, torch.ones(3))
    loss.backward()
    assert loss.item() == 0 and not logits.grad.any()


def test_pixel_loss_gradients() -> None:
    torch.manual_seed(0)
    logits = torch.randn(1, 3, 2, 2, dtype=torch.float64, requires_grad=True)
    truth = torch.tensor([[[0, 1], [2, 255]]])
    hole = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]], dtype=torch.float64)
    weights = torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64)
    # The loss itself is taken in float32, so a tolerance that this allows.
    assert torch.autograd.gradcheck(
        lambda x: pixel_loss(x, truth, hole, 5.0, weights), logits, eps=1e-2, atol=2e-3, rtol=1e-2
    )


def test_scores_are_sums_of_probabilities_over_the_hole() -> None:
    """A network whose pixels all say p = (½, ⅜, ⅛), background first: over a hole of 6 pixels 6·⅜ and 6·⅛."""
    net = build_model(blind_config(f"{NODE}.NETWORK", "pixel_id", f"{NODE}.TRUNK_WIDTH", 4)).network.eval()
    with torch.no_grad():
        net.classes.weight.zero_()
        net.classes.bias.fill_(-40.0)
        net.classes.bias[:3] = torch.tensor([0.5, 0.375, 0.125]).log()
    hole = torch.zeros(1, 1, 64, 64)
    hole[..., 2:4, 5:8] = 1
    scores = net(Inputs(torch.randn(1, 3, 64, 64), hole))[0]
    assert scores[:2].exp().tolist() == pytest.approx([6 * 0.375, 6 * 0.125], rel=1e-4)
    # On every fourth pixel each has its cell's share of the hole: 6 / 16 of them in all.
    net.stride = 4
    coarse = net(Inputs(torch.randn(1, 3, 64, 64), hole))[0]
    assert coarse[:2].exp().tolist() == pytest.approx([6 / 16 * 0.375, 6 / 16 * 0.125], rel=1e-4)


def test_class_ids_are_the_data_sets_masks_or_its_boxes() -> None:
    one, mask = _masked_picture()
    cfg = _config("pixel_id")
    _, targets = collate([HidingMapper(prepare_data(dataset(one), cfg, train=True), cfg, train=True)(0)])
    assert np.array_equal(class_ids(targets, (64, 64), from_boxes=False)[0], mask)
    filled = class_ids(targets, (64, 64), from_boxes=True)[0]
    assert np.array_equal(filled[:63], mask[:63]) and not filled[63].any()
    targets[0] = dataclasses.replace(targets[0], sem_seg=None)
    assert (class_ids(targets, (64, 64), from_boxes=False) == 255).all()


def test_masks_are_read_where_they_are_learnt_from() -> None:
    one, _ = _masked_picture()
    for network, target, read in (
        ("pixel_id", "masks", True),
        ("pixel_id", "boxes", False),
        ("context", "masks", False),
    ):
        cfg = _config(network, f"{NODE}.PIXEL_TARGET", target)
        for train in (True, False):
            data = prepare_data(dataset(one), cfg, train=train)
            assert data.records[0].has_sem_seg == (read and train)
    bare = dataset(picture("a", [(3, [0, 0, 20, 20])]))
    with pytest.raises(UserError, match="PIXEL_TARGET"):
        prepare_data(bare, _config("pixel_id"), train=True)


def test_a_mask_follows_crop_and_flip() -> None:
    """In a picture whose pixels tell its label, the target of every draw is what its pixels say."""
    mask = np.zeros((64, 64), np.uint8)
    mask[8:40, 4:30] = 4
    mask[30:60, 34:60] = 6
    one = picture("a", [(3, [4, 8, 30, 40]), (5, [34, 30, 60, 60])], segmentation=mask.copy)
    one.pixels = np.repeat(mask[..., None] * 40, 3, axis=2)
    cfg = _config("pixel_id", "INPUT.FLIP_PROB", 0.5, "INPUT.CROP_PROB", 1.0)
    mapper = HidingMapper(prepare_data(dataset(one), cfg, train=True), cfg, train=True)
    moved = 0
    for index in range(12):
        image, target = mapper(index)
        known = (image[3] == 0) & (target.sem_seg != 255)
        said = (image[0].float() / 40).round().long()
        agree = (said == target.sem_seg)[known].float().mean()
        assert agree > 0.93  # all but edges, over which an enlarged picture is blurred
        moved += bool((target.sem_seg != torch.from_numpy(mask)).any())
    assert 3 < moved < 12


@pytest.mark.parametrize("network", ["pixel_id", "multi_label"])
def test_class_weights_change_the_loss(network) -> None:
    one, _ = _masked_picture()
    losses = []
    for weights in ("none", "objects", "pixels"):
        cfg = _config(network, f"{NODE}.CLASS_WEIGHTS", weights)
        data = prepare_data(dataset(one), cfg, train=True)
        torch.manual_seed(0)
        net = build_model(cfg)
        net.observe_data(data)
        losses.append(sum(net(*collate([HidingMapper(data, cfg, train=True)(0)] * 2)).values()).item())
    assert len({round(loss, 5) for loss in losses}) == 3


def test_scene_loss_in_closed_form() -> None:
    """Probabilities ½ (label 1: ln 2) and ¾ (label 0: ln 4), weights 1 and ½: (ln 2 + ½ ln 4) / 1.5 a picture."""
    logits = torch.tensor([[0.0, math.log(3)]]).repeat(2, 1)
    truth = torch.tensor([[1.0, 0.0]]).repeat(2, 1)
    found = scene_loss(logits, truth, torch.tensor([1.0, 0.5]))
    assert found.item() == pytest.approx((math.log(2) + 0.5 * math.log(4)) / 1.5)


def test_the_scene_holds_visible_and_hidden_classes_and_scores_are_sigmoids() -> None:
    one, _ = _masked_picture()
    cfg = _config("multi_label", f"{NODE}.POOL", "global", f"{NODE}.GEOMETRY", False)
    images, targets = collate(
        [HidingMapper(prepare_data(dataset(one), cfg, train=False), cfg, train=False)(0)]
    )
    assert scene_classes(targets, 10)[0].nonzero().flatten().tolist() == [3, 4]
    net = build_model(cfg).eval()
    with torch.no_grad():
        net.network.classes.weight.zero_()
        net.network.classes.bias.copy_(torch.linspace(-1, 1, 10))
    scores = net(images)[0].class_scores
    torch.testing.assert_close(scores.exp(), torch.linspace(-1, 1, 10).sigmoid())


@pytest.mark.parametrize(
    ("options", "message"),
    [({"network": "pixel_id"}, "PIXEL_TARGET"), ({"augment": {"gray": True}}, "AUGMENT")],
)
def test_what_a_framework_s_pipeline_does_not_bring_is_refused(options, message) -> None:
    with pytest.raises(UserError, match=message):
        RegisteredMaskedContext(num_classes=4, image_size=64, trunk_width=4, **options)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("PIXEL_TARGET", "outlines", "PIXEL_TARGET"),
        ("PIXEL_STRIDE", 0, "PIXEL_STRIDE"),
        ("BACKGROUND_WEIGHT", 0.0, "BACKGROUND_WEIGHT"),
        ("MASK_WEIGHT", -1.0, "MASK_WEIGHT"),
    ],
)
def test_bad_values_are_refused(key, value, message) -> None:
    with pytest.raises(UserError, match=message):
        build_model(_config("pixel_id", f"{NODE}.{key}", value))
