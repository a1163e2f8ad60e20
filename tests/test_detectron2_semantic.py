"""Panoptic-FPN's semantic head with soft labels, and SceneKD's mapper for detectron2's own models."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from teacher_folders import save_boxes, save_masks

from scenekd.data.catalog import load_dataset, load_datasets
from scenekd.errors import UserError
from scenekd.losses.soft_label import soft_label_cross_entropy, soft_label_map
from scenekd.sample import SourceWeights

pytest.importorskip("detectron2")
from detectron2.data import DatasetCatalog, MetadataCatalog, build_detection_train_loader  # noqa: E402
from detectron2.data import transforms as T  # noqa: E402
from detectron2.modeling import build_model  # noqa: E402
from detectron2.structures import Boxes, Instances  # noqa: E402
from detectron2.utils.events import EventStorage  # noqa: E402
from fvcore.transforms.transform import PadTransform  # noqa: E402
from test_datasets_engines import CLASSES, _detectron2_config  # noqa: E402

from scenekd.engines.detectron2 import SceneKDDatasetMapper, register_datasets  # noqa: E402

pytestmark = pytest.mark.detectron2

SIZE, K = 64, 11
SMALL = {
    "MODEL.META_ARCHITECTURE": "SceneKDSemanticSegmentor",
    "MODEL.BACKBONE.NAME": "build_resnet_fpn_backbone",
    "MODEL.RESNETS.STEM_OUT_CHANNELS": 8,
    "MODEL.RESNETS.RES2_OUT_CHANNELS": 16,
    "MODEL.RESNETS.WIDTH_PER_GROUP": 4,
    "MODEL.RESNETS.OUT_FEATURES": ["res2", "res3", "res4", "res5"],
    "MODEL.FPN.IN_FEATURES": ["res2", "res3", "res4", "res5"],
    "MODEL.FPN.OUT_CHANNELS": 16,
    "MODEL.SEM_SEG_HEAD.NAME": "SceneKDSemSegFPNHead",
    "MODEL.SEM_SEG_HEAD.NUM_CLASSES": K,
    "MODEL.SEM_SEG_HEAD.CONVS_DIM": 32,
    "MODEL.SEM_SEG_HEAD.LOSS_WEIGHT": 0.5,
    "MODEL.PIXEL_STD": [57.0, 57.0, 57.0],
    "DISTILL.SEGMENTATION.TARGET": "logits",
    "DISTILL.SEGMENTATION.TEMPERATURE": 2.0,
    "INPUT.MIN_SIZE_TRAIN": (48, 80),
    "INPUT.MAX_SIZE_TRAIN": 120,
}


@pytest.fixture
def names():
    """The names that the configuration registers, taken away afterwards."""
    before = set(DatasetCatalog.list())
    yield
    for name in set(DatasetCatalog.list()) - before:
        DatasetCatalog.remove(name)
        MetadataCatalog.pop(name, None)


def _config(root="", **options):
    cfg = _detectron2_config(root)
    options = {**SMALL, **{key.replace("__", "."): value for key, value in options.items()}}
    cfg.merge_from_list([part for pair in options.items() for part in pair])
    return cfg


def _model(cfg):
    torch.manual_seed(0)
    return build_model(cfg).train()


def _items(weights, sizes=((SIZE, SIZE), (48, 60), (SIZE, 40))):
    """An image for each (weight of the mask, weight of the teacher); what weighs nothing is not there."""
    generator = torch.Generator().manual_seed(1)
    items = []
    for (by_mask, by_teacher), (height, width) in zip(weights, sizes):
        mask = torch.randint(0, K, (height, width), generator=generator)
        mask[:3] = 255
        soft = 3 * torch.randn(K, height, width, generator=generator)
        item = {
            "image": torch.rand(3, height, width, generator=generator) * 255,
            "sem_seg": mask if by_mask else torch.full_like(mask, 255),
            "has_sem_seg": bool(by_mask),
            "weights": SourceWeights(0.0, 0.0, by_mask, by_teacher),
        }
        if by_teacher:
            item |= {"soft_sem_seg": soft, "soft_sem_seg_valid": torch.ones(height, width, dtype=torch.bool)}
            item["soft_sem_seg_valid"][:, :5] = False
        items.append(item)
    return items


def _parts(model, items):
    """(mean cross-entropy against the mask, its pixels, mean against the teacher, its pixels) of each image alone."""
    logits = _logits(model, items)
    found = []
    for item, own in zip(items, logits):
        mask = _pad(item["sem_seg"], 255)
        hard = torch.nn.functional.cross_entropy(own[None], mask[None], ignore_index=255, reduction="sum")
        row = [hard.item(), int((mask != 255).sum()), 0.0, 0]
        if "soft_sem_seg" in item:
            target, valid = _pad(item["soft_sem_seg"], 0), _pad(item["soft_sem_seg_valid"], 0)
            soft = soft_label_cross_entropy(
                own[None], target[None], temperature=2.0, target_is="logits", valid=valid[None]
            )
            row[2:] = [soft.item() * int(valid.sum()), int(valid.sum())]
        found.append(row)
    return np.array(found)


def _logits(model, items):
    """(N, K, S, S) of a padded batch; detectron2 normalises before it pads."""
    padded = torch.stack([_pad((i["image"] - model.pixel_mean) / model.pixel_std, 0) for i in items])
    logits = model.sem_seg_head.layers(model.backbone(padded))
    return torch.nn.functional.interpolate(logits, scale_factor=4, mode="bilinear", align_corners=False)


def _pad(values, fill):
    height, width = values.shape[-2:]
    return torch.nn.functional.pad(values, (0, SIZE - width, 0, SIZE - height), value=fill)


@pytest.mark.parametrize("policy", ["ground_truth", "fill_missing"])
def test_masks_alone_give_detectron2s_loss(policy):
    """No soft labels: detectron2's loss to the last bit, whether or not a teacher could have come."""
    theirs = _config(MODEL__SEM_SEG_HEAD__NAME="SemSegFPNHead", MODEL__META_ARCHITECTURE="SemanticSegmentor")
    items = _items([(1.0, 0.0)] * 3)
    wanted = _model(theirs)(items)
    found = _model(_config(DISTILL__SEGMENTATION__POLICY=policy))(items)
    assert torch.equal(found["loss_sem_seg"], wanted["loss_sem_seg"])
    assert found.keys() - wanted.keys() == ({"loss_sem_seg_soft"} if policy == "fill_missing" else set())
    assert found.get("loss_sem_seg_soft", torch.zeros(())) == 0
    # and for dictionaries of detectron2's own mapper
    bare = [{key: item[key] for key in ("image", "sem_seg")} for item in items]
    assert torch.equal(_model(_config())(bare)["loss_sem_seg"], wanted["loss_sem_seg"])


