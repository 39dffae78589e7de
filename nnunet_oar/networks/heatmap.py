"""The multi-variate Gaussian regression network of paper 001 (VISCERAL), section II.A.1, figure 2."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from nnunet_oar.networks.unet3d import UNet3D


class HeatmapNet3D(UNet3D):
    """3D version of the Btrfly network: one channel of heat per organ at the localiser's spacing.

    Where the Btrfly network has an arm for each of two projections, a volume needs one; what is left is a 3D U-Net with a linear
    output. Input (B, in_channels, Z, Y, X), output (B, organs, Z, Y, X).
    """

    def __init__(self, in_channels: int, organs: int, features: int, strides: Sequence[tuple[int, int, int]]):
        super().__init__(in_channels, organs, features, strides)
        # no heat is nearly right nearly everywhere: to begin there saves hundreds of updates
        for layer in self.decoder.seg_layers:
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
