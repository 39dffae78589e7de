"""Samples for the heat-map cascade: a CT at the localiser's spacing with the organs' centres, and crops of a few organs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from nnunet_oar.annotations import Annotations
from nnunet_oar.data.augmentation import (
    draw_axes,
    intensity_transforms,
    nnunet_transforms,
    seeded_globals,
    spatial_transform,
    swap_organs,
)
from nnunet_oar.data.case_cache import CaseCache
from nnunet_oar.data.coarse_cache import organ_boxes, organ_rows
from nnunet_oar.data.sample_loader import SampleLoader, read_image
from nnunet_oar.intensity import Normalisation
from nnunet_oar.plan import HeatmapPlan
from nnunet_oar.roi import Box, resize

FORMAT = 1


@dataclass(frozen=True)
class HeatmapCase:
    """image: (C, Z, Y, X) float16, normalised, at the localiser's spacing; shape: of the preprocessed case; organs: label -> box in
    it; normalisation: of the whole case, for crops of it."""

    image: np.ndarray
    shape: tuple[int, int, int]
    organs: dict[int, Box]
    normalisation: Normalisation

    def centre(
        self, label: int, start: Sequence[int] = (0, 0, 0), size: Sequence[int] | None = None
    ) -> tuple[float, ...]:
        """Middle of the organ's bounding box, in voxels of the localiser's grid (edge coordinates); of what a part of that, which
        begins at `start` and is `size` long, shows of it, in its voxels: NaN where that is nothing."""
        shape = np.array(self.image.shape[1:])
        box, scale = self.organs[label], shape / self.shape
        size = shape if size is None else size
        first, last = (np.clip(edge * scale - start, 0, size) for edge in (box.start, box.stop))
        return tuple((first + last) / 2) if (first < last).all() else (np.nan,) * 3


class HeatmapCache(CaseCache):
    """All cases at the localiser's spacing."""

    kind, task = "localizer", "resampling cases for the localiser"

    def __init__(self, dataset, plan: HeatmapPlan, labels: Sequence[int]):
        self.plan = plan
        super().__init__(dataset, plan.data_window, labels, [FORMAT, plan.spacing_mm, plan.localizer_spacing_mm])

    def content(self, case: str, image: Tensor, normalisation: Normalisation, seg: np.ndarray) -> dict[str, np.ndarray]:
        coarse = resize(normalisation.apply(image)[None], self.plan.localizer_shape(image.shape[1:]), mode="linear")[0]
        return {"image": coarse.to(torch.float16).numpy(), "organs": organ_rows(seg[0], self.labels)}

    def read(self, case: str) -> HeatmapCase:
        with np.load(self.path(case)) as stored:
            shape, organs = tuple(stored["shape"].tolist()), organ_boxes(stored["organs"])
            return HeatmapCase(stored["image"], shape, organs, self.normalisation(stored))


