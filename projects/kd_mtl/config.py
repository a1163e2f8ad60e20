"""The configuration keys of kd_mtl, below ``MODEL.BLITZNET`` and ``MODEL.SCENEKD_FPN``.

The comment of a key is its documentation.
"""

from __future__ import annotations

from fvcore.common.config import CfgNode as CN


def add_kd_mtl_config(cfg: CN) -> None:
    """Add ``cfg.MODEL.BLITZNET``. The defaults are the paper's BlitzNet300 on torchvision's ResNet-50."""
    cfg.MODEL.STUDENT = (
        "BlitzNet"  # BlitzNet | SceneKDFPN, which takes tasks, heads, loss and output of BLITZNET too
    )
    add_fpn_config(cfg)
    node = cfg.MODEL.BLITZNET = CN()
    # of detection, segmentation and instance_segmentation (which needs detection); the others' heads are not built
    node.TASKS = ("detection", "segmentation")

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

    # Masks of boxes (task instance_segmentation), from prototypes (YOLACT, Bolya et al. 2019)
    node.INSTANCES = CN()
    node.INSTANCES.PROTOTYPES = 32  # maps, of which each box takes a combination
    node.INSTANCES.CHANNELS = 64  # of the branch that makes them
    node.INSTANCES.LOSS_WEIGHT = 6.125
    node.INSTANCES.MAX_POSITIVES = 100  # anchors of an image that learn masks; of more, an even selection

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


def add_fpn_config(cfg: CN) -> None:
    """Add ``cfg.MODEL.SCENEKD_FPN``: what the student SceneKDFPN has of its own."""
    node = cfg.MODEL.SCENEKD_FPN = CN()
    # timm:<name>: any model of timm's features_only with maps at strides 4, 8, 16, 32; or a trunk of BLITZNET.TRUNK
    node.TRUNK = "timm:convnext_tiny"
    node.TRUNK_WIDTH = 64  # of BLITZNET's trunks alone, as is NORM
    node.NORM = "BN"
    # "" (random) | timm (its own weights, downloaded once) | torchvision (for BLITZNET's trunks) | a weight file
    node.PRETRAINED = ""
    node.X4 = False  # a level at stride 4 too
    node.CHANNELS = 256  # of every level
    node.SHARED_HEAD = True  # one detection head for all levels
