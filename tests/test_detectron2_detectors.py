"""Confidence-propagated matching in detectron2's RetinaNet, RPN and box head, against detectron2's own losses."""

from __future__ import annotations

import pytest
import torch

from scenekd.errors import UserError

pytest.importorskip("detectron2")
from detectron2.config import get_cfg  # noqa: E402
from detectron2.modeling import build_model  # noqa: E402
from detectron2.structures import BitMasks, Boxes, Instances, pairwise_iou  # noqa: E402
from detectron2.utils.events import EventStorage  # noqa: E402

from scenekd.engines.detectron2 import add_scenekd_config  # noqa: E402
from scenekd.engines.detectron2_matching import instances_of  # noqa: E402
from scenekd.sample import SourceWeights, Target  # noqa: E402

pytestmark = pytest.mark.detectron2

SIZE, CLASSES = 64, 3
KINDS = ("smooth_l1", "giou", "diou", "ciou")
THEIRS = {"SceneKDRPN": "RPN", "SceneKDROIHeads": "StandardROIHeads", "SceneKDRetinaNet": "RetinaNet"}
RPN_LOSSES, HEAD_LOSSES = {"loss_rpn_cls", "loss_rpn_loc"}, {"loss_cls", "loss_box_reg"}


def _config(architecture, **options):
    cfg = get_cfg()
    add_scenekd_config(cfg)
    retina = "Retina" in architecture
    cfg.MODEL.META_ARCHITECTURE, cfg.MODEL.DEVICE = architecture, "cpu"
    cfg.MODEL.BACKBONE.NAME = f"build_{'retinanet_' if retina else ''}resnet_fpn_backbone"
    cfg.MODEL.RESNETS.STEM_OUT_CHANNELS, cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 8, 16
    cfg.MODEL.RESNETS.WIDTH_PER_GROUP, cfg.MODEL.FPN.OUT_CHANNELS = 4, 16
    cfg.MODEL.RESNETS.OUT_FEATURES = cfg.MODEL.FPN.IN_FEATURES = ["res2", "res3", "res4", "res5"][retina:]
    cfg.MODEL.ANCHOR_GENERATOR.SIZES = [[8], [16], [32], [64], [128]]
    cfg.MODEL.PIXEL_STD = [57.0, 57.0, 57.0]
    cfg.MODEL.RETINANET.NUM_CONVS, cfg.MODEL.RETINANET.NUM_CLASSES = 1, CLASSES
    cfg.MODEL.RPN.IN_FEATURES, cfg.MODEL.ROI_HEADS.IN_FEATURES = (
        [f"p{i}" for i in range(2, 7)],
        ["p2", "p3", "p4", "p5"],
    )
    cfg.MODEL.RPN.POST_NMS_TOPK_TRAIN, cfg.MODEL.RPN.LOSS_WEIGHT, cfg.MODEL.RPN.BBOX_REG_LOSS_WEIGHT = (
        100,
        0.7,
        3.0,
    )
    cfg.MODEL.ROI_HEADS.NUM_CLASSES, cfg.MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE = CLASSES, 32
    cfg.MODEL.ROI_BOX_HEAD.NAME, cfg.MODEL.ROI_BOX_HEAD.NUM_FC, cfg.MODEL.ROI_BOX_HEAD.FC_DIM = (
        "FastRCNNConvFCHead",
        1,
        16,
    )
    cfg.MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION, cfg.MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_WEIGHT = 4, 1.5
    cfg.MODEL.ROI_MASK_HEAD.NAME, cfg.MODEL.ROI_MASK_HEAD.CONV_DIM = "MaskRCNNConvUpsampleHead", 8
    for key, value in options.items():
        cfg.merge_from_list([key.replace("__", "."), value])
    return cfg


def _retina(**options):
    return _config("SceneKDRetinaNet", **options)


def _faster(**options):
    options = {
        "MODEL__PROPOSAL_GENERATOR__NAME": "SceneKDRPN",
        "MODEL__ROI_HEADS__NAME": "SceneKDROIHeads",
        **options,
    }
    return _config("GeneralizedRCNN", **options)


