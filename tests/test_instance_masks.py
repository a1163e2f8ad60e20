"""Masks of boxes: read, matched to boxes, moved, taken from the right source, stored."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from test_transforms import GEOMETRIC, HEIGHT, RECTANGLES, WIDTH, _interior, _sample
from voc_folder import add_image, add_list, annotation, bare_config

from scenekd.data.catalog import load_dataset, load_datasets
from scenekd.data.geometry import identity_coordinates
from scenekd.data.instance_masks import known, match_boxes, sample_masks
from scenekd.data.mapper import Mapper
from scenekd.data.policy import SourcePolicy, TaskPolicy
from scenekd.errors import BadRecordError
from scenekd.masks import masks_from_logits
from scenekd.sample import Prediction, SourceWeights
from scenekd.teachers.codec import decode_instances, encode_instances
from scenekd.teachers.protocol import Detections, InstanceDetections
from scenekd.teachers.runs import decode_runs, encode_runs

TASK = "instance_segmentation"


def test_weights_are_a_mapping_with_names():
    weights = SourceWeights(0.5, 0.25, instance_segmentation=(0.75, 0.0))
    assert (weights.detection_gt, weights.detection_teacher, weights.segmentation_gt) == (0.5, 0.25, 1.0)
    assert weights[TASK] == (0.75, 0.0)
    assert weights["depth"] == (0.0, 0.0)  # not named: it weighs nothing
    assert weights == SourceWeights.of(dict(weights)) != SourceWeights(0.5, 0.25)
    assert SourceWeights(0, 0, 0, 0) == SourceWeights.of({})


def test_boxes_match_the_best_of_their_class_once():
    boxes = np.array([[0, 0, 10, 10], [0, 0, 10, 9], [20, 20, 30, 30], [50, 50, 60, 60]], np.float32)
    labels = np.array([1, 1, 2, 0])
    others = np.array([[0, 0, 10, 10], [20, 20, 30, 30], [52, 50, 62, 60]], np.float32)
    # Box 1 overlaps other 0 by .9, but box 0 fits it better; box 2's place holds another class; box 3 overlaps
    # other 2 by 80 / 120.
    assert match_boxes(boxes, labels, others, np.array([1, 1, 0])).tolist() == [0, -1, -1, 2]
    assert match_boxes(boxes, labels, others, np.array([1, 2, 0]), min_iou=0.7).tolist() == [0, -1, 1, -1]
    assert match_boxes(boxes[:0], labels[:0], others, np.array([1, 1, 0])).tolist() == []
    assert match_boxes(boxes, labels, others[:0], labels[:0]).tolist() == [-1] * 4


@pytest.mark.parametrize("name", GEOMETRIC)
def test_masks_follow_every_transform_as_the_labels_do(name):
    sample = _sample()
    labels = sample.sem_seg
    sample.masks = (labels == np.array(list(RECTANGLES))[:, None, None]).astype(np.uint8)
    for seed in range(5):
        moved = GEOMETRIC[name](sample, np.random.default_rng(seed))
        assert len(moved.masks) == len(moved.boxes)
        field = moved.coordinates
        if field is None:  # a crop may choose the whole image
            field = identity_coordinates(HEIGHT, WIDTH)
        masks = sample_masks(moved.masks, field)
        expected = moved.sem_seg == moved.labels[:, None, None]
        wrong = masks != np.where(moved.sem_seg == 255, 255, expected)
        # A rotation samples the labels with OpenCV's fixed-point coordinates, so pixels near an edge may differ,
        # the more so after several samplings of the labels.
        assert not (wrong & _interior(moved.sem_seg, 4)).any() if "rotat" in name else not wrong.any()


def test_a_coarse_grid_takes_the_pixels_that_the_loss_takes():
    sample = _sample()
    masks = (sample.sem_seg == np.array(list(RECTANGLES))[:, None, None]).astype(np.uint8)
    coarse = sample_masks(masks, identity_coordinates(*masks.shape[1:]), (30, 40))
    expected = F.interpolate(torch.from_numpy(masks)[None].float(), size=(30, 40), mode="nearest-exact")[0]
    np.testing.assert_array_equal(coarse, expected.numpy())


def test_no_boxes_have_no_masks():
    none = np.zeros((0, 12, 16), np.uint8)
    assert sample_masks(none, identity_coordinates(12, 16), (3, 4)).shape == (0, 3, 4)
    assert known(none).tolist() == []
    assert masks_from_logits(torch.zeros(0, 3, 4), torch.zeros(0, 4), 12, 16).shape == (0, 12, 16)


def test_logits_become_masks_inside_their_boxes():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(5, 8, 10, generator=generator)
    corner = torch.rand(5, 2, generator=generator) * 30
    boxes = torch.cat([corner, corner + 5 + 25 * torch.rand(5, 2, generator=generator)], dim=1)
    boxes[4] = torch.tensor([-3.0, -2.0, 90.0, 70.0])
    masks = masks_from_logits(logits, boxes, 48, 64)
    large = F.interpolate(logits[None], size=(48, 64), mode="bilinear", align_corners=False)[0]
    x, y = torch.arange(64) + 0.5, (torch.arange(48) + 0.5)[:, None]
    inside = [(x >= b[0]) & (x < b[2]) & (y >= b[1]) & (y < b[3]) for b in boxes]
    wrong = masks != ((large > 0) & torch.stack(inside))
    assert not (wrong & (large.abs() > 1e-5)).any()
    prediction = Prediction((24, 32), boxes=boxes / 2, mask_logits=logits).resize(48, 64)
    assert torch.equal(prediction.masks[:4], masks[:4])


def _two_cats(folder, void=False):
    """Two objects of one class whose maps count them in the other order than the boxes; a third box has none."""
    objects = np.zeros((40, 60), np.uint8)
    objects[10:30, 30:50], objects[5:15, 5:20] = 1, 2
    classes = np.where(objects > 0, 8, 0).astype(np.uint8)
    if void:
        objects[10:12, 30:50] = classes[10:12, 30:50] = 255
    boxes = [("cat", (6, 6, 20, 15)), ("cat", (31, 11, 50, 30)), ("cat", (1, 31, 10, 40))]
    add_image(folder, "a", annotation(boxes), classes)
    add_image(folder, "a", None, objects, masks="SegmentationObject")
    add_image(folder, "b", annotation(boxes), classes)
    add_list(folder, "Segmentation", "train", ["a", "b"])
    return objects


def test_voc_objects_find_their_boxes(tmp_path):
    objects = _two_cats(tmp_path, void=True)
    dataset = load_dataset("voc_seg_train", root=str(tmp_path))
    first, second = dataset.records
    assert first.has(TASK) and not second.has(TASK)
    masks = dataset.read_instance_masks(first)
    np.testing.assert_array_equal(masks[0], np.where(objects == 255, 255, objects == 2))
    np.testing.assert_array_equal(masks[1], np.where(objects == 255, 255, objects == 1))
    assert (masks[2] == 255).all()
    (tmp_path / "SegmentationObject" / "a.png").write_bytes(b"no picture")
    with pytest.raises(BadRecordError, match=r"SegmentationObject/a\.png: cannot be read"):
        dataset.read_instance_masks(first)


def test_scenes_have_the_mask_of_every_box(scenes):
    from PIL import Image

    dataset = load_dataset("voc_seg_train", bare_config(), root=str(scenes), classes=_scenes_classes())
    for record in dataset.records:
        objects = np.array(Image.open(scenes / "SegmentationObject" / f"{record.image_id}.png"))
        numbers = np.arange(1, len(record.boxes) + 1)[:, None, None]
        np.testing.assert_array_equal(dataset.read_instance_masks(record), objects == numbers)


def _scenes_classes():
    from scenekd.data.scenes import SCENES_CLASSES

    return SCENES_CLASSES


def test_coco_outlines_may_overlap(tmp_path):
    square = [[2, 2, 12, 2, 12, 12, 2, 12]]
    runs = {"size": [20, 30], "counts": [20 * 8, 20 * 4, 20 * 18]}  # columns 8…11
    common = {"image_id": 1, "category_id": 1, "iscrowd": 0}
    content = {
        "images": [{"id": 1, "file_name": "1.png", "height": 20, "width": 30}],
        "categories": [{"id": 1, "name": "cat"}],
        "annotations": [
            {"id": 1, "bbox": [2, 2, 10, 10], "segmentation": square, **common},
            {"id": 2, "bbox": [8, 0, 4, 20], "segmentation": runs, **common},
            {"id": 3, "bbox": [0, 0, 5, 5], **common},
        ],
    }
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / "x.json").write_text(json.dumps(content))
    dataset = load_dataset("coco_x", root=str(tmp_path))
    masks = dataset.read_instance_masks(dataset.records[0])
    assert masks[0, 2:12, 2:12].all() and masks[0].sum() == 100
    assert masks[1, :, 8:12].all() and masks[1].sum() == 80
    assert (masks[2] == 255).all()
    assert not load_dataset("coco_det_x", root=str(tmp_path)).records[0].has(TASK)


def test_a_share_keeps_its_masks(tmp_path):
    _two_cats(tmp_path)
    for share, kept in ((1.0, 1), (0.0, 0)):
        cfg = bare_config(ROOT=str(tmp_path), KEEP_INSTANCE_MASKS=share)
        records = load_datasets(("voc_seg_train",), cfg, train=True).records
        assert sum(record.has(TASK) for record in records) == kept
    bare = load_datasets(("voc_seg_train",), bare_config(ROOT=str(tmp_path), KEEP_BOXES=0.0), train=True)
    assert not any(record.has(TASK) for record in bare.records)


class Teacher:
    """Two boxes with masks, of which the second is unsure; and a detector with a box of its own."""

    def __contains__(self, image_id):
        return True

    def get_instances(self, image_id):
        masks = np.zeros((2, 40, 60), bool)
        masks[0, 10:20, 30:40], masks[1, :8, :8] = True, True
        boxes = [[30, 10, 50, 30], [0, 0, 8, 8]]
        return InstanceDetections.build(boxes, [7, 7], [0.8, 0.0001], masks)

    def get_detections(self, image_id):
        return Detections.build([[31, 11, 50, 30], [0, 0, 59, 39]], [7, 7], [0.6, 0.5])


def _target(folder, image, **policies):
    cfg = bare_config(ROOT=str(folder))
    cfg.INPUT.SIZE = 40
    cfg.INPUT.PHOTOMETRIC = False
    cfg.INPUT.ZOOM_OUT_PROB = cfg.INPUT.CROP_PROB = cfg.INPUT.FLIP_PROB = 0.0
    policies = {TASK: "ground_truth", "detection": "ground_truth", **policies}
    policy = SourcePolicy(**{task: TaskPolicy(kind) for task, kind in policies.items()})
    stores = {task: Teacher() for task in policies}
    data = load_datasets(("voc_seg_train",), cfg, train=True)
    mapper = Mapper(data, cfg, train=True, teachers=stores, policy=policy, instance_masks=True)
    sample = mapper._read(data.records[image], 0)
    return mapper._target(mapper.transforms(sample, np.random.default_rng(0)))


def test_masks_come_from_the_source_that_the_policy_says(tmp_path):
    _two_cats(tmp_path)
    own = _target(tmp_path, 0)
    assert own.masks.shape == (3, 40, 40) and own.has_instance_masks and own.has_teacher_masks
    assert own.weights[TASK] == (1.0, 0.0)
    assert own.masks[0, 6:14, 4:13].all() and (own.masks[2] == 255).all()

    missing = _target(tmp_path, 1)  # no map of objects
    assert missing.masks is None and not missing.has_instance_masks
    assert missing.weights[TASK] == (0.0, 0.0)

    filled = _target(tmp_path, 1, instance_segmentation="fill_missing")
    # Boxes of the ground truth without masks, and the mask teacher's own box; the unsure one is dropped.
    assert filled.weights[TASK] == (0.0, 1.0) and filled.weights.detection_teacher == 0.0
    assert filled.from_teacher.tolist() == [False, False, False, True]
    assert filled.confidences.tolist() == pytest.approx([1, 1, 1, 0.8])
    assert (filled.masks[:3] == 255).all()
    # columns 30…39 of 60 are 20…26 of 40
    assert filled.masks[3, 10:20, 20:26].all() and filled.masks[3].sum() < 10 * 8

    both = _target(tmp_path, 1, instance_segmentation="teacher", detection="combined")
    # The detection teacher's boxes carry the masks of the mask teacher, where these are of the same object.
    assert both.confidences.tolist() == pytest.approx([1, 1, 1, 0.6, 0.5])
    assert torch.equal(both.masks[3], filled.masks[3]) and (both.masks[4] == 255).all()


def test_run_lengths_are_exact_and_checked():
    rng = np.random.default_rng(0)
    for mask in (rng.random((7, 5)) > 0.5, np.ones((4, 3), bool), np.zeros((4, 3), bool)):
        np.testing.assert_array_equal(decode_runs(encode_runs(mask), mask.shape), mask)
    # column by column: one outside, two inside, three outside
    assert encode_runs(np.array([[0, 0], [1, 0], [1, 0]], bool)).tolist() == [1, 2, 3]
    with pytest.raises(ValueError, match="do not fill"):
        decode_runs(np.array([2, 5], np.uint32), (3, 2))


def test_boxes_and_masks_are_stored_without_loss():
    rng = np.random.default_rng(0)
    for count in (0, 1, 5):
        masks = rng.random((count, 9, 11)) > 0.5
        found = InstanceDetections.build(rng.random((count, 4)), np.arange(count), rng.random(count), masks)
        meta, payload = encode_instances(found)
        back = decode_instances(json.loads(json.dumps(meta)), payload)
        for got, want in zip(back[:3], found[:3]):
            np.testing.assert_array_equal(got, want)
        np.testing.assert_array_equal(back.masks(), found.masks())
        assert back.size == (9, 11)
    for change in (
        {"boxes": 4},
        {"runs": [1, 2]},
        {"size": [9, 12]},
        {"size": [0, 5]},
        {"size": [1 << 20, 1 << 20]},
    ):
        with pytest.raises(ValueError, match="bad|fill|size"):
            decode_instances({**meta, **change}, payload)
