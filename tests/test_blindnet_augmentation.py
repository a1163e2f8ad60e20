"""blindnet's augmentation: what its keys do, on which pictures, and where boxes lie afterwards."""

from __future__ import annotations

import numpy as np
import pytest
from blindnet_parts import blind_config, dataset, picture

from blindnet.augmentation import build_augmentation, to_input
from blindnet.data import HidingMapper, prepare_data
from scenekd.errors import UserError
from scenekd.sample import Sample

KEY = "MODEL.BLINDNET.AUGMENT"
PLAIN = ("INPUT.FLIP_PROB", 0.0, "INPUT.PHOTOMETRIC", False)


def _sample(height: int = 40, width: int = 64) -> Sample:
    image = np.random.default_rng(0).integers(60, 200, (height, width, 3), dtype=np.uint8)
    one = np.ones(1, np.float32)
    return Sample(
        image,
        "x",
        boxes=np.array([[10, 8, 40, 30]], np.float32),
        labels=np.array([3]),
        confidences=one,
        from_teacher=one == 0,
        difficult=one == 0,
        has_boxes=True,
    )


def test_nothing_is_done_by_default() -> None:
    found = build_augmentation(blind_config(*PLAIN), train=True)(_sample(64, 64), np.random.default_rng(0))
    np.testing.assert_array_equal(found.image, _sample(64, 64).image)


@pytest.mark.parametrize(
    "key",
    [
        "ROTATE_PROB",
        "SHEAR_PROB",
        "BLUR_OR_JITTER_PROB",
        "RGB_SHIFT_PROB",
        "CHANNEL_SHUFFLE_PROB",
        "TONE_PROB",
    ],
)
def test_each_key_changes_training_alone(key) -> None:
    cfg = blind_config(*PLAIN, f"{KEY}.{key}", 1.0)
    plain = _sample(64, 64).image
    # A shuffle may be the identity, so several draws.
    changed = [
        not np.array_equal(
            build_augmentation(cfg, True)(_sample(64, 64), np.random.default_rng(k)).image, plain
        )
        for k in range(8)
    ]
    assert sum(changed) >= 5
    tested = build_augmentation(cfg, False)(_sample(64, 64), np.random.default_rng(0)).image
    np.testing.assert_array_equal(tested, plain)


@pytest.mark.parametrize("train", [True, False])
def test_gray_and_letterbox_count_in_testing_too(train) -> None:
    """40 × 64 in a square of 64: rows 12…51 hold it, the rest is the mean colour, of luma 117."""
    cfg = blind_config(*PLAIN, f"{KEY}.GRAY", True, f"{KEY}.LETTERBOX", True)
    found = build_augmentation(cfg, train)(_sample(), np.random.default_rng(0))
    assert (found.image == found.image[..., :1]).all()
    assert (found.image[:12] == 117).all() and (found.image[52:] == 117).all()
    luma = _sample().image @ np.array([0.299, 0.587, 0.114])
    np.testing.assert_allclose(found.image[12:52, :, 0], luma, atol=0.6)
    np.testing.assert_array_equal(found.boxes, [[10, 20, 40, 42]])


def test_boxes_on_the_input() -> None:
    """(10, 8, 40, 30) of 40 × 64 on 128: stretched by 2 and 3.2; or moved down by 12 and doubled."""
    boxes = _sample().boxes
    np.testing.assert_allclose(to_input(boxes, (40, 64), 128), [[20, 25.6, 80, 96]], rtol=1e-6)
    np.testing.assert_allclose(to_input(boxes, (40, 64), 128, letterbox=True), [[20, 40, 80, 84]])


def test_the_cap_is_measured_on_the_letterbox() -> None:
    """A box over all of 20 × 64 covers a third of the square, and all of the stretched picture."""
    pool = dataset(picture("a", [(1, [0, 0, 64, 20])], size=(20, 64)))
    with pytest.raises(UserError, match="MAX_AREA"):
        prepare_data(pool, blind_config(), train=False)
    cfg = blind_config(f"{KEY}.LETTERBOX", True)
    cases = prepare_data(pool, cfg, train=False)
    assert cases.records[0].hidden.ratio == pytest.approx(20 / 64)
    image, _ = HidingMapper(cases, cfg, train=False)(0)
    hole = image[3].numpy() > 0
    assert hole[22:42].all() and not hole[:22].any() and not hole[42:].any()


def test_the_papers_list_is_a_training() -> None:
    cfg = blind_config(file="unet_bilinear.yaml")
    node = cfg.MODEL.BLINDNET.AUGMENT
    assert (node.ROTATE_PROB, node.SHEAR_PROB, node.BLUR_OR_JITTER_PROB) == (0.2, 0.1, 0.2)
    assert (node.RGB_SHIFT_PROB, node.CHANNEL_SHUFFLE_PROB, node.TONE_PROB) == (0.5, 0.05, 0.1)
    assert node.LETTERBOX and tuple(cfg.INPUT.SHORT_SIDE) == (422, 422)
    cfg = blind_config("INPUT.SIZE", 64, "INPUT.SHORT_SIDE", "(70,70)", file="unet_bilinear.yaml")
    build = build_augmentation(cfg, train=True)
    shapes = {build(_sample(), np.random.default_rng(k)).image.shape for k in range(10)}
    assert shapes == {(64, 64, 3)}


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ((f"{KEY}.ROTATE_PROB", 0.7, f"{KEY}.SHEAR_PROB", 0.4), "at most 1"),
        ((f"{KEY}.TONE_PROB", -0.1), "at least 0"),
        ((f"{KEY}.RGB_SHIFT_PROB", 1.5), "at most 1"),
        ((f"{KEY}.RGB_SHIFT_PROB", 0.5, f"{KEY}.RGB_SHIFT", -2.0), "negative"),
    ],
)
def test_bad_values_are_refused(overrides, message) -> None:
    with pytest.raises(UserError, match=message):
        build_augmentation(blind_config(*overrides), train=True)
