"""Which voxels of a foreground mask belong to one instance, a kidney with its tumours.

Paper 002 (KiTS19) crops "each kidney" and leaves open how kidneys are told apart; this is ours. The same rules make the boxes of
the truth in training and those of the localiser's map at prediction.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.ndimage import distance_transform_edt, minimum
from skimage.segmentation import watershed

from nnunet_oar.components import label_components, split_instances
from nnunet_oar.roi import Box

# A neck is worth cutting where both sides of it keep at least this share of the larger one's core
CORE_SHARE = 0.25
# An instance may be longer than those of training by this share before it is taken for two
EXTENT_TOLERANCE = 0.2
# More components than this are noise, each of which would cost the time of an instance
MOST_PARTS = 16


def find_instances(
    mask: np.ndarray,
    max_instances: int,
    *,
    voxel_mm: Sequence[float],
    fraction: float = 0.05,
    join_mm: float = 10.0,
    largest_mm: Sequence[float] | None = None,
) -> list[Box]:
    """Boxes of the instances in `mask` (Z, Y, X), largest instance first, at most `max_instances`.

    Components under `fraction` of the largest belong to the nearest larger one, where that is not farther than `join_mm`, and are
    dropped elsewhere. Larger ones that are as near to each other are joined, unless together they would be larger than `largest_mm`
    (the largest extent of an instance per axis, None: not known). While there are too few instances, a component larger than that
    is divided at its neck, if it has one. While there are too many, the smallest joins its nearest.

    voxel_mm: edge lengths of a voxel. An empty mask has no instances.
    """
    full = Box.from_mask(mask)
    if full is None:
        return []
    # a mask fills a small part of a CT; one voxel more, so that distances to the background exist on all sides
    mask = np.pad(mask[full.slices] != 0, 1)
    # distances are between the centres of voxels: the gap between their faces is smaller by an edge of a voxel, at most by this one
    join_mm = join_mm + max(voxel_mm)
    parts = _large_parts(mask, fraction, voxel_mm, join_mm, max(MOST_PARTS, max_instances))
    too_large = _too_large(voxel_mm, largest_mm)
    parts = _join_near(parts, voxel_mm, join_mm, too_large)
    parts = _divide(parts, max_instances, voxel_mm, too_large)
    parts = _join_surplus(parts, max_instances, voxel_mm)
    parts.sort(key=np.count_nonzero, reverse=True)
    corner = [start - 1 for start in full.start]
    boxes = [Box.from_mask(part) for part in parts]
    return [box.moved(corner) for box in boxes]


def _large_parts(mask: np.ndarray, fraction: float, voxel_mm, join_mm: float, most: int) -> list[np.ndarray]:
    """The components of at least `fraction` of the largest, at most so many, each with the smaller ones that are near it."""
    box, labels, sizes = label_components(mask)
    is_large = sizes / sizes.max() >= fraction
    is_large[np.argsort(-sizes, kind="stable")[most:]] = False
    large, small = np.flatnonzero(is_large) + 1, np.flatnonzero(~is_large) + 1
    owner = np.arange(len(sizes) + 1)
    if len(small):
        gaps = [minimum(distance_transform_edt(labels != label, sampling=voxel_mm), labels, small) for label in large]
        nearest = np.argmin(gaps, axis=0)
        owner[small] = np.where(np.min(gaps, axis=0) <= join_mm, large[nearest], 0)
    parts = []
    for label in large:
        part = np.zeros(mask.shape, dtype=bool)
        part[box.slices] = (owner == label)[labels]
        parts.append(part)
    return parts


def _too_large(voxel_mm: Sequence[float], largest_mm: Sequence[float] | None):
    """Whether a mask is larger than an instance can be."""
    if largest_mm is None:
        return lambda part: False
    # a coarse map shows an instance up to a voxel longer at each end
    bound = (1 + EXTENT_TOLERANCE) * np.asarray(largest_mm, dtype=float) + 2 * np.asarray(voxel_mm)
    return lambda part: bool((Box.from_mask(part).shape * np.asarray(voxel_mm) > bound).any())


def _join_near(parts: list[np.ndarray], voxel_mm, join_mm: float, too_large) -> list[np.ndarray]:
    """Join what is near, the nearest pair first."""
    parts = list(parts)
    while len(parts) > 1:
        gaps = _gaps(parts, voxel_mm, reach_mm=join_mm)
        pairs = [(gap, a, b) for (a, b), gap in gaps.items() if gap <= join_mm and not too_large(parts[a] | parts[b])]
        if not pairs:
            break
        _, a, b = min(pairs)
        parts[a] = parts[a] | parts.pop(b)
    return parts


def _join_surplus(parts: list[np.ndarray], max_instances: int, voxel_mm) -> list[np.ndarray]:
    while len(parts) > max_instances:
        smallest = min(range(len(parts)), key=lambda index: np.count_nonzero(parts[index]))
        away = distance_transform_edt(~parts[smallest], sampling=voxel_mm)
        others = [index for index in range(len(parts)) if index != smallest]
        nearest = min(others, key=lambda index: away[parts[index]].min())
        parts[nearest] = parts[nearest] | parts[smallest]
        parts.pop(smallest)
    return parts


def _gaps(parts: list[np.ndarray], voxel_mm, reach_mm: float) -> dict[tuple[int, int], float]:
    """Distance in mm between the voxels' centres of each pair; pairs whose boxes are farther apart than `reach_mm` are left out."""
    boxes = [Box.from_mask(part) for part in parts]
    gaps = {}
    for a in range(len(parts)):
        near = [b for b in range(a + 1, len(parts)) if _box_gap_mm(boxes[a], boxes[b], voxel_mm) <= reach_mm]
        if near:
            away = distance_transform_edt(~parts[a], sampling=voxel_mm)
            gaps |= {(a, b): float(away[parts[b]].min()) for b in near}
    return gaps


