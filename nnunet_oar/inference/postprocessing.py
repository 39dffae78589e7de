"""What is done to label maps after prediction: by nnunet_oar predict as the plans say, and through nnUNetv2_apply_postprocessing,
which runs a pickle of importable functions.

Source: paper 000, section 2.1.4, for components under 5%; it names finer post-processing of heart and oesophagus without saying
how, what is here is ours.
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from scipy.ndimage import distance_transform_edt

from nnunet_oar.annotations import organ_labels
from nnunet_oar.components import drop_small, keep_largest, label_components
from nnunet_oar.files import written_whole
from nnunet_oar.roi import Box

# A gap of so many mm, or of one slice, is a few slices that a network missed and not an organ's end
LONGEST_GAP_MM = 12.0


def postprocess(
    labels: np.ndarray,
    boxes: Mapping[int, Box],
    steps: Mapping[int, Sequence[str]],
    axis: int,
    spacing_mm: Sequence[float],
) -> dict[int, dict[str, int]]:
    """Change a label map (Z, Y, X) in place. boxes: label -> where its voxels are; steps: label -> names, see plan.POSTPROCESSING.

    axis: across the slices. Returns of each label that was changed the voxels `added` and `removed` and the number of
    `components_removed`. What is added never takes another organ's voxel.
    """
    changes = {}
    for label in sorted(label for label in boxes if steps.get(label)):
        here = labels[boxes[label].slices]
        before = here == label
        mask = before
        for step in steps[label]:
            if step == "bridge_slices":
                mask = bridge_slices(mask, axis, spacing_mm)
            else:
                mask = keep_largest(mask) if step == "keep_largest" else drop_small(mask)
        added, removed = mask & (here == 0), before & ~mask
        if added.any() or removed.any():
            changes[label] = {
                "added": int(added.sum()),
                "removed": int(removed.sum()),
                "components_removed": len(label_components(removed)[2]),
            }
            here[removed], here[added] = 0, label
    return changes


def bridge_slices(mask: np.ndarray, axis: int, spacing_mm: Sequence[float]) -> np.ndarray:
    """Close gaps of a few slices across `axis`, and drop slices that lie farther than that from the longest piece.

    mask: (Z, Y, X) bool; returns a new one. A gap is filled by shape-based interpolation: the signed distance to the outline in
    the slice before and in the one after, in mm, weighted by how near they are.
    """
    slices = np.moveaxis(mask, axis, 0).copy()
    filled = np.flatnonzero(slices.any((1, 2)))
    if len(filled) == 0:
        return np.moveaxis(slices, 0, axis)
    most = max(1, int(LONGEST_GAP_MM / spacing_mm[axis]))
    pieces = np.split(filled, np.flatnonzero(np.diff(filled) > most + 1) + 1)
    longest = max(pieces, key=len)
    slices[: longest[0]], slices[longest[-1] + 1 :] = False, False
    in_plane = [spacing for other, spacing in enumerate(spacing_mm) if other != axis]
    for before, after in zip(longest, longest[1:], strict=False):
        if after - before == 1:
            continue
        distances = [_signed_distance_mm(slices[index], in_plane) for index in (before, after)]
        for index in range(before + 1, after):
            weight = (index - before) / (after - before)
            slices[index] = (1 - weight) * distances[0] + weight * distances[1] > 0
    return np.moveaxis(slices, 0, axis)


def _signed_distance_mm(plane: np.ndarray, spacing_mm: Sequence[float]) -> np.ndarray:
    """Positive inside; a border of background on all sides, so that there is an outside."""
    plane = np.pad(plane, 1)
    inside, outside = (distance_transform_edt(of, sampling=spacing_mm) for of in (plane, ~plane))
    return (inside - outside)[1:-1, 1:-1]


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
