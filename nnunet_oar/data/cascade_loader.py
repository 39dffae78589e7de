"""Samples for both stages of the cascade: the zoomed CT, and the crop of the organs read by region from the preprocessed file."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from nnunet_oar.annotations import Annotations
from nnunet_oar.data.augmentation import flip_at_random, nnunet_transforms, seeded_globals
from nnunet_oar.data.coarse_cache import CoarseCache, CoarseCase
from nnunet_oar.data.sample_loader import SampleLoader, read_image, read_labels
from nnunet_oar.plan import CascadePlan
from nnunet_oar.roi import Box, resize


class CascadeLoader(SampleLoader):
    """Batches for both stages, see SampleLoader for their order.

    Each batch is a dict: "coarse" (B, C, *coarse_shape) float32 and "coarse_target" (B, 1, *coarse_shape) int16, "fine" and
    "fine_target" likewise on fine_shape, "coarse_annotated" and "fine_annotated" bool (B, K - 1): which organs the case annotates,
    in the labels of that (mirrored) crop; "image_shape" and "organs", lists of B: shape of the preprocessed case and label -> Box
    in it of the organs that it annotates.

    Training batches are augmented and go through the cases in a new order each pass; validation batches are not and keep it.
    """

    lists = ("image_shape", "organs")

    def __init__(
        self,
        dataset,
        cases: Sequence[str],
        cache: CoarseCache,
        plan: CascadePlan,
        annotations: Annotations,
        *,
        fold: int | str,
        training: bool,
        start: int = 0,
        workers: int = 1,
    ):
        super().__init__(plan.seed, plan.batch_size, fold=fold, training=training, start=start, workers=workers)
        self.dataset, self.cases, self.cache, self.plan = dataset, list(cases), cache, plan
        self.annotations = annotations
        shapes = {"coarse": plan.coarse_shape, "fine": plan.fine_shape} if training else {}
        self.transforms = {stage: self._transforms(shape) for stage, shape in shapes.items()}

    @cached_property
    def references(self) -> list[dict[int, Box]]:
        """Organs of the cases that annotate all: they tell where lies what others leave out."""
        whole = (name for name in self.cases if self.annotations.annotated(name).all())
        return [case.organs for case in map(self.cache.read, whole) if case.organs]

    def _transforms(self, shape: Sequence[int]):
        return nnunet_transforms(shape) if self.plan.augmentation == "nnunet" else None

    def sample(self, n: int) -> dict:
        rng = np.random.default_rng((*self.entropy, n))
        name = self.case_of(n, self.cases)
        case, annotated = self.cache.read(name), torch.from_numpy(self.annotations.annotated(name))
        organs = {label: box for label, box in case.organs.items() if annotated[label - 1]}
        sample = {"image_shape": case.shape, **self._truth(case, organs)}
        with seeded_globals(int(rng.integers(2**31))):
            zoomed = torch.from_numpy(case.image).float(), torch.from_numpy(case.labels)
            coarse = self._augment("coarse", *zoomed, annotated, rng)
            box = self._box(n, case, organs, bool(annotated.all()), rng)
            fine = self._augment("fine", *self._crop(name, case, box), annotated, rng)
        for stage, crop in (("coarse", coarse), ("fine", fine)):
            sample |= zip((stage, f"{stage}_target", f"{stage}_annotated"), crop, strict=True)
        return sample

    def _crop(self, name: str, case: CoarseCase, box: Box) -> tuple[Tensor, Tensor]:
        """Image (C, *fine_shape), normalised, and labels (1, *fine_shape) of the box (paper 000, section 2.2.1)."""
        data, seg, _, _ = self.dataset.load_case(name)
        image = read_image(data, (slice(None), *box.slices), case.normalisation)
        labels = read_labels(seg, (slice(0, 1), *box.slices))
        shape = self.plan.fine_shape
        return resize(image[None], shape, mode="linear")[0], resize(labels[None], shape, mode="nearest")[0]

    def _truth(self, case: CoarseCase, organs: dict[int, Box]) -> dict:
        """What validation compares the localiser with."""
        return {"organs": organs}

    def _box(self, n: int, case: CoarseCase, organs: dict[int, Box], complete: bool, rng: np.random.Generator) -> Box:
        """Where the second stage looks, of the organs that the case annotates (all, if complete)."""
        shape = case.shape
        annotated = Box.around(organs.values())
        if annotated is None:  # an empty label map teaches what background looks like
            return Box.full(shape)
        plan = self.plan
        if not self.training:
            return plan.fine_box(annotated, shape)
        enlarged = not complete and rng.random() < plan.reach_unannotated
        around = annotated
        if enlarged and self.references:
            around = self._with_what_is_left_out(organs, annotated, shape, rng)
        sizes = (plan.min_box_vox, *plan.extra_box_vox)
        box = plan.fine_box(around, shape, sizes[rng.integers(len(sizes))])
        if plan.margin_jitter:
            # The localiser's box is off by some voxels on each side; at a face of the image no margin is left to take from
            reach = np.floor(np.multiply(plan.margin_vox, plan.margin_jitter)).astype(int)
            start = np.minimum(np.maximum(0, box.start + rng.integers(-reach, reach + 1)), around.start)
            stop = np.maximum(np.minimum(shape, box.stop + rng.integers(-reach, reach + 1)), around.stop)
            box = Box(tuple(start), tuple(stop))
        if enlarged and not self.references:
            start = np.floor(np.multiply(box.start, rng.random(3))).astype(int)
            stop = np.ceil(shape - np.subtract(shape, box.stop) * rng.random(3)).astype(int)
            box = Box(tuple(start), tuple(stop))
        return box

    def _with_what_is_left_out(
        self, organs: dict[int, Box], annotated: Box, shape: Sequence[int], rng: np.random.Generator
    ) -> Box:
        """Box of the annotated organs and of what the case leaves out, as far beyond them as in a complete case that is drawn."""
        reference = self.references[rng.integers(len(self.references))]
        common = Box.around(box for label, box in reference.items() if label in organs)
        if common is None:
            return annotated
        every = Box.around(reference.values())
        start = np.clip(np.add(annotated.start, np.subtract(every.start, common.start)), 0, annotated.start)
        stop = np.clip(np.add(annotated.stop, np.subtract(every.stop, common.stop)), annotated.stop, shape)
        return Box(tuple(start), tuple(stop))

    def _augment(
        self, stage: str, image: Tensor, labels: Tensor, annotated: Tensor, rng: np.random.Generator
    ) -> tuple[Tensor, Tensor, Tensor]:
        labels = labels.to(torch.int16)
        if not self.training:
            return image, labels, annotated
        image, labels, annotated = flip_at_random(image, labels, annotated, rng, self.plan)
        if self.transforms[stage] is not None:
            out = self.transforms[stage](image=image.contiguous(), segmentation=labels.contiguous())
            image, labels = out["image"], out["segmentation"].to(torch.int16)
        return image.contiguous(), labels.contiguous(), annotated
