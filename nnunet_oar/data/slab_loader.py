"""Samples for slice-wise networks: a slice with its neighbours as channels, read by region from the preprocessed file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from nnunet_oar.annotations import Annotations
from nnunet_oar.data.augmentation import flip_at_random, nnunet_transforms, seeded_globals, spatial_transform
from nnunet_oar.data.sample_loader import SampleLoader, read_image, read_labels
from nnunet_oar.data.slice_cache import SliceCache, SliceCase
from nnunet_oar.plan import AttentionPlan
from nnunet_oar.slabs import framed, neighbours


class SlabLoader(SampleLoader):
    """Batches of slabs, see SampleLoader for their order.

    Each batch is a dict: "slab" (B, slices * C, *slice_shape) float32, normalised, "target" (B, 1, *slice_shape) int16, the labels
    of the middle slice, "annotated" bool (B, K - 1): which organs the case annotates, "region" (B,) int64: the body region of the
    slice or NO_REGION.

    Organs are balanced: a sample shows the background (any slice) or one of the organs, all equally often; of the cases that
    annotate and hold that organ any, and of its slices any.

    regions: case -> (slices,) body region of each slice. epoch_batches: training batches per epoch, which tell the phase.
    """

    def __init__(
        self,
        dataset,
        cases: Sequence[str],
        cache: SliceCache,
        plan: AttentionPlan,
        annotations: Annotations,
        regions: Mapping[str, np.ndarray],
        *,
        epoch_batches: int,
        fold: int | str,
        training: bool,
        start: int = 0,
        workers: int = 1,
    ):
        super().__init__(plan.seed, plan.batch_size, fold=fold, training=training, start=start, workers=workers)
        self.dataset, self.plan, self.regions = dataset, plan, regions
        self.cases = {name: cache.read(name) for name in cases}
        self.annotated = {name: annotations.annotated(name) for name in cases}
        self.samples_per_epoch = epoch_batches * plan.batch_size
        self.strata = self._strata()
        self.transforms = {elastic: self._transforms(elastic) for elastic in (False, True)} if training else {}

    def _strata(self) -> list[list[tuple[str, np.ndarray]]]:
        """For the background and for each organ that there is: the cases and their slices to choose from."""
        strata = [[(name, np.arange(case.slices)) for name, case in self.cases.items()]]
        for index in range(len(self.plan.organs)):
            found = [
                (name, np.flatnonzero(case.holds[index]))
                for name, case in self.cases.items()
                if self.annotated[name][index] and case.holds[index].any()
            ]
            if found:
                strata.append(found)
        return strata

    def _transforms(self, elastic: bool):
        if self.plan.augmentation == "nnunet":
            return nnunet_transforms(self.plan.slice_shape, elastic=elastic, slab=True)
        return spatial_transform(self.plan.slice_shape, affine=False, elastic=True) if elastic else None

    def sample(self, n: int) -> dict:
        rng = np.random.default_rng((*self.entropy, n))
        stratum = self.strata[rng.integers(len(self.strata))]
        name, slices = stratum[rng.integers(len(stratum))]
        position = int(rng.choice(slices))
        case, annotated = self.cases[name], torch.from_numpy(self.annotated[name])
        image, labels = self._read(name, case, position)
        if self.training:
            image, labels, annotated = flip_at_random(image, labels, annotated, rng, self.plan)
        slab, target = self._framed(image, labels, case.lowest)
        transforms = self.transforms.get(self.plan.phase(n // self.samples_per_epoch).elastic)
        if transforms is not None:
            with seeded_globals(int(rng.integers(2**31))):
                out = transforms(image=slab, segmentation=target)
            slab, target = out["image"], out["segmentation"].to(torch.int16)
        return {
            "slab": slab.contiguous(),
            "target": target.contiguous(),
            "annotated": annotated,
            "region": torch.tensor(int(self.regions[name][position])),
        }

    def _read(self, name: str, case: SliceCase, position: int) -> tuple[Tensor, Tensor]:
        """Image (C, Z, Y, X), normalised, `slices` long along the slice axis, and labels (1, Z, Y, X), one long."""
        axis = self.plan.slice_axis
        data, seg, _, _ = self.dataset.load_case(name)
        wanted = neighbours([position], self.plan.slices, case.slices)[0]
        first = int(wanted[0])
        index = [slice(None)] * 4
        index[1 + axis] = slice(first, int(wanted[-1]) + 1)
        image = read_image(data, tuple(index), case.normalisation).index_select(1 + axis, wanted - first)
        index[0], index[1 + axis] = slice(0, 1), slice(position, position + 1)
        return image, read_labels(seg, tuple(index))

    def _framed(self, image: Tensor, labels: Tensor, lowest: Tensor) -> tuple[Tensor, Tensor]:
        """Slab (slices * C, *slice_shape) and target (1, *slice_shape), as AttentionAnatomyNet frames a slice."""
        axis, frame = 1 + self.plan.slice_axis, self.plan.slice_shape
        slab = framed(image.movedim(axis, 0), lowest, frame)
        return slab.flatten(0, 1), framed(labels.movedim(axis, 0), labels.new_zeros(1), frame)[0]
