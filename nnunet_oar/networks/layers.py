"""What a network says of a volume, on grids of its own, and how that becomes logits or labels on any grid over the volume.

Coordinates are edge coordinates in voxels of the volume, see roi.py. The stock forward asks for the volume's own grid, the fast
predictor for that of the original CT: the positions are the same, no grid in between is needed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from nnunet_oar.roi import Box

# So many voxels are computed at once: what lies between then stays in the processor's caches and in little memory
SLAB_VOXELS = 2_000_000

Point = tuple[float, ...]


@dataclass(frozen=True)
class Sample:
    """Logits of one organ relative to the background, (Z, Y, X), on a grid that fills the region [start, stop)."""

    start: Point
    stop: Point
    logits: Tensor


@dataclass(frozen=True)
class Layer:
    """One organ in one region: where a voxel's centre lies in [start, stop), its logit is the mean of the samples there.

    label: the organ's. Samples may reach beyond the region, and are continued by their outermost values where they end before it.
    """

    label: int
    start: Point
    stop: Point
    samples: tuple[Sample, ...]

    @classmethod
    def of_box(cls, label: int, box: Box, *samples: tuple[Box, Tensor]) -> Layer:
        """The organ in a box of the volume; samples: box and logits (Z, Y, X) of it on any grid."""
        return cls(label, box.start, box.stop, tuple(Sample(of.start, of.stop, logits) for of, logits in samples))

    @cached_property
    def positive(self) -> tuple[Point, Point] | None:
        """Start and stop of a region outside of which the mean of the samples is nowhere above 0; None: it is nowhere."""
        starts, stops = [], []
        for sample in self.samples:
            box = Box.from_mask(sample.logits > 0)
            if box is None:
                continue
            shape = sample.logits.shape
            # what lies between two centres is interpolated; beyond the outermost ones their values continue
            low = [first - 0.5 if first else -math.inf for first in box.start]
            high = [last + 0.5 if last < size else math.inf for last, size in zip(box.stop, shape, strict=True)]
            step = [(b - a) / size for a, b, size in zip(sample.start, sample.stop, shape, strict=True)]
            starts.append([a + value * s for a, value, s in zip(sample.start, low, step, strict=True)])
            stops.append([a + value * s for a, value, s in zip(sample.start, high, step, strict=True)])
        if not starts:
            return None
        start = tuple(map(max, self.start, np.min(starts, axis=0).tolist()))
        stop = tuple(map(min, self.stop, np.max(stops, axis=0).tolist()))
        return (start, stop) if all(a < b for a, b in zip(start, stop, strict=True)) else None


@dataclass(frozen=True)
class Part:
    """All layers of the region [start, stop) of the volume. A network that says everything at once gives one part."""

    start: Point
    stop: Point
    layers: Sequence[Layer]


@dataclass(frozen=True)
class Grid:
    """A grid of `shape` voxels that fills the volume, which has `volume` voxels."""

    shape: tuple[int, ...]
    volume: tuple[int, ...]

    def box(self, start: Point, stop: Point) -> Box:
        """The voxels whose centres lie in [start, stop)."""
        first, last = (
            [
                min(max(math.ceil(value * size / of - 0.5), 0), size)
                for value, size, of in zip(point, self.shape, self.volume, strict=True)
            ]
            for point in (start, stop)
        )
        return Box(tuple(first), tuple(map(max, first, last)))

    def centres(self, box: Box) -> list[np.ndarray]:
        """Of the voxels in the box: coordinates of their centres on each axis, float64."""
        ranges = zip(box.start, box.stop, self.shape, self.volume, strict=True)
        return [(np.arange(first, last) + 0.5) * of / size for first, last, size, of in ranges]

    def slabs(self, box: Box) -> Iterator[Box]:
        """The box in pieces along its first axis."""
        step = max(1, SLAB_VOXELS // max(1, math.prod(box.shape[1:])))
        for first in range(box.start[0], box.stop[0], step):
            yield Box((first, *box.start[1:]), (min(first + step, box.stop[0]), *box.stop[1:]))


def paste(layers: Sequence[Layer], grid: Grid, logits: Tensor) -> None:
    """Raise organ logits (K - 1, *grid.shape) to what the layers say: where several meet, the highest stays."""
    for layer in layers:
        for box in grid.slabs(grid.box(layer.start, layer.stop)):
            view = logits[(layer.label - 1, *box.slices)]
            torch.maximum(view, evaluated([layer], grid, box, -math.inf), out=view)


def labels_of(folds: Sequence[Sequence[Layer]], grid: Grid, box: Box, floor: float) -> list[Tensor]:
    """Labels in a box of the grid, (*box.shape) int16: the organ whose logit, its mean over the folds, is highest and above 0.

    folds: the layers of each; floor: an organ's logit where no layer of it is, and the least one. With several folds the labels
    that each would give alone follow.
    """
    layers = [layer for of_fold in folds for layer in of_fold]
    device = layers[0].samples[0].logits.device if layers else torch.device("cpu")
    # of the mean, and of each fold
    best = [torch.zeros(box.shape, device=device) for _ in range(1 if len(folds) == 1 else 1 + len(folds))]
    labels = [torch.zeros(box.shape, dtype=torch.int16, device=device) for _ in best]
    for label in sorted({layer.label for layer in layers}):
        regions = [layer.positive for layer in layers if layer.label == label and layer.positive is not None]
        if not regions:
            continue
        starts, stops = zip(*regions, strict=True)
        # outside of it the background wins in every fold
        where = grid.box(np.min(starts, axis=0), np.max(stops, axis=0)).intersection(box)
        if where is None:
            continue
        values = [
            evaluated([layer for layer in of_fold if layer.label == label], grid, where, floor) for of_fold in folds
        ]
        if len(folds) > 1:
            values.insert(0, torch.stack(values).mean(0))
        index = where.inside(box).slices
        for highest, winner, value in zip(best, labels, values, strict=True):
            higher = value > highest[index]
            winner[index][higher] = label
            torch.maximum(highest[index], value, out=highest[index])
    return labels


def evaluated(layers: Sequence[Layer], grid: Grid, box: Box, floor: float) -> Tensor:
    """Logits (*box.shape) in a box of the grid, at least `floor`, of one organ's layers: where several meet, the highest."""
    out = None
    for layer in layers:
        where = grid.box(layer.start, layer.stop).intersection(box)
        if where is None:
            continue
        mean = interpolated(layer.samples[0], grid.centres(where))
        for sample in layer.samples[1:]:
            mean += interpolated(sample, grid.centres(where))
        if len(layer.samples) > 1:
            mean /= len(layer.samples)
        if where == box and out is None:
            out = mean.clamp_min_(floor)
            continue
        if out is None:
            out = mean.new_full(box.shape, floor)
        view = out[where.inside(box).slices]
        torch.maximum(view, mean, out=view)
    return torch.full(box.shape, floor) if out is None else out


