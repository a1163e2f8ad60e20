"""From record to target: sources, filters, random numbers, bad images."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fvcore.common.config import CfgNode
from torch.utils.data import DataLoader
from voc_folder import add_image, add_list, annotation, bare_config, make_voc

from scenekd.data.catalog import load_datasets
from scenekd.data.images import read_image
from scenekd.data.mapper import Mapper, collate
from scenekd.data.policy import SourcePolicy, TaskPolicy
from scenekd.errors import BadRecordError, UserError
from scenekd.sample import SoftSegmentation, SourceWeights
from scenekd.sampling import record_index
from scenekd.teachers.protocol import Detections

REAL = os.environ.get("SCENEKD_TEST_DATA", "")


class Store:
    """A teacher's outputs in memory; counts what was read."""

    classes = ("cat", "dog")

    def __init__(self, ids: list[str], form: str = "probabilities") -> None:
        self.ids, self.form, self.reads = set(ids), form, 0

    def __contains__(self, image_id: object) -> bool:
        return image_id in self.ids

    def get_detections(self, image_id: str) -> Detections:
        boxes = [[0, 0, 30, 20], [5, 5, 50, 35], [1, 1, 9, 9]]
        return Detections.build(boxes, [3, 4, 5], [0.9, 0.5, 0.0005])

    def get_segmentation(self, image_id: str) -> SoftSegmentation:
        self.reads += 1
        values = np.zeros((21, 4, 6), np.float32)
        values[2] = 1.0
        return SoftSegmentation(values, self.form)


def _mapper(folder: Path, train: bool = True, cfg: CfgNode | None = None, **options: Any) -> Mapper:
    cfg = cfg or bare_config()
    cfg.DATASETS.ROOT = str(folder)
    cfg.INPUT.SIZE = 64
    dataset = load_datasets(("voc_seg_train",), cfg, train=train)
    return Mapper(dataset, cfg, train=train, **options)


def _plain(cfg: CfgNode) -> CfgNode:
    """No augmentation but the resize."""
    cfg.INPUT.PHOTOMETRIC = False
    cfg.INPUT.ZOOM_OUT_PROB = cfg.INPUT.CROP_PROB = cfg.INPUT.FLIP_PROB = 0.0
    return cfg


def test_a_test_record_is_resized_and_complete(tmp_path: Path) -> None:
    image, target = _mapper(make_voc(tmp_path), train=False)(2)
    assert image.dtype == torch.uint8
    assert image.shape == (3, 64, 64)
    # the box 20…50 × 10…30 (1-based) of a 60 × 40 image
    torch.testing.assert_close(target.boxes, torch.tensor([[19 * 64 / 60, 9 * 1.6, 50 * 64 / 60, 30 * 1.6]]))
    assert (target.image_id, target.height, target.width) == ("a2", 40, 60)
    assert target.labels.tolist() == [2]
    assert target.confidences.tolist() == [1.0]
    assert not target.from_teacher.any()
    assert set(target.sem_seg.unique().tolist()) == {0, 3}
    assert target.sem_seg.dtype == torch.int64
    assert target.has_boxes
    assert target.has_sem_seg


def test_training_draws_follow_from_seed_and_index(tmp_path: Path) -> None:
    mapper, other = _mapper(make_voc(tmp_path)), _mapper(tmp_path)
    for index in (0, 3, 17):
        image, target = mapper(index)
        again, same = other(index)
        assert torch.equal(image, again)
        assert torch.equal(target.boxes, same.boxes)
        assert target.image_id == f"a{record_index(0, index, 4)}"
    # the same record at another draw looks different
    seen = [index for index in range(40) if record_index(0, index, 4) == 1]
    assert not torch.equal(mapper(seen[0])[0], mapper(seen[1])[0])


def test_workers_change_nothing(tmp_path: Path) -> None:
    mapper = _mapper(make_voc(tmp_path))

    def batches(workers: int) -> list[torch.Tensor]:
        loader = DataLoader(_Draws(mapper), batch_size=4, num_workers=workers, collate_fn=collate)
        return [images for images, _ in loader]

    for one, two in zip(batches(0), batches(2), strict=True):
        assert torch.equal(one, two)


