"""AttentionAnatomy: a 2.5D U-Net whose organs are weighed by a vector that is learnt with the body region of the slice.

Paper: Sun et al., AttentionAnatomy: a unified framework for whole-body organs at risk segmentation using multiple partially
annotated datasets (ISBI 2020), section 2.2, figure 1 and equation (1). Figure 1 is known to us by its description only; what it
leaves open is in docs/papers.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from dynamic_network_architectures.building_blocks.residual_encoders import ResidualEncoder
from dynamic_network_architectures.building_blocks.unet_decoder import UNetDecoder
from torch import Tensor, nn

from nnunet_oar.networks.layers import Layer, Part, Sample
from nnunet_oar.networks.volume import PredictionReport, Volume, VolumeNetwork, run_finite, run_float32
from nnunet_oar.plan import AttentionPlan
from nnunet_oar.roi import Box
from nnunet_oar.slabs import centre_boxes, framed, neighbours

MAX_FEATURES = 512
# The branch looks at a coarse map and not at one mean per channel: instance normalisation has made all means alike.
REGION_MAP = 4


def residual_unet_2d(in_channels: int, num_classes: int, features: int, stages: int) -> tuple[nn.Module, nn.Module]:
    """Encoder (B, C, H, W) -> list of skips, finest first, and decoder of that list -> (B, num_classes, H, W).

    H and W must be multiples of 2^(stages - 1).
    """
    encoder = ResidualEncoder(
        in_channels,
        stages,
        [min(features * 2**stage, MAX_FEATURES) for stage in range(stages)],
        nn.Conv2d,
        3,
        [1] + [2] * (stages - 1),
        [1] + [2] * (stages - 1),
        conv_bias=True,
        norm_op=nn.InstanceNorm2d,
        norm_op_kwargs={"eps": 1e-5, "affine": True},
        nonlin=nn.LeakyReLU,
        nonlin_kwargs={"inplace": True},
        return_skips=True,
    )
    return encoder, UNetDecoder(encoder, num_classes, 1, deep_supervision=False)


class RegionBranch(nn.Module):
    """Deepest features (B, C, h, w) -> logits of the body regions (B, R) and attention vector z4 (B, K - 1) in (0, 1).

    The two share all but their last layers (section 2.2.2).
    """

    def __init__(self, in_channels: int, regions: int, organs: int):
        super().__init__()
        self.shared = nn.Sequential(
            nn.AdaptiveAvgPool2d(REGION_MAP),
            nn.Flatten(),
            nn.Linear(in_channels * REGION_MAP**2, 256),
            nn.LeakyReLU(),
            nn.Linear(256, 128),
            nn.LeakyReLU(),
        )
        # nnU-Net's -pretrained_weights skips what has this name: both depend on the data set
        self.seg_layers = nn.ModuleDict({"attention": nn.Linear(128, organs)})
        if regions:
            self.seg_layers["region"] = nn.Linear(128, regions)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        shared = self.shared(features)
        # z4 in float32: the gradient of ln z4 does not fit into float16 where z4 is small
        region = self.seg_layers["region"](shared) if "region" in self.seg_layers else shared[:, :0]
        return region, self.seg_layers["attention"](shared).float().sigmoid()


def modulate(logits: Tensor, attention: Tensor, epsilon: float) -> Tensor:
    """Equation (1): ln(z4 + epsilon) is added to the organs' logits (B, K, H, W); the background stays as it is.

    attention: z4, (B, K - 1) in (0, 1). The softmax of the result weighs each organ's probability by z4 + epsilon.
    """
    weight = (attention.float() + epsilon).log()[:, :, None, None]
    return torch.cat((logits[:, :1].float(), logits[:, 1:].float() + weight), 1)


class _SliceNetwork(nn.Module):
    def __init__(self, encoder: nn.Module, decoder: nn.Module, branch: RegionBranch, epsilon: float | None):
        super().__init__()
        self.encoder, self.decoder, self.branch, self.epsilon = encoder, decoder, branch, epsilon

    def forward(self, slabs: Tensor) -> tuple[Tensor, Tensor]:
        skips = self.encoder(slabs)
        region, attention = self.branch(skips[-1])
        logits = self.decoder(skips)
        return (logits if self.epsilon is None else modulate(logits, attention, self.epsilon)), region


class AttentionAnatomyNet(VolumeNetwork):
    """Segments slice by slice, each with its neighbours as channels (`AttentionPlan` holds every number).

    forward of a volume: see VolumeNetwork. All slices are computed, `plan.prediction_batch` at once; the first and the last slice
    stand for neighbours beyond them. Of each slice the centre of `plan.slice_shape` is segmented, smaller ones are filled up with
    the CT's lowest value.
    forward of a dict, {"slab": (B, slices * C, *slice_shape)}, normalised: {"logits": (B, K, *slice_shape), "region": (B, R)}.
    Channels are slice by slice, lowest index first.

    backbone: gives encoder and decoder; any pair will do (section 2.2) whose decoder takes what the encoder returns, a list
    that ends with the deepest features, of encoder.output_channels[-1] channels.
    """

    def __init__(
        self,
        in_channels: int,
        plan: AttentionPlan,
        canvas: tuple[int, ...] | None = None,
        backbone: Callable[[int, int, int, int], tuple[nn.Module, nn.Module]] = residual_unet_2d,
    ):
        super().__init__(plan, canvas)
        encoder, decoder = backbone(in_channels * plan.slices, self.num_classes, plan.features, plan.stages)
        branch = RegionBranch(encoder.output_channels[-1], len(plan.regions), len(plan.organs))
        self.network = _SliceNetwork(encoder, decoder, branch, plan.attention_epsilon if plan.attention else None)

    def forward_batch(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        logits, region = run_float32(self.network, batch["slab"])
        return {"logits": logits, "region": region}

    def predict_parts(self, volume: Volume, report: PredictionReport) -> Iterator[Part]:
        """One part per batch of slices; it reaches from the middle of the last slice of the batch before to that of its own."""
        plan, axis = self.plan, self.plan.slice_axis
        count = volume.shape[axis]
        plane = tuple(size for other, size in enumerate(volume.shape) if other != axis)
        crop, place = centre_boxes(plane, plan.slice_shape)

        def in_volume(first, last, inside: Box) -> tuple[tuple, tuple]:
            start, stop = list(inside.start), list(inside.stop)
            start.insert(axis, first)
            stop.insert(axis, last)
            return tuple(start), tuple(stop)

        # sides of the frame beyond which the slice goes on: (axis of the logits, index)
        open_sides = [(2 + axis, 0) for axis in range(2) if crop.start[axis] > 0]
        open_sides += [(2 + axis, -1) for axis in range(2) if crop.stop[axis] < plane[axis]]
        cut = torch.zeros(len(plan.organs), dtype=torch.bool)
        seen, before = False, None
        for first in range(0, count, plan.prediction_batch):
            last = min(first + plan.prediction_batch, count)
            indices = neighbours(range(first, last), plan.slices, count)
            box = Box(*in_volume(int(indices.min()), int(indices.max()) + 1, crop))
            planes = volume.sample(box, box.shape)[0].movedim(1 + axis, 0)  # (S, C, H, W)
            slabs = framed(planes, volume.lowest, plan.slice_shape)[indices - indices.min()].flatten(1, 2)
            logits = run_finite(self.network, slabs)[0][(..., *place.slices)]
            logits = logits[:, 1:] - logits[:, :1]
            seen = seen or bool((logits > 0).any())
            for side, index in open_sides:
                cut |= (logits.select(side, index) > 0).amax((0, 2)).cpu()
            start, stop = in_volume(first - 1 if first else 0, last, crop)
            if before is not None:
                logits = torch.cat((before, logits))
            before = logits[-1:]
            ends = first - 0.5 if first else 0.0, last - 0.5 if last < count else float(count)
            yield Part(
                *in_volume(*ends, Box.full(plane)),
                [
                    Layer(label, start, stop, (Sample(start, stop, logits[:, label - 1].movedim(0, axis)),))
                    for label in range(1, self.num_classes)
                ],
            )
        if not seen:
            report.warn("no organ was found: the result is empty")
        for organ, reaches in zip(self.organs, cut.tolist(), strict=True):
            if reaches:
                report.warn(
                    f"{organ} reaches the side of the frame of {plan.slice_shape} voxels that is looked at in each slice, and "
                    f"may be cut there; look at it"
                )