@pytest.mark.parametrize(
    "weights",
    [
        [(1.0, 0.0), (0.0, 1.0), (0.0, 1.0)],
        [(0.5, 0.5), (0.25, 0.75), (1.0, 0.0)],
        [(0.0, 1.0), (0.0, 0.5), (0.0, 0.0)],
        [(0.0, 0.0), (0.0, 0.0), (0.0, 0.0)],
    ],
)
def test_sources_share_the_loss(weights):
    """loss_s = ½ · W_s / (W_mask + W_teacher) · Σ_i w_is Σ_pixels l / Σ_i w_is n_i, with ½ the head's own weight.

    Over images i, each with a weight w_is for source s and n_i valid pixels; W_s = Σ_i w_is. An image without weight
    changes nothing; 0 where no image has any, with a gradient of zeros.
    """
    model, items = _model(_config(DISTILL__SEGMENTATION__POLICY="combined")), _items(weights)
    found = model(items)
    parts, amount = _parts(model, items), np.array(weights)
    for s, name in enumerate(("loss_sem_seg", "loss_sem_seg_soft")):
        total, pixels = (parts[:, 2 * s + i] @ amount[:, s] for i in (0, 1))
        wanted = 0.5 * amount[:, s].sum() / max(amount.sum(), 1e-9) * total / max(pixels, 1)
        assert found[name].item() == pytest.approx(wanted, rel=1e-4, abs=1e-7)
    sum(found.values()).backward()
    gradient = model.sem_seg_head.predictor.weight.grad
    assert torch.isfinite(gradient).all() and bool(gradient.any()) == bool(amount.any())


