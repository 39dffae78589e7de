"""The 3D U-Net of paper 001 (VISCERAL), for its localiser and for each organ, from nnU-Net's own building blocks."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from dynamic_network_architectures.architectures.unet import PlainConvUNet
from torch import Tensor, nn

from nnunet_oar.padding import pad_to, padded_shape

MAX_FEATURES = 320


class UNet3D(PlainConvUNet):
    """Plain 3D U-Net for volumes of any size: they are padded with their edge to what the strides need, and cut again.

    strides: (z, y, x) between the levels; features: width of the first level, doubled with each. Input (B, in_channels, Z, Y, X),
    output (B, out_channels, Z, Y, X) without activation. Instance norm, as batches are of one.
    """

    def __init__(self, in_channels: int, out_channels: int, features: int, strides: Sequence[tuple[int, int, int]]):
        stages = len(strides) + 1
        super().__init__(
            in_channels,
            stages,
            [min(features * 2**level, MAX_FEATURES) for level in range(stages)],
            nn.Conv3d,
            3,
            [(1, 1, 1), *strides],
            2,
            out_channels,
            2,
            conv_bias=True,
            norm_op=nn.InstanceNorm3d,
            norm_op_kwargs={"eps": 1e-5, "affine": True},
            nonlin=nn.LeakyReLU,
            nonlin_kwargs={"inplace": True},
        )
        self.total_stride = tuple(int(total) for total in np.prod(strides, axis=0))

    def forward(self, x: Tensor) -> Tensor:
        shape = tuple(x.shape[2:])
        x = pad_to(x, padded_shape(shape, self.total_stride))
        return super().forward(x)[(..., *map(slice, shape))]
