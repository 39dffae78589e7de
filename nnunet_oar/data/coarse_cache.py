"""Zoomed volumes of all cases on disk: what the localiser trains on, and what the crop loader must know of each case.

One file per case in a sub-folder of the configuration's preprocessed folder (nnU-Net infers its data format from the file
endings in the folder itself). The sub-folder's name holds a hash of what the content depends on, so that all folds and
trainers with the same settings share it.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from nnunet_oar.intensity import Normalisation, measure, replace_non_finite
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


class CoarseCache:
    """Builds, checks and reads the zoomed volumes of one configuration.

    dataset: nnU-Net's dataset object over the configuration's folder (any cases); coarse_shape, window (in the data's own
    units): as the network uses them; labels: the foreground labels.
    """

    def __init__(self, dataset, coarse_shape: Sequence[int], window: tuple[float, float] | None, labels: Sequence[int]):
        self.dataset, self.coarse_shape, self.window, self.labels = dataset, tuple(coarse_shape), window, tuple(labels)
        key = json.dumps([FORMAT, self.coarse_shape, self.window, self.labels])
        digest = hashlib.sha256(key.encode()).hexdigest()[:12]
        self.folder = Path(dataset.source_folder) / f"oar_coarse_{digest}"

    def build(self, cases: Sequence[str], disable_progress_bar: bool = False) -> None:
        """Make what is missing or older than its preprocessed case. Several processes may do so at once: files are renamed
        into place."""
        self.folder.mkdir(exist_ok=True)
        missing = [case for case in cases if not self._is_current(case)]
        for case in tqdm(missing, desc="zooming cases for the localiser", disable=disable_progress_bar or not missing):
            self._make(case)

    def read(self, case: str) -> CoarseCase:
        with np.load(self._path(case)) as stored:
            normalisation = Normalisation(
                torch.from_numpy(stored["mean"]), torch.from_numpy(stored["std"]), self.window
            )
            organs = {int(row[0]): Box(tuple(row[1:4]), tuple(row[4:7])) for row in stored["organs"]}
            return CoarseCase(stored["image"], stored["labels"], tuple(stored["shape"].tolist()), organs, normalisation)

    def _path(self, case: str) -> Path:
        return self.folder / f"{case}.npz"

    def _stamp(self, case: str) -> np.ndarray:
        """Size and time of the preprocessed files: a case that was preprocessed again is zoomed again."""
        stamps = []
        for name in (f"{case}.b2nd", f"{case}_seg.b2nd", f"{case}.npz"):
            path = Path(self.dataset.source_folder) / name
            if path.exists():
                stamps += [path.stat().st_size, path.stat().st_mtime_ns]
        return np.array(stamps, dtype=np.int64)

    def _is_current(self, case: str) -> bool:
        if not self._path(case).exists():
            return False
        with np.load(self._path(case)) as stored:
            return np.array_equal(stored["stamp"], self._stamp(case))

    def _make(self, case: str) -> None:
        stamp = self._stamp(case)
        data, seg, _, _ = self.dataset.load_case(case)
        image, _ = replace_non_finite(torch.from_numpy(np.array(data[:])))
        seg = np.maximum(np.array(seg[:1]), 0)  # nnU-Net marks what lies outside the nonzero region with -1
        normalisation = measure(image, self.window)
        coarse = resize(normalisation.apply(image)[None], self.coarse_shape, mode="linear")[0]
        labels = resize(torch.from_numpy(seg)[None], self.coarse_shape, mode="nearest")[0]
        organs = []
        for label in self.labels:
            box = Box.from_mask(seg[0] == label)
            if box is not None:
                organs.append((label, *box.start, *box.stop))
        # a name of its own: folds may be started on several machines at once
        handle, temporary = tempfile.mkstemp(".tmp", f"{case}.", self.folder)
        with os.fdopen(handle, "wb") as file:
            np.savez(
                file,
                image=coarse.to(torch.float16).numpy(),
                labels=labels.numpy().astype(np.uint8 if max(self.labels) < 256 else np.int16),
                shape=np.array(image.shape[1:]),
                organs=np.array(organs, dtype=np.int64).reshape(-1, 7),
                mean=normalisation.mean.numpy(),
                std=normalisation.std.numpy(),
                stamp=stamp,
            )
        os.replace(temporary, self._path(case))
