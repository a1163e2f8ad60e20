"""tools/demo.py for blindnet: regions of any picture, a hole moved over it, and what is refused."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from blindnet_parts import CLASSES, blind_config, dataset, picture
from PIL import Image
from tool_runner import ToolRunner

from blindnet.data import HidingMapper, prepare_data
from blindnet.probe import Probe, Probed, Sweep
from blindnet.probe_pictures import draw_probe, expected_most, percent, sweep_figure
from blindnet.regions import HoleSize, Region
from scenekd import checkpoint
from scenekd.data.mapper import collate
from scenekd.models import build_model
from scenekd.predictor import Predictor

NODE = "MODEL.BLINDNET"
BOXES = [[0, 0, 20, 20], [30, 40, 60, 62]]


def _config(*overrides: object):
    return blind_config(f"{NODE}.TRUNK_WIDTH", 4, "TEST.BATCH_SIZE", 4, *overrides)


def _probe(cfg) -> Probe:
    return Probe(Predictor(build_model(cfg).eval(), cfg))


@pytest.fixture
def run(monkeypatch) -> ToolRunner:
    return ToolRunner("demo", monkeypatch)


@pytest.fixture
def weights(tmp_path):
    """An untrained network that has seen some class more often than another."""
    cfg = _config()
    net = build_model(cfg)
    net.class_shares.copy_(torch.arange(1, 11) / 55)
    checkpoint.save_model(net, cfg.dump(), tmp_path / "model.pth")
    return tmp_path / "model.pth"


@pytest.fixture
def photo(tmp_path):
    """80 × 48 pixels."""
    pixels = np.random.default_rng(0).integers(0, 256, (48, 80, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


# Hidden as in training ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mask", [("box", "inpaint", 2), ("circle", "blur", 0), ("square", "mean", 1)])
def test_a_region_is_hidden_as_an_object_is(mask) -> None:
    """The boxes of two objects, of a picture that is not square, as regions: the network's word on the test cases."""
    keys = (f"{NODE}.MASK.SHAPES", (mask[0],), f"{NODE}.MASK.FILL", mask[1], f"{NODE}.MASK.MARGIN", mask[2])
    cfg = _config(*keys, f"{NODE}.MASK.MAX_AREA", 1.0)
    pool = dataset(picture("a", [(3, BOXES[0]), (4, BOXES[1])], size=(70, 90)))
    cases = HidingMapper(prepare_data(pool, cfg, train=False), cfg, train=False)
    probe = _probe(cfg)
    with torch.no_grad():
        told = probe.net(*collate([cases(0), cases(1)]))
    wanted = torch.stack([each.class_scores for each in told]).softmax(1)
    found = probe.probabilities(pool.records[0].pixels, np.array(BOXES, np.float32), "a")
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-7)


def test_batches_do_not_matter_and_the_network_keeps_its_mode() -> None:
    """Random holes too: they follow from the picture's name and the region's number."""
    cfg = _config(f"{NODE}.MASK.SHAPES", ("blob",), f"{NODE}.MASK.FILL", "noise")
    pixels = picture("a", []).pixels
    boxes = np.array(BOXES * 3, np.float32)
    probe = _probe(cfg)
    probe.net.train()
    first = probe.probabilities(pixels, boxes, "a")
    assert probe.net.training
    probe.batch = 5
    np.testing.assert_allclose(probe.probabilities(pixels, boxes, "a"), first, rtol=1e-5)
    assert first.shape == (6, 10) and np.abs(first[0] - first[2]).max() > 0
    np.testing.assert_allclose(first.sum(axis=1), 1, rtol=1e-5)


def test_what_is_shown_is_the_picture_but_for_the_hole() -> None:
    """A quarter of a picture of another size than the network's: black inside, untouched outside."""
    pixels = np.random.default_rng(0).integers(1, 256, (40, 100, 3), dtype=np.uint8)
    (probed,) = _probe(_config()).regions(pixels, np.array([[50, 0, 100, 20]], np.float32), "a")
    inside = np.zeros((40, 100), bool)
    inside[:20, 50:] = True
    assert np.array_equal(probed.hole, inside)
    assert np.array_equal(probed.shown[~inside], pixels[~inside])
    assert (probed.shown[2:18, 52:] == 0).all() and probed.share == 0.25


def test_a_letterbox_is_not_shown() -> None:
    """The same with borders above and below in the network's input: the hole is where it was asked for, the share is of
    the picture."""
    pixels = np.random.default_rng(0).integers(1, 256, (40, 80, 3), dtype=np.uint8)
    cfg = _config(f"{NODE}.AUGMENT.LETTERBOX", True)
    (probed,) = _probe(cfg).regions(pixels, np.array([[40, 0, 80, 20]], np.float32), "a")
    inside = np.zeros((40, 80), bool)
    inside[:20, 40:] = True
    assert np.array_equal(probed.hole, inside) and probed.share == 0.25
    assert (probed.shown[2:18, 42:] == 0).all() and np.array_equal(probed.shown[~inside], pixels[~inside])


