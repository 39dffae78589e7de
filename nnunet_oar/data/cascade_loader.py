"""Samples for both stages of the cascade: the zoomed CT, and the crop of the organs read by region from the preprocessed file."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from nnunet_oar.data.augmentation import draw_flips, flip, nnunet_transforms, seeded_globals
from nnunet_oar.data.coarse_cache import CoarseCache, CoarseCase
from nnunet_oar.intensity import replace_non_finite
from nnunet_oar.plan import CascadePlan
from nnunet_oar.roi import Box, resize


class CascadeLoader:
    """Endless iterator over batches for nnU-Net's (ordered) MultiThreadedAugmenter.

    Each batch is a dict: "coarse" (B, C, *coarse_shape) float32 and "coarse_target" (B, 1, *coarse_shape) int16, "fine" and
    "fine_target" likewise on fine_shape, "image_shape" and "organs", lists of B: shape of the preprocessed case and
    label -> Box in it.

    Batch n is a function of (seed in the plan, fold, n) alone: worker i of w makes the batches i, i + w, i + 2w, ..., which the
    augmenter hands out in turn, so neither the number of workers nor an interruption (start) changes what is seen.
    Training batches are augmented and go through the cases in a new order each pass; validation batches are not and keep it.
    """

    def __init__(
        self, dataset, cases: Sequence[str], cache: CoarseCache, plan: CascadePlan, *, fold: int | str, training: bool,
        start: int = 0, workers: int = 1,
    ):  # fmt: skip
        self.dataset, self.cases, self.cache, self.plan, self.training = dataset, list(cases), cache, plan, training
        # nnU-Net's fold "all" gets a number that no fold has
        self.entropy = (plan.seed, 1_000_000 if fold == "all" else int(fold), int(training))
        self.next_batch, self.step = start, 1
        self.workers = workers
        self.transforms = {}
        if training and plan.augmentation == "nnunet":
            self.transforms = {stage: nnunet_transforms(shape) for stage, shape in
                               (("coarse", plan.coarse_shape), ("fine", plan.fine_shape))}  # fmt: skip

    def set_thread_id(self, thread_id: int) -> None:
        """Called by the augmenter in each worker process."""
        self.next_batch += thread_id
        self.step = self.workers
        # a forked worker that uses torch's thread pool may wait for ever for threads that were not forked with it
        torch.set_num_threads(1)

    def __iter__(self) -> CascadeLoader:
        return self

    def __next__(self) -> dict:
        first = self.next_batch * self.plan.batch_size
        self.next_batch += self.step
        samples = [self.sample(n) for n in range(first, first + self.plan.batch_size)]
        batch = {
            key: torch.stack([sample[key] for sample in samples])
            for key in samples[0]
            if key not in ("image_shape", "organs")
        }
        return batch | {key: [sample[key] for sample in samples] for key in ("image_shape", "organs")}

    def sample(self, n: int) -> dict:
        rng = np.random.default_rng((*self.entropy, n))
        name = self._case(n)
        case = self.cache.read(name)
        with seeded_globals(int(rng.integers(2**31))):
            coarse = self._augment("coarse", torch.from_numpy(case.image).float(), torch.from_numpy(case.labels), rng)
            fine = self._augment("fine", *self._crop(name, case, rng), rng)
        return {
            "coarse": coarse[0],
            "coarse_target": coarse[1],
            "fine": fine[0],
            "fine_target": fine[1],
            "image_shape": case.shape,
            "organs": case.organs,
        }

    def _case(self, n: int) -> str:
        passes, index = divmod(n, len(self.cases))
        if self.training:
            index = np.random.default_rng((*self.entropy, passes, 0)).permutation(len(self.cases))[index]
        return self.cases[index]

    def _crop(self, name: str, case: CoarseCase, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Image (C, *fine_shape), normalised, and labels (1, *fine_shape) of the box (paper 000, section 2.2.1)."""
        box = self._box(case, rng)
        data, seg, _, _ = self.dataset.load_case(name)
        image = torch.from_numpy(np.asarray(data[(slice(None), *box.slices)], dtype=np.float32))
        image = case.normalisation.apply(replace_non_finite(image)[0])
        labels = torch.from_numpy(np.maximum(np.asarray(seg[(slice(0, 1), *box.slices)], dtype=np.int16), 0))
        shape = self.plan.fine_shape
        return resize(image[None], shape, mode="linear")[0], resize(labels[None], shape, mode="nearest")[0]

    def _box(self, case: CoarseCase, rng: np.random.Generator) -> Box:
        organs = Box.around(case.organs.values())
        if organs is None:  # an empty label map teaches what background looks like
            return Box.full(case.shape)
        plan = self.plan
        if not self.training:
            return plan.fine_box(organs, case.shape)
        sizes = (plan.min_box_vox, *plan.extra_box_vox)
        box = plan.fine_box(organs, case.shape, sizes[rng.integers(len(sizes))])
        if not plan.margin_jitter:
            return box
        # The localiser's box is off by some voxels on each side; at a face of the image no margin is left to take from
        reach = np.floor(np.multiply(plan.margin_vox, plan.margin_jitter)).astype(int)
        start = np.minimum(np.maximum(0, box.start + rng.integers(-reach, reach + 1)), organs.start)
        stop = np.maximum(np.minimum(case.shape, box.stop + rng.integers(-reach, reach + 1)), organs.stop)
        return Box(tuple(start), tuple(stop))

    def _augment(self, stage: str, image: Tensor, labels: Tensor, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        labels = labels.to(torch.int16)
        if not self.training:
            return image, labels
        image, labels = flip(image, labels, draw_flips(rng, self.plan), self.plan)
        if stage in self.transforms:
            out = self.transforms[stage](image=image.contiguous(), segmentation=labels.contiguous())
            image, labels = out["image"], out["segmentation"].to(torch.int16)
        return image.contiguous(), labels.contiguous()
