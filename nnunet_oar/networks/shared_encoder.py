"""Coarse segmentation and a decoder per organ on the features of one encoder.

Paper: Zhang et al., Segmentation of thoracic organs at risk in CT images combining coarse and fine network (SegTHOR challenge, ISBI
2019), section 2.2 and figure 1. Instance normalisation, the size at which the coarse maps are averaged, margins and the growing of
boxes that cut an organ are ours, see docs/papers.md.

Sizes are padded to multiples of the strides and boxes reach from one border of the deepest voxels to another, so that what is cut
out of the features of each level covers exactly the same region.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nnunet_oar.body import find_body
from nnunet_oar.components import Region, drop_small, split_instances
from nnunet_oar.networks.crops import segment_growing, with_background
from nnunet_oar.networks.layers import Layer, Sample
from nnunet_oar.networks.normalisation import WindowedInstanceNorm3d
from nnunet_oar.networks.precision import autocast
from nnunet_oar.networks.volume import PredictionReport, Volume, VolumeNetwork, require_finite
from nnunet_oar.padding import pad_to, padded_shape
from nnunet_oar.pairs import MOST_REGIONS, choose_sides
from nnunet_oar.plan import SharedEncoderPlan
from nnunet_oar.roi import Box, resize

# how many of the encoder's last blocks the coarse segmentation looks at (section 2.2.1)
COARSE_BLOCKS = 3


class ResBlock(nn.Module):
    """3^3 convolutions with instance normalisation and ReLU, and a shortcut: (B, in_channels, ...) -> (B, out_channels, ceil(Z /
    stride), ...). window: of WindowedInstanceNorm3d."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        convolutions: int,
        stride: Sequence[int] = (1, 1, 1),
        dilation: int = 1,
        window: Sequence[int] | None = None,
    ):
        super().__init__()
        layers: list[nn.Module] = []
        for index in range(convolutions):
            source, step = (out_channels, 1) if index else (in_channels, tuple(stride))
            layers += [
                nn.ReLU(inplace=True),
                nn.Conv3d(source, out_channels, 3, step, padding=dilation, dilation=dilation, bias=False),
                WindowedInstanceNorm3d(out_channels, window),
            ]
        self.residual = nn.Sequential(*layers[1:])
        same = in_channels == out_channels and max(stride) == 1
        self.shortcut = nn.Identity() if same else nn.Conv3d(in_channels, out_channels, 1, tuple(stride), bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.residual(x) + self.shortcut(x))


