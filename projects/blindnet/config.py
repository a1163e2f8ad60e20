"""The configuration keys of blindnet, below ``MODEL.BLINDNET``. The comment of a key is its documentation."""

from __future__ import annotations

from fvcore.common.config import CfgNode as CN

KEY = "MODEL.BLINDNET"


def add_blindnet_config(cfg: CN) -> None:
    """Add ``cfg.MODEL.BLINDNET``. The defaults are the masked-context classifier on a hidden box."""
    node = cfg.MODEL.BLINDNET = CN()
    # context (a trunk), cnn, unet; or a control that does not see the picture: mask_only, layout_only, class_prior
    # transfer: no hidden object, but the classes that a whole picture shows, by a trunk trained elsewhere
    node.NETWORK = "context"
    node.TRUNK = "resnet18"  # of context: resnet18 | 34 | 50 | 101, densenet121, vgg16
    node.TRUNK_WIDTH = 64  # channels of a ResNet's first stage (64, the usual)
    node.OUTPUT_STRIDE = 32  # of a ResNet: 32 | 16 | 8
    node.NORM = "BN"  # BN | SyncBN | FrozenBN (of the trunk) | GN
    node.POOL = "both"  # of context: global (mean of the picture's features) | region (of the hole's) | both
    node.GEOMETRY = True  # of context: the hole's place, size and proportions as numbers beside the features
    node.DROPOUT = 0.0  # before the classes, of context and cnn
    node.WIDTH = 64  # of unet and cnn: channels of the first level; each of the four below has twice as many
    node.UPSAMPLING = "bilinear"  # of unet: bilinear | transposed
    node.MASK_WEIGHT = 5.0  # of unet: weight of a pixel in the hole in its loss, against 1 elsewhere
    node.CONTROL_WIDTH = 128  # of mask_only and layout_only: units of a layer
    node.CLASS_WEIGHTS = (
        "none"  # none | objects | pixels: a class weighs 1 − its share of all objects, of pixels
    )
    # Of transfer: weights of the trunk alone, a checkpoint of context or transfer or another weight file; "": as
    # MODEL.WEIGHTS says
    node.PRETRAINED = ""
    node.LABELS = "boxes"  # of transfer: boxes | masks, from which the shown classes are taken
    node.FREEZE_TRUNK = (
        False  # of transfer: True: a linear probe on its features, taken once of every picture
    )
    node.COMPARE = ()  # pairs (name, results.json of another run), drawn into this run's curve

    mask = node.MASK = CN()
    mask.SHAPES = ("box",)  # of box | square | circle | blob | segment (a leak); of several one is drawn
    mask.FILL = "zero"  # zero | mean | noise | blur (a leak) | inpaint
    mask.MARGIN = 0  # pixels of the network input by which a hole reaches beyond the object
    mask.MAX_AREA = 0.5  # an object is no candidate where the hole's bounds are a larger share of the picture
    # Objects of which a hole hides more than OTHERS_COVERED. keep: they stay what they are. skip: such a hole is not
    # made. multi_label: their classes are right answers in training, too
    mask.OTHERS = "keep"
    mask.OTHERS_COVERED = 0.5
    mask.DIFFICULT = True  # objects marked difficult are hidden, too
    mask.DRAW = "image"  # image | object: every training image is as likely, or every object
    # Curriculum: the covered share of the hole's bounds grows evenly from PARTIAL_START to 1 over PARTIAL_ITERS
    # iterations; evaluation always hides the whole
    mask.PARTIAL_START = 1.0
    mask.PARTIAL_ITERS = 0
