"""Mask R-CNN's mask loss where some boxes have no mask, against detectron2's own and in closed form; and the mapper
that brings the masks."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from scenekd.data.catalog import load_dataset
from scenekd.errors import UserError
from scenekd.sample import SourceWeights, Target
from scenekd.teachers.protocol import InstanceDetections

pytest.importorskip("detectron2")
from detectron2.layers import ShapeSpec  # noqa: E402
from detectron2.modeling.roi_heads.mask_head import MaskRCNNConvUpsampleHead  # noqa: E402
from detectron2.structures import BitMasks, Boxes, Instances  # noqa: E402
from detectron2.utils.events import EventStorage  # noqa: E402
from test_datasets_engines import CLASSES  # noqa: E402
from test_detectron2_detectors import CLASSES as NUM_CLASSES  # noqa: E402
from test_detectron2_detectors import SIZE, _faster, _items, _losses, _model, _theirs  # noqa: E402
from test_detectron2_semantic import names, taught  # noqa: E402, F401

from scenekd.engines.detectron2 import SceneKDDatasetMapper, SceneKDMaskRCNNHead  # noqa: E402
from scenekd.engines.detectron2_masks import add_masks  # noqa: E402
from scenekd.engines.detectron2_matching import instances_of  # noqa: E402

pytestmark = pytest.mark.detectron2

OURS, STOCK = "SceneKDMaskRCNNHead", "MaskRCNNConvUpsampleHead"


def _mask_rcnn(**options):
    return _faster(MODEL__MASK_ON=True, MODEL__ROI_MASK_HEAD__NAME=OURS, **options)


# The loss ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("agnostic", [False, True])
@pytest.mark.parametrize("told", [False, True])
def test_with_all_masks_it_is_detectron2s_loss(agnostic, told):
    """Whole models, losses and gradients to the last bit; with weights of 1 told, or masks alone."""
    cfg = _mask_rcnn(MODEL__ROI_MASK_HEAD__CLS_AGNOSTIC_MASK=agnostic)
    stock = _theirs(cfg)
    stock.MODEL.ROI_MASK_HEAD.NAME = STOCK
    ours, theirs = _model(cfg), _model(stock)
    assert type(ours.roi_heads.mask_head) is SceneKDMaskRCNNHead
    items = _items((1.0, 1.0, 1.0), masks=True)
    wanted = _losses(theirs, items)
    for item in items if told else ():
        item["instances"].gt_mask_weights = torch.ones(len(item["instances"]))
    found = _losses(ours, items)
    assert found.keys() == wanted.keys() and wanted["loss_mask"] > 0.1
    for name, value in wanted.items():
        assert torch.equal(found[name], value), name
    sum(wanted.values()).backward()
    sum(found.values()).backward()
    for (name, mine), own in zip(ours.named_parameters(), theirs.parameters()):
        assert mine.grad is None if own.grad is None else torch.equal(mine.grad, own.grad), name


def test_without_any_mask_nothing_is_learned_of_masks():
    """Boxes alone: the other losses are a box detector's, the mask loss is 0 with a gradient of zeros."""
    model = _model(_mask_rcnn())
    losses = _losses(model, _items())
    assert losses["loss_mask"] == 0 and losses["loss_cls"] > 0
    sum(losses.values()).backward()
    for name, parameter in model.roi_heads.mask_head.named_parameters():
        assert parameter.grad is not None and not parameter.grad.any(), name


def _head(kind, agnostic=False):
    torch.manual_seed(0)
    classes = 1 if agnostic else NUM_CLASSES
    head = kind(ShapeSpec(channels=4, width=7, height=7), num_classes=classes, conv_dims=[8, 8]).train()
    torch.nn.init.normal_(head.predictor.weight, std=0.5)
    return head


def _proposals(count, masks=True, seed=0, **fields):
    """``count`` matched proposals of one image, with random masks."""
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(count, 2, generator=generator) * 30
    found = Instances((SIZE, SIZE))
    found.proposal_boxes = Boxes(torch.cat([corner, corner + 10 + corner.flip(1) / 2], dim=1))
    found.gt_classes = torch.arange(count) % NUM_CLASSES
    if masks:
        found.gt_masks = BitMasks(torch.rand(count, SIZE, SIZE, generator=generator) > 0.5)
    for name, value in fields.items():
        found.set(name, value)
    return found