def _theirs(cfg):
    """The same configuration with detectron2's own components."""
    cfg = cfg.clone()
    for node, key in (
        (cfg.MODEL, "META_ARCHITECTURE"),
        (cfg.MODEL.PROPOSAL_GENERATOR, "NAME"),
        (cfg.MODEL.ROI_HEADS, "NAME"),
    ):
        node[key] = THEIRS.get(node[key], node[key])
    return cfg


def _model(cfg):
    torch.manual_seed(0)
    return build_model(cfg).train()


def _losses(model, items, seed=1):
    """Losses, with the same random subsample of anchors and proposals each time."""
    torch.manual_seed(seed)
    with EventStorage():
        return model([dict(item) for item in items])


def _items(confidences=(1.0, 1.0, 1.0), masks=False):
    """Two images of three boxes together, and one of none."""
    generator = torch.Generator().manual_seed(3)
    boxes = torch.tensor([[4.0, 6, 30, 40], [34, 10, 62, 50], [8, 8, 24, 20]])
    items = []
    for rows in ([0, 1], [2], []):
        found = Instances((SIZE, SIZE))
        found.gt_boxes, found.gt_classes = Boxes(boxes[rows]), torch.tensor([0, 2, 1])[rows]
        if confidences is not None:
            found.gt_confidences = torch.tensor(confidences)[rows]
        if masks:
            found.gt_masks = BitMasks(torch.rand(len(rows), SIZE, SIZE, generator=generator) > 0.5)
        items.append({"image": torch.rand(3, SIZE, SIZE, generator=generator) * 255, "instances": found})
    return items


def _missing(item):
    """The same image without box labels."""
    none = torch.zeros(0, dtype=torch.int64)
    target = Target("a", torch.zeros(0, 4), none, torch.zeros(0), none.bool(), none.bool())
    target.weights = SourceWeights(detection_gt=0.0)
    return {**item, "instances": instances_of(target, (SIZE, SIZE))}


CASES = {
    **{f"RetinaNet {kind}": (_retina, {"MODEL__RETINANET__BBOX_REG_LOSS_TYPE": kind}) for kind in KINDS},
    **{
        f"Faster R-CNN {kind}": (
            _faster,
            {"MODEL__RPN__BBOX_REG_LOSS_TYPE": kind, "MODEL__ROI_BOX_HEAD__BBOX_REG_LOSS_TYPE": kind},
        )
        for kind in ("smooth_l1", "giou")
    },
    "smooth": (_faster, {"MODEL__RPN__SMOOTH_L1_BETA": 0.5, "MODEL__ROI_BOX_HEAD__SMOOTH_L1_BETA": 0.5}),
    "class-agnostic boxes": (_faster, {"MODEL__ROI_BOX_HEAD__CLS_AGNOSTIC_BBOX_REG": True}),
    "sigmoid classes": (_faster, {"MODEL__ROI_BOX_HEAD__USE_SIGMOID_CE": True}),
    "Mask R-CNN": (_faster, {"MODEL__MASK_ON": True}),
}


@pytest.mark.parametrize("case", CASES)
def test_sure_boxes_give_detectron2s_losses(case):
    """Confidences of 1, or none at all: the same initial weights, the same losses and gradients.

    To the last bit, but for what torch's compiler of the focal loss makes of its second and third call.
    """
    close = {"rtol": 2e-7, "atol": 0.0}
    build, options = CASES[case]
    cfg = build(**options)
    ours, theirs = _model(cfg), _model(_theirs(cfg))
    for name, value in theirs.state_dict().items():
        assert torch.equal(value, ours.state_dict()[name]), name
    masks = cfg.MODEL.MASK_ON
    wanted = _losses(theirs, _items(None, masks))
    sum(wanted.values()).backward()
    for confidences in ((1.0, 1.0, 1.0), None):
        ours = _model(cfg)
        found = _losses(ours, _items(confidences, masks))
        assert found.keys() == wanted.keys()
        for name, value in wanted.items():
            torch.testing.assert_close(found[name], value, **close)
        sum(found.values()).backward()
        for (name, mine), own in zip(ours.named_parameters(), theirs.parameters()):
            if own.grad is not None:
                assert (mine.grad - own.grad).abs().max() <= 1e-4 * own.grad.abs().max(), name


