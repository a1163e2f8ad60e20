"""One hidden object a sample: candidates, rules for the others, draws, enumeration, the true probabilities."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch
from blindnet_parts import CLASSES, blind_config, dataset, picture

from blindnet.data import HidingMapper, class_shares, enumerate_objects, prepare_data
from blindnet.hiding import Hider
from blindnet.references import reference_results
from blindnet.truth import oracle_probabilities
from scenekd.data.catalog import load_datasets
from scenekd.data.instance_masks import ObjectMap
from scenekd.errors import UserError

MASK = "MODEL.BLINDNET.MASK"
LEFT, RIGHT, WIDE = [0, 0, 20, 20], [40, 40, 60, 60], [0, 0, 64, 40]


def _plain(*overrides: object):
    return blind_config("INPUT.FLIP_PROB", 0.0, "INPUT.PHOTOMETRIC", False, *overrides)


def test_the_cap_is_a_share_of_the_picture(caplog) -> None:
    """20 × 20 of 64 × 64 is .098, 64 × 40 is .625: the picture without a candidate is left out and counted."""
    pool = dataset(picture("a", [(1, LEFT), (2, WIDE)]), picture("bb", [(2, WIDE)]), picture("ccc", []))
    with caplog.at_level(logging.INFO, logger="blindnet"):
        cases = prepare_data(pool, _plain(f"{MASK}.MAX_AREA", 0.5), train=False)
    assert [record.image_id for record in cases.records] == ["a#0"]
    assert "2 of 3 images have no object that can be hidden" in caplog.text
    train = prepare_data(pool, _plain(f"{MASK}.MAX_AREA", 0.5), train=True)
    assert [record.image_id for record in train.records] == ["a"]
    assert len(prepare_data(pool, _plain(f"{MASK}.MAX_AREA", 0.7), train=False)) == 3
    with pytest.raises(UserError, match="MAX_AREA"):
        prepare_data(pool, _plain(f"{MASK}.MAX_AREA", 0.01), train=False)


def test_every_object_is_one_case_in_order() -> None:
    crowd = np.array([True, False, False])
    pool = dataset(
        picture("a", [(3, LEFT), (4, RIGHT)]),
        picture("bb", [(1, WIDE), (5, LEFT), (6, [30, 0, 64, 10])], crowd=crowd),
    )
    cases = enumerate_objects(pool, Hider(len(CLASSES)), 64)
    assert [record.image_id for record in cases] == ["a#0", "a#1", "bb#1", "bb#2"]
    hidden = [record.hidden for record in cases]
    assert [case.label for case in hidden] == [3, 4, 5, 6]
    assert [case.visible for case in hidden] == [1, 1, 1, 1]
    assert hidden[0].ratio == pytest.approx(400 / 4096)


def test_difficult_objects_by_option() -> None:
    pool = dataset(picture("a", [(3, LEFT), (4, RIGHT)], difficult=np.array([True, False])))
    assert len(enumerate_objects(pool, Hider(10), 64)) == 2
    assert [c.image_id for c in enumerate_objects(pool, Hider(10, difficult=False), 64)] == ["a#1"]


def test_others_under_the_hole() -> None:
    """The second object lies whole inside the first, the first mostly outside the second."""
    pool = dataset(picture("a", [(3, [0, 0, 40, 40]), (4, [5, 5, 15, 15]), (5, RIGHT)]))
    skip = enumerate_objects(pool, Hider(10, others="skip"), 64)
    assert [record.image_id for record in skip] == ["a#1", "a#2"]
    for others, classes in (("keep", [3]), ("multi_label", [3, 4])):
        cfg = _plain(f"{MASK}.OTHERS", others)
        mapper = HidingMapper(prepare_data(pool, cfg, train=False), cfg, train=False)
        target = mapper(0)[1]
        assert target.hidden_classes.nonzero().flatten().tolist() == classes
        assert target.visible.tolist() == [False, False, True]
        assert mapper(1)[1].visible.tolist() == [True, False, True]


def test_a_case_shows_its_picture_but_for_the_hole() -> None:
    cfg = _plain()
    pool = dataset(picture("a", [(3, LEFT), (4, RIGHT)]))
    mapper = HidingMapper(prepare_data(pool, cfg, train=False), cfg, train=False)
    for place, (x1, y1, x2, y2) in enumerate((LEFT, RIGHT)):
        image, target = mapper(place)
        hole = torch.zeros(64, 64, dtype=torch.bool)
        hole[y1:y2, x1:x2] = True
        assert image.shape == (4, 64, 64) and image.dtype == torch.uint8
        assert (image[3] == 255 * hole).all() and (image[:3, hole] == 0).all()
        original = torch.from_numpy(pool.records[0].pixels).permute(2, 0, 1)
        assert (image[:3, ~hole] == original[:, ~hole]).all()
        assert (target.image_id, target.hidden) == (f"a#{place}", place)


@pytest.mark.parametrize("fill", ["noise", "zero"])
def test_a_draw_follows_from_seed_and_index(fill) -> None:
    cfg = _plain(f"{MASK}.FILL", fill, f"{MASK}.SHAPES", ("box", "blob"), "INPUT.CROP_PROB", 1.0)
    pool = dataset(*(picture("a" * k, [(3, LEFT), (4, RIGHT)]) for k in range(1, 4)))
    first, again = (HidingMapper(prepare_data(pool, cfg, train=True), cfg, train=True) for _ in range(2))
    order = [5, 2, 9]  # another order and mapper, the same draws
    expected = {index: first(index)[0] for index in range(10)}
    assert all(torch.equal(again(index)[0], expected[index]) for index in order)
    assert len({int(first(index)[1].hidden) for index in range(10)}) == 2
    other = HidingMapper(prepare_data(pool, cfg, train=True), cfg.clone(), train=True)
    other.seed = 1
    assert any(not torch.equal(other(index)[0], expected[index]) for index in range(3))


def test_an_evaluation_does_not_depend_on_the_list() -> None:
    """Shape, blob and noise of a case follow from its name."""
    cfg = _plain(f"{MASK}.FILL", "noise", f"{MASK}.SHAPES", ("square", "blob", "circle"))
    records = [picture("a" * k, [(3, LEFT), (4, RIGHT)]) for k in range(1, 5)]
    whole = HidingMapper(prepare_data(dataset(*records), cfg, train=False), cfg, train=False)
    part = HidingMapper(prepare_data(dataset(*records[2:]), cfg, train=False), cfg, train=False)
    assert all(torch.equal(whole(4 + k)[0], part(k)[0]) for k in range(4))
    assert len({record.hidden.shape for record in whole.dataset.records}) > 1


def test_a_crop_without_a_candidate_gives_way_to_the_whole_picture() -> None:
    """A crop that enlarges the object over the cap cannot hide it: 24² of 64² is .14, of half of it .28."""
    cfg = _plain(f"{MASK}.MAX_AREA", 0.15, "INPUT.CROP_PROB", 1.0)
    pool = dataset(picture("a", [(3, [20, 20, 44, 44])]))
    mapper = HidingMapper(prepare_data(pool, cfg, train=True), cfg, train=True)
    shares = [float((mapper(index)[0][3] > 0).float().mean()) for index in range(30)]
    assert max(shares) <= 0.15 and min(shares) > 0


def test_the_covered_share_grows() -> None:
    cfg = _plain(f"{MASK}.PARTIAL_START", 0.25, f"{MASK}.PARTIAL_ITERS", 10, "SOLVER.IMS_PER_BATCH", 4)
    pool = dataset(picture("a", [(3, [0, 0, 32, 32])]))
    hider = Hider.from_config(cfg)
    assert [hider.share(i) for i in (0, 5, 10, 99)] == [0.25, 0.625, 1.0, 1.0]
    mapper = HidingMapper(prepare_data(pool, cfg, train=True), cfg, train=True)
    areas = [int((mapper(4 * iteration)[0][3] > 0).sum()) for iteration in (0, 5, 10)]
    assert areas == [16 * 16, 25 * 25, 32 * 32]  # sides of √share: √.625 · 32 = 25.3
    cases = HidingMapper(prepare_data(pool, cfg, train=False), cfg, train=False)
    assert (cases(0)[0][3] > 0).sum() == 32 * 32


def test_every_image_or_every_object_is_as_likely() -> None:
    pool = dataset(picture("a", [(3, LEFT)]), picture("bb", [(4, LEFT), (5, RIGHT), (6, [30, 0, 50, 20])]))
    shares = {}
    for draw in ("image", "object"):
        cfg = _plain(f"{MASK}.DRAW", draw)
        mapper = HidingMapper(prepare_data(pool, cfg, train=True), cfg, train=True)
        labels = [int(target.labels[target.hidden]) for _, target in map(mapper, range(120))]
        shares[draw] = labels.count(3) / 120
    assert shares == {"image": 0.5, "object": 0.25}


def test_segments_follow_the_picture(scenes) -> None:
    """The hole is the object's mask, flipped with it."""
    cfg = blind_config(
        "DATASETS.ROOT", scenes, f"{MASK}.SHAPES", ("segment",), "INPUT.FLIP_PROB", 1.0, "INPUT.SIZE", 96
    )
    data = load_datasets(("voc_seg_train",), cfg, train=True)
    assert isinstance(data.records[0].object_masks, ObjectMap) and data.records[0].has_sem_seg
    mapper = HidingMapper(prepare_data(data, cfg, train=True), cfg, train=True)
    assert mapper(0)[1].sem_seg is None  # nothing is learnt from it, so it is not read
    for index in range(6):
        image, target = mapper(index)
        rows, columns = (image[3] > 0).nonzero(as_tuple=True)
        bounds = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        np.testing.assert_allclose(np.array(bounds), target.boxes[target.hidden], atol=1.5)
        box = target.boxes[target.hidden]
        assert len(rows) < float((box[2:] - box[:2]).prod())  # not the box