def _loss(head, x, instances):
    with EventStorage():
        return head(x, instances)["loss_mask"]


@pytest.mark.parametrize("agnostic", [False, True])
def test_proposals_without_a_mask_are_left_out(agnostic):
    """An image of boxes without masks, one where the second box has none, and one without matches: the loss is
    detectron2's of the others, and what was left out has no gradient."""
    x = torch.randn(5, 4, 7, 7, requires_grad=True)
    partly = _proposals(3, gt_mask_weights=torch.tensor([1.0, 0.0, 1.0]))
    none = _proposals(0, masks=False)
    images = [_proposals(2, masks=False), partly, none]
    found = _loss(_head(SceneKDMaskRCNNHead, agnostic), x, images)
    wanted = _loss(_head(MaskRCNNConvUpsampleHead, agnostic), x[[2, 4]], [none, partly[[0, 2]], none])
    assert torch.equal(found, wanted)
    found.backward()
    assert x.grad.abs().sum(dim=(1, 2, 3)).ne(0).tolist() == [False, False, True, False, True]


def test_weights_and_unknown_cells_in_closed_form():
    """Logits of b everywhere: a cell of the object costs s(−b), another s(b), s the softplus.

    1: whole object, weight 1: s(−b). 2: left half object, right half unknown, weight ½: ½ s(−b). 3: left half object,
    weight ¼: ¼ (s(−b) + s(b)) / 2. 4: unknown everywhere: 0. Their sum is divided by their number, 4, and multiplied
    by the head's own weight.
    """
    b = 0.7
    head = _head(SceneKDMaskRCNNHead)
    torch.nn.init.zeros_(head.predictor.weight)
    torch.nn.init.constant_(head.predictor.bias, b)
    head.loss_weight = 2.0
    masks, void = torch.zeros(4, SIZE, SIZE, dtype=torch.bool), torch.zeros(4, SIZE, SIZE, dtype=torch.bool)
    masks[0], masks[1, :, :32], masks[2, :, :32] = True, True, True
    void[1, :, 32:], void[3] = True, True
    one = _proposals(4, masks=False, gt_masks=BitMasks(masks), gt_void_masks=BitMasks(void))
    one.proposal_boxes = Boxes(torch.tensor([[4.0, 4, 60, 60]] * 4))
    one.gt_mask_weights = torch.tensor([1.0, 0.5, 0.25, 1.0])
    positive, negative = math.log1p(math.exp(-b)), math.log1p(math.exp(b))
    wanted = 2 * (positive + 0.5 * positive + 0.25 * (positive + negative) / 2) / 4
    for images in ([one], [one[:1], one[1:]], [one[:3], _proposals(0, masks=False), one[3:]]):
        found = _loss(head, torch.randn(4, 4, 7, 7), images)
        assert found.item() == pytest.approx(wanted, rel=1e-5)


def test_the_weighted_loss_continues_detectron2s():
    """Weights that approach 1 approach detectron2's loss; halving them all halves it."""
    x = torch.randn(3, 4, 7, 7)
    one, near, half = (
        _loss(_head(SceneKDMaskRCNNHead), x, [_proposals(3, gt_mask_weights=torch.full((3,), w))]).item()
        for w in (1.0, 1.0 - 1e-6, 0.5)
    )
    assert near == pytest.approx(one, rel=1e-5) and half == pytest.approx(one / 2, rel=1e-5)


def test_inference_is_detectron2s():
    x, ours, theirs = (
        torch.randn(2, 4, 7, 7),
        _head(SceneKDMaskRCNNHead).eval(),
        _head(MaskRCNNConvUpsampleHead).eval(),
    )
    outputs = []
    for head in (ours, theirs):
        found = Instances((SIZE, SIZE), pred_boxes=Boxes(torch.rand(2, 4)), pred_classes=torch.tensor([0, 2]))
        outputs.append(head(x, [found])[0].pred_masks)
    assert torch.equal(*outputs)


