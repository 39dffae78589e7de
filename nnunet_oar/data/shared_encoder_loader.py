"""Samples for the shared encoder: parts of bodies on its grid, read by region from the preprocessed file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from nnunet_oar.annotations import Annotations
from nnunet_oar.body import find_body
from nnunet_oar.data.augmentation import flip_at_random, nnunet_transforms, seeded_globals
from nnunet_oar.data.case_cache import CaseCache
from nnunet_oar.data.coarse_cache import covering_labels, organ_boxes, organ_rows
from nnunet_oar.data.sample_loader import SampleLoader, read_image, read_labels
from nnunet_oar.intensity import Normalisation
from nnunet_oar.padding import pad_to, padded_shape
from nnunet_oar.plan import SharedEncoderPlan
from nnunet_oar.roi import Box, resize

FORMAT = 1


@dataclass(frozen=True)
class BodyCase:
    """body: box of the patient's body in the preprocessed case, and of its organs; found: whether the body could be told from the
    air; cut_organs: whether its box without them would have cut some; organs: label -> box in the case; normalisation: of the whole
    case, for regions of it."""

    body: Box
    found: bool
    cut_organs: bool
    organs: dict[int, Box]
    normalisation: Normalisation


class BodyCache(CaseCache):
    """Where body and organs of each case lie."""

    kind, task = "body", "looking for bodies"

    def __init__(self, dataset, plan: SharedEncoderPlan, labels: Sequence[int]):
        self.plan = plan
        super().__init__(dataset, plan.data_window, labels, [FORMAT, plan.slice_axis, plan.intensity_from_hu])

    def content(self, case: str, image: Tensor, normalisation: Normalisation, seg: np.ndarray) -> dict[str, np.ndarray]:
        body = find_body(image[0].float().numpy(), self.plan.slice_axis, self.plan.intensity_from_hu)
        organs = organ_rows(seg[0], self.labels)
        box = body or Box.full(image.shape[1:])
        with_organs = Box.around([box, *organ_boxes(organs).values()])
        return {
            "body": np.array([*with_organs.start, *with_organs.stop]),
            "found": np.array(body is not None),
            "cut_organs": np.array(with_organs != box),
            "organs": organs,
        }

    def read(self, case: str) -> BodyCase:
        with np.load(self.path(case)) as stored:
            body = stored["body"].tolist()
            return BodyCase(
                Box(tuple(body[:3]), tuple(body[3:])),
                bool(stored["found"]),
                bool(stored["cut_organs"]),
                organ_boxes(stored["organs"]),
                self.normalisation(stored),
            )


class SharedEncoderLoader(SampleLoader):
    """Batches of one part of a body each, see SampleLoader for their order.

    Each batch is a dict: "image" (1, C, Z, Y, X) float32, normalised, on the encoder's grid, of a size that its strides divide;
    "target" (1, 1, Z, Y, X) int16; "coarse_target" (1, 1, ...) int16, the same at the size of the coarse segmentation; "annotated"
    bool (1, K - 1).

    In training, the middle of the part lies in the box of an organ that the case annotates in `organ_share` of the samples, each
    organ as often as the others, and anywhere in the body else; in validation in the middle of such a box, a different one in each
    pass.
    """

    def __init__(
        self,
        dataset,
        cases: Sequence[str],
        cache: BodyCache,
        plan: SharedEncoderPlan,
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

    def sample(self, n: int) -> dict:
        rng = np.random.default_rng((*self.entropy, n))
        name = self.case_of(n, self.cases)
        case, annotated = self.cache.read(name), torch.from_numpy(self.annotations.annotated(name))
        organs = [box for label, box in case.organs.items() if annotated[label - 1]]
        middle = self._middle(n, case, organs, rng)
        with seeded_globals(int(rng.integers(2**31))):
            image, labels = self._read(name, case, self._part(case, middle))
            if self.training:
                image, labels, annotated = flip_at_random(image, labels, annotated, rng, self.plan)
                if self.plan.augmentation == "nnunet":
                    transforms = nnunet_transforms(tuple(image.shape[1:]))
                    out = transforms(image=image.contiguous(), segmentation=labels.contiguous())
                    image, labels = out["image"], out["segmentation"].to(torch.int16)
        shape = padded_shape(image.shape[1:], self.plan.total_stride)
        # an organ that the last slice cuts goes on in the padding, as the image does
        image, labels = pad_to(image[None], shape)[0], pad_to(labels[None], shape)[0]
        return {
            "image": image.contiguous(),
            "target": labels.contiguous(),
            "coarse_target": self._coarse(labels),
            "annotated": annotated,
        }

    def _middle(self, n: int, case: BodyCase, organs: Sequence[Box], rng: np.random.Generator) -> np.ndarray:
        """Where the part of the case has its middle, in voxels of the case."""
        if not self.training and organs:
            return np.array(organs[n // len(self.cases) % len(organs)].centre)
        if self.training and organs and rng.random() < self.plan.organ_share:
            box = organs[rng.integers(len(organs))]
        else:
            box = case.body
        return rng.uniform(box.start, box.stop)

    def _part(self, case: BodyCase, middle: np.ndarray) -> Box:
        """In voxels of the case: the part about `middle`, inside the body and as large as the plans allow."""
        plan, body = self.plan, case.body
        grid = plan.grid_shape(body.shape)
        size = np.minimum(plan.crop_shape, grid)
        on_grid = (middle - body.start) * grid / body.shape
        start = np.clip(np.round(on_grid - size / 2).astype(int), 0, np.subtract(grid, size))
        part = Box(tuple(start), tuple(start + size))
        return part.rescaled(grid, body.shape).moved(body.start)

    def _read(self, name: str, case: BodyCase, part: Box) -> tuple[Tensor, Tensor]:
        """Image (C, Z, Y, X), normalised, and labels (1, Z, Y, X) of a part of the case, on the encoder's grid."""
        data, seg, _, _ = self.dataset.load_case(name)
        image = read_image(data, (slice(None), *part.slices), case.normalisation)
        labels = read_labels(seg, (slice(0, 1), *part.slices))
        grid = tuple(np.minimum(self.plan.grid_shape(part.shape), self.plan.crop_shape).tolist())
        return resize(image[None], grid, mode="linear")[0], resize(labels[None], grid, mode="nearest")[0]

    def _coarse(self, labels: Tensor) -> Tensor:
        plan = self.plan
        shape = [size // step for size, step in zip(labels.shape[1:], plan.coarse_stride, strict=True)]
        if plan.coarse_labels == "covering":
            return covering_labels(labels[0].numpy(), shape, range(1, len(plan.organs) + 1))[None]
        return resize(labels[None], shape, mode="nearest")[0]
