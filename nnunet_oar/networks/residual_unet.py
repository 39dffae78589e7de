"""Residual 3D U-Net with context and localisation modules and segmentation layers that are summed inside the network.

Paper: Chen et al., Two-stage network for OAR segmentation (SegTHOR 2019), section 2.1.2 and figure 1, after Isensee et
al., Brain tumor segmentation and radiomics survival prediction (BraTS 2017, arXiv:1802.10508). Written from the two
texts; no code and no weights were taken.
Differs: strides may be 1 along an axis (anisotropic data), any input size (upsampling goes to the size of the skip
connection, the paper's is a factor of 2), any number of levels from two up with a bound on the features. Convolutions
have no bias where instance normalisation would remove it. Where the two texts differ, Chen et al. hold: segmentation
layers of 3^3, and the 3^3 convolution of a localisation module halves the channels, not its 1^3 one.
Plain torch: the blocks of dynamic-network-architectures register each convolution under two names.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def _norm_act(channels: int) -> list[nn.Module]:
    return [nn.InstanceNorm3d(channels, eps=1e-5, affine=True), nn.LeakyReLU(1e-2, inplace=True)]


def _conv(in_channels: int, out_channels: int, kernel_size: int = 3, stride: Sequence[int] = (1, 1, 1)) -> nn.Conv3d:
    """k^3 convolution without bias; size n becomes ceil(n / stride)."""
    return nn.Conv3d(in_channels, out_channels, kernel_size, tuple(stride), padding=kernel_size // 2, bias=False)


def _conv_norm_act(in_channels: int, out_channels: int, kernel_size: int = 3) -> list[nn.Module]:
    return [_conv(in_channels, out_channels, kernel_size), *_norm_act(out_channels)]


class ContextLevel(nn.Module):
    """Convolution to this level's width and size, then the context module, a pre-activation residual block.

    (B, C, Z, Y, X) -> (B, channels, ceil(Z / stride), ...), normalised and activated.
    """

    def __init__(self, in_channels: int, channels: int, stride: Sequence[int], dropout: float):
        super().__init__()
        self.entry = _conv(in_channels, channels, stride=stride)
        self.residual = nn.Sequential(
            *_norm_act(channels),
            _conv(channels, channels),
            nn.Dropout(dropout),
            *_norm_act(channels),
            _conv(channels, channels),
        )
        # Isensee et al. leave open what stands between one residual sum and the next convolution
        self.exit = nn.Sequential(*_norm_act(channels))

    def forward(self, x: Tensor) -> Tensor:
        x = self.entry(x)
        return self.exit(x + self.residual(x))


class UpsampleConcatenate(nn.Module):
    """Upsampling module: nearest neighbour to the size of the skip connection and 3^3 convolution to its width; then
    both.

    (B, in_channels, z, y, x) and skip (B, channels, Z, Y, X) -> (B, 2 * channels, Z, Y, X).
    """

    def __init__(self, in_channels: int, channels: int):
        super().__init__()
        self.conv = nn.Sequential(*_conv_norm_act(in_channels, channels))

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        # nearest-exact keeps the centre where sizes are odd; with even ones it is the paper's repetition of voxels
        x = F.interpolate(x, size=skip.shape[2:], mode="nearest-exact")
        return torch.cat((self.conv(x), skip), 1)


class ResidualUNet3D(nn.Module):
    """(B, C, Z, Y, X) -> logits (B, K, Z, Y, X), channel 0 the background where the caller wants a softmax.

    in_channels: C; num_classes: K.
    features: width of the first level, doubled at each further one up to `max_features`.
    strides: one triple (z, y, x) for each further level, so that there are len(strides) + 1 levels; the default is the
    paper's five, 16 to 256 features wide.
    dropout: between the two convolutions of each context module, voxel by voxel as the text says "dropout layer".

    The modules `context` (finest first), `upsample` and `localise` (coarsest first) hold one entry per level. All but
    the finest of `localise` are localisation modules (3^3 convolution that halves the channels, 1^3 convolution), the
    finest is one 3^3 convolution that keeps all 2 * features. `seg_layers`: 3^3 segmentation layers of the min(3,
    levels - 1) finest levels, **finest last**; what a coarser one gives is upsampled trilinearly and added to the next
    finer one.

    Any size with more than one voxel left at the deepest level, that is, longer than the product of the strides on at
    least one axis: instance normalisation of a single voxel is undefined. forward raises ValueError for a smaller
    input, the constructor for fewer than two levels and for impossible strides, widths or dropout.
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        features: int = 16,
        strides: Sequence[Sequence[int]] = ((2, 2, 2),) * 4,
        dropout: float = 0.3,
        max_features: int = 320,
    ):
        super().__init__()
        strides = tuple(tuple(stride) for stride in strides)
        if not strides or any(len(stride) != 3 or min(stride) < 1 for stride in strides):
            raise ValueError(f"strides must be at least one triple (z, y, x) of numbers from 1 up, got {strides}")
        if min(in_channels, num_classes, features, max_features) < 1:
            raise ValueError(
                f"in_channels, num_classes, features and max_features must be positive, got {in_channels}, "
                f"{num_classes}, {features} and {max_features}"
            )
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout must lie in [0, 1), got {dropout}")

        total = [1, 1, 1]
        for stride in strides:
            total = [a * b for a, b in zip(total, stride, strict=True)]
        self.in_channels, self.total_stride = in_channels, tuple(total)
        widths = [min(features * 2**level, max_features) for level in range(len(strides) + 1)]

        self.context = nn.ModuleList(
            ContextLevel(source, width, stride, dropout)
            for source, width, stride in zip([in_channels, *widths], widths, [(1, 1, 1), *strides], strict=False)
        )
        coarse_to_fine = widths[-2::-1]  # without the deepest level
        # a localisation module leaves the width of its level, so that each upsampling starts from the width below it
        self.upsample = nn.ModuleList(
            UpsampleConcatenate(below, width) for below, width in zip(widths[:0:-1], coarse_to_fine, strict=True)
        )
        self.localise = nn.ModuleList(
            nn.Sequential(*_conv_norm_act(2 * width, width), *_conv_norm_act(width, width, kernel_size=1))
            for width in coarse_to_fine[:-1]
        )
        self.localise.append(nn.Sequential(*_conv_norm_act(2 * widths[0], 2 * widths[0])))
        seg_inputs = [*coarse_to_fine[:-1], 2 * widths[0]][-3:]
        self.seg_layers = nn.ModuleList(nn.Conv3d(width, num_classes, 3, padding=1) for width in seg_inputs)

    def forward(self, x: Tensor) -> Tensor:
        if x.ndim != 5 or x.shape[1] != self.in_channels:
            raise ValueError(f"input must be (B, {self.in_channels}, Z, Y, X), got {tuple(x.shape)}")
        if all(size <= stride for size, stride in zip(x.shape[2:], self.total_stride, strict=True)):
            raise ValueError(
                f"an input of {tuple(x.shape[2:])} voxels leaves one at the deepest level; at least one axis must be "
                f"longer than its total stride, {self.total_stride}"
            )
        skips = []
        for level in self.context:
            x = level(x)
            skips.append(x)
        skips.pop()  # the deepest level is x itself

        logits = None
        first_seg = len(self.localise) - len(self.seg_layers)
        for index, (upsample, localise) in enumerate(zip(self.upsample, self.localise, strict=True)):
            x = localise(upsample(x, skips.pop()))
            if index < first_seg:
                continue
            here = self.seg_layers[index - first_seg](x)
            if logits is not None:
                here = here + F.interpolate(logits, size=here.shape[2:], mode="trilinear", align_corners=False)
            logits = here
        return logits