# What the mapper gives --------------------------------------------------------------------------------------


def _target(masks, weights, from_teacher=(False, False, True), confidences=(1.0, 1.0, 0.8)):
    boxes = torch.tensor([[0.0, 0, 4, 4], [4, 4, 8, 8], [0, 0, 4, 5]])
    return Target(
        "a",
        boxes,
        torch.tensor([1, 2, 1]),
        torch.tensor(confidences),
        torch.tensor(from_teacher),
        torch.zeros(3, dtype=torch.bool),
        masks=masks,
        has_boxes=True,
        has_instance_masks=True,
        weights=weights,
    )


def _filled(target):
    masks = torch.full((3, 8, 8), 255, dtype=torch.uint8)
    for mask, (x1, y1, x2, y2) in zip(masks, target.boxes.int().tolist()):
        mask[:], mask[y1:y2, x1:x2] = 0, 1
    return masks


def _given(masks, **weights):
    target = _target(masks, SourceWeights(**weights))
    return add_masks(instances_of(target, (8, 8)), target)


def test_fields_say_which_masks_count():
    """Both sources of boxes and of masks, at ¾ and ¼: a teacher's mask counts its score, .8, times a third. The second
    box has no mask; of the third a column is not known."""
    masks = _filled(_target(None, SourceWeights()))
    masks[1], masks[2, :, 6] = 255, 255
    found = _given(masks, detection_gt=0.5, detection_teacher=0.5, instance_segmentation=(0.75, 0.25))
    assert found.gt_mask_weights.tolist() == pytest.approx([1.0, 0.0, 0.8 / 3])
    assert torch.equal(found.gt_masks.tensor, masks == 1)
    void = found.gt_void_masks.tensor
    assert not void[:2].any() and void[2, :, 6].all() and void.sum() == 8
    plain = _given(None, detection_teacher=0.5)
    assert len(plain) == 3 and not plain.has("gt_masks")
    everything = _given(_filled(_target(None, None)), detection_teacher=1.0, instance_segmentation=(1.0, 0.0))
    assert not everything.has("gt_void_masks") and everything.gt_mask_weights.tolist() == [1.0, 1.0, 0.0]
    missing = _given(masks, detection_gt=0.0, instance_segmentation=(1.0, 1.0))
    assert missing.has("gt_missing") and not missing.has("gt_masks")


def test_boxes_that_teach_masks_alone_give_them_to_the_others():
    """Ground truth counts for detection, the teacher for masks: its box is no match of its own, and its mask goes to
    the first box, which is of its class and overlaps it by four fifths."""
    masks = _filled(_target(None, None))
    masks[:2] = 255
    found = _given(masks, detection_gt=1.0, instance_segmentation=(0.0, 1.0))
    assert len(found) == 2 and found.gt_confidences.tolist() == [1.0, 1.0]
    assert found.gt_mask_weights.tolist() == pytest.approx([0.8, 0.0])
    assert torch.equal(found.gt_masks.tensor[0], masks[2] == 1)
    turned = _filled(_target(None, None))
    turned[2] = 255
    found = _given(turned, detection_gt=0.0, detection_teacher=1.0, instance_segmentation=(1.0, 0.0))
    assert len(found) == 1 and found.gt_from_teacher.all()
    assert found.gt_mask_weights.tolist() == [1.0] and torch.equal(found.gt_masks.tensor[0], turned[0] == 1)


@pytest.fixture
def masked(taught):  # noqa: F811
    """A configuration of Mask R-CNN on the scenes, of which half keep their boxes, and half of these their masks."""
    cfg, _ = taught
    cfg.merge_from_list(["MODEL.MASK_ON", True, "MODEL.ROI_MASK_HEAD.NAME", OURS])
    cfg.merge_from_list(["DATASETS.KEEP_SEM_SEG", 1.0, "DATASETS.KEEP_INSTANCE_MASKS", 0.6])
    return cfg


