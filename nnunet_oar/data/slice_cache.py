"""What the slab loader must know of each case: which slices hold which organs, and how the volume is normalised."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from nnunet_oar.data.case_cache import CaseCache
from nnunet_oar.intensity import Normalisation

FORMAT = 1


@dataclass(frozen=True)
class SliceCase:
    """holds: bool (K - 1, slices), whether an organ has a voxel in a slice; lowest: (C,), least normalised value of the case.

    normalisation: of the whole case, for slabs of it.
    """

    holds: np.ndarray
    lowest: Tensor
    normalisation: Normalisation

    @property
    def slices(self) -> int:
        return self.holds.shape[1]


class SliceCache(CaseCache):
    """slice_axis: array axis across the slices; the rest as CaseCache."""

    kind, task = "slices", "looking up the organs' slices"

    def __init__(self, dataset, slice_axis: int, window: tuple[float, float] | None, labels: Sequence[int]):
        self.slice_axis = slice_axis
        super().__init__(dataset, window, labels, [FORMAT, slice_axis])

    def content(self, case: str, image: Tensor, normalisation: Normalisation, seg: np.ndarray) -> dict[str, np.ndarray]:
        in_plane = tuple(axis for axis in range(3) if axis != self.slice_axis)
        return {
            "holds": np.stack([(seg[0] == label).any(in_plane) for label in self.labels]),
            "lowest": normalisation.apply(image).amin((1, 2, 3)).numpy(),
        }

    def read(self, case: str) -> SliceCase:
        with np.load(self.path(case)) as stored:
            return SliceCase(stored["holds"], torch.from_numpy(stored["lowest"]), self.normalisation(stored))
