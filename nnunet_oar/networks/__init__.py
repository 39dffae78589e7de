"""The papers' networks."""

from nnunet_oar.networks.cascade import CascadeNetwork
from nnunet_oar.networks.residual_unet import ResidualUNet3D

__all__ = ["CascadeNetwork", "ResidualUNet3D"]