def test_a_model_that_hands_nothing_over_is_refused():
    """detectron2's own SemanticSegmentor passes masks alone; and classes that differ are named."""
    cfg = _config(DISTILL__SEGMENTATION__POLICY="teacher", MODEL__META_ARCHITECTURE="SemanticSegmentor")
    with pytest.raises(UserError, match="choose SceneKDSemanticSegmentor or SceneKDPanopticFPN"):
        _model(cfg)(_items([(1.0, 1.0)] * 3))
    cfg = _config(DISTILL__SEGMENTATION__POLICY="teacher", MODEL__SEM_SEG_HEAD__NUM_CLASSES=7)
    items = _items([(0.0, 1.0)] * 3)
    with pytest.raises(UserError, match="NUM_CLASSES: 7, but the soft labels have 11 classes"):
        _model(cfg)(items)
    with pytest.raises(UserError, match=r"DISTILL.SEGMENTATION: TARGET must be"):
        _model(_config(DISTILL__SEGMENTATION__POLICY="teacher", DISTILL__SEGMENTATION__TARGET="ranks"))
    with pytest.raises(UserError, match=r"DISTILL.SEGMENTATION.TOP_K: 12 of 11"):
        _model(_config(DISTILL__SEGMENTATION__POLICY="teacher", DISTILL__SEGMENTATION__TOP_K=12))


def test_options_of_the_soft_loss_are_heard():
    """A tempered student, and pixels weighed by the teacher's confidence: Σ c · l / Σ c over the pixels shown."""
    options = {"TEMPER_STUDENT": True, "CONFIDENCE": "max", "TOP_K": 3, "TAIL": "spread"}
    cfg = _config(
        DISTILL__SEGMENTATION__POLICY="teacher",
        **{f"DISTILL__SEGMENTATION__{key}": value for key, value in options.items()},
    )
    model, items = _model(cfg), _items([(0.0, 1.0)], [(SIZE, SIZE)])
    found = model(items)["loss_sem_seg_soft"]
    logits = _logits(model, items)
    soft, valid = items[0]["soft_sem_seg"][None], items[0]["soft_sem_seg_valid"][None]
    loss = soft_label_map(
        logits,
        soft,
        temperature=2.0,
        target_is="logits",
        valid=valid,
        temper_student=True,
        top_k=3,
        tail="spread",
    )
    sure = soft.softmax(dim=1).amax(dim=1) * valid
    assert found.item() == pytest.approx((0.5 * (loss * sure).sum() / sure.sum()).item(), rel=1e-5)


PANOPTIC = {
    "MODEL__META_ARCHITECTURE": "SceneKDPanopticFPN",
    "MODEL__ROI_HEADS__NAME": "SceneKDROIHeads",
    "MODEL__PROPOSAL_GENERATOR__NAME": "SceneKDRPN",
    "MODEL__RPN__IN_FEATURES": ["p2", "p3", "p4", "p5", "p6"],
    "MODEL__ANCHOR_GENERATOR__SIZES": [[8], [16], [32], [64], [128]],
    "MODEL__ROI_HEADS__IN_FEATURES": ["p2", "p3", "p4", "p5"],
    "MODEL__ROI_HEADS__NUM_CLASSES": 10,
    "MODEL__ROI_HEADS__SCORE_THRESH_TEST": 0.0,
    "MODEL__ROI_BOX_HEAD__NAME": "FastRCNNConvFCHead",
    "MODEL__ROI_BOX_HEAD__NUM_FC": 1,
    "MODEL__ROI_BOX_HEAD__FC_DIM": 16,
    "MODEL__ROI_MASK_HEAD__NAME": "MaskRCNNConvUpsampleHead",
    "MODEL__ROI_MASK_HEAD__CONV_DIM": 8,
}