def _box_gap_mm(a: Box, b: Box, voxel_mm) -> float:
    gap = np.maximum(0, np.maximum(np.subtract(a.start, b.stop), np.subtract(b.start, a.stop)) + 1)
    return float(np.linalg.norm(gap * np.asarray(voxel_mm)))


def _divide(parts: list[np.ndarray], max_instances: int, voxel_mm, too_large) -> list[np.ndarray]:
    parts, whole = list(parts), []
    while parts and len(parts) + len(whole) < max_instances:
        candidates = [part for part in parts if too_large(part)]
        if not candidates:
            break
        largest = max(candidates, key=np.count_nonzero)
        parts = [part for part in parts if part is not largest]
        halves = _cut_at_neck(largest, voxel_mm)
        if halves is None:
            whole.append(largest)
        else:
            parts += halves
    return parts + whole


def _cut_at_neck(part: np.ndarray, voxel_mm) -> list[np.ndarray] | None:
    """Two halves of a mask that falls apart when it is eroded; None where it does not."""
    depth = distance_transform_edt(part, sampling=voxel_mm)
    for erosion in np.linspace(0, depth.max(), 24, endpoint=False)[1:]:
        cores = split_instances(depth > erosion, 2)
        if len(cores) == 2 and np.count_nonzero(cores[1]) >= CORE_SHARE * np.count_nonzero(cores[0]):
            markers = cores[0].astype(np.int32) + 2 * cores[1]
            sides = watershed(-depth, markers, connectivity=np.ones((3, 3, 3)), mask=part)
            halves = [sides == 1, sides == 2]
            # what no core reaches, as a tumour that was joined to its kidney across a gap, belongs to the nearer one
            rest = part & (sides == 0)
            if rest.any():
                first, second = (distance_transform_edt(~half, sampling=voxel_mm) for half in halves)
                halves[0] |= rest & (first <= second)
                halves[1] |= rest & (first > second)
            return halves
    return None
