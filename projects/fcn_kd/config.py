"""The configuration keys of fcn_kd, below ``MODEL.FCN_KD`` and ``DISTILL``.

The comment of a key is its documentation.
"""

from __future__ import annotations

from fvcore.common.config import CfgNode as CN


def add_fcn_kd_config(cfg: CN) -> None:
    """Add ``cfg.MODEL.FCN_KD`` and ``cfg.DISTILL.LOSSES``. The defaults are the student of the paper: FCN on a
    ResNet-50 of stride 32, whose head learns ten times as fast as its trunk."""
    node = cfg.MODEL.FCN_KD = CN()
    # For classification cifar_resnet{20 … 110}, cifar_resnet18, cifar_cnn5; for segmentation
    # {fcn|deeplabv3}_{resnet18|resnet34|resnet50|resnet101|mobilenet_v3_large}, lraspp_mobilenet_v3_large,
    # espnetv2_{0.5|1.0|1.5|2.0}; or mmseg://FILE, any EncoderDecoder of MMSegmentation (or its name where it ships it)
    node.NETWORK = "fcn_resnet50"
    node.OUTPUT_STRIDE = 32  # of a ResNet 32 | 16 | 8, of MobileNet 32 | 16: the last stages are then dilated
    node.TRUNK_WIDTH = 64  # channels of a ResNet's first stage (64, the usual)
    node.NORM = "BN"  # BN | SyncBN | FrozenBN (of the trunk) | GN
    node.HEAD_CHANNELS = 512  # of FCN's head
    node.DROPOUT = 0.1  # of FCN's head and of cifar_cnn5
    node.HEAD_LR_FACTOR = 10.0  # the head's learning rate over the trunk's
    node.LOSS_SIZE = "image"  # image | logits: grid on which student, teacher and labels are compared

    # Mappings, each one loss of docs/components.md, "Distillation losses", with a TYPE and its keys; empty:
    # cross-entropy with the labels alone
    cfg.DISTILL.LOSSES = ()
