"""The configuration keys of blindnet, below ``MODEL.BLINDNET``. The comment of a key is its documentation."""

from __future__ import annotations

from fvcore.common.config import CfgNode as CN

KEY = "MODEL.BLINDNET"


def add_blindnet_config(cfg: CN) -> None:
    """Add ``cfg.MODEL.BLINDNET``. The defaults are the masked-context classifier on a hidden box."""
    node = cfg.MODEL.BLINDNET = CN()
    # context, multi_label, pixel_id (on a trunk), transformer, cnn, unet; or a control that does not see the picture:
    # mask_only, layout_only, class_prior
    # transfer: no hidden object, but the classes that a whole picture shows, by a trunk trained elsewhere
    node.NETWORK = "context"
    # resnet18 | 34 | 50 | 101, densenet121, vgg16, or a ResNet of Fourier convolutions: ffc18 | 34
    node.TRUNK = "resnet18"
    node.TRUNK_WIDTH = 64  # channels of a ResNet's first stage (64, the usual)
    node.OUTPUT_STRIDE = 32  # of a ResNet: 32 | 16 | 8
    node.NORM = "BN"  # BN | SyncBN | FrozenBN (of the trunk) | GN
    # Of context and multi_label: global (mean of the picture's features) | region (of the hole's) | both
    node.POOL = "both"
    # Of context, multi_label, transformer: the hole's place, size and proportions as numbers beside the features
    node.GEOMETRY = True
    node.DROPOUT = 0.0  # before the classes, of all but unet
    node.WIDTH = 64  # of unet and cnn: channels of the first level; each of the four below has twice as many
    node.UPSAMPLING = "bilinear"  # of unet: bilinear | transposed
    node.MASK_WEIGHT = (
        5.0  # of unet and pixel_id: weight of a pixel in the hole in the loss, against 1 elsewhere
    )
    node.PIXEL_TARGET = "masks"  # of pixel_id: class ids from the data's masks | boxes
    node.PIXEL_STRIDE = 1  # of pixel_id: its dense layers and loss work on one pixel in so many, each way
    node.BACKGROUND_WEIGHT = 1.0  # of pixel_id: weight of a pixel without an object, beside CLASS_WEIGHTS
    node.TOKEN_PATCH = 16  # of transformer: side of a patch
    node.TOKEN_WIDTH = 192  # of transformer: channels of a token, a multiple of 4
    node.TOKEN_DEPTH = 6  # of transformer: layers
    node.TOKEN_HEADS = 3  # of transformer: heads of its attention
    node.TOKEN_READ = (
        "mean"  # of transformer: mean of the hidden tokens | one, that nearest to the hole's centre
    )
    node.VIT = (
        ""  # of transformer: timm's name of a plain ViT in place of these sizes, as vit_small_patch16_224
    )
    node.VIT_WEIGHTS = ""  # of VIT: timm (downloaded once) | a file of its weights | "" (random)
    node.CONTROL_WIDTH = 128  # of mask_only and layout_only: units of a layer
    node.CLASS_WEIGHTS = (
        "none"  # none | objects | pixels: a class weighs 1 − its share of all objects, of pixels
    )
    # Control: every training object has the class of another, drawn by SEED; the measure stays true, so that whatever
    # is better than the class prior comes of a fault
    node.PERMUTE_TARGETS = False
    # Of transfer: weights of the trunk alone, a checkpoint of context or transfer or another weight file; "": as
    # MODEL.WEIGHTS says
    node.PRETRAINED = ""
    node.LABELS = "boxes"  # of transfer: boxes | masks, from which the shown classes are taken
    node.FREEZE_TRUNK = (
        False  # of transfer: True: a linear probe on its features, taken once of every picture
    )
    node.COMPARE = ()  # pairs (name, results.json of another run), drawn into this run's curve

    augment = node.AUGMENT = CN()  # beside INPUT's, on the picture before an object is hidden
    augment.LETTERBOX = False  # the picture is padded to a square, not stretched; in testing too
    augment.GRAY = False  # luma in all three channels; in testing too
    augment.ROTATE_PROB = 0.0  # a picture is rotated, or sheared, or neither; the two are at most 1
    augment.ROTATE_DEGREES = 10.0
    augment.SHEAR_PROB = 0.0
    augment.SHEAR_DEGREES = 15.0
    augment.BLUR_OR_JITTER_PROB = 0.0  # half of them are blurred, the others as by INPUT.PHOTOMETRIC
    augment.RGB_SHIFT_PROB = 0.0
    augment.RGB_SHIFT = 20.0  # greatest, of each channel, of 255
    augment.CHANNEL_SHUFFLE_PROB = 0.0
    augment.TONE_PROB = 0.0  # equalised (CLAHE), or of four bits, or gray, a third each

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
    # In training up to so many other regions are hidden with the object: another object, a place beside it, any place.
    # Re-scoring hides several detections in one pass (RESCORE.GROUPS); a network should have seen such pictures
    mask.ALSO = 0
    mask.DRAW = "image"  # image | object: every training image is as likely, or every object
    # Curriculum: the covered share of the hole's bounds grows evenly from PARTIAL_START to 1 over PARTIAL_ITERS
    # iterations; evaluation always hides the whole
    mask.PARTIAL_START = 1.0
    mask.PARTIAL_ITERS = 0

    again = node.RESCORE = CN()  # of tools/rescore.py
    again.GROUPS = (
        2  # passes of the trunk for an image; its detections share them. 0: one for each detection, exact
    )
    again.MIN_SCORE = 0.0  # detections below are not looked at, and keep their score
    # Several: that with which the held-out images gain most AP at IoU .5 is taken in its place (0.05, 0.1, 0.2)
    again.MIN_SCORES = ()
    # What may strengthen or weaken the context's word, of size (the hole's) | objects (number of others) | rank (of the
    # class, as a word of its own)
    again.TERMS = ()
    again.SURE = 0.5  # a detection with such a score, whose class the context takes for unlikely, is listed