def test_shares_of_classes() -> None:
    """Three objects of two classes; by pixels 400 of 400 + 400 + 2560 for class 4."""
    pool = dataset(picture("a", [(3, LEFT), (4, RIGHT)]), picture("bb", [(3, WIDE)]))
    assert class_shares(pool)[[3, 4]] == pytest.approx([2 / 3, 1 / 3])
    assert class_shares(pool, "pixels")[4] == pytest.approx(400 / 3360)
    cases = prepare_data(pool, _plain(f"{MASK}.MAX_AREA", 1.0), train=False)
    assert class_shares(cases) == pytest.approx(class_shares(pool))  # a picture counts once


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("SHAPES", ("star",)),
        ("SHAPES", ()),
        ("FILL", "paint"),
        ("OTHERS", "drop"),
        ("DRAW", "class"),
        ("MAX_AREA", 0.0),
        ("MAX_AREA", 1.5),
        ("PARTIAL_START", 0.0),
        ("OTHERS_COVERED", -0.1),
        ("MARGIN", -1),
    ],
)
def test_values_out_of_range_are_refused(key, value) -> None:
    with pytest.raises(UserError, match=f"MASK.{key}"):
        Hider.from_config(blind_config(f"{MASK}.{key}", value))


def test_the_oracle_is_the_generators_posterior(scenes) -> None:
    """Probabilities of every case, in the order of DATASETS.CLASSES; each oracle knows more than the one after it."""
    cfg = blind_config("DATASETS.ROOT", scenes)
    cases = prepare_data(load_datasets(("voc_main_val",), cfg, train=False), cfg, train=False)
    table = oracle_probabilities(cases)["oracle"]
    assert table.shape == (len(cases), 10)
    np.testing.assert_allclose(table.sum(axis=1), 1, atol=1e-4)
    assert {record.hidden.scene for record in cases.records} <= {
        "road",
        "field",
        "sea",
        "kitchen",
        "beach",
        "park",
    }
    reverse = blind_config("DATASETS.ROOT", scenes, "DATASETS.CLASSES", CLASSES[::-1])
    turned = prepare_data(load_datasets(("voc_main_val",), reverse, train=False), reverse, train=False)
    np.testing.assert_array_equal(oracle_probabilities(turned)["oracle"], table[:, ::-1])
    found = reference_results(cases, np.full(10, 0.1))
    assert found["class_prior"]["top1"] == pytest.approx(10)
    assert found["oracle"]["top1"] > found["oracle_without_box"]["top1"] > found["class_prior"]["top1"]
    more = blind_config("DATASETS.ROOT", scenes, "DATASETS.CLASSES", (*CLASSES, "zebra"))
    wider = prepare_data(load_datasets(("voc_main_val",), more, train=False), more, train=False)
    assert oracle_probabilities(wider) == {}  # the generator knows nothing of that class


