"""Losses on logits (B, K, *spatial), labels (B, 1, *spatial) and `annotated` (B, K-1)."""

from nnunet_oar.losses.combined import DiceCrossEntropyLoss
from nnunet_oar.losses.dice import MulticlassDiceLoss
from nnunet_oar.losses.recalibration import recalibrate

__all__ = ["DiceCrossEntropyLoss", "MulticlassDiceLoss", "recalibrate"]