def test_a_sweep_reaches_every_edge() -> None:
    """A hole of 20 × 10 in 80 × 48 with steps of at most 16: 60 / 16 → 4 steps of 15, 38 / 16 → 3 steps of 12.67."""
    probe = _probe(_config())
    pixels = np.random.default_rng(0).integers(0, 256, (48, 80, 3), dtype=np.uint8)
    sweep = probe.sweep(pixels, (20, 10), (16, 16), "a")
    np.testing.assert_allclose(sweep.x, [10, 25, 40, 55, 70])
    np.testing.assert_allclose(sweep.y, [5, 5 + 38 / 3, 5 + 76 / 3, 43])
    box = np.array([[45, 38 / 3, 65, 38 / 3 + 10]], np.float32)
    np.testing.assert_allclose(sweep.probabilities[1, 3], probe.probabilities(pixels, box, "a")[0], rtol=1e-4)
    whole = probe.sweep(pixels, (80, 48), (16, 16), "a")
    assert whole.probabilities.shape == (1, 1, 10)
    assert np.ptp(whole.over_picture(whole.probabilities[..., 0], (48, 80))) == 0
    for size, stride in (((81, 10), (4, 4)), ((20, 10), (4, 0)), ((0, 10), (4, 4))):
        with pytest.raises(ValueError, match="80×48"):
            probe.sweep(pixels, size, stride, "a")


def test_between_the_holes_a_map_is_bilinear() -> None:
    """Centres at x = 2 and 6, y = 1 and 3 with values 0, 4 and 8, 12: at (4, 2), their middle, 6; beyond the outermost
    centres the nearest."""
    sweep = Sweep((2, 2), np.array([2.0, 6]), np.array([1.0, 3]), np.zeros((2, 2, 1)))
    heat = sweep.over_picture(np.array([[0, 4], [8, 12]]), (4, 8))
    # Pixel i is centred at i + ½: the four pixels around (4, 2) have 6 as their mean.
    assert heat[1:3, 3:5].mean() == pytest.approx(6)
    assert heat[0, 0] == 0 and heat[-1, -1] == 12 and heat[0, 7] == 4
    np.testing.assert_allclose(heat[0, 2:6], [0.5, 1.5, 2.5, 3.5], atol=0.07)  # OpenCV's steps of 1/32


# Pictures -------------------------------------------------------------------------------------------------------


def test_bars_are_as_long_as_probabilities_are() -> None:
    """62 %, 25 % and little: of an axis that ends at 100 % the bars fill the shares of 240 pixels."""
    probabilities = np.array([0.25, 0.62, *[0.13 / 8] * 8], np.float32)
    pixels = np.full((100, 100, 3), 200, np.uint8)
    hole = np.zeros((100, 100), bool)
    hole[20:40, 20:40] = True
    drawn = draw_probe([Probed(np.array([20, 20, 40, 40]), probabilities, 0.04, pixels, hole)], CLASSES, None)
    blue = (drawn == (0, 114, 178)).all(axis=2)
    lengths = sorted({int(row.sum()) for row in blue if row.any()}, reverse=True)
    assert lengths[0] == pytest.approx(0.62 * 240, abs=1.5) and lengths[1] == pytest.approx(60, abs=1.5)
    assert (drawn == (255, 64, 64)).all(axis=2).sum() > 100  # the rim
    marked = draw_probe(
        [Probed(np.zeros(4), probabilities, 0.04, pixels, hole)] * 2, CLASSES, np.full(10, 0.1)
    )
    assert marked.shape[0] > 2 * drawn.shape[0] - 40


def test_heat_maps_share_one_scale() -> None:
    """The strongest of both classes is its end; a class that is nowhere the likeliest has no outline."""
    probabilities = np.zeros((2, 2, 3))
    probabilities[..., 0], probabilities[..., 1] = [[0.9, 0.2], [0.2, 0.2]], 0.05
    probabilities[..., 2] = 1 - probabilities[..., 0] - probabilities[..., 1]
    sweep = Sweep((20, 20), np.array([10.0, 70]), np.array([10.0, 38]), probabilities)
    pixels = np.full((48, 80, 3), 90, np.uint8)
    figure = sweep_figure(pixels, sweep, ("cat", "dog", "cow"), [0, 1], "photo")
    maps = [image for axis in figure.axes for image in axis.get_images() if image.get_array().ndim == 2]
    assert [image.get_clim() for image in maps] == [(0, pytest.approx(0.9))] * 2
    titles = [axis.get_title() for axis in figure.axes]
    assert titles[1:3] == ["cat: 20 % to 90 %", "dog: 5.0 % to 5.0 %"]
    assert expected_most([sweep], 2) == [2, 0]
    assert (percent(0.0994), percent(0.0996), percent(1.0)) == ("9.9 %", "10 %", "100 %")


# The tool -------------------------------------------------------------------------------------------------------


