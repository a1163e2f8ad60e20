"""Three tasks in one network: its losses and masks, its teachers, both engines."""

from __future__ import annotations

import os

import numpy as np
import pytest
import torch
from conftest import ENGINES
from test_blitznet import SMALL, make_targets

from kd_mtl.blitznet import BlitzNet
from scenekd import checkpoint
from scenekd.data.catalog import load_dataset, load_datasets
from scenekd.data.images import read_image
from scenekd.engines.session import evaluate_once, train_once
from scenekd.errors import UserError
from scenekd.models import build_model
from scenekd.recorder import read_metrics
from scenekd.sample import SourceWeights
from scenekd.teachers.build import build_teacher, open_store
from scenekd.teachers.cache import CacheStore
from scenekd.teachers.caching import cache_teacher
from scenekd.teachers.scenekd_teacher import SceneKDTeacher
from scenekd.teachers.score import score_teacher
from scenekd.teachers.zoo_torchvision import build_torchvision

REAL = os.environ.get("SCENEKD_TEST_DATA", "")
TASKS = ("detection", "segmentation", "instance_segmentation")
THREE = ("MODEL.BLITZNET.TASKS", str(TASKS))


def with_masks(count):
    targets = make_targets(count)
    for target in targets:
        target.masks = torch.zeros(2, 8, 8, dtype=torch.uint8)
        target.masks[0, 1:5, 1:5] = 1
        target.masks[1, 3:7, 4:7] = 1
        target.has_instance_masks = True
        target.weights = SourceWeights(instance_segmentation=(1.0, 0.0))
    return targets


def test_a_third_task_leaves_the_others_as_they_are():
    torch.manual_seed(0)
    two = BlitzNet(**SMALL)
    torch.manual_seed(0)
    three = BlitzNet(**SMALL, tasks=TASKS, prototypes=4)
    states = two.state_dict(), three.state_dict()
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
    images, targets = torch.rand(2, 3, 64, 64) * 255, with_masks(2)
    losses = [net(images, targets) for net in (two, three)]
    assert set(losses[1]) == {"loss_seg", "loss_cls", "loss_box", "loss_mask"}
    for name, value in losses[0].items():
        torch.testing.assert_close(value, losses[1][name])
    losses[1]["loss_mask"].backward()
    assert all(p.grad is not None for p in three.instance_segmentation.parameters())


def test_masks_are_the_prototypes_combined_by_the_boxes_own_anchor():
    net = BlitzNet(**SMALL, tasks=TASKS, prototypes=4, postprocess={"topk": 9}).eval()
    images = torch.rand(1, 3, 64, 64) * 255
    with torch.no_grad():
        outputs, prediction = net.outputs(images), net(images)[0]
    assert outputs["prototypes"].shape == (1, 4, *net.segmentation_size)
    assert outputs["mask_coefficients"].shape == (1, len(net.anchors), 4)
    assert outputs["mask_coefficients"].abs().max() <= 1 and outputs["prototypes"].min() >= 0
    class_logits, offsets = outputs["class_logits"][0], outputs["offsets"][0]
    anchor = net.postprocess.select(class_logits, offsets, net.anchors, (64, 64))[4]
    assert len(anchor) == len(prediction.boxes) == 9
    for logits, index in zip(prediction.mask_logits, anchor):
        expected = sum(
            c * p for c, p in zip(outputs["mask_coefficients"][0, index], outputs["prototypes"][0])
        )
        torch.testing.assert_close(logits, expected)
    resized = prediction.resize(48, 80)
    assert resized.masks.shape == (9, 48, 80)
    x = torch.arange(80) + 0.5
    for mask, box in zip(resized.masks, resized.boxes):
        assert not mask[:, (x < box[0]) | (x >= box[2])].any()


