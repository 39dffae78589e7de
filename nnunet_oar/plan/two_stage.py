"""Sections of the cascades that segment boxes of the CT with the network that localises: papers 000 and 002."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import nnunet_oar.plan.checks as check
from nnunet_oar.plan.base import AUGMENTATIONS, COARSE_LABELS, SECTION, OARPlan
from nnunet_oar.plan.checks import Triple, spec
from nnunet_oar.roi import Box

TEST_TIME = ("boxes", "flips")
DRAW_BY = ("instance", "organ")


@dataclass(frozen=True)
class TwoStagePlan(OARPlan):
    """Localise in the zoomed CT, segment boxes of it, both with the network of papers 000 and 002 (the defaults are theirs)."""

    # paper 000, sections 2.1.2 and 2.1.3, paper 002, section 2.1: one network architecture for both stages, input 128^3
    coarse_shape: Triple = spec((128, 128, 128), check.shape)
    fine_shape: Triple = spec((128, 128, 128), check.shape)
    coarse_features: int = spec(16, check.integer(1))
    fine_features: int = spec(16, check.integer(1))
    coarse_strides: tuple[Triple, ...] = spec(((2, 2, 2),) * 4, check.strides)
    fine_strides: tuple[Triple, ...] = spec(((2, 2, 2),) * 4, check.strides)
    dropout: float = spec(0.3, check.number(0, 0.99))
    # what a voxel of the zoomed labels shows: "nearest" the label at its centre; "covering" the organ that fills most of it,
    # however little that is, so that no organ is too thin to be localised
    coarse_labels: str = spec("nearest", check.one_of(*COARSE_LABELS))
    # in voxels of the working spacing: margin about what is to be segmented, least box
    margin_vox: Triple = spec((10, 10, 10), check.list_of(check.integer(0), 3))
    min_box_vox: Triple = spec((128, 128, 128), check.shape)
    component_fraction: float = spec(0.05, check.number(0, 1))
    learning_rate: float = spec(5e-4, check.number(0))
    # of each epoch; null: nnU-Net's schedule, which falls to 0 over the training
    lr_decay: float | None = spec(0.985, check.optional(check.number(0, 1)))
    weight_decay: float = spec(1e-5, check.number(0))
    cross_entropy_weight: float = spec(0.0, check.number(0))
    flip_axes: tuple[int, ...] = spec((0, 1, 2), check.list_of(check.integer(0, 2)))
    # guard (off in the papers): how often a box that cuts an organ is grown
    grow_attempts: int = spec(0, check.integer(0, 5))

    def __post_init__(self):
        super().__post_init__()
        for stage in ("coarse", "fine"):
            shape, strides = getattr(self, f"{stage}_shape"), getattr(self, f"{stage}_strides")
            total = [math.prod(stride[axis] for stride in strides) for axis in range(3)]
            # one voxel at the deepest level leaves instance norm nothing to measure
            if all(size <= step for size, step in zip(shape, total, strict=True)):
                raise ValueError(
                    f"plans, section {SECTION!r}: {stage}_shape is {list(shape)}; with {stage}_strides one axis at least must be "
                    f"longer than {total}"
                )

    def fine_box(self, around: Box, image_shape: Sequence[int], min_box: Sequence[int] | None = None) -> Box:
        """The box that the second stage sees: `around` + margin, at least `min_box` (default: min_box_vox), inside the image."""
        return around.grow(self.margin_vox).at_least(min_box or self.min_box_vox).within(image_shape)


@dataclass(frozen=True)
class CascadePlan(TwoStagePlan):
    """The second stage segments one box of all organs (paper 000)."""

    trainer: str = spec("OARCascadeTrainer", check.string)
    # section 2.2.1: larger least boxes as augmentation
    extra_box_vox: tuple[Triple, ...] = spec(((150, 200, 200), (200, 256, 256)), check.list_of(check.shape))
    margin_jitter: float = spec(0.0, check.number(0, 1))
    # how often the crop of a case that leaves organs out is enlarged in training, as at prediction the box is that of all organs:
    # to where these lie in a case that annotates all, towards the image's faces where there is no such case
    reach_unannotated: float = spec(0.0, check.number(0, 1))
    # organ -> over what its logits are averaged at prediction ("boxes": also the larger least boxes; "flips": also mirrored)
    test_time: dict[str, tuple[str, ...]] = spec({}, check.dict_of(check.list_of(check.one_of(*TEST_TIME))))
    # guard (off in the paper): whether an empty localisation means "everywhere"
    fallback_whole: bool = spec(False, check.boolean)

    def __post_init__(self):
        super().__post_init__()
        self._refuse_unknown_organs("test_time")


@dataclass(frozen=True)
class InstancePlan(TwoStagePlan):
    """The second stage segments one box per instance, a kidney with its tumours (paper 002; its numbers are the defaults)."""

    trainer: str = spec("OARInstanceCascadeTrainer", check.string)
    spacing_mm: tuple[float, float, float] = spec((1.0, 1.0, 1.0), check.list_of(check.number(1e-3), 3))
    # array axis across the slices, in which training rotates
    slice_axis: int = spec(0, check.integer(0, 2))
    hu_window: tuple[float, float] | None = spec((-95.0, 155.0), check.optional(check.window))
    augmentation: str = spec("rotation", check.one_of(*AUGMENTATIONS))
    min_box_vox: Triple = spec((64, 64, 64), check.shape)
    # what makes an instance: the components of these labels together; other labels are segmented where the boxes show them
    instance_labels: tuple[int, ...] = spec((1, 2), check.list_of(check.integer(1)))
    max_instances: int = spec(2, check.integer(1))
    # components that are nearer to each other than this are one instance (a tumour beside its kidney)
    join_mm: float = spec(10.0, check.number(0))
    # whether a component larger than any instance in training is divided at its neck (kidneys that touch at a coarse grid)
    separate: bool = spec(True, check.boolean)
    # training draws an instance of the case, or an organ first and an instance that shows it: rare tumours are seen more often
    draw_by: str = spec("instance", check.one_of(*DRAW_BY))
    # Dice weights of background and foreground, and of background and organs
    coarse_weights: tuple[float, ...] = spec((0.01, 0.99), check.list_of(check.number(0), 2))
    fine_weights: tuple[float, ...] = spec((0.01, 0.14, 0.85), check.list_of(check.number(0)))

    def __post_init__(self):
        super().__post_init__()
        if self.organs and len(self.fine_weights) != len(self.organs) + 1:
            raise ValueError(
                f"plans, section {SECTION!r}: fine_weights is {list(self.fine_weights)}; allowed are {len(self.organs) + 1} "
                f"numbers, of the background and of {', '.join(self.organs)}"
            )
        if self.organs and not 1 <= max(self.instance_labels, default=0) <= len(self.organs):
            raise ValueError(
                f"plans, section {SECTION!r}: instance_labels is {list(self.instance_labels)}; allowed are labels from 1 to "
                f"{len(self.organs)}, one at least"
            )