def test_panoptic_fpn_with_and_without_instance_masks():
    """Without MASK_ON: boxes and sem_seg of the image's own size. With it: all that detectron2 gives."""
    image = torch.rand(3, 48, 60, generator=torch.Generator().manual_seed(0)) * 255
    item = {"image": image, "height": 30, "width": 90}
    plain = _model(_config(**PANOPTIC)).eval()
    with torch.no_grad():
        output = plain([item])[0]
    assert output.keys() == {"instances", "sem_seg"}
    assert output["sem_seg"].shape == (K, 30, 90) and output["instances"].image_size == (30, 90)
    theirs = {
        **PANOPTIC,
        "MODEL__META_ARCHITECTURE": "PanopticFPN",
        "MODEL__ROI_HEADS__NAME": "StandardROIHeads",
    }
    with torch.no_grad():
        found, wanted = (
            _model(_config(**options, MODEL__MASK_ON=True)).eval()([item])[0]
            for options in (PANOPTIC, theirs)
        )
    assert found.keys() == wanted.keys() == {"instances", "sem_seg", "panoptic_seg"}
    assert torch.equal(found["sem_seg"], wanted["sem_seg"])
    assert torch.equal(found["panoptic_seg"][0], wanted["panoptic_seg"][0])


def test_panoptic_fpn_learns_from_both_teachers():
    """The semantic losses are those of the head alone, the box losses are there beside them."""
    items = _items([(1.0, 0.0), (0.0, 1.0), (0.0, 1.0)])
    wanted = _model(_config(DISTILL__SEGMENTATION__POLICY="combined", **PANOPTIC))
    for item in items:
        found = Instances(tuple(item["image"].shape[-2:]))
        found.gt_boxes, found.gt_classes = Boxes(torch.tensor([[4.0, 4, 30, 40]])), torch.tensor([1])
        found.gt_confidences = torch.tensor([0.5])
        item["instances"] = found
    with EventStorage():
        losses = wanted(items)
    parts = _parts(wanted, items)
    assert losses.keys() >= {"loss_rpn_cls", "loss_rpn_loc", "loss_cls", "loss_box_reg"}
    assert losses["loss_sem_seg"].item() == pytest.approx(0.5 / 3 * parts[0, 0] / parts[0, 1], rel=1e-4)
    soft = 0.5 * 2 / 3 * parts[1:, 2].sum() / parts[1:, 3].sum()
    assert losses["loss_sem_seg_soft"].item() == pytest.approx(soft, rel=1e-4)


# The mapper -------------------------------------------------------------------------------------------------


@pytest.fixture
def taught(scenes, tmp_path, names):
    """A configuration in which both teachers fill in what is missing, and the records with all their labels."""
    data = load_dataset("voc_seg_train", root=str(scenes), classes=CLASSES)
    cfg = _config(
        scenes,
        TEACHER__DETECTION__TYPE="folder",
        TEACHER__DETECTION__WEIGHTS=str(save_boxes(tmp_path / "boxes", data, data.records, 0.75)),
        TEACHER__SEGMENTATION__TYPE="folder",
        TEACHER__SEGMENTATION__WEIGHTS=str(save_masks(tmp_path / "masks", data, data.records)),
        DISTILL__DETECTION__POLICY="fill_missing",
        DISTILL__SEGMENTATION__POLICY="fill_missing",
        INPUT__CROP__ENABLED=True,
    )
    return cfg, {record.image_id: record for record in data.records}


