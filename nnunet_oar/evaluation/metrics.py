"""What a predicted organ is worth beside the reference: overlap, surfaces, volume, and the work of correcting it.

Surface distances are those of google-deepmind's surface-distance: surfaces are made of surface elements with an area, at the
corners between voxels, and every mean or percentile over a surface weighs its elements by that area.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import surface_distance
from scipy import ndimage
from scipy.spatial import cKDTree
from surface_distance import lookup_tables

DEFAULT_TOLERANCE_MM = 2.0


class Metric(NamedTuple):
    """up: whether more is better; None where neither is. decimals: in tables."""

    title: str
    up: bool | None
    decimals: int


METRICS = {
    "dice": Metric("Dice", True, 3),
    "surface_dice": Metric("surface Dice", True, 3),
    "hd95_mm": Metric("HD95 (mm)", False, 1),
    "hd_mm": Metric("HD (mm)", False, 1),
    "msd_mm": Metric("mean surface distance (mm)", False, 2),
    "added_path_mm": Metric("added path length (mm)", False, 0),
    "volume_difference_ml": Metric("volume difference (ml)", None, 2),
}
# both organs are there; only the reference; only the prediction; neither
FOUND, MISSED, INVENTED, ABSENT = "found", "missed", "invented", "absent"


class Pair(NamedTuple):
    """One organ of one case, cut out with a voxel of background where the image has one: bool (Z, Y, X) both."""

    label: int
    prediction: np.ndarray
    reference: np.ndarray


def pairs(prediction: np.ndarray, reference: np.ndarray, labels: Sequence[int]) -> Iterator[Pair]:
    """The organs of two label maps of one shape, also those that are in neither."""
    if prediction.shape != reference.shape:
        raise ValueError(f"prediction and reference must have one shape, got {prediction.shape} and {reference.shape}")
    # some writers store labels as floats
    whole = [of if of.dtype.kind in "iu" else of.astype(np.int32) for of in (prediction, reference)]
    found = [ndimage.find_objects(of, max(labels, default=1)) for of in whole]
    for label in labels:
        boxes = [of[label - 1] for of in found if of[label - 1] is not None]
        if not boxes:
            empty = np.zeros((1, 1, 1), bool)
            yield Pair(label, empty, empty)
            continue
        cut = tuple(
            slice(max(0, min(box[axis].start for box in boxes) - 1), max(box[axis].stop for box in boxes) + 1)
            for axis in range(3)
        )
        yield Pair(label, prediction[cut] == label, reference[cut] == label)


def scores(
    prediction: np.ndarray,
    reference: np.ndarray,
    spacing_mm: Sequence[float],
    tolerance_mm: float = DEFAULT_TOLERANCE_MM,
    slice_axis: int = 0,
) -> dict[str, float | str | None]:
    """METRICS, `volume_ml`, `reference_ml`, `state` and the voxels `tp`, `fp` and `fn` of one organ. None: not defined.

    prediction, reference: bool (Z, Y, X), with nothing of the organ outside. spacing_mm: in array order. slice_axis: across the
    slices in which contours are drawn.

    - Both absent (state "absent"): everything but the volumes is None. Reference alone ("missed"): Dice and surface Dice are 0,
      distances None, the whole contour has to be added. Prediction alone ("invented"): likewise, nothing to add.
    - surface_dice: share of both surfaces within the tolerance of the other one (Nikolov et al., J Med Internet Res 23, 2021).
    - hd95_mm, hd_mm: the larger one of both directions' 95th percentile and maximum. msd_mm: mean over both surfaces together.
    - added_path_mm: pixels of the reference's outline in each slice that are not of the prediction's outline, times the pixels'
      mean size (Vaassen et al., Phys Imaging Radiat Oncol 13, 2020). What has to be deleted is not counted there.
    - volume_difference_ml: prediction minus reference.
    """
    voxel_ml = float(np.prod(spacing_mm)) / 1000
    volumes = [np.count_nonzero(mask) for mask in (prediction, reference)]
    state = {(True, True): FOUND, (False, True): MISSED, (True, False): INVENTED, (False, False): ABSENT}[
        volumes[0] > 0, volumes[1] > 0
    ]
    result: dict[str, float | str | None] = dict.fromkeys(METRICS)
    common = int(np.count_nonzero(prediction & reference))
    result |= {"state": state, "volume_ml": volumes[0] * voxel_ml, "reference_ml": volumes[1] * voxel_ml}
    result |= {"tp": common, "fp": int(volumes[0] - common), "fn": int(volumes[1] - common)}
    if state == ABSENT:
        return result
    result["dice"] = 2 * common / sum(volumes)
    result["volume_difference_ml"] = (volumes[0] - volumes[1]) * voxel_ml
    result["added_path_mm"] = added_path(prediction, reference, spacing_mm, slice_axis)
    result["surface_dice"] = 0.0
    if state == FOUND:
        distances = surface_distances(reference, prediction, spacing_mm)
        result["surface_dice"] = float(surface_distance.compute_surface_dice_at_tolerance(distances, tolerance_mm))
        result["hd95_mm"] = float(surface_distance.compute_robust_hausdorff(distances, 95))
        result["hd_mm"] = float(surface_distance.compute_robust_hausdorff(distances, 100))
        both = [np.concatenate([distances[f"{what}_{of}"] for of in ends]) for what, ends in _ENDS]
        result["msd_mm"] = float(np.average(both[0], weights=both[1]))
    return result


_ENDS = (("distances", ("gt_to_pred", "pred_to_gt")), ("surfel_areas", ("gt", "pred")))


def surface_distances(
    reference: np.ndarray, prediction: np.ndarray, spacing_mm: Sequence[float]
) -> dict[str, np.ndarray]:
    """What surface_distance.compute_surface_distances returns, from the surfaces' points alone: that one computes the distance of
    every voxel of the box around both, which a stray voxel makes as large as the CT. Neither mask may be empty."""
    points, areas = zip(*(surface(mask, spacing_mm) for mask in (reference, prediction)), strict=True)
    found = {}
    for name, of, own, other in (("gt_to_pred", "gt", 0, 1), ("pred_to_gt", "pred", 1, 0)):
        distances = cKDTree(points[other]).query(points[own])[0]
        order = np.lexsort((areas[own], distances))
        found |= {f"distances_{name}": distances[order], f"surfel_areas_{of}": areas[own][order]}
    return found


def surface(mask: np.ndarray, spacing_mm: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """Points (n, 3) in mm, at the corners that voxels inside and outside of a mask share, and the area (n,) in mm^2 of the surface
    there, from surface-distance's table of the eight voxels around a corner."""
    padded = np.pad(mask, 1).view(np.uint8)
    shape = tuple(size + 1 for size in mask.shape)
    codes = np.zeros(shape, np.uint8)
    for corner in np.ndindex(2, 2, 2):
        cut = tuple(slice(start, start + size) for start, size in zip(corner, shape, strict=True))
        codes += padded[cut] * np.uint8(lookup_tables.ENCODE_NEIGHBOURHOOD_3D_KERNEL[corner])
    table = lookup_tables.create_table_neighbour_code_to_surface_area(tuple(float(value) for value in spacing_mm))
    at = np.nonzero((codes != 0) & (codes != 255))
    return np.stack(at, axis=1) * np.asarray(spacing_mm, np.float64), np.asarray(table)[codes[at]]


def added_path(
    prediction: np.ndarray, reference: np.ndarray, spacing_mm: Sequence[float], slice_axis: int = 0
) -> float:
    """See `scores`."""
    missing = np.count_nonzero(_outlines(reference, slice_axis) & ~_outlines(prediction, slice_axis))
    pixel = [spacing for axis, spacing in enumerate(spacing_mm) if axis != slice_axis]
    return missing * float(np.mean(pixel))


def _outlines(mask: np.ndarray, slice_axis: int) -> np.ndarray:
    """In each slice, pixels of the mask beside one that is not of it; outside the array nothing is."""
    padded = np.pad(mask, 1)
    inner = mask.copy()
    for axis in range(3):
        if axis != slice_axis:
            for shift in (0, 2):
                cut = [slice(1, -1)] * 3
                cut[axis] = slice(shift, shift + mask.shape[axis])
                inner &= padded[tuple(cut)]
    return mask & ~inner