def test_the_third_task_is_counted_and_balanced(tiny_config):
    """What asynchronous updates and balances ask of a task: its parameters, its labelled images, its term."""
    target = with_masks(1)[0]
    assert target.labelled_tasks() == set(TASKS)
    target.masks = None
    assert target.labelled_tasks() == {"detection", "segmentation"}
    for balance in ("uncertainty", "gradnorm"):
        net = build_model(tiny_config("x", *THREE, "MODEL.BLITZNET.BALANCE", balance))
        assert set(net.task_parameters()) == set(TASKS)
        assert net.criterion.balance.names == ("loss_seg", "loss_cls", "loss_box", "loss_mask")
        losses = net(torch.rand(2, 3, 64, 64) * 255, with_masks(2))
        assert sum(losses.values()).isfinite()


def test_tasks_that_cannot_be():
    with pytest.raises(ValueError, match="needs detection"):
        BlitzNet(**SMALL, tasks=("segmentation", "instance_segmentation"))


def test_tasks_of_a_configuration(tiny_config):
    net = build_model(tiny_config("x", *THREE, "MODEL.BLITZNET.INSTANCES.PROTOTYPES", 5))
    assert net.tasks == TASKS and net.instance_segmentation.prototypes[-2].out_channels == 5
    with pytest.raises(UserError, match=r"BLITZNET.TASKS.*needs detection"):
        build_model(tiny_config("x", "MODEL.BLITZNET.TASKS", "('instance_segmentation',)"))


@pytest.mark.parametrize("engine", ENGINES)
def test_trains_and_evaluates(engine, tiny_config):
    """Losses and mask AP come out of either engine, and one checkpoint gives the same numbers again."""
    cfg = tiny_config("run", *THREE, "SOLVER.MAX_ITER", 3, "MODEL.BLITZNET.SCORE_THRESHOLD", 0.0)
    results = train_once(0, 0, 1, cfg, engine)
    assert {"sem_seg", "bbox", "segm"} == set(results)
    assert {"AP", "AP50", "AP75", "AP-tree"} <= set(results["segm"])
    weights = ("MODEL.WEIGHTS", f"{cfg.OUTPUT_DIR}/{checkpoint.MODEL_FINAL}")
    other = tiny_config("again", *THREE, *weights, "MODEL.BLITZNET.SCORE_THRESHOLD", 0.0)
    again = evaluate_once(0, 0, 1, other, ENGINES[-1])
    assert again["segm"]["AP"] == pytest.approx(results["segm"]["AP"], abs=1e-4)
    alone = tiny_config("bbox", *THREE, *weights, "TEST.METRICS", "('bbox',)")
    assert set(evaluate_once(0, 0, 1, alone, engine)) == {"bbox"}


@pytest.mark.detectron2
@pytest.mark.skipif("detectron2" not in ENGINES, reason="detectron2 is not installed")
def test_detectron2s_own_evaluator_gives_the_same_mask_ap(tiny_config):
    """COCOEvaluator on our data, registered with masks, against our evaluator; the scenes have no void pixels."""
    cfg = tiny_config("run", *THREE, "SOLVER.MAX_ITER", 3, "MODEL.BLITZNET.SCORE_THRESHOLD", 0.0)
    ours = train_once(0, 0, 1, cfg, "detectron2")["segm"]
    weights = ("MODEL.WEIGHTS", f"{cfg.OUTPUT_DIR}/{checkpoint.MODEL_FINAL}", "TEST.EVALUATOR", "framework")
    other = tiny_config("theirs", *THREE, *weights, "MODEL.BLITZNET.SCORE_THRESHOLD", 0.0)
    theirs = evaluate_once(0, 0, 1, other, "detectron2")
    assert {"sem_seg", "bbox", "segm"} == set(theirs)
    for name in ("AP", "AP50", "AP75", "APs", "APm"):
        assert theirs["segm"][name] == pytest.approx(ours[name], abs=1e-6, nan_ok=True)


