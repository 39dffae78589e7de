"""Losses on logits (B, K, *spatial), labels (B, 1, *spatial) and `annotated` (B, K-1); of heat maps and single organs without the
background's channel."""

from nnunet_oar.losses.attention_anatomy import AttentionAnatomyLoss
from nnunet_oar.losses.binary import DiceCELoss
from nnunet_oar.losses.combined import DiceCrossEntropyLoss
from nnunet_oar.losses.dice import BatchDiceLoss, MulticlassDiceLoss
from nnunet_oar.losses.focal import SpatiallyBalancedFocalLoss
from nnunet_oar.losses.hard_voxel import HardVoxelDiceLoss
from nnunet_oar.losses.heatmap import HeatmapL2Loss
from nnunet_oar.losses.recalibration import recalibrate

__all__ = [
    "AttentionAnatomyLoss",
    "BatchDiceLoss",
    "DiceCELoss",
    "DiceCrossEntropyLoss",
    "HardVoxelDiceLoss",
    "HeatmapL2Loss",
    "MulticlassDiceLoss",
    "SpatiallyBalancedFocalLoss",
    "recalibrate",
]
