"""Heat maps find each organ, a binary network of its own segments it, overlaps go to the most probable organ.

Paper: Navarro et al., A unified 3D framework for organs at risk localization and segmentation (VISCERAL), sections II.A and II.B.
Measured margins and the growing of boxes that cut an organ are ours, see docs/papers.md.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from nnunet_oar.heatmaps import find_centres
from nnunet_oar.networks.crops import segment_growing, with_background
from nnunet_oar.networks.heatmap import HeatmapNet3D
from nnunet_oar.networks.layers import Layer
from nnunet_oar.networks.unet3d import UNet3D
from nnunet_oar.networks.volume import PredictionReport, Volume, VolumeNetwork, run_finite, run_float32
from nnunet_oar.pairs import MOST_REGIONS, choose_sides
from nnunet_oar.plan import HeatmapPlan
from nnunet_oar.roi import Box


class HeatmapCascadeNetwork(VolumeNetwork):
    """Localiser and one network per organ in one module (`HeatmapPlan` holds every number).

    forward of a volume: see VolumeNetwork. forward of a dict with "coarse" (B, C, Z, Y, X) at the localiser's spacing, a label, or
    both: the same keys with heat (B, K - 1, Z, Y, X), and with the logits (B, 1, Z, Y, X) of that label's crop, float32.

    Buffers, set by the trainer: `organ_size_mm` (K - 1, 3), mean extent in the training cases, 0 for an organ that none holds;
    `margin_mm` (K - 1, 3); `centre_error_mm` (K - 1,), mean distance of the localiser's centres in the training cases, NaN: not
    measured.
    """

    def __init__(self, in_channels: int, plan: HeatmapPlan, canvas: tuple[int, ...] | None = None):
        super().__init__(plan, canvas)
        organs = len(plan.organs)
        self.localizer = HeatmapNet3D(in_channels, organs, plan.localizer_features, plan.localizer_strides)
        self.segmenters = nn.ModuleDict(
            {
                str(label): UNet3D(in_channels, 1, plan.organ_features, plan.organ_strides[organ])
                for label, organ in enumerate(plan.organs, start=1)
            }
        )
        # as nnU-Net's networks begin; a localiser that began so was soon sure of both organs of a pair in both maps
        self.segmenters.apply(UNet3D.initialize)
        self.register_buffer("organ_size_mm", torch.empty(organs, 3))
        self.register_buffer("margin_mm", torch.empty(organs, 3))
        self.register_buffer("centre_error_mm", torch.empty(organs))
        self.reset_buffers()

    def reset_buffers(self) -> None:
        """As before any training: no size and no error known, the plan's margin."""
        self.organ_size_mm.zero_()
        self.margin_mm.copy_(torch.tensor(self.plan.margin_vox) * torch.tensor(self.plan.spacing_mm))
        self.centre_error_mm.fill_(torch.nan)

    @property
    def stages(self) -> dict[str | int, nn.Module]:
        return {"coarse": self.localizer} | {int(label): network for label, network in self.segmenters.items()}

    def forward_batch(self, batch: dict[str | int, Tensor]) -> dict[str | int, Tensor]:
        return {stage: run_float32(self.stages[stage], images) for stage, images in batch.items()}

    def predict_layers(self, volume: Volume, report: PredictionReport) -> list[Layer]:
        shape = volume.shape
        centres = self.localise(volume.sample(Box.full(shape), self.plan.localizer_shape(shape)), shape)
        layers = []
        for label, (organ, centre) in enumerate(zip(self.organs, centres, strict=True), start=1):
            if centre is None:
                continue
            report.localised[organ] = self.organ_box(label - 1, centre, shape)
            box, logits = segment_growing(
                lambda wanted, organ=organ, label=label: self._segment(volume, wanted, organ, label),
                report.localised[organ],
                shape,
                self.plan.margin_vox,
                self.plan.grow_attempts,
                report,
                largest_only=True,
                name=organ,
            )
            report.boxes[organ] = box
            # log-odds against each organ's own background: the highest is the highest probability
            layers.append(Layer.of_box(label, box, (box, logits[0, 1])))
        report.warn_of_missing(self.organs, self.plan.low_high_pairs)
        return layers

    def localise(self, coarse_image: Tensor, image_shape: tuple[int, ...]) -> list[tuple[float, float, float] | None]:
        """Normalised CT (1, C, Z, Y, X) at the localiser's spacing -> of each organ the centre in voxels of the image (edge
        coordinates), None where it is absent, or was in all of the training cases."""
        return self.centres(run_finite(self.localizer, coarse_image), image_shape)

    def centres(self, heat: Tensor, image_shape: tuple[int, ...]) -> list[tuple[float, float, float] | None]:
        """As `localise`, of the localiser's heat (1, K - 1, Z, Y, X)."""
        plan = self.plan
        heat = heat[0].cpu().numpy()
        shape, spacing = heat.shape[1:], plan.localizer_step_mm(image_shape)
        paired = {label for pair in plan.low_high_pairs for label in pair}
        regions = [
            find_centres(
                channel, plan.threshold, spacing, plan.sigma2_mm2, plan.centre, MOST_REGIONS if label in paired else 1
            )
            if known
            else []
            for label, (channel, known) in enumerate(
                zip(heat, self.organ_size_mm.any(1).tolist(), strict=True), start=1
            )
        ]
        chosen = [of_organ[0] if of_organ else None for of_organ in regions]
        for pair in plan.low_high_pairs:
            low, high = (label - 1 for label in pair)
            axis = plan.left_right_axis
            # half of their mean length
            apart = float(self.organ_size_mm[[low, high], axis].mean()) / 2 / spacing[axis]
            chosen[low], chosen[high] = choose_sides(regions[low], regions[high], axis, apart)
        return [
            region and tuple(c * old / new for c, old, new in zip(region.centre, image_shape, shape, strict=True))
            for region in chosen
        ]

    def organ_box(self, index: int, centre: tuple[float, ...], image_shape: tuple[int, ...]) -> Box:
        """The box about a centre in which the organ of that index is segmented."""
        size, margin = self.organ_size_mm[index].tolist(), self.margin_mm[index].tolist()
        return self.plan.organ_box(centre, size, margin, image_shape)

    def _segment(self, volume: Volume, box: Box, organ: str, label: int) -> Tensor:
        """Logits of background (0) and organ, (1, 2, *grid), of one box at the organ's own spacing."""
        grid = self.plan.organ_shape(organ, box.shape)
        logits = run_finite(self.segmenters[str(label)], volume.sample(box, grid))
        return with_background(logits)