def test_real_pictures_have_no_oracle() -> None:
    pool = dataset(picture("a", [(3, LEFT)]))
    assert oracle_probabilities(prepare_data(pool, _plain(), train=False)) == {}
    with pytest.raises(UserError, match="DATASETS.CLASSES"):
        prepare_data(pool, _plain("DATASETS.CLASSES", CLASSES[:5]), train=False)


@pytest.mark.parametrize(
    ("names", "root", "classes"),
    [
        (("coco_det_val2017",), "coco_mini", ()),
        (("voc2012_seg_val",), "voc_mini/VOCdevkit", ()),
    ],
)
def test_real_layouts(test_data, names, root, classes) -> None:
    """COCO and VOC: every object that fits is one case, and can be mapped."""
    cfg = blind_config(
        "DATASETS.ROOT", test_data / root, "DATASETS.CLASSES", classes, "DATASETS.MAX_IMAGES", 6
    )
    data = load_datasets(names, cfg, train=False)
    cfg = blind_config("DATASETS.ROOT", test_data / root, "DATASETS.CLASSES", data.classes)
    cases = prepare_data(data, cfg, train=False)
    objects = sum(
        int((~record.crowd).sum()) if record.crowd is not None else len(record.labels)
        for record in data.records
    )
    assert 0 < len(cases) <= objects
    mapper = HidingMapper(cases, cfg, train=False)
    for place in range(0, len(cases), 5):
        image, target = mapper(place)
        share = float((image[3] > 0).float().mean())
        assert share == pytest.approx(cases.records[place].hidden.ratio, abs=1e-6)
        assert int(target.labels[target.hidden]) == cases.records[place].hidden.label
