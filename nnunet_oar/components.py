"""Connected components of binary masks, with 26-connectivity: voxels that share a corner belong together."""

from __future__ import annotations

from dataclasses import dataclass

import cc3d
import numpy as np

from nnunet_oar.roi import Box


@dataclass(frozen=True)
class Region:
    """A component of a mask: how many voxels, its box, and the centre of what it shows, in voxels (edge coordinates)."""

    voxels: int
    box: Box
    centre: tuple[float, float, float]

    @classmethod
    def of(cls, component: np.ndarray) -> Region:
        """component: bool (Z, Y, X) with a voxel at least; its centre is that of the box."""
        box = Box.from_mask(component)
        return cls(int(np.count_nonzero(component)), box, box.centre)


def drop_small(mask: np.ndarray, fraction: float = 0.05) -> np.ndarray:
    """Remove the components that are strictly smaller than `fraction` of the largest one.

    mask: (Z, Y, X), non-zero is foreground. Returns a new bool array; an empty mask stays empty. The default is paper
    000, section 2.1.4 (SegTHOR, Chen et al.). Raises ValueError for a fraction outside [0, 1].
    """
    if not 0 <= fraction <= 1:
        raise ValueError(f"fraction must lie in [0, 1], got {fraction}")
    kept = np.zeros(mask.shape, dtype=bool)
    box, labels, sizes = label_components(mask)
    if box is not None:
        # A quotient, because it rounds as the literal did: 7 of 100 is the float 0.07, but 0.07 * 100 is more than 7
        large = sizes / sizes.max() >= fraction
        if large.all():
            return mask != 0
        kept[box.slices] = np.concatenate(([False], large))[labels]
    return kept


def drop_below(mask: np.ndarray, voxels: float) -> np.ndarray:
    """Remove the components of fewer than so many voxels from a mask (Z, Y, X); returns a new bool array."""
    kept = np.zeros(mask.shape, dtype=bool)
    box, labels, sizes = label_components(mask)
    if box is not None:
        kept[box.slices] = np.concatenate(([False], sizes >= voxels))[labels]
    return kept


def split_instances(mask: np.ndarray, max_instances: int) -> list[np.ndarray]:
    """The components of `mask`, largest first, at most `max_instances` of them.

    mask: (Z, Y, X), non-zero is foreground. Returns bool arrays of the mask's shape, none for an empty mask. Raises
    ValueError for max_instances below 1.
    """
    if max_instances < 1:
        raise ValueError(f"max_instances must be at least 1, got {max_instances}")
    box, labels, sizes = label_components(mask)
    instances = []
    for index in np.argsort(-sizes, kind="stable")[:max_instances]:
        instance = np.zeros(mask.shape, dtype=bool)
        instance[box.slices] = labels == index + 1
        instances.append(instance)
    return instances


def keep_largest(mask: np.ndarray) -> np.ndarray:
    """Only the largest component of `mask` (Z, Y, X), as a new bool array; an empty mask stays empty."""
    largest = split_instances(mask, 1)
    return largest[0] if largest else np.zeros(mask.shape, dtype=bool)


def label_components(mask: np.ndarray) -> tuple[Box | None, np.ndarray, np.ndarray]:
    """The foreground's box, the components inside it numbered 1, 2, ... and their sizes in voxels, (n,) int64."""
    if mask.ndim != 3:
        raise ValueError(f"mask must be (Z, Y, X), got shape {mask.shape}")
    box = Box.from_mask(mask)
    if box is None:
        return None, np.zeros((0, 0, 0), dtype=np.uint16), np.zeros(0, dtype=np.int64)
    # an organ fills a small part of a CT: labelling its box alone is many times faster
    foreground = np.ascontiguousarray(mask[box.slices] != 0)
    if sum(size > 1 for size in box.shape) == 1:
        # cc3d 4.1 refuses a line of voxels in which every other one is set
        labels = cc3d.connected_components(np.pad(foreground, 1), connectivity=26)[1:-1, 1:-1, 1:-1]
    else:
        labels = cc3d.connected_components(foreground, connectivity=26)
    # not np.bincount, which would copy the labels to 8 bytes a voxel
    sizes = cc3d.statistics(labels, no_slice_conversion=True)["voxel_counts"][1:]
    return box, labels, sizes.astype(np.int64)