@pytest.mark.skipif(not REAL, reason="SCENEKD_TEST_DATA is not set")
def test_real_coco_images_train_and_evaluate(tiny_config):
    """Overlapping outlines, crowds and images without objects; the truth of the masks is the json itself."""
    root = f"{REAL}/coco_mini"
    names = load_dataset("coco_val2017", root=root, classes=()).classes
    cfg = tiny_config(
        *("coco", *THREE, "DATASETS.ROOT", root, "DATASETS.CLASSES", names, "DATASETS.MAX_IMAGES", 12),
        *("DATASETS.TRAIN", "('coco_train2017',)", "DATASETS.TEST", "('coco_val2017',)"),
        *("DATASETS.KEEP_SEM_SEG", 1.0, "SOLVER.MAX_ITER", 3, "MODEL.BLITZNET.TOPK", 20),
    )
    results = train_once(0, 0, 1, cfg, "mmengine")
    assert {"sem_seg", "bbox", "segm"} == set(results)
    assert 0 <= results["segm"]["AP"] <= 100
    lines = [line for line in read_metrics(f"{cfg.OUTPUT_DIR}/metrics.json") if "loss_mask" in line]
    assert len(lines) == 3 and all(line["loss_mask"] > 0 for line in lines)


@pytest.fixture
def teacher_file(tiny_config, tmp_path):
    cfg = tiny_config("teacher", *THREE, "DATASETS.TRAIN", "('voc_seg_train',)")
    net = build_model(cfg, pretrained=False)
    checkpoint.save_model(net, cfg.dump(), tmp_path / "teacher.pth")
    return str(tmp_path / "teacher.pth")


def test_a_checkpoint_of_ours_teaches_masks(tiny_config, teacher_file):
    """Asked, cached, read back, and learned from by a student whose images have lost their masks."""
    key = "INSTANCE_SEGMENTATION"
    cfg = tiny_config(
        *("student", *THREE, "DATASETS.KEEP_INSTANCE_MASKS", 0.0, "SOLVER.MAX_ITER", 2),
        *(f"TEACHER.{key}.TYPE", "scenekd", f"TEACHER.{key}.WEIGHTS", teacher_file),
        *(f"TEACHER.{key}.MAX_BOXES", 7, f"DISTILL.{key}.POLICY", "fill_missing"),
    )
    report = cache_teacher(cfg, "instance_segmentation")
    assert report.asked == 12
    records = load_datasets(cfg.DATASETS.TRAIN, cfg, train=True).records
    assert not any(record.has_instance_masks for record in records)
    store = open_store(cfg, "instance_segmentation", records)
    everything = load_datasets(cfg.DATASETS.TRAIN, cfg, train=False)
    scored = score_teacher(cfg, "instance_segmentation", everything, store=store)
    assert (scored.labelled, scored.sparsity) == (12, 0.0) and 0 <= scored.quality <= 100
    teacher = SceneKDTeacher(teacher_file)
    assert teacher.tasks == TASKS
    for record in records[:3]:
        found, said = store.get_instances(record.image_id), teacher.predict([read_image(record)])[0]
        assert len(found.boxes) == 7 and found.size == record.size()
        np.testing.assert_array_equal(found.masks(), said.masks[:7])
        np.testing.assert_array_equal(found.boxes, said.boxes[:7])
    with pytest.raises(UserError, match="is for instance_segmentation, not detection"):
        CacheStore(store.folder, task="detection")
    train_once(0, 0, 1, cfg, "mmengine")
    lines = [line for line in read_metrics(f"{cfg.OUTPUT_DIR}/metrics.json") if "loss_mask" in line]
    assert len(lines) == 2 and all(line["loss_mask"] > 0 for line in lines)


def test_folders_hold_no_masks(tiny_config, tmp_path):
    cfg = tiny_config("x", "TEACHER.INSTANCE_SEGMENTATION.TYPE", "folder")
    with pytest.raises(UserError, match="holds no masks of objects; choose torchvision, scenekd or detect"):
        open_store(cfg, "instance_segmentation")