@pytest.mark.parametrize("case", CASES)
def test_half_confidence(case):
    """Every box at confidence ½, then at 0.

    L(c) = (Σ_matched c · l + Σ_negatives l) / N with the same c for all, and an N that does not know c: L is a straight
    line in c, so L(½) = (L(1) + L(0)) / 2. Box losses have no negatives: L(0) = 0 and L(½) = L(1) / 2. The class losses
    at 0 are the negatives' alone, which are positive here.
    """
    build, options = CASES[case]
    cfg = build(**options)
    one, half, zero = (_losses(_model(cfg), _items((c, c, c), cfg.MODEL.MASK_ON)) for c in (1.0, 0.5, 0.0))
    for name in RPN_LOSSES | HEAD_LOSSES | {"loss_mask"}:
        if name not in one:
            continue
        if name == "loss_mask":  # confidences concern boxes and their classes
            assert torch.equal(one[name], half[name])
            continue
        assert half[name].item() == pytest.approx((one[name] + zero[name]).item() / 2, rel=1e-5, abs=1e-7)
        if name in ("loss_rpn_loc", "loss_box_reg"):
            assert one[name] > 0.001 and zero[name].item() == pytest.approx(0, abs=1e-6)
        else:
            assert 0 < zero[name] < one[name]


def test_retinanet_in_closed_form():
    """RetinaNet's losses from its own outputs, matching done again by hand.

    L_cls = (Σ_positive c · Σ_k focal + Σ_negative Σ_k focal) / N, focal = α_t (1 − p_t)² (−log p_t) with α_t = ¼ for
    the box's class and ¾ for the others; L_box = Σ_positive c · Σ |offset − wanted| / N; N = 0.9 · 100 + 0.1 ·
    positives, the first step of detectron2's moving mean. Ignored anchors (IoU .4 to .5) are in no sum.
    """
    model = _model(_retina(MODEL__RETINANET__SMOOTH_L1_LOSS_BETA=0.0))
    items = _items((0.25, 0.75, 0.5))
    found = _losses(model, items)
    images = model.preprocess_image(items)
    features = [model.backbone(images.tensor)[f] for f in model.head_in_features]
    logits, deltas = model._transpose_dense_predictions(model.head(features), [CLASSES, 4])
    logits, deltas = torch.cat(logits, 1), torch.cat(deltas, 1)
    anchors = Boxes.cat(model.anchor_generator(features))
    cls = box = positives = 0.0
    for i, item in enumerate(items):
        own = item["instances"]
        index, state = model.anchor_matcher(pairwise_iou(own.gt_boxes, anchors))
        for a in torch.nonzero(state >= 0)[:, 0].tolist():
            p = logits[i, a].sigmoid().double()
            hot, weight = torch.zeros(CLASSES, dtype=torch.float64), 1.0
            if state[a] == 1:
                match = int(index[a])
                hot[own.gt_classes[match]], weight = 1.0, float(own.gt_confidences[match])
                wanted = model.box2box_transform.get_deltas(
                    anchors.tensor[a : a + 1], own.gt_boxes.tensor[match : match + 1]
                )
                box += weight * float((deltas[i, a] - wanted[0]).abs().sum())
                positives += 1
            right = p * hot + (1 - p) * (1 - hot)
            focal = (0.25 * hot + 0.75 * (1 - hot)) * (1 - right) ** 2 * -right.log()
            cls += weight * float(focal.sum())
    assert positives >= 4
    normaliser = 0.9 * 100 + 0.1 * positives
    assert found["loss_cls"].item() == pytest.approx(cls / normaliser, rel=1e-4)
    assert found["loss_box_reg"].item() == pytest.approx(box / normaliser, rel=1e-4)