def test_regions_by_the_tool(run, weights, photo, tmp_path, capsys) -> None:
    """Pixels and fractions of the same rectangle are one; a hole above the cap is told, and probed all the same."""
    out = tmp_path / "out"
    regions = ("20,12,40,24", "0.25,0.25,0.5,0.5", "0.,0.,1.,0.9")
    assert run("--weights", weights, "--input", photo, "--region", *regions, "--output", out) == 0
    said = capsys.readouterr().out
    assert said.count("the network was never shown so large a one") == 1
    rows = json.loads((out / "probe.json").read_text())
    assert [row["region"] for row in rows] == [[20, 12, 40, 24]] * 2 + [[0, 0, 80, pytest.approx(43.2)]]
    assert [row["above_max_area"] for row in rows] == [False, False, True]
    top = rows[0]["top"]
    assert top == rows[1]["top"] and len(top) == 10
    values = [each["probability"] for each in top]
    assert values == sorted(values, reverse=True) and sum(values) == pytest.approx(1, abs=1e-5)
    assert f"behind 20,12,40,24: {top[0]['class']} {percent(values[0])}" in said
    with Image.open(out / "probe" / "photo.png") as drawn:
        assert drawn.width > 600 and drawn.height > 3 * 216


def test_a_sweep_by_the_tool(run, weights, photo, tmp_path, capsys) -> None:
    out = tmp_path / "out"
    words = ("--sweep", "--size", "24", "0.5,0.25", "--stride", "20", "--classes", "kite", "cow")
    assert run("--weights", weights, "--input", photo, *words, "--output", out) == 0
    # 80 − 24 and 48 − 24 in steps of at most 20: 4 × 3 places; 24 × 12: 4 × 3.
    assert "24 holes; drawn: kite, cow" in capsys.readouterr().out
    rows = json.loads((out / "sweep.json").read_text())
    assert [row["size"] for row in rows] == [[24, 24], [24, 12]]
    assert list(rows[0]["maps"]) == ["kite", "cow"] and np.shape(rows[0]["maps"]["cow"]) == (3, 4)
    names = sorted(path.name for path in (out / "sweep").iterdir())
    assert names == ["photo_24x12.png", "photo_24x24.png"]
    assert not (out / "probe").exists()
    assert run("--weights", weights, "--input", photo, "--sweep", "--output", out) == 0
    rows = json.loads((out / "sweep.json").read_text())
    # By default a hole of a quarter of the shorter side, four strides a hole, and the five most expected classes.
    assert rows[0]["size"] == [12, 12] and len(rows[0]["x"]) == 24 and len(rows[0]["maps"]) == 5


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--region", "1,2,3"), "'1,2,3' is not x1,y1,x2,y2; write 40,30,120,90"),
        (("--region", "1,2,x,4"), "is not x1,y1,x2,y2"),
        (("--region", "1,2,nan,4"), "is not x1,y1,x2,y2"),
        (("--region", "30,10,20,40"), "30,10,20,40 is empty"),
        (("--region", "30,10,40,10"), "is empty"),
        (("--region", "90,10,120,40"), "90,10,120,40 lies outside {photo}, which is 80×48; choose x in 0…80"),
        (("--region", "0,0,80,49"), "lies outside"),
        (("--region=-1,0,20,20",), "lies outside"),
        (("--sweep", "--size", "0"), "--size: '0' is no length above 0"),
        (("--sweep", "--size", "60"), "--size: a hole of 60×60 is larger than {photo}, which is 80×48"),
        (("--sweep", "--stride=-2"), "--stride: '-2' is no length"),
        (("--sweep", "--classes", "kites"), "knows no 'kites' among its 10 classes; such as kite"),
        (("--size", "20", "--region", "0,0,9,9"), "--size: belongs to --sweep"),
        (("--region", "0,0,9,9", "--opts", f"{NODE}.NETWORK", "layout_only"), "layout_only looks at labels"),
        ((), "--region: a network of blindnet looks at a hole; give one, 40,30,120,90"),
    ],
)
def test_what_the_tool_refuses(words, message, run, weights, photo, tmp_path, capsys) -> None:
    out = tmp_path / "out"
    assert run("--weights", weights, "--input", photo, "--output", out, *words) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("error: ") and message.format(photo=photo) in said
    assert not out.exists()


def test_other_networks_are_refused(run, tiny_config, photo, tmp_path, capsys) -> None:
    cfg = tiny_config("run")
    checkpoint.save_model(build_model(cfg, pretrained=False), cfg.dump(), tmp_path / "other.pth")
    assert run("--weights", tmp_path / "other.pth", "--input", photo, "--region", "0,0,9,9") == 2
    assert "the network is of SYSTEM kd_mtl; take one of blindnet" in capsys.readouterr().err


def test_how_numbers_are_read() -> None:
    """Fractions only where all lie in 0…1 and one has a point; (H, W) = (100, 200)."""
    size = (100, 200)
    for text, box in (
        ("0,0,1,1", [0, 0, 1, 1]),
        ("0,0,1.,1", [0, 0, 200, 100]),
        (".5,.25,.75,1", [100, 25, 150, 100]),
        ("0.5,0.5,20,20", [0.5, 0.5, 20, 20]),
    ):
        assert Region.read(text).box(size, "a").tolist() == box
    assert HoleSize.read("0.5").pixels(size) == (50, 50)
    assert HoleSize.read("30,1").pixels(size) == (30, 1) and HoleSize.read("1").pixels(size) == (1, 1)