class SharedEncoder(nn.Module):
    """One convolution and the residual blocks: (B, C, Z, Y, X) -> features of each, the finest first; each block but the first is
    twice as wide as the one before. What is larger than the parts of training is normalised window by window."""

    def __init__(self, in_channels: int, plan: SharedEncoderPlan):
        super().__init__()
        self.widths = [plan.features, *(plan.features * 2**index for index in range(len(plan.strides)))]
        # what training sees at once of each level
        part = padded_shape(plan.crop_shape, plan.total_stride)
        strides = (plan.stride_after(blocks) for blocks in range(len(plan.strides) + 1))
        self.windows = [tuple(size // step for size, step in zip(part, stride, strict=True)) for stride in strides]
        self.entry = nn.Sequential(
            nn.Conv3d(in_channels, plan.features, 3, padding=1, bias=False),
            WindowedInstanceNorm3d(plan.features, self.windows[0]),
            nn.ReLU(inplace=True),
        )
        shapes = zip(
            self.widths,
            self.widths[1:],
            plan.convolutions,
            plan.strides,
            plan.dilations,
            self.windows[1:],
            strict=False,
        )
        self.blocks = nn.ModuleList(ResBlock(*shape) for shape in shapes)

    def forward(self, x: Tensor) -> list[Tensor]:
        features = [self.entry(x)]
        for block in self.blocks:
            features.append(block(features[-1]))
        return features


class CoarseHead(nn.Module):
    """A convolution and a sigmoid for the features of each of the last blocks, brought to the size of the finest."""

    def __init__(self, widths: Sequence[int], num_classes: int):
        super().__init__()
        # nnU-Net's -pretrained_weights skips layers of this name: what they tell apart is the data set's
        self.seg_layers = nn.ModuleList(nn.Conv3d(width, num_classes, 3, padding=1) for width in widths)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Probabilities of each block (blocks, B, K, Z, Y, X), float32, at the size of the first of `features`."""
        shape = features[0].shape[2:]
        maps = [layer(x).float().sigmoid() for layer, x in zip(self.seg_layers, features, strict=True)]
        return torch.stack([resize(x, shape, mode="linear") for x in maps])


class OrganDecoder(nn.Module):
    """From the deepest features of a region to one logit per voxel: convolution and ReLU, resize to the next finer level, add its
    features, residual block (section 2.2.2)."""

    def __init__(self, widths: Sequence[int], windows: Sequence[Sequence[int]]):
        """widths: channels of each level, the finest first; windows: of WindowedInstanceNorm3d."""
        super().__init__()
        finer = widths[-2::-1]
        self.narrow = nn.ModuleList(
            nn.Conv3d(deep, width, 3, padding=1) for deep, width in zip(widths[:0:-1], finer, strict=True)
        )
        self.blocks = nn.ModuleList(
            ResBlock(width, width, 2, window=window) for width, window in zip(finer, windows[-2::-1], strict=True)
        )
        self.seg_layers = nn.ModuleList([nn.Conv3d(widths[0], 1, 3, padding=1)])

    def forward(self, crops: Sequence[Tensor]) -> Tensor:
        """crops: the same region of each level, the finest first -> (B, 1, *size of the finest)."""
        x = crops[-1]
        for narrow, block, finer in zip(self.narrow, self.blocks, crops[-2::-1], strict=True):
            x = block(resize(F.relu(narrow(x)), finer.shape[2:], mode="linear") + finer)
        return self.seg_layers[0](x)


class SharedEncoderNet(VolumeNetwork):
    """Encoder, coarse segmentation and one decoder per organ (`SharedEncoderPlan` holds every number).

    forward of a volume: see VolumeNetwork. forward of a dict {"image": (B, C, Z, Y, X)}, normalised and of a size that the strides
    divide (`padded`): "features", as the encoder gives them, "coarse_maps", probabilities (blocks, B, K, Z, Y, X) with the
    background first, and "coarse", their mean. `decode` turns the features into an organ's logits in a box.

    Buffers, set by the trainer: `decoders_trained`, whether the training has come to the phase that trains them; `organ_known`
    (K - 1,), whether a training case holds the organ: others are absent from all results.
    """

    def __init__(self, in_channels: int, plan: SharedEncoderPlan, canvas: tuple[int, ...] | None = None):
        super().__init__(plan, canvas)
        self.encoder = SharedEncoder(in_channels, plan)
        widths = self.encoder.widths
        self.coarse_head = CoarseHead(widths[-COARSE_BLOCKS:], self.num_classes)
        self.decoders = nn.ModuleDict(
            {str(label): OrganDecoder(widths, self.encoder.windows) for label in range(1, self.num_classes)}
        )
        self.register_buffer("decoders_trained", torch.tensor(False))
        self.register_buffer("organ_known", torch.ones(len(plan.organs), dtype=torch.bool))

    def padded(self, shape: Sequence[int]) -> tuple[int, ...]:
        return padded_shape(shape, self.plan.total_stride)

    def forward_batch(self, batch: dict[str, Tensor]) -> dict[str, list[Tensor] | Tensor]:
        with autocast(batch["image"].device):
            features = self.encoder(batch["image"])
            maps = self.coarse_head(features[-COARSE_BLOCKS:])
            return {"features": features, "coarse": maps.mean(0), "coarse_maps": maps}

    def snapped(self, box: Box, shape: Sequence[int]) -> Box:
        """The box that reaches to borders of the deepest voxels, two of them where there are two, on the encoder's grid of `shape`
        (padded)."""
        deepest = [size // step for size, step in zip(shape, self.plan.total_stride, strict=True)]
        # one voxel has no variance to normalise by
        return box.rescaled(shape, deepest).at_least(2).within(deepest).rescaled(deepest, shape)

    def decode(self, features: Sequence[Tensor], label: int, box: Box) -> Tensor:
        """Logits (B, 1, *box.shape), float32, of one organ in a `snapped` box of the encoder's grid."""
        shape = features[0].shape[2:]
        crops = [level[(..., *box.rescaled(shape, level.shape[2:]).slices)] for level in features]
        with autocast(features[0].device):
            return self.decoders[str(label)](crops).float()

    def find_organs(self, coarse: Tensor, shape: Sequence[int]) -> dict[int, Box]:
        """Label -> box on the encoder's grid of `shape`, of the coarse probabilities (1, K, Z, Y, X)."""
        plan = self.plan
        masks = (coarse[0] > plan.threshold).cpu().numpy()
        known = [index + 1 for index in self.organ_known.nonzero()[:, 0].tolist()]
        pairs = [pair for pair in plan.low_high_pairs if set(pair) <= set(known)]
        alone = set(known).difference(*pairs)
        found = {label: Box.from_mask(drop_small(masks[label], plan.component_fraction)) for label in alone}
        axis = plan.left_right_axis
        for pair in pairs:
            low, high = ([Region.of(part) for part in split_instances(masks[x], MOST_REGIONS)] for x in pair)
            # half a length of the shorter one: one map may show the other organ, too, in one piece with its own
            apart = min((region.box.shape[axis] for region in low[:1] + high[:1]), default=0) / 2
            chosen = choose_sides(low, high, axis, apart)
            for label, regions, region in zip(pair, (low, high), chosen, strict=True):
                found[label] = region and _box_of_pieces(region, regions, axis, plan.component_fraction)
        boxes = {label: found[label] for label in known}
        return {label: box.rescaled(masks.shape[1:], shape) for label, box in boxes.items() if box is not None}

    def fine_box(self, around: Box, shape: Sequence[int]) -> Box:
        """The box that an organ's decoder sees: `around` + margin, snapped, on the encoder's grid of `shape` (padded)."""
        return self.snapped(around.grow(self.plan.margin_vox).within(shape), shape)

    def find_body(self, volume: Volume, report: PredictionReport) -> Box:
        """The box of the body (section 2.1); the whole image where the body cannot be told from what surrounds it."""
        plan = self.plan
        body = find_body(volume.whole()[0].cpu().numpy(), plan.slice_axis, plan.intensity_from_hu)
        if body is None:
            why = (
                "the HU are not known"
                if plan.intensity_from_hu is None
                else "no threshold between body and air was found"
            )
            report.warn(f"the body was not cut out, as {why}: the whole image was searched")
            return Box.full(volume.shape)
        return body

    def predict_layers(self, volume: Volume, report: PredictionReport) -> list[Layer]:
        if not self.decoders_trained:
            raise RuntimeError(
                "this checkpoint is of an epoch in which the organs' decoders had not been trained yet (phases in the section "
                "'oar' of the plans); continue the training, nnUNetv2_train ... --c"
            )
        plan = self.plan
        body = self.find_body(volume, report)
        grid = plan.grid_shape(body.shape)
        shape = self.padded(grid)
        out = self.forward_batch({"image": pad_to(volume.sample(body, grid), shape)})
        require_finite(out["coarse"])
        layers = []
        for label, found in self.find_organs(out["coarse"], shape).items():
            organ = self.organs[label - 1]
            report.localised[organ] = self._in_image(found, grid, body)
            box, logits = segment_growing(
                lambda wanted, label=label: self._segment(out["features"], label, wanted),
                self.fine_box(found, shape),
                shape,
                plan.total_stride,
                plan.grow_attempts,
                report,
                largest_only=True,
                name=organ,
            )
            report.boxes[organ] = self._in_image(box, grid, body)
            start, stop = (
                tuple(
                    first + value * size / steps
                    for first, value, size, steps in zip(body.start, point, body.shape, grid, strict=True)
                )
                for point in (box.start, box.stop)
            )
            # what was computed for the padding is not of the image
            layers.append(Layer(label, start, tuple(map(min, stop, body.stop)), (Sample(start, stop, logits[0, 1]),)))
        report.warn_of_missing(self.organs, plan.low_high_pairs)
        return layers

    def _segment(self, features: Sequence[Tensor], label: int, box: Box) -> Tensor:
        logits = self.decode(features, label, box)
        require_finite(logits)
        return with_background(logits)

    @staticmethod
    def _in_image(box: Box, grid: Sequence[int], body: Box) -> Box:
        """A box of the padded grid over the body in voxels of the image; what lies in the padding is left out."""
        stop = tuple(map(min, box.stop, grid))
        start = tuple(min(first, last - 1) for first, last in zip(box.start, stop, strict=True))
        return Box(start, stop).rescaled(grid, body.shape).moved(body.start)


def _box_of_pieces(chosen: Region, regions: Sequence[Region], axis: int, fraction: float) -> Box:
    """Of the organ whose map has these regions, `chosen` among them: of that one and of all on its side along the axis that are not
    smaller than a fraction of it."""
    return Box.around(
        region.box
        for region in regions
        if region.voxels >= fraction * chosen.voxels
        and abs(region.centre[axis] - chosen.centre[axis]) <= chosen.box.shape[axis] / 2
    )
