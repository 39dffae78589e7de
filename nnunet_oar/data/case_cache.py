"""Files beside the preprocessed cases with what a loader must know of each case before it reads a region of it.

One file per case in a sub-folder of the configuration's preprocessed folder (nnU-Net infers its data format from the file
endings in the folder itself). The sub-folder's name holds a hash of what the content depends on, so that all folds and
trainers with the same settings share it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from nnunet_oar.files import written_whole
from nnunet_oar.intensity import Normalisation, measure, replace_non_finite


class CaseCache:
    """Builds, checks and reads the files of one configuration; a sub-class says what is in them (`content`).

    dataset: nnU-Net's dataset object over the configuration's folder (any cases); window: as the network's, in the data's own
    units; labels: the foreground labels; key: whatever else the content depends on, the sub-class' version of its format first.
    """

    kind: str
    task: str

    def __init__(self, dataset, window: tuple[float, float] | None, labels: Sequence[int], key: Sequence):
        self.dataset, self.window, self.labels = dataset, window, tuple(labels)
        digest = hashlib.sha256(json.dumps([*key, self.window, self.labels]).encode()).hexdigest()[:12]
        self.folder = Path(dataset.source_folder) / f"oar_{self.kind}_{digest}"

    def content(self, case: str, image: Tensor, normalisation: Normalisation, seg: np.ndarray) -> dict[str, np.ndarray]:
        """What to keep of one case. image: (C, Z, Y, X) in the data's own units; seg: (1, Z, Y, X) without negative labels."""
        raise NotImplementedError

    def build(self, cases: Sequence[str], disable_progress_bar: bool = False) -> None:
        """Make what is missing or older than its preprocessed case. Several processes may do so at once: files are renamed
        into place."""
        self.folder.mkdir(exist_ok=True)
        missing = [case for case in cases if not self._is_current(case)]
        for case in tqdm(missing, desc=self.task, disable=disable_progress_bar or not missing):
            self._make(case)

    def path(self, case: str) -> Path:
        return self.folder / f"{case}.npz"

    def normalisation(self, stored) -> Normalisation:
        """Of the whole case, for regions of it. stored: the opened file."""
        return Normalisation(torch.from_numpy(stored["mean"]), torch.from_numpy(stored["std"]), self.window)

    def _stamp(self, case: str) -> np.ndarray:
        """Size and time of the preprocessed files: a case that was preprocessed again is read again."""
        stamps = []
        for name in (f"{case}.b2nd", f"{case}_seg.b2nd", f"{case}.npz"):
            path = Path(self.dataset.source_folder) / name
            if path.exists():
                stamps += [path.stat().st_size, path.stat().st_mtime_ns]
        return np.array(stamps, dtype=np.int64)

    def _is_current(self, case: str) -> bool:
        if not self.path(case).exists():
            return False
        with np.load(self.path(case)) as stored:
            return np.array_equal(stored["stamp"], self._stamp(case))

    def _make(self, case: str) -> None:
        stamp = self._stamp(case)
        data, seg, _, _ = self.dataset.load_case(case)
        image, _ = replace_non_finite(torch.from_numpy(np.array(data[:])))
        seg = np.maximum(np.array(seg[:1]), 0)  # nnU-Net marks what lies outside the nonzero region with -1
        normalisation = measure(image, self.window)
        content = self.content(case, image, normalisation, seg)
        with written_whole(self.path(case), shared=True) as temporary, open(temporary, "wb") as file:
            np.savez(
                file,
                **content,
                shape=np.array(image.shape[1:]),
                mean=normalisation.mean.numpy(),
                std=normalisation.std.numpy(),
                stamp=stamp,
            )