def test_mapper_gives_plain_models_what_they_need(taught):
    """Through detectron2's own loader: each image has boxes and dense labels, its own or a teacher's, after its
    resize, flip and crop, all at the image's size.
    """
    cfg, truth = taught
    register_datasets(cfg)
    mapper = SceneKDDatasetMapper(cfg)
    loader = iter(build_detection_train_loader(cfg, mapper=mapper))
    items = {item["image_id"]: item for _ in range(3) for item in next(loader)}
    assert items.keys() == truth.keys()
    for name, item in items.items():
        record, boxes, size = mapper.records[name], item["instances"], item["image"].shape[-2:]
        assert item["image"].dtype == torch.uint8 and boxes.image_size == tuple(size) == item["sem_seg"].shape
        assert min(size) <= 80 and (item["height"], item["width"]) == truth[name].size()
        assert (item["has_boxes"], item["has_sem_seg"]) == (record.has_boxes, record.has_sem_seg)
        assert boxes.gt_from_teacher.tolist() == [not record.has_boxes] * len(boxes)
        assert boxes.gt_confidences.tolist() == [1.0 if record.has_boxes else 0.75] * len(boxes)
        assert (item["sem_seg"] == 255).all() == (not record.has_sem_seg)
        assert ("soft_sem_seg" in item) == (not record.has_sem_seg)
        if not record.has_sem_seg:
            assert item["soft_sem_seg"].shape == (K, *size) and item["soft_sem_seg_valid"].all()
    assert (
        {True, False}
        == {i["has_boxes"] for i in items.values()}
        == {i["has_sem_seg"] for i in items.values()}
    )


def test_teacher_and_mask_agree_after_detectron2s_augmentations(taught):
    """A teacher that tells the truth tells it of the same pixels: away from the regions' borders, the soft target's
    argmax is the mask, after ResizeShortestEdge, RandomFlip and RandomCrop.
    """
    cfg, truth = taught
    cfg.DISTILL.SEGMENTATION.POLICY = "combined"
    cfg.DATASETS.KEEP_SEM_SEG = 1.0
    np.random.seed(0)  # noqa: NPY002 - detectron2's workers seed it
    mapper = SceneKDDatasetMapper(cfg)
    for name in truth:
        item = mapper({"image_id": name})
        mask, said = item["sem_seg"], item["soft_sem_seg"].argmax(0)
        around = torch.nn.functional.unfold(mask[None, None].float(), 5, padding=2)
        calm = (around == around[:, 12:13]).all(dim=1).reshape(mask.shape) & (mask != 255)
        assert calm.float().mean() > 0.3 and (said == mask)[calm].all()
        assert (item["weights"].segmentation_gt, item["weights"].segmentation_teacher) == (0.5, 0.5)


@pytest.mark.parametrize("void", ["none", "padding", "labels"])
def test_void_pixels_of_the_teacher(taught, void):
    """Which of the teacher's pixels count: all; those that show the image; of these, those that the mask knows. A mask
    without weight is not learnt from, though it is asked."""
    cfg, truth = taught
    cfg.DISTILL.SEGMENTATION.POLICY, cfg.DISTILL.SEGMENTATION.VOID = "teacher", void
    cfg.DATASETS.KEEP_SEM_SEG = 1.0
    mapper = SceneKDDatasetMapper(cfg, augmentations=[PadTransform(4, 0, 0, 0)])
    for name in truth:
        record = mapper.records[name]
        mask = mapper.mapper.dataset.read_sem_seg(record)
        mask[:9] = 255
        record.segmentation = mask.copy
        item = mapper({"image_id": name})
        valid = item["soft_sem_seg_valid"]
        assert (item["sem_seg"] == 255).all()
        assert valid[:, :4].all() if void == "none" else not valid[:, :4].any()
        wanted = (
            torch.from_numpy(mask != 255) if void == "labels" else torch.ones(mask.shape, dtype=torch.bool)
        )
        assert torch.equal(valid[:, 4:], wanted)


def test_missing_boxes_are_marked(taught):
    """Where no teacher fills in, the image without boxes is marked so, and leaves the losses."""
    cfg, _ = taught
    cfg.DISTILL.DETECTION.POLICY = "ground_truth"
    mapper = SceneKDDatasetMapper(cfg)
    for name, record in mapper.records.items():
        assert mapper({"image_id": name})["instances"].has("gt_missing") == (not record.has_boxes)


