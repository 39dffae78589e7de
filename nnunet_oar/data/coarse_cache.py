"""Zoomed volumes of all cases on disk: what the localiser trains on, and what the crop loader must know of each case."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from nnunet_oar.data.case_cache import CaseCache
from nnunet_oar.intensity import Normalisation
from nnunet_oar.roi import Box, resize

FORMAT = 2


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
    """The zoomed volumes of one configuration. coarse_shape, coarse_labels: as in the plans; key: what a sub-class' content depends
    on; the rest as CaseCache."""

    kind, task = "coarse", "zooming cases for the localiser"

    def __init__(
        self,
        dataset,
        coarse_shape: Sequence[int],
        window: tuple[float, float] | None,
        labels: Sequence[int],
        coarse_labels: str = "nearest",
        key: Sequence = (),
    ):
        self.coarse_shape, self.coarse_labels = tuple(coarse_shape), coarse_labels
        super().__init__(dataset, window, labels, [FORMAT, self.coarse_shape, coarse_labels, *key])

    def content(self, case: str, image: Tensor, normalisation: Normalisation, seg: np.ndarray) -> dict[str, np.ndarray]:
        coarse = resize(normalisation.apply(image)[None], self.coarse_shape, mode="linear")[0]
        if self.coarse_labels == "covering":
            labels = covering_labels(seg[0], self.coarse_shape, self.labels)[None]
        else:
            labels = resize(torch.from_numpy(seg)[None], self.coarse_shape, mode="nearest")[0]
        return {
            "image": coarse.to(torch.float16).numpy(),
            "labels": labels.numpy().astype(np.uint8 if max(self.labels) < 256 else np.int16),
            "organs": organ_rows(seg[0], self.labels),
        }

    def read(self, case: str) -> CoarseCase:
        with np.load(self.path(case)) as stored:
            return self.from_stored(stored)

    def from_stored(self, stored) -> CoarseCase:
        """stored: the opened file."""
        return CoarseCase(
            stored["image"],
            stored["labels"],
            tuple(stored["shape"].tolist()),
            organ_boxes(stored["organs"]),
            self.normalisation(stored),
        )


def organ_rows(labels: np.ndarray, values: Sequence[int]) -> np.ndarray:
    """(n, 7) int64 of label, start and stop for each of `values` that the label map (Z, Y, X) holds."""
    boxes = ((value, Box.from_mask(labels == value)) for value in values)
    rows = [(value, *box.start, *box.stop) for value, box in boxes if box is not None]
    return np.array(rows, dtype=np.int64).reshape(-1, 7)


def organ_boxes(rows: np.ndarray) -> dict[int, Box]:
    """Label -> box, from what `organ_rows` made."""
    return {int(row[0]): Box(tuple(row[1:4]), tuple(row[4:7])) for row in rows}


def covering_labels(labels: np.ndarray, shape: Sequence[int], values: Sequence[int]) -> Tensor:
    """Label map (Z, Y, X) on a coarser grid of the same region, `shape`: each voxel shows the one of `values` that fills most of
    it, and background only where there is none of them. Returns the dtype of `labels`.

    A spinal cord is thinner than a voxel of a zoomed CT: its nearest label is there or not by chance, which no network can learn.
    """
    best = torch.zeros(tuple(shape))
    covering = torch.zeros(tuple(shape), dtype=torch.from_numpy(labels[:0]).dtype)
    for value in values:
        share = F.adaptive_avg_pool3d(torch.from_numpy(labels == value).float()[None], tuple(shape))[0]
        covering[share > best] = value
        best = torch.maximum(best, share)
    return covering
