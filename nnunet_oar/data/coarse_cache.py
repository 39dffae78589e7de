"""Zoomed volumes of all cases on disk: what the localiser trains on, and what the crop loader must know of each case."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from nnunet_oar.data.case_cache import CaseCache
from nnunet_oar.intensity import Normalisation
from nnunet_oar.roi import Box, resize

FORMAT = 1


@dataclass(frozen=True)
class CoarseCase:
    """image: (C, *coarse_shape) float16, normalised; labels: (1, *coarse_shape) uint8 or int16, background 0.

    shape: of the preprocessed case; organs: label -> box in it; normalisation: of the whole case, for crops of it.
    """

    image: np.ndarray
    labels: np.ndarray
    shape: tuple[int, int, int]
    organs: dict[int, Box]
    normalisation: Normalisation


class CoarseCache(CaseCache):
    """The zoomed volumes of one configuration. coarse_shape: as the network uses it; the rest as CaseCache."""

    kind, task = "coarse", "zooming cases for the localiser"

    def __init__(self, dataset, coarse_shape: Sequence[int], window: tuple[float, float] | None, labels: Sequence[int]):
        self.coarse_shape = tuple(coarse_shape)
        super().__init__(dataset, window, labels, [FORMAT, self.coarse_shape])

    def content(self, image: Tensor, seg: np.ndarray) -> dict[str, np.ndarray]:
        coarse = resize(image[None], self.coarse_shape, mode="linear")[0]
        labels = resize(torch.from_numpy(seg)[None], self.coarse_shape, mode="nearest")[0]
        organs = []
        for label in self.labels:
            box = Box.from_mask(seg[0] == label)
            if box is not None:
                organs.append((label, *box.start, *box.stop))
        return {
            "image": coarse.to(torch.float16).numpy(),
            "labels": labels.numpy().astype(np.uint8 if max(self.labels) < 256 else np.int16),
            "organs": np.array(organs, dtype=np.int64).reshape(-1, 7),
        }

    def read(self, case: str) -> CoarseCase:
        with np.load(self.path(case)) as stored:
            organs = {int(row[0]): Box(tuple(row[1:4]), tuple(row[4:7])) for row in stored["organs"]}
            return CoarseCase(
                stored["image"],
                stored["labels"],
                tuple(stored["shape"].tolist()),
                organs,
                self.normalisation(stored),
            )