def test_image_format_and_test_items(taught):
    """BGR is RGB backwards; in testing there is the image alone, at its test size."""
    cfg, truth = taught
    cfg.INPUT.CROP.ENABLED, cfg.INPUT.MIN_SIZE_TEST = False, 50
    images = {}
    for cfg.INPUT.FORMAT in ("RGB", "BGR"):
        item = SceneKDDatasetMapper(cfg, is_train=False)({"image_id": _test_id(cfg)})
        assert item.keys() == {"image", "image_id", "file_name", "height", "width"}
        images[cfg.INPUT.FORMAT] = item["image"]
    assert min(images["RGB"].shape[1:]) == 50
    assert torch.equal(images["RGB"], images["BGR"].flip(0)) and not torch.equal(images["RGB"], images["BGR"])
    cfg.INPUT.FORMAT = "L"
    with pytest.raises(UserError, match="INPUT.FORMAT: 'L'"):
        SceneKDDatasetMapper(cfg, is_train=False)


def _test_id(cfg):
    return load_datasets(cfg.DATASETS.TEST, cfg, train=False).image_ids[0]


def test_own_network_takes_detectron2s_augmentations(taught):
    """BlitzNet with detectron2's augmentations: its target, at its own size, soft labels on its own map."""
    cfg, truth = taught
    cfg.MODEL.META_ARCHITECTURE = "BlitzNet"
    mapper = SceneKDDatasetMapper(cfg, augmentations=[T.RandomFlip(prob=1.0)])
    still = SceneKDDatasetMapper(cfg, augmentations=[])
    for name in truth:
        flipped, item = mapper({"image_id": name}), still({"image_id": name})
        assert item["image"].shape == (3, 64, 64) and item.keys() == flipped.keys()
        boxes, others = flipped["target"].boxes, item["target"].boxes
        torch.testing.assert_close(boxes[:, [0, 2]], 64 - others[:, [2, 0]], atol=1e-4, rtol=0)
        if item["target"].soft_seg is not None:
            assert item["target"].soft_seg.shape[-1] in (8, 16)


@pytest.mark.parametrize("key", ["MASK_ON", "KEYPOINT_ON", "LOAD_PROPOSALS"])
def test_what_the_mapper_does_not_give(taught, key):
    """Labels that it has not are refused by their key."""
    cfg, _ = taught
    cfg.MODEL[key] = True
    with pytest.raises(UserError, match=f"MODEL.{key}"):
        SceneKDDatasetMapper(cfg)


def test_any_data_set_of_detectron2s_catalog(scenes, tmp_path, names):
    """A stranger's set, with numbers for ids and boxes in another mode: its teacher is found by the id."""
    from detectron2.structures import BoxMode

    data = load_dataset("voc_seg_train", root=str(scenes), classes=CLASSES)
    items = []
    for number, record in enumerate(data.records[:2]):
        x, y, right, down = (float(v) for v in record.boxes[0])
        height, width = record.size()
        box = {
            "bbox": [x, y, right - x, down - y],
            "bbox_mode": BoxMode.XYWH_ABS,
            "category_id": int(record.labels[0]),
        }
        items.append({"file_name": record.file_name, "image_id": number, "height": height, "width": width})
        items[-1]["annotations"] = [box]
        record.image_id = str(number)
    DatasetCatalog.register("strangers", lambda: items)
    MetadataCatalog.get("strangers").set(thing_classes=list(CLASSES))
    cfg = _config(
        DATASETS__TRAIN=("strangers",),
        DATASETS__TEST=(),
        DATASETS__CLASSES=(),
        DATASETS__KEEP_BOXES=1.0,
        TEACHER__SEGMENTATION__TYPE="folder",
        TEACHER__SEGMENTATION__WEIGHTS=str(save_masks(tmp_path / "masks", data, data.records[:1])),
        DISTILL__SEGMENTATION__POLICY="fill_missing",
    )
    mapper = SceneKDDatasetMapper(cfg)
    first, second = (mapper(item) for item in items)
    assert first["soft_sem_seg"].shape[0] == K and "soft_sem_seg" not in second
    assert len(first["instances"]) == len(second["instances"]) == 1
    assert first["weights"].segmentation_teacher == 1 and second["weights"].segmentation_teacher == 0