def test_mmsegmentation_teaches_no_masks(tiny_config):
    cfg = tiny_config(
        "x", "TEACHER.INSTANCE_SEGMENTATION", "mmseg://fcn/fcn_r50-d8_4xb4-20k_voc12aug-512x512"
    )
    with pytest.raises(UserError, match="TEACHER.INSTANCE_SEGMENTATION: MMSegmentation has no instance segm"):
        build_teacher(cfg, "instance_segmentation")


def test_torchvisions_mask_rcnn_teaches_masks():
    teacher = build_torchvision("maskrcnn_resnet50_fpn", "random", classes=("a", "b", "c"), max_boxes=4)
    assert teacher.tasks == TASKS
    teacher.net.transform.min_size, teacher.net.transform.max_size = (64,), 80  # for speed
    output = teacher.predict([np.random.default_rng(0).integers(0, 255, (64, 80, 3), dtype=np.uint8)])[0]
    assert output.masks.shape == (len(output.boxes), 64, 80) and output.masks.dtype == bool
    assert len(output.instances.boxes) == len(output.boxes) > 0
    np.testing.assert_array_equal(output.instances.masks(), output.masks)  # both sorted by score


@pytest.mark.detectron2
def test_detectron2_gets_masks(tiny_config):
    pytest.importorskip("detectron2")
    from scenekd.engines.detectron2_model import SceneKDMetaArch

    net = BlitzNet(**SMALL, tasks=TASKS, prototypes=4).eval()
    item = {"image": torch.randint(0, 255, (3, 48, 64), dtype=torch.uint8), "height": 96, "width": 128}
    instances = SceneKDMetaArch(net).eval()([item])[0]["instances"]
    assert instances.pred_masks.shape == (len(instances), 96, 128)
    assert instances.pred_masks.dtype == torch.bool


@pytest.mark.detectron2
def test_detectron2s_own_mapper_brings_masks():
    """Polygons and bitmaps, at the network's input: the square 8…40 of a 64 × 96 image."""
    pytest.importorskip("detectron2")
    from detectron2.structures import BitMasks, Boxes, Instances, PolygonMasks

    from scenekd.engines.detectron2_model import target_of

    bits = torch.zeros(1, 64, 96, dtype=torch.bool)
    bits[0, 8:40, 8:40] = True
    square = np.array([8.0, 8, 40, 8, 40, 40, 8, 40])
    for masks in (BitMasks(bits), PolygonMasks([[square]])):
        instances = Instances((64, 96))
        instances.gt_boxes, instances.gt_classes = Boxes(torch.tensor([[8.0, 8, 40, 40]])), torch.tensor([2])
        instances.gt_masks = masks
        target = target_of({"image": torch.zeros(3, 64, 96), "instances": instances}, 32)
        assert target.has_instance_masks and target.weights["instance_segmentation"] == (1.0, 0.0)
        # rows 8…40 of 64 are 4…20 of 32, columns 8…40 of 96 are 3…13
        assert target.masks[0, 4:20, 3:13].all() and target.masks.sum() == 16 * 10
        none = target_of({"image": torch.zeros(3, 64, 96), "instances": instances[:0]}, 32)
        assert none.masks.shape == (0, 32, 32)


def test_mmsegmentation_gets_masks():
    from mmseg.structures import SegDataSample

    from scenekd.engines.mmengine_model import SceneKDModel

    net = BlitzNet(**SMALL, tasks=TASKS, prototypes=4).eval()
    sample = SegDataSample(metainfo={"ori_shape": (96, 128), "image_id": "x"})
    found = SceneKDModel(net).eval()(torch.rand(1, 3, 64, 64) * 255, [sample], mode="predict")[0]
    assert found.pred_instances.masks.shape == (len(found.pred_instances), 96, 128)
