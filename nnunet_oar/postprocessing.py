"""Post-processing of label maps through nnUNetv2_apply_postprocessing, which runs a pickle of importable functions."""

from __future__ import annotations

import json
import pickle
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from nnunet_oar.annotations import organ_labels
from nnunet_oar.components import drop_small
from nnunet_oar.files import written_whole


def drop_small_components(segmentation: np.ndarray, labels: Sequence[int], fraction: float = 0.05) -> np.ndarray:
    """Remove the components of each label that are smaller than `fraction` of its largest one (paper 000, section 2.1.4).

    segmentation: (Z, Y, X) label map; returns a new one of the same dtype.
    """
    result = segmentation.copy()
    for label in labels:
        mask = segmentation == label
        result[mask & ~drop_small(mask, fraction)] = 0
    return result


def write_pickle(predictions: Path, file: Path, fraction: float) -> None:
    """Write the pickle for a folder that nnUNetv2_predict made.

    Raises ValueError where the folder holds no dataset.json or `fraction` is not in [0, 1].
    """
    if not 0 <= fraction <= 1:
        raise ValueError(f"fraction must lie in [0, 1], got {fraction}")
    description = predictions / "dataset.json"
    if not description.is_file():
        raise ValueError(f"{description} does not exist; name a folder that nnUNetv2_predict wrote")
    labels = list(organ_labels(json.loads(description.read_text())).values())
    with written_whole(file) as temporary:
        temporary.write_bytes(pickle.dumps(([drop_small_components], [{"labels": labels, "fraction": fraction}])))