def test_masks_follow_detectron2s_augmentations(masked):
    """After resize, crop and flip, the masks of a class together are the pixels that its label map shows, which
    detectron2 itself has moved. Images without masks have boxes alone."""
    np.random.seed(0)  # noqa: NPY002 - detectron2's workers seed it
    mapper = SceneKDDatasetMapper(masked)
    pixels = wrong = 0
    for name, record in mapper.records.items():
        item = mapper({"image_id": name})
        found = item["instances"]
        assert found.has("gt_masks") == record.has_instance_masks
        if not record.has_instance_masks:
            assert record.has_boxes or found.gt_from_teacher.all()
            continue
        assert found.gt_masks.tensor.shape == (len(found), *item["sem_seg"].shape)
        assert found.gt_mask_weights.tolist() == [1.0] * len(found)
        shown = torch.zeros_like(item["sem_seg"])
        for mask, label in zip(found.gt_masks.tensor, found.gt_classes):
            shown[mask] = label + 1
        known = item["sem_seg"] != 255
        pixels += int((shown > 0).sum())
        wrong += int((shown != item["sem_seg"])[known].sum())
    # both take the nearest pixel; at halves either may be
    assert pixels > 1000 and wrong < 0.02 * pixels
    given = [record.has_instance_masks for record in mapper.records.values()]
    assert 0 < sum(given) < len(given)


def test_a_teacher_fills_in_missing_masks(masked, monkeypatch, scenes):
    """It gives the true masks: every image that has lost them has them again, at the teacher's score on ground truth
    (whose boxes lost their masks) and on the detection teacher's boxes alike."""
    import scenekd.engines.detectron2_data as module

    data = load_dataset("voc_seg_train", root=str(scenes), classes=CLASSES)
    truth = {record.image_id: record for record in data.records}
    opened = module.open_store

    class Store:
        def __contains__(self, image_id):
            return image_id in truth

        def get_instances(self, image_id):
            record = truth[image_id]
            masks = data.read_instance_masks(record) == 1
            return InstanceDetections.build(record.boxes, record.labels, np.full(len(masks), 0.6), masks)

    monkeypatch.setattr(
        module, "open_store", lambda cfg, task: Store() if task.startswith("inst") else opened(cfg, task)
    )
    masked.TEACHER.INSTANCE_SEGMENTATION.TYPE = "scenekd"
    masked.DISTILL.INSTANCE_SEGMENTATION.POLICY = "fill_missing"
    mapper = SceneKDDatasetMapper(masked, augmentations=[])
    seen = set()
    for name, record in mapper.records.items():
        found = mapper({"image_id": name})["instances"]
        kind = (record.has_boxes, record.has_instance_masks)
        seen.add(kind)
        assert len(found) == len(truth[name].boxes)
        assert found.gt_from_teacher.tolist() == [not record.has_boxes] * len(found)
        # own masks; the mask teacher's score on boxes of ground truth; the detection teacher's on its boxes
        weight = {(True, True): 1.0, (True, False): 0.6, (False, False): 0.75}[kind]
        assert found.gt_mask_weights.tolist() == pytest.approx([weight] * len(found))
        wanted = data.read_instance_masks(truth[name]) == 1
        order = [
            int((found.gt_boxes.tensor.numpy() - box).__abs__().max(axis=1).argmin())
            for box in truth[name].boxes
        ]
        np.testing.assert_array_equal(found.gt_masks.tensor.numpy()[order], wanted)
    assert len(seen) == 3


def test_a_head_that_needs_every_mask_is_refused(masked):
    masked.MODEL.ROI_MASK_HEAD.NAME = STOCK
    with pytest.raises(UserError, match=f"MODEL.MASK_ON: {STOCK} would take .*NAME to {OURS}"):
        SceneKDDatasetMapper(masked)
    SceneKDDatasetMapper(masked, is_train=False)  # there are no labels in testing
    masked.MODEL.ROI_MASK_HEAD.NAME = "no_such_head"
    with pytest.raises(UserError, match="MODEL.MASK_ON"):
        SceneKDDatasetMapper(masked)
