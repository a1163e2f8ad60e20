"""Options of the detection teacher on the way from its store to the target."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_mapper import _plain
from voc_folder import bare_config, make_voc

from scenekd.data.box_sources import check_plain_boxes
from scenekd.data.catalog import load_datasets
from scenekd.data.mapper import Mapper
from scenekd.data.rotate import Rotate
from scenekd.errors import UserError
from scenekd.sample import Sample
from scenekd.teachers.protocol import Detections

IDS = ("a0", "a1", "a2", "a3")
# On a 60 × 40 image: a sure box, a duplicate of IoU .8 of another class, one of IoU .6 of its own, a faint one.
BOXES, LABELS, SCORES = (
    [[0, 0, 30, 20], [0, 0, 30, 16], [0, 0, 30, 12], [35, 5, 55, 35]],
    [3, 4, 3, 5],
    [0.9, 0.5, 0.3, 0.0005],
)


class Store:
    """The same boxes for every image; ``vectors`` their class probabilities."""

    def __init__(self, vectors: np.ndarray | None = None) -> None:
        self.vectors = vectors

    def __contains__(self, image_id: object) -> bool:
        return image_id in IDS

    def get_detections(self, image_id: str) -> Detections:
        return Detections.build(BOXES, LABELS, SCORES, self.vectors)


def _mapper(folder: Path, store: Any = None, *, plain: bool = True, **options: Any) -> Mapper:
    cfg = bare_config()
    cfg.DATASETS.ROOT, cfg.INPUT.SIZE = str(folder), 64
    cfg.DISTILL.DETECTION.POLICY = "combined"
    for name, value in options.items():
        cfg.DISTILL.DETECTION[name] = value
    dataset = load_datasets(("voc_seg_train",), _plain(cfg) if plain else cfg, train=True)
    return Mapper(dataset, cfg, train=True, teachers={"detection": store or Store()})


def test_by_default_a_target_carries_nothing_more(tmp_path: Path) -> None:
    _, target = _mapper(make_voc(tmp_path))(0)
    fields = (
        target.class_probabilities,
        target.box_weights,
        target.doubtful_boxes,
        target.doubtful_scores,
    )
    assert all(field is None for field in fields)
    assert target.confidences.tolist() == pytest.approx([1.0, 0.9, 0.5, 0.3])


def test_a_teachers_own_distributions_travel_with_its_boxes(tmp_path: Path) -> None:
    vectors = np.eye(21, dtype=np.float32)[[3, 4, 3, 5]] * 0.75
    vectors[:, 20] += 0.25
    _, target = _mapper(make_voc(tmp_path), Store(vectors), CLASS_TARGET="vector")(0)
    # the ground truth's is one-hot; the faint box is filtered out
    one_hot = torch.eye(21)[target.labels[:1]]
    torch.testing.assert_close(
        target.class_probabilities, torch.cat([one_hot, torch.from_numpy(vectors[:3])])
    )


def test_distributions_are_built_where_there_are_none(tmp_path: Path, caplog: Any) -> None:
    mapper = _mapper(make_voc(tmp_path), CLASS_TARGET="vector")
    with caplog.at_level(logging.INFO, logger="scenekd"):
        _, target = mapper(0)
        mapper(1)
    # The first two overlap by .8: classes .9 and .5, scaled to .643 and .357. The third overlaps the first by .6
    # and the second by .75: its own class counts its own score .3, the other .5, background .2.
    expected = torch.zeros(3, 21)
    expected[:2, 3], expected[:2, 4] = 0.9 / 1.4, 0.5 / 1.4
    expected[2, 3], expected[2, 4], expected[2, 20] = 0.3, 0.5, 0.2
    torch.testing.assert_close(target.class_probabilities[1:], expected)
    assert caplog.text.count("come without class probabilities") == 1


def test_box_weights(tmp_path: Path) -> None:
    folder = make_voc(tmp_path)
    _, target = _mapper(folder, BOX_WEIGHT="none")(0)
    assert target.box_weights.tolist() == [1, 1, 1, 1]
    assert target.confidences.tolist() == pytest.approx([1.0, 0.9, 0.5, 0.3])
    # The first and the third are duplicates of each other, IoU .6; the second has none and keeps its score.
    _, target = _mapper(folder, BOX_WEIGHT="quality")(0)
    assert target.box_weights.tolist() == pytest.approx([1, 0.6, 0.5, 0.6])


@pytest.mark.parametrize("plain", [True, False])
def test_all_columns_of_a_box_stay_together(tmp_path: Path, plain: bool) -> None:
    """Through crops that drop boxes: each row still belongs to the box with that label and confidence."""
    options = {"CLASS_TARGET": "vector", "BOX_WEIGHT": "quality", "NEGATIVES": "teacher_aware"}
    vectors = np.eye(21, dtype=np.float32)[LABELS]
    mapper = _mapper(make_voc(tmp_path), Store(vectors), plain=plain, **options)
    weight_of = {0.9: 0.6, 0.5: 0.5, 0.3: 0.6}
    counts = set()
    for index in range(24):
        _, target = mapper(index)
        teacher = target.from_teacher
        counts.add(int(teacher.sum()))
        assert torch.equal(target.class_probabilities.argmax(1), target.labels)
        for confidence, weight in zip(target.confidences[teacher], target.box_weights[teacher]):
            assert weight.item() == pytest.approx(weight_of[round(confidence.item(), 4)])
        assert (target.box_weights[~teacher] == 1).all()
        assert len(target.doubtful_boxes) == len(target.doubtful_scores) == 4
    assert len(counts) == 1 if plain else len(counts) > 1


def test_doubtful_boxes_steer_nothing(tmp_path: Path) -> None:
    folder = make_voc(tmp_path)
    plain = _mapper(folder, plain=False)
    aware = _mapper(folder, plain=False, NEGATIVES="teacher_aware")
    for index in range(12):
        (image, target), (same, doubted) = plain(index), aware(index)
        assert torch.equal(image, same)
        assert torch.equal(target.boxes, doubted.boxes)


def test_doubtful_boxes_move_with_the_image(tmp_path: Path) -> None:
    _, target = _mapper(make_voc(tmp_path), NEGATIVES="teacher_aware")(0)
    # 60 × 40 to 64 × 64; below the filter, too
    scale = torch.tensor([64 / 60, 64 / 40]).repeat(2)
    torch.testing.assert_close(target.doubtful_boxes, torch.tensor(BOXES) * scale)
    torch.testing.assert_close(target.doubtful_scores, torch.tensor(SCORES))
    boxes = np.float32([[10, 5, 30, 25]])
    sample = Sample(np.zeros((40, 60, 3), np.uint8), "x", boxes=boxes, doubtful_boxes=boxes)
    for name in ("labels", "confidences", "from_teacher", "difficult"):
        setattr(sample, name, np.zeros(1, getattr(sample, name).dtype))
    turned = Rotate(30)(sample, np.random.default_rng(0))
    np.testing.assert_array_equal(turned.doubtful_boxes, turned.boxes)
    assert not np.array_equal(turned.boxes, boxes)


def test_doubts_of_the_ground_truth_are_asked_for(tmp_path: Path) -> None:
    folder = make_voc(tmp_path)
    options = {"NEGATIVES": "teacher_aware", "TEACHER_WEIGHT": 0.0}
    _, target = _mapper(folder, **options)(0)
    assert target.doubtful_boxes is None and not target.from_teacher.any()
    _, target = _mapper(folder, **options, NEGATIVES_GROUND_TRUTH=True)(0)
    assert len(target.doubtful_boxes) == 4 and not target.from_teacher.any()


@pytest.mark.parametrize("key", ["CLASS_TARGET", "BOX_WEIGHT", "NEGATIVES"])
def test_unknown_options(tmp_path: Path, key: str) -> None:
    with pytest.raises(UserError, match=rf"DISTILL.DETECTION.{key}: 'magic' is none of"):
        _mapper(make_voc(tmp_path), **{key: "magic"})


def test_pipelines_of_boxes_labels_and_scores_alone() -> None:
    cfg = bare_config()
    check_plain_boxes(cfg)
    cfg.DISTILL.DETECTION.BOX_WEIGHT = "none"
    with pytest.raises(UserError, match="BOX_WEIGHT: none needs SceneKD's own loader; set it to score"):
        check_plain_boxes(cfg)


def test_doubts_without_a_teacher(tmp_path: Path) -> None:
    cfg = bare_config()
    cfg.DATASETS.ROOT = str(make_voc(tmp_path))
    cfg.DISTILL.DETECTION.NEGATIVES = "teacher_aware"
    cfg.DISTILL.DETECTION.NEGATIVES_GROUND_TRUTH = True
    dataset = load_datasets(("voc_seg_train",), cfg, train=True)
    with pytest.raises(UserError, match="set POLICY combined with TEACHER_WEIGHT 0"):
        Mapper(dataset, cfg, train=True)
