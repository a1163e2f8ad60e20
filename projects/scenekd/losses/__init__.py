"""Losses. Importing this package registers those that the frameworks build by name."""

from .distill import hinton_kd
from .distillation import DistillationLosses
from .multibox import multibox_loss
from .soft_label import SoftLabelCrossEntropy, soft_label_cross_entropy

__all__ = [
    "DistillationLosses",
    "SoftLabelCrossEntropy",
    "hinton_kd",
    "multibox_loss",
    "soft_label_cross_entropy",
]