@pytest.mark.parametrize("megabytes", [1, 0.02, 0])
def test_memory_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, megabytes: float) -> None:
    """Every draw is that of a mapper without it, whatever becomes of what is handed out; what fits is read once."""
    files: list[str] = []

    def read(record: Any) -> np.ndarray:
        files.append(record.image_id)
        return read_image(record)

    def mapper(megabytes: float) -> tuple[Mapper, Store]:
        cfg = bare_config(CACHE_MB=megabytes)
        cfg.DISTILL.SEGMENTATION.POLICY = "combined"
        store = Store(["a0", "a1", "a2", "a3"])
        options = {"teachers": {"segmentation": store}, "soft_size": (16, 16)}
        return _mapper(make_voc(tmp_path), cfg=cfg, **options), store

    (keeps, store), (plain, _) = mapper(megabytes), mapper(0)
    monkeypatch.setattr("scenekd.data.mapper.read_image", read)
    for index in range(12):
        image, target = keeps(index)
        count = len(files)
        expected, same = plain(index)
        del files[count:]
        for one, other in (
            (image, expected),
            (target.sem_seg, same.sem_seg),
            (target.soft_seg, same.soft_seg),
        ):
            assert torch.equal(one, other)
            one.zero_()
    if megabytes == 1:
        assert sorted(files) == ["a0", "a1", "a2", "a3"] and store.reads == 4
    elif megabytes:  # of 60 × 40 pixels an image takes 7 kB: some fit
        assert 4 < len(files) < 12
    else:
        assert len(files) == store.reads == 12


def test_memory_below_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="DATASETS.CACHE_MB: -1 must be at least 0"):
        _mapper(make_voc(tmp_path), cfg=bare_config(CACHE_MB=-1))


class _Draws(torch.utils.data.Dataset):  # type: ignore[type-arg]
    def __init__(self, mapper: Mapper) -> None:
        self.mapper = mapper

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> Any:
        return self.mapper(index)


def test_teacher_boxes_join_those_of_the_ground_truth(tmp_path: Path) -> None:
    store = Store(["a0", "a1", "a2", "a3"])
    policy = SourcePolicy(TaskPolicy("combined"), TaskPolicy("ground_truth"))
    mapper = _mapper(
        make_voc(tmp_path), cfg=_plain(bare_config()), teachers={"detection": store}, policy=policy
    )
    _, target = mapper(0)
    # the third box of the teacher scores under .001 and is dropped
    assert target.from_teacher.tolist() == [False, True, True]
    assert target.confidences.tolist() == pytest.approx([1.0, 0.9, 0.5])
    assert target.labels.tolist()[1:] == [3, 4]
    torch.testing.assert_close(target.boxes[1], torch.tensor([0, 0, 32.0, 32.0]))
    assert target.weights == SourceWeights(0.5, 0.5, 1.0, 0.0)
    assert target.has_teacher_boxes


def test_confidences_and_filter_can_be_switched_off(tmp_path: Path) -> None:
    cfg = _plain(bare_config())
    cfg.DISTILL.DETECTION.POLICY = "teacher"
    cfg.DISTILL.DETECTION.USE_CONFIDENCE = False
    cfg.DISTILL.DETECTION.MIN_SCORE = 0.0
    _, target = _mapper(make_voc(tmp_path), cfg=cfg, teachers={"detection": Store(["a0", "a1", "a2", "a3"])})(
        0
    )
    assert target.confidences.tolist() == [1.0, 1.0, 1.0]
    assert target.from_teacher.all()  # ground truth that does not count must not steer the crop
    assert target.has_boxes


