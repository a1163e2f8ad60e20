"""Permuted targets: the classes of the training objects are dealt out anew, and what learns from them is the prior."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from blindnet_parts import blind_config, dataset, picture

from blindnet.data import HidingMapper, permute_labels, prepare_data
from blindnet.model import build_model
from scenekd.data.mapper import collate
from scenekd.errors import UserError

KEY = "MODEL.BLINDNET.PERMUTE_TARGETS"
LEFT, RIGHT = [0, 0, 20, 20], [40, 40, 60, 60]


def _pool(count: int = 40):
    """Pictures with one object each: class 2 is small and on the left, class 5 large and on the right."""
    return dataset(
        *(picture(f"p{n}", [(2, LEFT)] if n % 2 else [(5, [24, 24, 62, 62])]) for n in range(count))
    )


def _labels(data) -> list[int]:
    return np.concatenate([record.labels for record in data.records]).tolist()


def test_classes_stay_as_common_as_they_were() -> None:
    """Equal seeds deal alike; nothing but the labels of single objects changes, and not those of the source."""
    crowd = np.array([True, False, False])
    group = picture("g", [(7, LEFT), (1, RIGHT), (3, LEFT)], crowd=crowd)
    none = dataclasses.replace(picture("n", []), boxes=None, labels=None, difficult=None, crowd=None)
    pool = dataset(*_pool().records, group, none, picture("empty", []))
    was = [None if record.labels is None else record.labels.copy() for record in pool.records]
    dealt = permute_labels(pool, 4)
    assert dealt.records[40].labels[0] == 7 and dealt.records[41].labels is None
    assert all(a.boxes is b.boxes for a, b in zip(pool.records, dealt.records))
    for before, record in zip(was, pool.records):
        assert before is None or np.array_equal(before, record.labels)
    flat = [[label for record in one.records if record.labels is not None for label in record.labels.tolist()]
            for one in (pool, dealt, permute_labels(pool, 4), permute_labels(pool, 5))]  # fmt: skip
    assert sorted(flat[0]) == sorted(flat[1]) and flat[0] != flat[1]
    assert flat[1] == flat[2] != flat[3]
    # Objects of one class in 40 that keep it by chance: of two classes of 20 each, half of them, ± 1 / √40 · ½ · 4.
    kept = np.mean(np.array(flat[0][:40]) == np.array(flat[1][:40]))
    assert abs(kept - 0.5) < 0.32


@pytest.mark.parametrize("draw", ["image", "object"])
def test_training_is_permuted_and_evaluation_is_not(draw) -> None:
    """By SEED; an object has one class in every record of its picture."""
    pool = dataset(*(picture(f"p{n}", [(n % 10, LEFT), (3, RIGHT)]) for n in range(12)))
    cfg = blind_config(KEY, True, "SEED", 6, "MODEL.BLINDNET.MASK.DRAW", draw)
    train, test = (prepare_data(pool, cfg, train=one) for one in (True, False))
    dealt = _labels(permute_labels(pool, 6))
    unique = {record.file_name: record for record in train.records}
    assert _labels(dataset(*unique.values())) == dealt != _labels(pool)
    assert [record.hidden.label for record in test.records] == _labels(pool)
    if draw == "object":
        assert [record.hidden.label for record in train.records] == dealt
    plain = prepare_data(pool, blind_config("SEED", 6), train=True)
    assert _labels(plain) == _labels(pool)


def test_masks_are_not_permuted() -> None:
    """The network that learns from masks alone would not notice."""
    cfg = blind_config(KEY, True, "MODEL.BLINDNET.NETWORK", "pixel_id")
    with pytest.raises(UserError, match="PIXEL_TARGET boxes"):
        prepare_data(_pool(), cfg, train=True)
    boxes = blind_config(
        KEY, True, "MODEL.BLINDNET.NETWORK", "pixel_id", "MODEL.BLINDNET.PIXEL_TARGET", "boxes"
    )
    assert len(prepare_data(_pool(), boxes, train=True)) == 40


@pytest.mark.parametrize("permuted", [False, True])
def test_what_learns_from_them_falls_back_to_the_prior(permuted) -> None:
    """Place and size of the hole tell the class for sure; permuted, they tell nothing. 200 objects, half of each class:
    among the 100 of one kind the share of class 2 is hypergeometric, mean ½, sd √(¼ / 100 · 100 / 199) = .035."""
    cfg = blind_config(
        *("MODEL.BLINDNET.NETWORK", "mask_only", KEY, permuted),
        *("INPUT.FLIP_PROB", 0.0, "INPUT.SIZE", 32, "MODEL.BLINDNET.CONTROL_WIDTH", 16),
    )
    pool = _pool(200)
    data = prepare_data(pool, cfg, train=True)
    mapper = HidingMapper(data, cfg, train=True)
    images, targets = collate([mapper(index) for index in range(200)])
    torch.manual_seed(0)
    net = build_model(cfg)
    net.observe_data(data)
    assert net.class_shares[[2, 5]].tolist() == [0.5, 0.5]
    optimizer = torch.optim.Adam(net.parameters(), lr=0.02)
    for _ in range(60):
        optimizer.zero_grad()
        net(images.float(), targets)["loss_class"].backward()
        optimizer.step()
    net.eval()
    with torch.no_grad():
        said = torch.stack([one.class_scores for one in net(images.float())]).softmax(dim=1)
    truth = torch.tensor([pool.records[int(target.image_id[1:])].labels[0] for target in targets])
    right = said[torch.arange(200), truth].mean()
    if permuted:
        assert abs(float(right) - 0.5) < 4 * 0.035
    else:
        assert float(right) > 0.95
