"""The whole pipeline as one module: localise in the zoomed CT, segment the box of the organs, paste back.

Paper: Chen et al., Two-stage network for OAR segmentation (SegTHOR 2019), sections 2.1.4 and 2.2.2, figure 2. Both guards, the
background-relative logits and the averaging at prediction are ours; docs/papers.md lists what the paper leaves open.
"""

from __future__ import annotations

from itertools import product

import torch
from torch import Tensor, nn

from nnunet_oar.components import drop_small
from nnunet_oar.networks.residual_unet import ResidualUNet3D
from nnunet_oar.networks.volume import PredictionReport, VolumeNetwork, run_float32
from nnunet_oar.plan import CascadePlan
from nnunet_oar.roi import Box, resize

# An organ that is found without localisation is kept if its extent lies in the range seen in training, widened by this.
EXTENT_TOLERANCE = 0.2


class CascadeNetwork(VolumeNetwork):
    """Localiser and segmenter in one module with one checkpoint (`CascadePlan` holds every number).

    forward of a volume: see VolumeNetwork. forward of a dict, {"coarse": (B, C, *coarse_shape)} and / or {"fine": (B, C,
    *fine_shape)}, both normalised: the same keys with that stage's logits (B, K, *shape), float32.
    """

    def __init__(self, in_channels: int, plan: CascadePlan, canvas: tuple[int, ...] | None = None):
        super().__init__(plan, canvas)
        classes = self.num_classes
        self.localizer = ResidualUNet3D(in_channels, classes, plan.coarse_features, plan.coarse_strides, plan.dropout)
        self.segmenter = ResidualUNet3D(in_channels, classes, plan.fine_features, plan.fine_strides, plan.dropout)

    @property
    def stages(self) -> dict[str, nn.Module]:
        return {"coarse": self.localizer, "fine": self.segmenter}

    def forward_batch(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        return {stage: run_float32(self.stages[stage], images) for stage, images in batch.items()}

    def predict_image(self, image: Tensor, report: PredictionReport) -> tuple[Box, Tensor] | None:
        shape = tuple(image.shape[2:])
        report.localised = self.localise(resize(image, self.plan.coarse_shape, mode="linear"), shape)
        found = report.localised is not None
        if found:
            box = self.plan.fine_box(report.localised, shape)
        elif self.plan.fallback_whole:
            box = Box.full(shape)
            report.warn(
                "the localiser found no organ; the whole image was segmented instead and only organs of a size seen in "
                "training are kept"
            )
        else:
            report.warn("the localiser found no organ: the result is empty")
            return None
        box, fine = self._segment_growing(image, box, report)
        report.fine_box = box
        organ_logits = self._at_full_resolution(fine, box.shape)
        self._average_variants(image, report.localised or box, box, organ_logits)
        if not found:
            self._drop_implausible(organ_logits, report)
        return box, organ_logits.clamp_min_(self.plan.floor)

    def localise(self, coarse_image: Tensor, image_shape: tuple[int, ...]) -> Box | None:
        """Normalised zoomed CT (1, C, *coarse_shape) -> box of all organs in voxels of the image; None if nothing is found.

        Section 2.1.4: components under 5% of the organ's largest one are dropped first. The paper upsamples the prediction
        (nearest neighbour) and then takes the box; rescaling the box of the coarse grid gives the same without the volume.
        """
        labels = (
            run_float32(self.localizer, coarse_image)
            .argmax(1)[0]
            .to(torch.uint8 if self.num_classes < 256 else torch.int16)
        )
        labels = labels.cpu().numpy()
        fraction = self.plan.component_fraction
        boxes = (Box.from_mask(drop_small(labels == label, fraction)) for label in range(1, self.num_classes))
        organs = Box.around(box for box in boxes if box is not None)
        return None if organs is None else organs.rescaled(self.plan.coarse_shape, image_shape)

    def _segment(self, image: Tensor, box: Box, flips: tuple[int, ...] = ()) -> Tensor:
        """Logits relative to the background, (1, K, *fine_shape), of one box; `flips`: spatial axes to mirror meanwhile."""
        axes = [axis + 2 for axis in flips]
        crop = resize(image[(..., *box.slices)], self.plan.fine_shape, mode="linear")
        logits = run_float32(self.segmenter, crop.flip(axes)).flip(axes)
        if self.plan.left_right_axis in flips:
            order = list(range(self.num_classes))
            for left, right in self.plan.swap_on_flip:
                order[left], order[right] = right, left
            logits = logits[:, order]
        return logits - logits[:, :1]

    def _segment_growing(self, image: Tensor, box: Box, report: PredictionReport) -> tuple[Box, Tensor]:
        """Segment; where an organ touches a side of the box that is no face of the image, grow that side and try again."""
        fine = self._segment(image, box)
        for _ in range(self.plan.grow_attempts):
            grown = self._grown(box, fine, tuple(image.shape[2:]))
            if grown == box:
                return box, fine
            report.warn(
                f"an organ reaches the side of its box {box.start}-{box.stop}; segmented again in {grown.start}-{grown.stop}"
            )
            box, fine = grown, self._segment(image, grown)
        if self.plan.grow_attempts and self._grown(box, fine, tuple(image.shape[2:])) != box:
            report.warn("an organ still reaches the side of its box and may be cut there; look at it")
        return box, fine

    def _grown(self, box: Box, fine: Tensor, shape: tuple[int, ...]) -> Box:
        foreground = fine.argmax(1)[0] > 0
        start, stop = list(box.start), list(box.stop)
        for axis in range(3):
            step = max(1, self.plan.margin_vox[axis])
            if foreground.select(axis, 0).any():
                start[axis] = max(0, start[axis] - step)
            if foreground.select(axis, -1).any():
                stop[axis] = min(shape[axis], stop[axis] + step)
        return Box(tuple(start), tuple(stop))

    def _at_full_resolution(self, fine: Tensor, shape: tuple[int, ...]) -> Tensor:
        """(1, K, *fine_shape) -> organ logits (1, K - 1, *shape); one organ at a time, which halves the peak of memory."""
        organ_logits = fine.new_empty((1, self.num_classes - 1, *shape))
        for index in range(self.num_classes - 1):
            organ_logits[:, index] = resize(fine[:, index + 1 : index + 2], shape, mode="linear")[:, 0]
        return organ_logits

    def _average_variants(self, image: Tensor, organs: Box, box: Box, organ_logits: Tensor) -> None:
        """The paper's multi-test: average the logits of the organs in `test_time` over larger boxes and mirrored crops."""
        wanted = {index: set(self.plan.test_time.get(name, ())) for index, name in enumerate(self.organs)}
        shape = tuple(image.shape[2:])
        flips = [()] + [(axis,) for axis in self.plan.flip_axes]
        # a box that is already larger than a least size is the same box again
        larger = [self.plan.fine_box(organs, shape, extra).union(box) for extra in self.plan.extra_box_vox]
        boxes = list(dict.fromkeys((box, *larger)))
        counts = dict.fromkeys(wanted, 1)
        for variant, flip in product(boxes, flips):
            needs = ({"boxes"} if variant != box else set()) | ({"flips"} if flip else set())
            indices = [index for index, kinds in wanted.items() if needs and needs <= kinds]
            if not indices:
                continue
            other = self._segment(image, variant, flip)
            inner = tuple(slice(a - b, c - b) for a, b, c in zip(box.start, variant.start, box.stop, strict=True))
            for index in indices:
                full = resize(other[:, index + 1 : index + 2], variant.shape, mode="linear")[:, 0]
                organ_logits[:, index] += full[(..., *inner)]
                counts[index] += 1
        for index, count in counts.items():
            organ_logits[:, index] /= count

    def _drop_implausible(self, organ_logits: Tensor, report: PredictionReport) -> None:
        labels = torch.cat((torch.zeros_like(organ_logits[:, :1]), organ_logits), 1).argmax(1)[0]
        for index, name in enumerate(self.organs):
            box = Box.from_mask(labels == index + 1)
            if box is None:
                continue
            extent = self.plan.organ_extent_vox.get(name)
            plausible = extent is not None and all(
                low * (1 - EXTENT_TOLERANCE) <= size <= high * (1 + EXTENT_TOLERANCE)
                for low, size, high in zip(extent[0], box.shape, extent[1], strict=True)
            )
            if not plausible:
                organ_logits[:, index] = self.plan.floor
                report.warn(
                    f"{name} was found without localisation, {box.shape} voxels large, unlike in training: left out"
                )
