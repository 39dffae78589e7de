"""What nnU-Net finds through nnUNet_extTrainer.

nnU-Net imports this file as a top-level module and drops it from sys.modules afterwards, so it holds names only: the classes live
in nnunet_oar.trainers, where they stay loaded and can be pickled.
"""

from nnunet_oar.trainers.attention import OARAttentionTrainer
from nnunet_oar.trainers.cascade import OARCascadeTrainer
from nnunet_oar.trainers.heatmap import OARHeatmapCascadeTrainer
from nnunet_oar.trainers.instances import OARInstanceCascadeTrainer
from nnunet_oar.trainers.shared_encoder import OARSharedEncoderTrainer

__all__ = [
    "OARAttentionTrainer",
    "OARCascadeTrainer",
    "OARHeatmapCascadeTrainer",
    "OARInstanceCascadeTrainer",
    "OARSharedEncoderTrainer",
]
