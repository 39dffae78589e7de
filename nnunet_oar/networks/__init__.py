"""The papers' networks."""

from nnunet_oar.networks.residual_unet import ResidualUNet3D

__all__ = ["ResidualUNet3D"]