def test_the_soft_target_is_read_only_where_it_counts(tmp_path: Path) -> None:
    cfg = bare_config(KEEP_SEM_SEG=0.5)
    cfg.DISTILL.SEGMENTATION.POLICY = "fill_missing"
    store = Store(["a0", "a1", "a2", "a3"])
    mapper = _mapper(make_voc(tmp_path), cfg=cfg, teachers={"segmentation": store}, soft_size=(16, 16))
    targets = [mapper(index)[1] for index in range(4)]
    assert store.reads == 2
    for target in targets:
        assert (target.sem_seg is None) == (target.soft_seg is not None)
        if target.soft_seg is not None:
            assert target.soft_seg.shape == (21, 16, 16)
            assert target.soft_valid.shape == (16, 16)
            assert target.soft_valid.any()
            assert (target.soft_seg[2][target.soft_valid] - 1).abs().max() < 1e-5
            assert (target.soft_seg[:, ~target.soft_valid] == 0).all()


@pytest.mark.parametrize(("void", "read"), [("padding", False), ("labels", True)])
def test_a_mask_of_weight_zero_is_read_only_for_its_void_pixels(
    tmp_path: Path, void: str, read: bool
) -> None:
    cfg = bare_config()
    cfg.DISTILL.SEGMENTATION.POLICY, cfg.DISTILL.SEGMENTATION.VOID = "teacher", void
    mapper = _mapper(make_voc(tmp_path), cfg=cfg, teachers={"segmentation": Store(["a0", "a1", "a2", "a3"])})
    for draw in range(4):
        _, target = mapper(draw)
        assert (target.sem_seg is not None) == (read and target.has_sem_seg)
        assert target.weights.segmentation_gt == 0


def test_the_target_form_is_converted_or_refused(tmp_path: Path) -> None:
    cfg = bare_config()
    cfg.DISTILL.SEGMENTATION.POLICY = "teacher"
    logits = Store(["a0", "a1", "a2", "a3"], form="logits")
    _, target = _mapper(make_voc(tmp_path), train=True, cfg=cfg, teachers={"segmentation": logits})(0)
    # logits 1 on class 2, 0 on the 20 others
    assert target.soft_seg[2][target.soft_valid][0].item() == pytest.approx(np.e / (np.e + 20), rel=1e-5)
    cfg.DISTILL.SEGMENTATION.TARGET = "scores"
    with pytest.raises(UserError, match="TARGET"):
        _mapper(tmp_path, cfg=cfg, teachers={"segmentation": logits})(0)


def test_a_policy_without_its_store_is_refused(tmp_path: Path) -> None:
    cfg = bare_config()
    cfg.DISTILL.SEGMENTATION.POLICY = "fill_missing"
    with pytest.raises(UserError, match="needs a teacher"):
        _mapper(make_voc(tmp_path), cfg=cfg)


def test_missing_labels_are_no_empty_labels(tmp_path: Path) -> None:
    add_image(tmp_path, "empty", annotation([]), np.zeros((40, 60)))
    add_image(tmp_path, "unlabelled")
    add_list(tmp_path, "Segmentation", "train", ["empty", "unlabelled"])
    mapper = _mapper(tmp_path, train=False)
    (_, empty), (_, unlabelled) = mapper(0), mapper(1)
    assert empty.has_boxes
    assert empty.boxes.shape == unlabelled.boxes.shape == (0, 4)
    assert not unlabelled.has_boxes
    assert unlabelled.sem_seg is None
    assert unlabelled.weights == SourceWeights(0, 0, 0, 0)


