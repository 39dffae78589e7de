"""Section of the heat-map cascade: paper 001."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

import nnunet_oar.plan.checks as check
from nnunet_oar.plan.base import SECTION, OARPlan
from nnunet_oar.plan.checks import Triple, spec
from nnunet_oar.roi import Box

CENTRES = ("midpoint", "weighted")


@dataclass(frozen=True)
class HeatmapPlan(OARPlan):
    """Heat maps find the organs, a binary network of its own segments each (paper 001; its numbers are the defaults)."""

    trainer: str = spec("OARHeatmapCascadeTrainer", check.string)
    spacing_mm: tuple[float, float, float] = spec((1.0, 1.0, 1.0), check.list_of(check.number(1e-3), 3))
    # volumes of the localiser differ in shape: one at a time
    batch_size: int = spec(1, check.integer(1, 1))
    # section III, "Data set" and "Gaussian Variance": 3 mm, 150 mm^2 whatever the spacing, threshold 0.1
    localizer_spacing_mm: tuple[float, float, float] = spec((3.0, 3.0, 3.0), check.list_of(check.number(1e-3), 3))
    # training sees at most this of a case at once; null: all of it
    localizer_crop: Triple | None = spec(None, check.optional(check.shape))
    localizer_features: int = spec(32, check.integer(1))
    localizer_strides: tuple[Triple, ...] = spec(((2, 2, 2),) * 4, check.strides)
    sigma2_mm2: float = spec(150.0, check.number(1e-3))
    # how much more than a voxel without heat one of full heat weighs in the loss; 0: the paper's
    heat_weight: float = spec(0.0, check.number(0))
    threshold: float = spec(0.1, check.number(0, 1))
    # the region above the threshold -> where the organ is: "midpoint" of its bounding box, or "weighted" by the heat, which is
    # right at the image's border, too
    centre: str = spec("midpoint", check.one_of(*CENTRES))
    # section II.A.2: voxels of the working spacing beyond the mean size; measured: at the end of training replaced by what holds
    # 99% of the training organs
    margin_vox: Triple = spec((10, 10, 10), check.list_of(check.integer(0), 3))
    measured_margin: bool = spec(False, check.boolean)
    # least margin of a side of training crops: 1 - this of the planned one; the largest: 1 + this, or what measuring may choose
    margin_jitter: float = spec(0.5, check.number(0, 1))
    # organ -> voxels of the working spacing that one voxel of its network's grid spans; strides of its network
    organ_step_vox: dict[str, tuple[float, float, float]] = spec({}, check.dict_of(check.list_of(check.number(0.1), 3)))
    organ_strides: dict[str, tuple[Triple, ...]] = spec({}, check.dict_of(check.strides))
    organ_features: int = spec(16, check.integer(1))
    # crops in one iteration, and how often an organ is drawn that the case does not hold, relative to one that it holds: its
    # network must learn what is none
    organs_per_iteration: int = spec(2, check.integer(1))
    absent_share: float = spec(0.25, check.number(0, 1))
    # section III, "Optimization"
    localizer_learning_rate: float = spec(1e-3, check.number(0))
    organ_learning_rate: float = spec(1e-5, check.number(0))
    # of each epoch; null: nnU-Net's schedule, which falls to 0 over the training
    lr_decay: float | None = spec(0.985, check.optional(check.number(0, 1)))
    # guards (off in the paper): pairs of labels (low, high) of which in every training case the first lies at the low end of
    # left_right_axis; how often a box that cuts an organ is grown
    low_high_pairs: tuple[tuple[int, int], ...] = spec((), check.list_of(check.list_of(check.integer(1), 2)))
    grow_attempts: int = spec(0, check.integer(0, 5))

    def __post_init__(self):
        super().__post_init__()
        for name in ("organ_step_vox", "organ_strides"):
            given = getattr(self, name)
            if set(given) != set(self.organs):
                raise ValueError(
                    f"plans, section {SECTION!r}: {name} has the organs {', '.join(given)}; allowed are "
                    f"{', '.join(self.organs)}, each once"
                )

        self._refuse_unfit_pairs("low_high_pairs")

    def localizer_shape(self, image_shape: Sequence[int]) -> Triple:
        """The grid on which an image of the working spacing is searched."""
        return tuple(
            max(1, round(size * spacing / wanted))
            for size, spacing, wanted in zip(image_shape, self.spacing_mm, self.localizer_spacing_mm, strict=True)
        )

    def localizer_step_mm(self, image_shape: Sequence[int]) -> tuple[float, float, float]:
        """The spacing of that grid: the grid holds whole voxels and fills the image, so it is only nearly the wanted one."""
        return tuple(
            size * spacing / steps
            for size, spacing, steps in zip(
                image_shape, self.spacing_mm, self.localizer_shape(image_shape), strict=True
            )
        )

    def organ_shape(self, organ: str, box_shape: Sequence[int]) -> Triple:
        """The grid of an organ's network for a box of the working spacing: the larger the box, the more voxels."""
        return tuple(
            max(1, round(size / step)) for size, step in zip(box_shape, self.organ_step_vox[organ], strict=True)
        )

    def margin_range_mm(self, organ: str, size_mm: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
        """The least and the largest margin, (3,) each, of training crops of an organ of this mean size, between which measured ones
        stay: what a network says depends on how much it sees around its organ, so training shows what prediction will."""
        spacing, size = np.asarray(self.spacing_mm), np.asarray(size_mm)
        planned = self.margin_vox * spacing
        least, most = (1 - self.margin_jitter) * planned, (1 + self.margin_jitter) * planned
        if self.measured_margin:
            most = 2 * planned + self.localizer_spacing_mm
            if organ in self.organ_extent_vox:
                # a stray voxel of one case must not make everybody's boxes larger than that
                most += np.clip(self.organ_extent_vox[organ][1] * spacing - size, 0, size) / 2
        return least, most

    def organ_box(
        self,
        centre_vox: Sequence[float],
        size_mm: Sequence[float],
        margin_mm: Sequence[float],
        image_shape: Sequence[int],
    ) -> Box:
        """The box that an organ's network sees: size + margin about its centre (edge coordinates), cut at the image's faces."""
        start, stop = [], []
        for centre, size, margin, spacing, extent in zip(
            centre_vox, size_mm, margin_mm, self.spacing_mm, image_shape, strict=True
        ):
            reach = (size / 2 + margin) / spacing
            first = min(max(0, math.floor(centre - reach)), extent - 1)
            start.append(first)
            stop.append(max(min(extent, math.ceil(centre + reach)), first + 1))
        return Box(tuple(start), tuple(stop))