def interpolated(sample: Sample, centres: Sequence[np.ndarray]) -> Tensor:
    """The sample's logits at these coordinates (one ascending array per axis), multi-linear, (n_z, n_y, n_x) float32."""
    x, neighbours = sample.logits, []
    for axis, at in enumerate(centres):
        size = x.shape[axis]
        step = (sample.stop[axis] - sample.start[axis]) / size
        position = np.clip((at - sample.start[axis]) / step - 0.5, 0, size - 1)
        lower = position.astype(np.int64)
        first, last = lower[0], min(lower[-1] + 2, size)
        x = x.narrow(axis, first, last - first)
        neighbours.append((lower - first, (position - lower).astype(np.float32)))
    x = x.float()
    # the last axis first: what is interpolated along the others then lies in long rows
    for axis in (2, 1, 0):
        x = _interpolated_along(x, axis, *neighbours[axis])
    return x


def _interpolated_along(x: Tensor, axis: int, lower: np.ndarray, weight: np.ndarray) -> Tensor:
    """Between the voxels `lower` and those after them."""
    if not weight.any() and np.array_equal(lower, np.arange(len(lower))):
        return x.narrow(axis, 0, len(lower)).clone()
    upper = np.minimum(lower + 1, x.shape[axis] - 1)
    shape = [-1 if other == axis else 1 for other in range(3)]
    a, b = (x.index_select(axis, torch.from_numpy(index).to(x.device)) for index in (lower, upper))
    return a.lerp_(b, torch.from_numpy(weight).to(x.device).view(shape))