def test_a_bad_image_stops_or_gives_way_to_the_next(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    make_voc(tmp_path)
    path = tmp_path / "JPEGImages" / "a1.jpg"
    path.write_bytes(path.read_bytes()[:800])
    with pytest.raises(BadRecordError, match=r"a1\.jpg: damaged"):
        _mapper(tmp_path, train=False)(1)
    skipping = _mapper(tmp_path, train=False, cfg=bare_config(ON_ERROR="skip"))
    with caplog.at_level(logging.WARNING):
        assert skipping(1)[1].image_id == skipping(1)[1].image_id == "a2"
    assert skipping.skipped == {"a1"}
    assert len([line for line in caplog.messages if "a1.jpg" in line]) == 1


def test_if_no_image_can_be_read_it_says_so(tmp_path: Path) -> None:
    make_voc(tmp_path, count=2)
    for name in ("a0", "a1"):
        (tmp_path / "JPEGImages" / f"{name}.jpg").write_bytes(b"nothing")
    with pytest.raises(BadRecordError, match="none of its 2 images"):
        _mapper(tmp_path, cfg=bare_config(ON_ERROR="skip"))(0)


def test_an_image_of_another_size_than_its_annotation(tmp_path: Path) -> None:
    make_voc(tmp_path, count=1)
    add_image(tmp_path, "a0", size=(41, 60))
    with pytest.raises(BadRecordError, match="the image is 60×41, its annotation says 60×40"):
        _mapper(tmp_path, train=False)(0)


def test_crowds_are_not_trained_on(tmp_path: Path) -> None:
    mapper = _mapper(make_voc(tmp_path), train=False)
    mapper.dataset.records[0].crowd = np.ones(1, bool)
    assert mapper(0)[1].boxes.shape == (0, 4)


def test_collate_stacks_images_as_floats(tmp_path: Path) -> None:
    mapper = _mapper(make_voc(tmp_path), train=False)
    images, targets = collate([mapper(0), mapper(1)])
    assert images.dtype == torch.float32
    assert torch.equal(images[1], mapper(1)[0].float())
    assert [target.image_id for target in targets] == ["a0", "a1"]


@pytest.mark.skipif(not REAL, reason="SCENEKD_TEST_DATA is not set")
def test_real_images_keep_boxes_and_masks_together() -> None:
    cfg = bare_config(ROOT=f"{REAL}/voc_mini")
    dataset = load_datasets(("voc_seg_train_official",), cfg, train=True)
    mapper = Mapper(dataset, cfg, train=True)
    agreeing = total = 0
    for index in range(30):
        _, target = mapper(index)
        for (x0, y0, x1, y1), label in zip(target.boxes.round().int().tolist(), target.labels.tolist()):
            inside = target.sem_seg[y0:y1, x0:x1]
            total += 1
            agreeing += bool((inside == label + 1).any())
    assert total > 20
    assert agreeing / total > 0.95  # tiny objects may be void altogether


@pytest.mark.skipif(not REAL, reason="SCENEKD_TEST_DATA is not set")
def test_a_real_teacher_agrees_with_the_masks_as_well_after_augmentation_as_before() -> None:
    from scenekd.teachers.build import open_store

    cfg = bare_config(ROOT=f"{REAL}/voc_pool_320")
    cfg.TEACHER.SEGMENTATION.TYPE = "folder"
    cfg.TEACHER.SEGMENTATION.WEIGHTS = f"{REAL}/voc_pool_320/TeacherSegmentation"
    cfg.DISTILL.SEGMENTATION.POLICY = "combined"
    dataset = load_datasets(("voc_seg_train_vocmask",), cfg, train=True)
    options: dict[str, Any] = {
        "teachers": {"segmentation": open_store(cfg, "segmentation")},
        "soft_size": (300, 300),
    }
    augmented = Mapper(dataset, cfg, train=True, **options)
    plain = Mapper(dataset, cfg, train=False, policy=augmented.policy, **options)
    agreement = []
    for mapper in (augmented, plain):
        equal = total = 0
        for draw in range(40):
            index = draw if mapper.train else record_index(cfg.SEED, draw, len(dataset))
            target = mapper(index)[1]
            counted = target.soft_valid & (target.sem_seg != 255)
            equal += int((target.soft_seg.argmax(0) == target.sem_seg)[counted].sum())
            total += int(counted.sum())
        agreement.append(equal / total)
    # the images weigh differently, as zoom-out and crop change their area
    assert agreement[0] == pytest.approx(agreement[1], abs=0.03)
    assert agreement[1] > 0.8
