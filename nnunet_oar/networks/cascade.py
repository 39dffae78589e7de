"""Two stages as one module: localise in the zoomed CT, segment boxes of it, paste back.

CascadeNetwork: Chen et al., Two-stage network for OAR segmentation (SegTHOR 2019), sections 2.1.4 and 2.2.2, figure 2. Both guards,
the background-relative logits and the averaging at prediction are ours; docs/papers.md lists what the paper leaves open.
"""

from __future__ import annotations

from itertools import product

import numpy as np
import torch
from torch import Tensor, nn

from nnunet_oar.components import drop_small
from nnunet_oar.networks.crops import segment_growing
from nnunet_oar.networks.layers import Layer
from nnunet_oar.networks.residual_unet import ResidualUNet3D
from nnunet_oar.networks.volume import PredictionReport, Volume, VolumeNetwork, run_finite, run_float32
from nnunet_oar.plan import CascadePlan, TwoStagePlan
from nnunet_oar.roi import Box

# An organ that is found without localisation is kept if its extent lies in the range seen in training, widened by this.
EXTENT_TOLERANCE = 0.2


class TwoStageNetwork(VolumeNetwork):
    """Localiser of the zoomed CT and segmenter of boxes of it, two networks of the same architecture in one module.

    forward of a volume: see VolumeNetwork. forward of a dict, {"coarse": (B, C, *coarse_shape)} and / or {"fine": (B, C,
    *fine_shape)}, both normalised: the same keys with that stage's logits (B, coarse_classes or K, *shape), float32.
    """

    def __init__(self, in_channels: int, plan: TwoStagePlan, canvas: tuple[int, ...] | None, coarse_classes: int):
        super().__init__(plan, canvas)
        self.coarse_classes = coarse_classes
        self.localizer = ResidualUNet3D(
            in_channels, coarse_classes, plan.coarse_features, plan.coarse_strides, plan.dropout
        )
        self.segmenter = ResidualUNet3D(
            in_channels, self.num_classes, plan.fine_features, plan.fine_strides, plan.dropout
        )

    @property
    def stages(self) -> dict[str, nn.Module]:
        return {"coarse": self.localizer, "fine": self.segmenter}

    def forward_batch(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        return {stage: run_float32(self.stages[stage], images) for stage, images in batch.items()}

    def coarse_labels(self, coarse_image: Tensor) -> np.ndarray:
        """Normalised zoomed CT (1, C, *coarse_shape) -> what the localiser sees in it, (*coarse_shape) integers."""
        labels = run_finite(self.localizer, coarse_image).argmax(1)[0]
        return labels.to(torch.uint8 if self.coarse_classes < 256 else torch.int16).cpu().numpy()

    def zoomed(self, volume: Volume) -> Tensor:
        return volume.sample(Box.full(volume.shape), self.plan.coarse_shape)

    def segment(self, volume: Volume, box: Box, flips: tuple[int, ...] = ()) -> Tensor:
        """Logits relative to the background, (1, K, *fine_shape), of one box; `flips`: spatial axes to mirror meanwhile."""
        axes = [axis + 2 for axis in flips]
        crop = volume.sample(box, self.plan.fine_shape)
        logits = run_finite(self.segmenter, crop.flip(axes)).flip(axes)
        if self.plan.left_right_axis in flips:
            order = list(range(self.num_classes))
            for left, right in self.plan.swap_on_flip:
                order[left], order[right] = right, left
            logits = logits[:, order]
        return logits - logits[:, :1]

    def segment_growing(
        self, volume: Volume, box: Box, report: PredictionReport, largest_only: bool = False
    ) -> tuple[Box, Tensor]:
        plan = self.plan
        return segment_growing(
            lambda wanted: self.segment(volume, wanted),
            box,
            volume.shape,
            plan.margin_vox,
            plan.grow_attempts,
            report,
            largest_only,
        )


class CascadeNetwork(TwoStageNetwork):
    """One box of all organs (`CascadePlan` holds every number)."""

    def __init__(self, in_channels: int, plan: CascadePlan, canvas: tuple[int, ...] | None = None):
        super().__init__(in_channels, plan, canvas, len(plan.organs) + 1)

    def predict_layers(self, volume: Volume, report: PredictionReport) -> list[Layer]:
        shape = volume.shape
        organs = self.localise(self.zoomed(volume), shape)
        found = organs is not None
        if found:
            report.localised["organs"] = organs
            box = self.plan.fine_box(organs, shape)
        elif self.plan.fallback_whole:
            box = Box.full(shape)
            report.warn(
                "the localiser found no organ; the whole image was segmented instead and only organs of a size seen in "
                "training are kept"
            )
        else:
            report.warn("the localiser found no organ: the result is empty")
            return []
        box, fine = self.segment_growing(volume, box, report)
        report.boxes["organs"] = box
        labels = range(1, self.num_classes) if found else self._plausible(fine, box, report)
        variants = self._variants(volume, organs or box, box)
        return [
            Layer.of_box(label, box, (box, fine[0, label]), *((of, logits[0, label]) for of, logits in variants[label]))
            for label in labels
        ]

    def localise(self, coarse_image: Tensor, image_shape: tuple[int, ...]) -> Box | None:
        """Normalised zoomed CT (1, C, *coarse_shape) -> box of all organs in voxels of the image; None if nothing is found.

        Section 2.1.4: components under 5% of the organ's largest one are dropped first. The paper upsamples the prediction
        (nearest neighbour) and then takes the box; rescaling the box of the coarse grid gives the same without the volume.
        """
        labels = self.coarse_labels(coarse_image)
        fraction = self.plan.component_fraction
        boxes = (Box.from_mask(drop_small(labels == label, fraction)) for label in range(1, self.num_classes))
        organs = Box.around(box for box in boxes if box is not None)
        return None if organs is None else organs.rescaled(self.plan.coarse_shape, image_shape)

    def _variants(self, volume: Volume, organs: Box, box: Box) -> dict[int, list]:
        """The paper's multi-test: label -> pairs of a box, as large as `box` or larger, and its logits (1, K, *fine_shape), over
        which the organs in `test_time` are averaged."""
        plan = self.plan
        wanted = {label: set(plan.test_time.get(name, ())) for label, name in enumerate(self.organs, start=1)}
        flips = [()] + [(axis,) for axis in plan.flip_axes]
        # a box that is already larger than a least size is the same box again
        larger = [plan.fine_box(organs, volume.shape, extra).union(box) for extra in plan.extra_box_vox]
        boxes = list(dict.fromkeys((box, *larger)))
        variants = {label: [] for label in wanted}
        for variant, flip in product(boxes, flips):
            needs = ({"boxes"} if variant != box else set()) | ({"flips"} if flip else set())
            labels = [label for label, kinds in wanted.items() if needs and needs <= kinds]
            if labels:
                logits = self.segment(volume, variant, flip)
                for label in labels:
                    variants[label].append((variant, logits))
        return variants

    def _plausible(self, fine: Tensor, box: Box, report: PredictionReport) -> list[int]:
        """The labels whose organs are as large as in training, of the logits (1, K, *fine_shape) of a box."""
        seen, kept = fine.argmax(1)[0], []
        for label, name in enumerate(self.organs, start=1):
            found = Box.from_mask(seen == label)
            if found is None:
                continue
            size = found.rescaled(seen.shape, box.shape).shape
            extent = self.plan.organ_extent_vox.get(name)
            plausible = extent is not None and all(
                low * (1 - EXTENT_TOLERANCE) <= of <= high * (1 + EXTENT_TOLERANCE)
                for low, of, high in zip(extent[0], size, extent[1], strict=True)
            )
            if plausible:
                kept.append(label)
            else:
                report.warn(f"{name} was found without localisation, {size} voxels large, unlike in training: left out")
        return kept