class HeatmapLoader(SampleLoader):
    """Batches of one case each, see SampleLoader for their order.

    Each batch is a dict: "coarse" (1, C, Z, Y, X) float32, the case at the localiser's spacing or a part of it; "centres"
    (1, K - 1, 3) float32, of the organs that the case annotates, in voxels of that (edge coordinates), NaN where it holds none;
    "annotated" bool (1, K - 1). "crops", a list of one list of (label, image (C, *grid), mask (1, *grid) int16): in training
    `organs_per_iteration` organs drawn from those that the case annotates, moved at random; in validation all that it holds.
    "image_shape" and "organs", lists of one: shape of the preprocessed case and label -> Box in it of the organs that it annotates.

    size_mm: (K - 1, 3), mean size of the organs, 0 where it is not known: such an organ has no crops.
    """

    lists = ("crops", "image_shape", "organs")

    def __init__(
        self,
        dataset,
        cases: Sequence[str],
        cache: HeatmapCache,
        plan: HeatmapPlan,
        annotations: Annotations,
        size_mm: np.ndarray,
        *,
        fold: int | str,
        training: bool,
        start: int = 0,
        workers: int = 1,
    ):
        super().__init__(plan.seed, plan.batch_size, fold=fold, training=training, start=start, workers=workers)
        self.dataset, self.cases, self.cache, self.plan = dataset, list(cases), cache, plan
        self.annotations, self.size_mm = annotations, np.asarray(size_mm)
        self.margin_mm = np.multiply(plan.margin_vox, plan.spacing_mm)

    def sample(self, n: int) -> dict:
        rng = np.random.default_rng((*self.entropy, n))
        name = self.case_of(n, self.cases)
        case, annotated = self.cache.read(name), self.annotations.annotated(name)
        organs = {label: box for label, box in case.organs.items() if annotated[label - 1]}
        if not self.plan.recalibration:
            annotated = np.ones_like(annotated)  # what the case leaves out counts as absent
        with seeded_globals(int(rng.integers(2**31))):
            coarse, centres, of_coarse = self._coarse(case, organs, torch.from_numpy(annotated), rng)
            crops = [self._crop(name, case, label, organs, rng) for label in self._drawn(organs, annotated, rng)]
        return {
            "coarse": coarse,
            "centres": centres,
            "annotated": of_coarse,
            "crops": crops,
            "image_shape": case.shape,
            "organs": organs,
        }

    def _coarse(
        self, case: HeatmapCase, organs: dict[int, Box], annotated: Tensor, rng: np.random.Generator
    ) -> tuple[Tensor, Tensor, Tensor]:
        plan = self.plan
        image = torch.from_numpy(case.image).float()
        centres = torch.full((len(annotated), 3), torch.nan)
        for label in organs:
            centres[label - 1] = torch.tensor(case.centre(label))
        if not self.training:
            return image, centres, annotated
        if plan.localizer_crop is not None:
            size = np.minimum(image.shape[1:], plan.localizer_crop)
            start = rng.integers(0, np.subtract(image.shape[1:], size) + 1)
            image = image[(slice(None), *Box(tuple(start), tuple(start + size)).slices)]
            for label in organs:
                centres[label - 1] = torch.tensor(case.centre(label, start, size))
        axes = draw_axes(rng, plan)
        shape = torch.tensor(image.shape[1:])
        image = image.flip([axis + 1 for axis in axes])
        for axis in axes:
            centres[:, axis] = shape[axis] - centres[:, axis]
        centres, annotated = swap_organs(centres, axes, plan), swap_organs(annotated, axes, plan)
        if plan.augmentation == "nnunet":
            move = spatial_transform(tuple(image.shape[1:]), affine=True, elastic=False)
            drawn = move.get_parameters(image=image)
            image = move.apply({"image": image.contiguous()}, **drawn)["image"]
            if drawn["affine"] is not None:
                # a voxel at x, seen from the middle, shows what was at A x
                centres = (centres - shape / 2) @ torch.from_numpy(np.linalg.inv(drawn["affine"])).float().T + shape / 2
            image = intensity_transforms(image.shape[1:])(image=image)["image"]
        return image.contiguous(), centres, annotated

    def _drawn(self, organs: dict[int, Box], annotated: np.ndarray, rng: np.random.Generator) -> list[int]:
        """The labels that crops are made of."""
        known = self.size_mm.any(1)
        labels = np.array([index + 1 for index in np.flatnonzero(annotated & known)], dtype=int)
        if not self.training:
            return [int(label) for label in labels if label in organs]
        weights = np.array([1.0 if label in organs else self.plan.absent_share for label in labels])
        count = min(self.plan.organs_per_iteration, np.count_nonzero(weights))
        if not count:
            return []
        return rng.choice(labels, count, replace=False, p=weights / weights.sum()).tolist()

    def _crop(
        self, name: str, case: HeatmapCase, label: int, organs: dict[int, Box], rng: np.random.Generator
    ) -> tuple[int, Tensor, Tensor]:
        """Label, image and mask of one organ's box; of an organ that the case does not hold anywhere (paper 001, section II.B)."""
        plan, size = self.plan, self.size_mm[label - 1]
        centre = np.array(organs[label].centre) if label in organs else rng.uniform(0, case.shape)
        margin_mm = self.margin_mm
        if self.training:
            # each side by itself: in boxes of one size the network would learn how much padding there is beyond their faces
            below, above = rng.uniform(*plan.margin_range_mm(plan.organs[label - 1], size), (2, 3))
            centre = centre + (above - below) / 2 / plan.spacing_mm
            margin_mm = (above + below) / 2
        box = plan.organ_box(centre, size, margin_mm, case.shape)
        data, seg, _, _ = self.dataset.load_case(name)
        image = read_image(data, (slice(None), *box.slices), case.normalisation)
        mask = torch.from_numpy(np.asarray(seg[(slice(0, 1), *box.slices)]) == label) & (label in organs)
        axes = draw_axes(rng, plan) if self.training else ()
        if plan.left_right_axis in axes:  # a mirrored left organ is a right one
            partners = dict(plan.swap_on_flip) | {right: left for left, right in plan.swap_on_flip}
            label = partners.get(label, label)
        grid = plan.organ_shape(plan.organs[label - 1], box.shape)
        image = resize(image[None], grid, mode="linear")[0]
        mask = resize(mask[None], grid, mode="nearest")[0].to(torch.int16)
        if self.training:
            dims = [axis + 1 for axis in axes]
            image, mask = image.flip(dims), mask.flip(dims)
            if plan.augmentation == "nnunet":
                out = nnunet_transforms(grid)(image=image.contiguous(), segmentation=mask.contiguous())
                image, mask = out["image"], out["segmentation"].to(torch.int16)
        return label, image.contiguous(), mask.contiguous()
