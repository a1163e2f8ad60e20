"""The configuration keys of kd_mtl, below ``MODEL.BLITZNET``. The comment of a key is its documentation."""

from __future__ import annotations

from fvcore.common.config import CfgNode as CN


def add_kd_mtl_config(cfg: CN) -> None:
    """Add ``cfg.MODEL.BLITZNET``. The defaults are the paper's BlitzNet300 on torchvision's ResNet-50."""
    node = cfg.MODEL.BLITZNET = CN()
    node.TASKS = ("detection", "segmentation")  # one alone: the other's head is not built

    node.TRUNK = "resnet50"  # resnet18 | resnet34 | resnet50 | resnet101 | densenet121 | vgg16
    node.TRUNK_WIDTH = 64  # channels of a ResNet's first stage (64, the usual); 32 halves every stage
    # The trunk's own weights come by MODEL.WEIGHTS: "torchvision" (ImageNet, downloaded once), "" (random), or a
    # file: a checkpoint of the whole network, or torchvision's .pth, detectron2's .pkl, MMSegmentation's .pth of
    # the trunk. In a native detectron2 config, where MODEL.WEIGHTS is detectron2's, this key takes their place.
    node.PRETRAINED = ""
    node.STRIDE_IN_1X1 = False  # True: Caffe's ResNet-50/101, for detectron2's MSRA .pkl; False: in the 3×3
    # BN | SyncBN (statistics over all GPU processes) | FrozenBN (the trunk's statistics and affine stay
    # fixed, the blocks after it keep BN) | GN (over groups of 8 channels, for batches of a few small images)
    node.NORM = "BN"

    node.X4 = False  # one more upscale block: predictions and the segmentation map at stride 4 instead of 8
    node.BLOCK_CHANNELS = (512, 2048)  # bottleneck units of the downscale stream: inner, outer
    node.STREAM_CHANNELS = 512  # upscale stream
    node.NECK_CHANNELS = 128  # between the 1×1 convolutions of a ResSkip
    node.RESIZE = "bilinear"  # bilinear | nearest, in ResSkip
    node.SEG_CHANNELS = 64  # of each map in the segmentation head
    node.SHARED_HEAD = False  # one detection head for all scales

    # Training
    node.IOU_THRESHOLD = 0.5  # an anchor is positive from here on
    node.NEGATIVE_RATIO = 3.0  # hardest negatives for one positive, over the whole batch
    node.LOSS_WEIGHTS = (1.0, 1.0, 1.0)  # segmentation, class, box
    # Beyond these: fixed | uncertainty (a learned variance for each term: Kendall et al., CVPR 2018) | gradnorm
    # (equal gradient norms at the finest block of the upscale stream: Chen et al., ICML 2018)
    node.BALANCE = "fixed"
    node.BALANCE_ALPHA = 1.5  # gradnorm: how strongly terms that train slowly are pulled; 0: equal norms
    node.BALANCE_LR = 0.025  # gradnorm: relative step of the weights

    # Detection output
    node.SCORE_THRESHOLD = 0.01  # boxes score higher
    node.TOPK_PRE_NMS = 400  # best boxes of each class that enter NMS
    node.NMS_THRESHOLD = 0.45
    node.TOPK_PER_CLASS = 50  # boxes of each class after NMS
    node.TOPK = 200  # boxes of an image
