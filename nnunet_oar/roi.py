"""Boxes in voxel space, and the one resize function that loader, network and predictor share.

Coordinates are edge coordinates in array order: voxel i fills the interval [i, i + 1) and has its centre at i + 0.5,
so an image of n voxels reaches from 0 to n and a half-open box [start, stop) covers exactly the voxels start, ...,
stop - 1. Resizing aligns the edges of the two grids: a point at edge coordinate p of n voxels lies at p * m / n of m
voxels. Boxes (`Box.rescaled`), images and labels (`resize`) all follow this, hence a crop that is resized, segmented,
resized back and pasted moves nothing.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import reduce

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

_LINEAR_MODES = {1: "linear", 2: "bilinear", 3: "trilinear"}


@dataclass(frozen=True)
class Box:
    """Half-open box of voxels, [start, stop) on each axis, in array order.

    Any number of axes from one up; three, (z, y, x), in most of this library. A box may reach outside the image
    (negative start, stop beyond the shape) until `within` brings it back. `start == stop` on an axis is an empty box
    and allowed.

    Raises ValueError for lengths that differ, for anything but integers and for stop < start.
    """

    start: tuple[int, ...]
    stop: tuple[int, ...]

    def __post_init__(self):
        try:
            start = tuple(operator.index(value) for value in self.start)
            stop = tuple(operator.index(value) for value in self.stop)
        except TypeError:
            raise ValueError(
                f"start and stop must be sequences of integers, got start={self.start!r}, stop={self.stop!r}"
            ) from None
        if not start or len(start) != len(stop):
            raise ValueError(f"start and stop must have the same length, one or more, got start={start}, stop={stop}")
        if any(last < first for first, last in zip(start, stop, strict=True)):
            raise ValueError(f"stop must not lie before start on any axis, got start={start}, stop={stop}")
        # plain ints in tuples, so that boxes compare, hash and print alike whatever they were made from
        object.__setattr__(self, "start", start)
        object.__setattr__(self, "stop", stop)

    @classmethod
    def full(cls, shape: Sequence[int]) -> Box:
        """The box of a whole image of that shape."""
        return cls((0,) * len(shape), tuple(shape))

    @classmethod
    def around(cls, boxes: Iterable[Box]) -> Box | None:
        """The smallest box that holds all of them; None for no boxes."""
        boxes = list(boxes)
        return reduce(cls.union, boxes) if boxes else None

    @classmethod
    def from_mask(cls, mask: np.ndarray | Tensor) -> Box | None:
        """Smallest box around the non-zero voxels of `mask`, an array or tensor; None if there are none."""
        if mask.ndim == 0:
            raise ValueError("mask must have at least one axis, got a scalar")
        if 0 in mask.shape:
            return None
        if isinstance(mask, Tensor) and mask.device.type == "cpu":
            mask = (mask != 0).numpy()  # NumPy stops at the first hit, torch reads on: a factor of 20 on a whole CT
        start, stop = [], []
        # One axis at a time: find its range, cut to it, then drop the axis. The large array is read about twice in all,
        # where an index list of the foreground (nonzero) would take 24 bytes for each of its voxels.
        for _ in range(mask.ndim):
            occupied = mask.reshape(mask.shape[0], -1).any(1)
            indices = occupied.nonzero()[:, 0] if isinstance(occupied, Tensor) else occupied.nonzero()[0]
            if len(indices) == 0:
                return None
            start.append(int(indices[0]))
            stop.append(int(indices[-1]) + 1)
            mask = mask[start[-1] : stop[-1]].any(0)
        return cls(tuple(start), tuple(stop))

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(last - first for first, last in zip(self.start, self.stop, strict=True))

    @property
    def volume(self) -> int:
        """Number of voxels; 0 if the box is empty on any axis."""
        volume = 1
        for size in self.shape:
            volume *= size
        return volume

    @property
    def centre(self) -> tuple[float, ...]:
        """(start + stop) / 2 in edge coordinates: 2.5 for the single voxel 2."""
        return tuple((first + last) / 2 for first, last in zip(self.start, self.stop, strict=True))

    @property
    def slices(self) -> tuple[slice, ...]:
        """Index of the box in an array with these axes (last axes: `array[(..., *box.slices)]`).

        Raises ValueError for a negative start, which NumPy and torch would silently count from the far end.
        """
        if min(self.start) < 0:
            raise ValueError(f"{self} reaches outside the image; bring it back with within(shape) before indexing")
        return tuple(slice(first, last) for first, last in zip(self.start, self.stop, strict=True))

    def grow(self, margin: int | Sequence[int]) -> Box:
        """`margin` voxels (one number, or one per axis) more on each of both sides; may leave the image."""
        margin = self._per_axis(margin, "margin")
        return Box(
            tuple(first - extra for first, extra in zip(self.start, margin, strict=True)),
            tuple(last + extra for last, extra in zip(self.stop, margin, strict=True)),
        )

    def at_least(self, shape: int | Sequence[int]) -> Box:
        """Enlarged about its centre until no axis is shorter than `shape`; an odd voxel goes to the stop side.

        May leave the image. Axes that are long enough stay as they are.
        """
        missing = [max(0, want - have) for want, have in zip(self._per_axis(shape, "shape"), self.shape, strict=True)]
        return Box(
            tuple(first - extra // 2 for first, extra in zip(self.start, missing, strict=True)),
            tuple(last + extra - extra // 2 for last, extra in zip(self.stop, missing, strict=True)),
        )

    def within(self, shape: Sequence[int]) -> Box:
        """Inside an image of that shape: shifted first, so that it keeps its size if there is room, then clipped."""
        start, stop = [], []
        for first, last, size in zip(self.start, self.stop, self._per_axis(shape, "shape"), strict=True):
            shift = max(0, -first) or min(0, size - last)
            start.append(max(0, first + shift))
            stop.append(min(size, last + shift))
        return Box(tuple(start), tuple(stop))

    def moved(self, offset: Sequence[int]) -> Box:
        """`offset` voxels further on each axis, which may be negative; may leave the image."""
        offset = self._per_axis(offset, "offset")
        return Box(
            tuple(first + extra for first, extra in zip(self.start, offset, strict=True)),
            tuple(last + extra for last, extra in zip(self.stop, offset, strict=True)),
        )

    def inside(self, outer: Box) -> Box:
        """The same box in voxels of `outer`, a box of the same image; negative or beyond its shape where it reaches out of it."""
        return self.moved([-first for first in outer.start])

    def rescaled(self, from_shape: Sequence[int], to_shape: Sequence[int]) -> Box:
        """The box on another grid of the same image; covers at least the same region, clipped to `to_shape`.

        Start is rounded down and stop up, in integers: no box is lost or grows by a voxel through rounding errors.
        """
        from_shape, to_shape = self._per_axis(from_shape, "from_shape"), self._per_axis(to_shape, "to_shape")
        if min(from_shape) < 1 or min(to_shape) < 1:
            raise ValueError(f"from_shape and to_shape must be positive, got {from_shape} and {to_shape}")
        start = [a * new // old for a, old, new in zip(self.start, from_shape, to_shape, strict=True)]
        stop = [-(-b * new // old) for b, old, new in zip(self.stop, from_shape, to_shape, strict=True)]
        return Box(
            tuple(min(max(value, 0), size) for value, size in zip(start, to_shape, strict=True)),
            tuple(min(max(value, 0), size) for value, size in zip(stop, to_shape, strict=True)),
        )

    def union(self, other: Box) -> Box:
        """The smallest box that holds both (also what lies between them; an empty box counts as its corner points)."""
        self._per_axis(other.start, "other")
        return Box(tuple(map(min, self.start, other.start)), tuple(map(max, self.stop, other.stop)))

    def intersection(self, other: Box) -> Box | None:
        """What both have in common; None if that is not a voxel."""
        self._per_axis(other.start, "other")
        start, stop = tuple(map(max, self.start, other.start)), tuple(map(min, self.stop, other.stop))
        return Box(start, stop) if all(map(operator.lt, start, stop)) else None

    def contains(self, other: Box) -> bool:
        """True if no part of `other` lies outside; a box contains itself."""
        self._per_axis(other.start, "other")
        return all(map(operator.le, self.start, other.start)) and all(map(operator.ge, self.stop, other.stop))

    def _per_axis(self, value: int | Sequence[int], name: str) -> tuple[int, ...]:
        values = (value,) * len(self.start) if isinstance(value, (int, np.integer)) else tuple(value)
        if len(values) != len(self.start):
            raise ValueError(f"{name} must have one entry per axis of {self}, got {values}")
        return values


def resize(x: Tensor, shape: Sequence[int], *, mode: str) -> Tensor:
    """Sample `x` on a grid of another size over the same region of space (edges aligned, see the module's docstring).

    x: (B, C, *spatial) with one to three spatial axes; shape: the new spatial size. Returns (B, C, *shape) of the same
    dtype on the same device, or `x` itself where the size does not change.

    "linear": for images and logits; multi-linear without prefilter (`align_corners=False`), floating point only.
    "nearest": for labels; the voxel whose centre is nearest (torch calls this nearest-exact; its `nearest` shifts by
    up to 1.5 voxels at factor 4). Every dtype, never through floating point, so any label value survives. Where two
    voxels are equally near, as everywhere when an axis shrinks by an even factor, the lower and the upper one are
    taken in turn: always taking the upper one, as torch does, would shift all labels by half a voxel against the
    image.

    Raises ValueError for an unknown mode, another number of axes, sizes below 1, or "linear" on integers.
    """
    shape = tuple(shape)
    if x.ndim != len(shape) + 2 or not 1 <= len(shape) <= 3:
        raise ValueError(f"x must be (B, C, *spatial) with the axes of shape, got {tuple(x.shape)} and {shape}")
    if min(shape) < 1 or min(x.shape[2:]) < 1:
        raise ValueError(f"sizes must be at least 1, got x of {tuple(x.shape)} and shape {shape}")
    if mode not in ("linear", "nearest"):
        raise ValueError(f"mode must be 'linear' or 'nearest', got {mode!r}")
    if mode == "linear" and not x.is_floating_point():
        raise ValueError(f"mode 'linear' needs floating point, got {x.dtype}; use 'nearest' for labels")
    if tuple(x.shape[2:]) == shape:
        return x
    if mode == "linear":
        return F.interpolate(x, size=shape, mode=_LINEAR_MODES[len(shape)], align_corners=False)
    # axes that shrink go first, so that what lies between is never larger than source and result
    for axis in sorted(range(len(shape)), key=lambda axis: shape[axis] / x.shape[axis + 2]):
        x = x.index_select(axis + 2, _nearest_indices(x.shape[axis + 2], shape[axis], x.device))
    return x


def _nearest_indices(old: int, new: int, device: torch.device) -> Tensor:
    """For each of `new` voxels the index of the nearest of `old` voxels, (new,) int64, computed in integers."""
    target = torch.arange(new, device=device)
    position = (2 * target + 1) * old  # the voxel's centre in edge coordinates of the old grid, times 2 * new
    index = position // (2 * new)
    # On the edge between two voxels both are equally near. Successive ties are an odd number of voxels apart, so the
    # parity of the voxel alternates from tie to tie.
    tie = position % (2 * new) == 0
    return index - (tie & (target % 2 == 0)).long()
