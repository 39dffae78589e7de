"""Section of the shared encoder: paper 004."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import nnunet_oar.plan.checks as check
from nnunet_oar.plan.base import COARSE_LABELS, SECTION, OARPlan, phase_of, plain, refuse_phases
from nnunet_oar.plan.checks import Triple, spec

BOXES = ("truth", "coarse")


@dataclass(frozen=True)
class SharedPhase:
    """Part of a training: from epoch `start` to the next phase's. fine: whether the organs' decoders are trained, too; boxes: where
    they look, at the truth (moved at random) or where the coarse branch finds the organ."""

    start: int = spec(0, check.integer(0))
    fine: bool = spec(True, check.boolean)
    boxes: str = spec("truth", check.one_of(*BOXES))

    def __str__(self) -> str:
        where = {"truth": "in boxes of the truth", "coarse": "in boxes of the coarse branch"}[self.boxes]
        return "the coarse branch alone" if not self.fine else f"the coarse branch and the organs' decoders {where}"


# section 3.1: 40 epochs of coarse segmentation, 50 of both; where the boxes come from in training is not given
SHARED_PHASES = (SharedPhase(0, fine=False), SharedPhase(40, boxes="truth"), SharedPhase(65, boxes="coarse"))


@dataclass(frozen=True)
class SharedEncoderPlan(OARPlan):
    """Coarse segmentation and a decoder per organ on one encoder (paper 004; its numbers are the defaults)."""

    trainer: str = spec("OARSharedEncoderTrainer", check.string)
    # of the preprocessed data, and of the grid that the encoder sees (section 2.1)
    spacing_mm: tuple[float, float, float] = spec((3.0, 1.0, 1.0), check.list_of(check.number(1e-3), 3))
    grid_spacing_mm: tuple[float, float, float] = spec((3.0, 1.0, 1.0), check.list_of(check.number(1e-3), 3))
    # array axis across the slices; the middle one tells the body from what surrounds it (section 2.1)
    slice_axis: int = spec(0, check.integer(0, 2))
    # parts of CTs differ in shape where a body is smaller than `crop_shape`: one at a time
    batch_size: int = spec(1, check.integer(1, 1))
    epochs: int = spec(90, check.integer(1))
    # the part of a body that training sees at once, in voxels of the encoder's grid; how often its middle
    # lies in the box of an organ
    crop_shape: Triple = spec((64, 192, 192), check.shape)
    organ_share: float = spec(0.67, check.number(0, 1))
    # section 2.2.1 and figure 1: one convolution and four residual blocks of two or three; 8 * features channels at the end
    features: int = spec(32, check.integer(1))
    strides: tuple[Triple, ...] = spec(((1, 2, 2), (1, 2, 2), (2, 2, 2), (1, 1, 1)), check.strides)
    convolutions: tuple[int, ...] = spec((2, 2, 3, 3), check.list_of(check.integer(1, 4)))
    dilations: tuple[int, ...] = spec((1, 1, 3, 6), check.list_of(check.integer(1)))
    coarse_labels: str = spec("nearest", check.one_of(*COARSE_LABELS))
    # an organ is where the coarse branch gives it more than this; components under a share of the largest one are dropped (of
    # organs in low_high_pairs also those beside the chosen one)
    threshold: float = spec(0.5, check.number(0, 1))
    component_fraction: float = spec(0.05, check.number(0, 1))
    # in voxels of the encoder's grid: about the organ's box, and by how much training moves each side of the truth's
    margin_vox: Triple = spec((0, 0, 0), check.list_of(check.integer(0), 3))
    jitter_vox: Triple = spec((1, 4, 4), check.list_of(check.integer(0), 3))
    # decoders that are trained in one iteration; null: those of all organs
    organs_per_iteration: int | None = spec(None, check.optional(check.integer(1)))
    # whether the coarse loss is of each block's map beside their mean: a map that saturates at 0 learns nothing from the mean
    each_map: bool = spec(False, check.boolean)
    # how much more than a voxel that is right one that is wrong weighs in the fine loss; 0: all alike
    hard_voxel_weight: float = spec(1.0, check.number(0))
    cross_entropy_weight: float = spec(0.0, check.number(0))
    phases: tuple[SharedPhase, ...] = spec(SHARED_PHASES, check.list_of(check.record(SharedPhase, "start")))
    learning_rate: float = spec(5e-4, check.number(0))
    # of each epoch; null: nnU-Net's schedule, which falls to 0 over the training
    lr_decay: float | None = spec(0.985, check.optional(check.number(0, 1)))
    flip_axes: tuple[int, ...] = spec((0, 1, 2), check.list_of(check.integer(0, 2)))
    # guards (off in the paper): pairs of labels (low, high) of which in every training case the first lies at the low end of
    # left_right_axis; how often a box that cuts an organ is grown
    low_high_pairs: tuple[tuple[int, int], ...] = spec((), check.list_of(check.list_of(check.integer(1), 2)))
    grow_attempts: int = spec(0, check.integer(0, 5))

    def __post_init__(self):
        super().__post_init__()
        self._refuse_unfit_pairs("low_high_pairs")
        refuse_phases(self.phases)
        trained = [self.phase(epoch).fine for epoch in range(self.epochs)]
        if not trained[-1] or trained != sorted(trained):
            raise ValueError(
                f"plans, section {SECTION!r}: phases are {plain([(phase.start, phase.fine) for phase in self.phases])} (start, "
                f"fine) for {self.epochs} epochs; the last epoch must train the decoders, and all that follow the first one that "
                f"does"
            )
        blocks = len(self.strides)
        if blocks < 3 or len(self.convolutions) != blocks or len(self.dilations) != blocks:
            raise ValueError(
                f"plans, section {SECTION!r}: strides, convolutions and dilations are {plain(self.strides)}, "
                f"{plain(self.convolutions)} and {plain(self.dilations)}; each needs one entry per block, for 3 blocks at least"
            )
        if any(size < step for size, step in zip(self.crop_shape, self.total_stride, strict=True)):
            raise ValueError(
                f"plans, section {SECTION!r}: crop_shape is {plain(self.crop_shape)}, less than a deepest voxel, which spans "
                f"{plain(self.total_stride)}"
            )

    def phase(self, epoch: int) -> SharedPhase:
        return phase_of(self.phases, epoch)

    @property
    def total_stride(self) -> Triple:
        """Voxels of the encoder's grid that one of its deepest voxels spans."""
        return self.stride_after(len(self.strides))

    @property
    def coarse_stride(self) -> Triple:
        """The same of the coarse segmentation, which is as fine as the finest of the last three blocks."""
        return self.stride_after(len(self.strides) - 2)

    def stride_after(self, blocks: int) -> Triple:
        """The same after so many of the residual blocks."""
        return tuple(math.prod(stride[axis] for stride in self.strides[:blocks]) for axis in range(3))

    def grid_shape(self, image_shape: Sequence[int]) -> Triple:
        """The encoder's grid over an image (or a part of one) of the working spacing."""
        return tuple(
            max(1, round(size * spacing / wanted))
            for size, spacing, wanted in zip(image_shape, self.spacing_mm, self.grid_spacing_mm, strict=True)
        )
