"""Models and losses of blindnet: closed forms, what each may look at, published weights."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from blindnet_parts import CLASSES, blind_config, dataset, picture
from torch import nn
from torchvision.models import resnet18

from blindnet import build_model
from blindnet.context import HoleConv2d, region_mean
from blindnet.data import HidingMapper, prepare_data
from blindnet.hole_geometry import hole_boxes, hole_geometry
from blindnet.model import NETWORKS
from blindnet.network import class_loss
from blindnet.unet import UNet, filled_boxes, masked_loss, region_scores
from scenekd.data.mapper import collate
from scenekd.errors import UserError
from scenekd.models import predict

NODE = "MODEL.BLINDNET"


def _batch(cfg, others: int = 4):
    """Two pictures: two objects, and one object alone."""
    pool = dataset(
        picture("a", [(3, [0, 0, 20, 20]), (others, [30, 30, 60, 50])]),
        picture("bb", [(1, [10, 10, 40, 50])]),
    )
    cases = prepare_data(pool, cfg, train=False)
    mapper = HidingMapper(cases, cfg, train=False)
    return collate([mapper(0), mapper(2)])


def _net(*overrides: object):
    small = (f"{NODE}.TRUNK_WIDTH", 4, f"{NODE}.WIDTH", 2, f"{NODE}.CONTROL_WIDTH", 8)
    cfg = blind_config(*small, *overrides)
    torch.manual_seed(0)
    return cfg, build_model(cfg)


@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_has_one_interface(name) -> None:
    """Losses with gradients in every trained parameter, and C scores a picture."""
    cfg, net = _net(f"{NODE}.NETWORK", name)
    images, targets = _batch(cfg)
    losses = net(images, targets)
    sum(losses.values()).backward()
    assert all(key.startswith("loss_") and value.ndim == 0 for key, value in losses.items())
    silent = [n for n, p in net.named_parameters() if p.grad is None]
    assert silent == []
    predictions = predict(net.eval(), images, targets)
    assert [p.class_scores.shape for p in predictions] == [(10,), (10,)]
    assert all(torch.isfinite(p.class_scores).all() for p in predictions)


@pytest.mark.parametrize("name", NETWORKS)
def test_nothing_of_the_hidden_object_reaches_a_network(name) -> None:
    """Another class of the hidden object, and other pixels under the hole: the same scores."""
    cfg, net = _net(f"{NODE}.NETWORK", name)
    images, targets = _batch(cfg)
    first = predict(net.eval(), images, targets)
    for target in targets:
        target.labels[target.hidden] = 7
        target.hidden_classes = torch.eye(10)[7]
    second = predict(net, images, targets)
    assert all(torch.equal(a.class_scores, b.class_scores) for a, b in zip(first, second))


@pytest.mark.parametrize(
    ("name", "trunk"),
    [*((name, "resnet18") for name in NETWORKS), *((name, "ffc18") for name in ("context", "pixel_id"))],
)
def test_pictures_that_differ_under_the_hole_alone_score_alike(name, trunk) -> None:
    """From the file to the scores, for every fill that does not look there (``blur`` does)."""
    for fill in ("zero", "mean", "noise", "inpaint"):
        cfg, net = _net(f"{NODE}.NETWORK", name, f"{NODE}.TRUNK", trunk, f"{NODE}.MASK.FILL", fill)
        net.eval()
        scores = []
        for value in (0, 255):
            one = picture("a", [(3, [9, 9, 40, 33]), (4, [45, 30, 60, 50])])
            one.pixels[9:33, 9:40] = value
            mapper = HidingMapper(prepare_data(dataset(one), cfg, train=False), cfg, train=False)
            scores.append(predict(net, *collate([mapper(0)]))[0].class_scores)
        assert torch.equal(*scores)


def test_controls_see_what_their_names_say() -> None:
    pixels, layout = {}, {}
    for name in NETWORKS:
        cfg, net = _net(f"{NODE}.NETWORK", name)
        net.eval()
        images, targets = _batch(cfg)
        shown = images.clone()
        shown[:, :3] = 255 - images[:, :3]
        shown[:, :3] *= images[:, 3:] == 0  # the hole stays dark
        before, after = (predict(net, one, targets)[0].class_scores for one in (images, shown))
        pixels[name] = not torch.equal(before, after)
        others = _batch(cfg, others=8)[1]
        layout[name] = not torch.equal(before, predict(net, images, others)[0].class_scores)
    blind = ("mask_only", "layout_only", "class_prior")
    assert pixels == {name: name not in blind for name in NETWORKS}
    assert layout == {name: name == "layout_only" for name in NETWORKS}


def test_class_loss_in_closed_form() -> None:
    """Scores ln 1, ln 2, ln 1: p = ¼, ½, ¼. Class 1 weighs 1: ln 2. Class 0 and 2 weigh ½ together with q = ½ each:
    ln 4 each. Weighted mean with w = (½, 1, ½): Σwq = 1 + ½, Σ = 1·ln 2 + ½·ln 4."""
    scores = torch.tensor([[0.0, math.log(2), 0.0]]).expand(2, 3)
    classes = torch.tensor([[0.0, 1, 0], [1, 0, 1]])
    weights = torch.tensor([0.5, 1, 0.5])
    expected = (math.log(2) + 0.5 * math.log(4)) / 1.5
    assert class_loss(scores, classes, weights).item() == pytest.approx(expected)
    labels = torch.tensor([1, 2])
    one = torch.eye(3)[labels]
    theirs = nn.functional.cross_entropy(scores, labels, weight=weights)
    assert class_loss(scores, one, weights).item() == pytest.approx(theirs.item())


def test_class_loss_gradients() -> None:
    scores = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    classes = torch.tensor([[1.0, 0, 0, 1], [0, 1, 0, 0], [0, 0, 1, 0]], dtype=torch.float64)
    weights = torch.tensor([1.0, 0.3, 0.5, 0.9], dtype=torch.float64)
    # The loss itself is taken in float32, so a tolerance that this allows.
    assert torch.autograd.gradcheck(
        lambda s: class_loss(s, classes, weights), scores, eps=1e-2, atol=2e-3, rtol=1e-2
    )


def test_masked_loss_in_closed_form() -> None:
    """One class, logits 0 (loss ln 2) in the hole and ln 3 with label 1 (loss ln 4/3) outside, one pixel in four in the
    hole, weight 5: (5 ln 2 + 3 ln 4/3) / 8, whatever the number of pixels."""
    for scale in (1, 3):
        hole = torch.zeros(1, 1, 2 * scale, 2 * scale)
        hole[..., :scale, :scale] = 1
        logits = (1 - hole) * math.log(3)
        truth = torch.ones_like(logits)
        expected = (5 * math.log(2) + 3 * math.log(4 / 3)) / 8
        assert masked_loss(logits, truth, hole, 5.0, torch.ones(1)).item() == pytest.approx(expected)
    # A class of weight 0 does not count.
    two = torch.cat([logits, torch.full_like(logits, 9.0)], dim=1)
    found = masked_loss(
        two, truth.expand_as(two) * 0 + torch.cat([truth, 0 * truth], 1), hole, 5.0, torch.tensor([1.0, 0])
    )
    assert found.item() == pytest.approx(expected)


def test_region_scores_are_sums_of_sigmoids() -> None:
    """Sigmoids ½ and ¾ over two pixels of the hole: ln 1 and ln 3/2; what lies outside does not count."""
    logits = torch.tensor([0.0, math.log(3)]).view(1, 2, 1, 1).expand(1, 2, 3, 3).clone()
    hole = torch.zeros(1, 1, 3, 3)
    hole[..., 0, :2] = 1
    logits[..., 2, 2] = 50
    assert region_scores(logits, hole)[0].tolist() == pytest.approx([0.0, math.log(1.5)], abs=1e-6)


def test_boxes_are_filled_and_overlap() -> None:
    cfg, _ = _net()
    pool = dataset(picture("a", [(3, [0, 0, 20, 20]), (4, [10, 10, 30, 15])]))
    mapper = HidingMapper(prepare_data(pool, cfg, train=False), cfg, train=False)
    truth = filled_boxes([mapper(0)[1]], torch.Size((1, 10, 64, 64)))[0]
    expected = np.zeros((10, 64, 64))
    expected[3, 0:20, 0:20] = expected[4, 10:15, 10:30] = 1
    np.testing.assert_array_equal(truth, expected)


@pytest.mark.parametrize(("upsampling", "deepest"), [("bilinear", 512), ("transposed", 1024)])
def test_unet_has_the_papers_channels(upsampling, deepest) -> None:
    with torch.device("meta"):
        net = UNet(91, upsampling=upsampling)
    assert net.encoder.channels == [64, 128, 256, 512, deepest]
    assert net.encoder.first[0].in_channels == 4 and net.classes.out_channels == 91
    has_weights = any(isinstance(m, nn.ConvTranspose2d) for m in net.modules())
    assert has_weights == (upsampling == "transposed")


def test_the_papers_cnn_at_384() -> None:
    """Dense 512 · 6 · 6 → 1024 → C."""
    with torch.device("meta"):
        net = build_model(blind_config("INPUT.SIZE", 384, f"{NODE}.NETWORK", "cnn", f"{NODE}.WIDTH", 64))
    assert net.network.hidden[0].in_features == 512 * 6 * 6 and net.network.classes.in_features == 1024


def test_region_mean_weighs_cells_by_their_share_of_the_hole() -> None:
    """Two cells of a 4 × 2 picture: the hole covers all of the first and half of the second: (2·1 + 1·7) / 3."""
    features = torch.tensor([1.0, 7.0]).view(1, 1, 1, 2)
    hole = torch.zeros(1, 1, 2, 4)
    hole[..., :3] = 1
    assert region_mean(features, hole).item() == pytest.approx((2 * 1 + 1 * 7) / 3)


def test_geometry_of_a_hole() -> None:
    hole = torch.zeros(2, 1, 10, 20)
    hole[0, 0, 2:6, 5:15] = 1
    hole[1] = 1
    torch.testing.assert_close(hole_boxes(hole), torch.tensor([[0.25, 0.2, 0.75, 0.6], [0, 0, 1, 1]]))
    found = hole_geometry(hole)[0]
    # Centre (.5, .4), sides (.5, .4), logarithms, ln(.5 / .4), covered share .2.
    expected = [0.5, 0.4, 0.5, 0.4, math.log(0.5), math.log(0.4), math.log(1.25), 0.2]
    torch.testing.assert_close(found[4:], torch.tensor(expected))


@pytest.mark.parametrize("trunk", ["resnet18", "densenet121", "vgg16"])
def test_published_weights_fit_and_change_nothing(trunk, tmp_path) -> None:
    """A trunk with the hole's channel, loaded from torchvision's weights, puts out what it does without it."""
    if trunk == "resnet18":
        state = resnet18(weights=None).state_dict()
        torch.save(state, tmp_path / "r18.pth")
        cfg = blind_config(f"{NODE}.TRUNK_WIDTH", 64)
        net = build_model(cfg)
        net.load_trunk(str(tmp_path / "r18.pth"))
        conv = net.network.trunk_net.conv1
        assert torch.equal(conv.weight, state["conv1.weight"]) and not conv.hole_weight.any()
        x = torch.randn(1, 4, 32, 32)
        theirs = nn.functional.conv2d(x[:, :3], state["conv1.weight"], stride=2, padding=3)
        torch.testing.assert_close(conv(x), theirs)
        return
    net = build_model(
        blind_config(f"{NODE}.TRUNK", trunk, f"{NODE}.TRUNK_WIDTH", 64, f"{NODE}.OUTPUT_STRIDE", 32)
    )
    first = next(m for m in net.modules() if isinstance(m, nn.Conv2d))
    assert isinstance(first, HoleConv2d)
    assert net.eval()(torch.zeros(1, 4, 64, 64))[0].class_scores.shape == (10,)


def test_the_prior_and_the_weights_come_from_the_labels() -> None:
    """Classes 3, 3, 4: shares ⅔ and ⅓; weights 1 − share."""
    pool = dataset(
        picture("a", [(3, [0, 0, 20, 20]), (3, [30, 0, 50, 20])]), picture("bb", [(4, [0, 0, 20, 20])])
    )
    _, net = _net(f"{NODE}.NETWORK", "class_prior", f"{NODE}.CLASS_WEIGHTS", "objects")
    net.observe_data(pool)
    torch.testing.assert_close(net.class_weights[[3, 4, 0]], torch.tensor([1 / 3, 2 / 3, 1.0]))
    probabilities = net.eval()(torch.ones(1, 4, 64, 64))[0].class_scores.softmax(0)
    torch.testing.assert_close(probabilities[[3, 4]], torch.tensor([2 / 3, 1 / 3]), atol=1e-4, rtol=0)
    assert "class_shares" in net.state_dict() and "class_weights" not in net.state_dict()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ((f"{NODE}.NETWORK", "fft"), f"{NODE}.NETWORK"),
        ((f"{NODE}.POOL", "max"), "POOL must be"),
        ((f"{NODE}.NETWORK", "unet", "INPUT.SIZE", 72), "multiple of 16"),
        ((f"{NODE}.NETWORK", "unet", f"{NODE}.UPSAMPLING", "cubic"), "UPSAMPLING"),
        ((f"{NODE}.NETWORK", "unet", f"{NODE}.MASK_WEIGHT", 0.0), "MASK_WEIGHT"),
        ((f"{NODE}.NETWORK", "cnn", "INPUT.SIZE", 32), "INPUT.SIZE"),
        ((f"{NODE}.CLASS_WEIGHTS", "inverse"), "CLASS_WEIGHTS"),
        ((f"{NODE}.NETWORK", "cnn", "MODEL.WEIGHTS", "torchvision"), "another network"),
    ],
)
def test_bad_values_are_refused(overrides, message) -> None:
    with pytest.raises(UserError, match=message):
        build_model(blind_config(*overrides))


def test_a_picture_without_a_hole_is_refused() -> None:
    _, net = _net()
    with pytest.raises(UserError, match="hole"):
        net.eval()(torch.zeros(1, 3, 64, 64))
    assert len(CLASSES) == len(net.class_shares)
