"""What a detectron2 config and its network are told, apart from the framework itself."""

from __future__ import annotations

from typing import Any

from torch import nn

from ..errors import UserError
from .torchvision_vectors import HeadProbabilities

HEADS = ("auto", "masks", "sem_seg")
NO_LIMIT = 1 << 20  # boxes: more than any network proposes


def choose_head(cfg: Any, task: str, head: str, name: str) -> str:
    """``boxes``, ``masks`` (dense scores made of them), ``sem_seg`` or ``instances`` (boxes with their masks); a
    UserError where the network lacks it."""
    architecture = cfg.MODEL.META_ARCHITECTURE
    semantic = architecture in ("PanopticFPN", "SemanticSegmentor")
    instances = architecture not in ("SemanticSegmentor", "ProposalNetwork") and not cfg.MODEL.LOAD_PROPOSALS
    masks = instances and bool(cfg.MODEL.MASK_ON)
    if head not in HEADS:
        raise UserError(f"TEACHER.SEGMENTATION.HEAD: {head!r} is none of {', '.join(HEADS)}")
    if task != "segmentation":
        chosen, has = ("boxes", instances) if task == "detection" else ("instances", masks)
    else:
        chosen = ("sem_seg" if semantic else "masks") if head == "auto" else head
        has = {"sem_seg": semantic, "masks": masks}[chosen]
    if not has:
        what = {
            "boxes": "finds no classes of boxes",
            "masks": "has no masks",
            "instances": "has no masks of objects",
            "sem_seg": "has no semantic head",
        }
        raise UserError(
            f"TEACHER.{task.upper()}: {name} ({architecture}) {what[chosen]}; take another config"
        )
    return chosen


def limit_boxes(cfg: Any, head: str, min_score: float, max_boxes: int) -> None:
    """Let the networks of a config keep what a teacher is to keep, and look for nothing that it does not say."""
    cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = cfg.MODEL.RETINANET.SCORE_THRESH_TEST = float(min_score)
    cfg.TEST.DETECTIONS_PER_IMAGE = max_boxes or NO_LIMIT
    if head == "boxes" and cfg.MODEL.META_ARCHITECTURE == "GeneralizedRCNN":
        cfg.MODEL.MASK_ON = cfg.MODEL.KEYPOINT_ON = False


def check_count(cfg: Any, head: str, task: str, name: str, count: int) -> None:
    """A UserError where the network has another number of classes than ``count`` names are known."""
    model = cfg.MODEL
    counted = model.RETINANET if model.META_ARCHITECTURE == "RetinaNet" else model.ROI_HEADS
    wanted = (model.SEM_SEG_HEAD if head == "sem_seg" else counted).NUM_CLASSES
    if wanted != count:
        raise UserError(
            f"TEACHER.{task.upper()}.CLASSES: {name} has {wanted} classes, {count} names are known; set all "
            "names there, in the network's order"
        )


def set_suppression(net: Any, threshold: float, max_boxes: int) -> None:
    """Another IoU of a network's suppression, and another number of boxes after it (0: no limit)."""
    if hasattr(net, "max_detections_per_image"):  # RetinaNet
        net.test_nms_thresh, net.max_detections_per_image = threshold, max_boxes or NO_LIMIT
        return
    predictors = net.roi_heads.box_predictor
    for predictor in predictors if isinstance(predictors, nn.ModuleList) else [predictors]:
        predictor.test_nms_thresh, predictor.test_topk_per_image = threshold, max_boxes or NO_LIMIT


def head_probabilities(net: Any) -> HeadProbabilities | None:
    """The listener at a box head whose scores are a softmax; None for others, and for cascades, whose scores are
    means over heads."""
    predictor: Any = getattr(getattr(net, "roi_heads", None), "box_predictor", None)
    cascade = isinstance(predictor, nn.ModuleList)
    if predictor is None or cascade or getattr(predictor, "use_sigmoid_ce", False):
        return None
    return HeadProbabilities(predictor, net.roi_heads, proposals=2)