@pytest.mark.parametrize("build", [_retina, _faster])
def test_the_right_box_gives_the_confidence(build):
    """Only the anchors of the one box of low confidence weigh less: L(c, 1, 1) is a straight line in c, and the three
    boxes' lines add up: L(1, 1, 1) − L(0, 0, 0) = Σ_i (L(1, 1, 1) − L(with c_i = 0))."""
    cfg = build()
    one, zero = (_losses(_model(cfg), _items((c, c, c))) for c in (1.0, 0.0))
    alone = [_losses(_model(cfg), _items([0.0 if i == k else 1.0 for i in range(3)])) for k in range(3)]
    for name, value in one.items():
        parts = sum(value - each[name] for each in alone)
        assert parts.item() == pytest.approx((value - zero[name]).item(), rel=1e-4, abs=1e-6)
        if "cls" in name:  # a box itself is a proposal too, whose box loss is nearly nothing
            assert all(value - each[name] > 0 for each in alone)


@pytest.mark.parametrize("build", [_retina, _faster])
def test_images_without_box_labels_are_left_out(build):
    """With the third image's labels missing the losses are those of the first two, normaliser included; an empty image
    gives negatives, a missing one none. Without any labels: 0, and a gradient of zeros for every parameter."""
    cfg = build()
    items = _items((0.5, 1.0, 0.25))
    without = _losses(_model(cfg), [*items[:2], _missing(items[2])])
    alone = _losses(_model(cfg), items[:2])
    empty = _losses(_model(cfg), items)
    for name, value in alone.items():
        assert without[name].item() == pytest.approx(value.item(), rel=1e-5)
    assert any(abs(empty[name] - alone[name]) > 1e-4 * alone[name] for name in alone)
    model = _model(cfg)
    nothing = _losses(model, [_missing(item) for item in items])
    assert nothing.keys() == alone.keys() and all(value == 0 for value in nothing.values())
    sum(nothing.values()).backward()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None and not parameter.grad.any(), name


def test_instances_say_what_the_policy_says():
    """Confidences by source: ground truth 1 and teacher .8; with weights ¾ and ¼ the teacher's count a third."""
    boxes = torch.tensor([[0.0, 0, 4, 4], [1, 1, 5, 5]])
    target = Target(
        "a",
        boxes,
        torch.tensor([1, 2]),
        torch.tensor([1.0, 0.8]),
        torch.tensor([False, True]),
        torch.zeros(2, dtype=torch.bool),
    )
    for weights, wanted in (
        ((1.0, 0.0), [1.0, 0.0]),
        ((0.5, 0.5), [1.0, 0.8]),
        ((0.75, 0.25), [1.0, 0.8 / 3]),
    ):
        target.weights = SourceWeights(*weights)
        found = instances_of(target, (8, 8))
        assert torch.equal(found.gt_boxes.tensor, boxes) and found.gt_classes.tolist() == [1, 2]
        assert found.gt_confidences.tolist() == pytest.approx(wanted)
        assert found.gt_from_teacher.tolist() == [False, True] and not found.has("gt_missing")
    target.weights = SourceWeights(detection_gt=0.0)
    assert len(instances_of(target, (8, 8))) == 0 and instances_of(target, (8, 8)).has("gt_missing")


def test_federated_loss_is_refused():
    """It draws its classes anew whenever it is asked."""
    cfg = _faster(MODEL__ROI_BOX_HEAD__USE_SIGMOID_CE=True, MODEL__ROI_BOX_HEAD__USE_FED_LOSS=True)
    from detectron2.data import MetadataCatalog

    MetadataCatalog.get("fed_set").set(
        class_image_count=[{"id": i, "image_count": 1} for i in range(CLASSES)]
    )
    cfg.DATASETS.TRAIN = ("fed_set",)
    try:
        with pytest.raises(UserError, match="USE_FED_LOSS"):
            build_model(cfg)
    finally:
        MetadataCatalog.remove("fed_set")
