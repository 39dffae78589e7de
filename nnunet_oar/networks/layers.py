"""What a network says of a volume, on grids of its own, and how that becomes logits or labels on any grid over the volume.

Coordinates are edge coordinates in voxels of the volume, see roi.py. The stock forward asks for logits on the volume's own grid,
the fast predictor for labels on that of the original CT, slab by slab and organ by organ, only where the organ can win.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from nnunet_oar.roi import Box
from nnunet_oar.sampling import Between, between, centres, interpolated_along

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

    def neighbours(self, box: Box) -> tuple[Box, list[Between]]:
        """The voxels of the volume between which those in the box lie, as a box, and where between them on each axis."""
        places = []
        for first, last, size, of in zip(box.start, box.stop, self.shape, self.volume, strict=True):
            places.append(between(centres(first, last, size, of), 0, of, of))
        around = Box(tuple(int(p.lower[0]) for p in places), tuple(int(p.upper[-1]) + 1 for p in places))
        return around, [place.moved(-start) for place, start in zip(places, around.start, strict=True)]

    def slabs(self, box: Box) -> Iterator[Box]:
        """The box in pieces along its first axis."""
        step = max(1, SLAB_VOXELS // max(1, math.prod(box.shape[1:])))
        for first in range(box.start[0], box.stop[0], step):
            yield Box((first, *box.start[1:]), (min(first + step, box.stop[0]), *box.stop[1:]))


def positive_box(layers: Iterable[Layer], grid: Grid) -> Box | None:
    """The voxels of the grid outside of which none of these layers says anything but background; None: nowhere."""
    volume = Grid(grid.volume, grid.volume)
    boxes = (volume.box(*layer.positive) for layer in layers if layer.positive is not None)
    around = Box.around(box for box in boxes if box.volume)
    if around is None:
        return None
    # up to the centres of the voxels around it; at a face of the volume the outermost ones continue
    start = [first - 0.5 if first else 0 for first in around.start]
    stop = [last + 0.5 if last < size else size for last, size in zip(around.stop, grid.volume, strict=True)]
    box = grid.box(start, stop)
    return box if box.volume else None


def paste(layers: Sequence[Layer], logits: Tensor) -> None:
    """Raise organ logits (K - 1, Z, Y, X) of the whole volume to what the layers say: where several meet, the highest stays."""
    shape = tuple(logits.shape[1:])
    grid = Grid(shape, shape)
    for layer in layers:
        for box in grid.slabs(grid.box(layer.start, layer.stop)):
            view = logits[(layer.label - 1, *box.slices)]
            torch.maximum(view, evaluated([layer], shape, box, -math.inf, logits.device), out=view)


def labels_of(folds: Sequence[Sequence[Layer]], grid: Grid, box: Box, floor: float) -> list[Tensor]:
    """Labels in a box of the grid, (*box.shape) int16: the organ whose logit, its mean over the folds, is highest and above 0.

    folds: the layers of each, one layer at least among them; floor: an organ's logit where no layer of it is, and the least one.
    With several folds the labels that each would give alone follow.
    """
    layers = [layer for of_fold in folds for layer in of_fold]
    device = layers[0].samples[0].logits.device
    # of the mean, and of each fold
    best = [torch.zeros(box.shape, device=device) for _ in range(1 if len(folds) == 1 else 1 + len(folds))]
    labels = [torch.zeros(box.shape, dtype=torch.int16, device=device) for _ in best]
    for label in sorted({layer.label for layer in layers}):
        # outside of it the background wins in every fold
        where = positive_box(of_organ(layers, label), grid)
        where = where and where.intersection(box)
        if where is None:
            continue
        values = [resampled(of_organ(of_fold, label), grid, where, floor, device) for of_fold in folds]
        if len(folds) > 1:
            values.insert(0, torch.stack(values).mean(0))
        index = where.inside(box).slices
        for highest, winner, value in zip(best, labels, values, strict=True):
            winner[index].masked_fill_(value > highest[index], label)
            torch.maximum(highest[index], value, out=highest[index])
    return labels


def probabilities_of(
    folds: Sequence[Sequence[Layer]], organs: int, grid: Grid, box: Box, floor: float, device: torch.device
) -> Tensor:
    """Softmax over background and organs of the mean logits, (organs + 1, *box.shape) float32."""
    logits = torch.zeros((organs + 1, *box.shape), device=device)
    for label in range(1, organs + 1):
        for layers in folds:
            logits[label] += resampled(of_organ(layers, label), grid, box, floor, device) / len(folds)
    return logits.softmax(0)


def of_organ(layers: Sequence[Layer], label: int) -> list[Layer]:
    return [layer for layer in layers if layer.label == label]


def resampled(layers: Sequence[Layer], grid: Grid, box: Box, floor: float, device: torch.device) -> Tensor:
    """Logits (*box.shape) of one organ's layers in a box of the grid: interpolated between the volume's voxels, as nnU-Net does
    when it brings logits from the working spacing back to that of the CT."""
    around, places = grid.neighbours(box)
    values = evaluated(layers, grid.volume, around, floor, device)
    if grid.shape == grid.volume:
        return values
    for axis in (2, 1, 0):
        values = interpolated_along(values, axis, places[axis])
    return values


def evaluated(layers: Sequence[Layer], shape: tuple[int, ...], box: Box, floor: float, device: torch.device) -> Tensor:
    """Logits (*box.shape), at least `floor`, of one organ's layers in a box of a volume of `shape`: where several meet, the highest
    stays."""
    volume, out = Grid(shape, shape), None
    for layer in layers:
        where = volume.box(layer.start, layer.stop).intersection(box)
        if where is None:
            continue
        at = [centres(first, last, 1, 1) for first, last in zip(where.start, where.stop, strict=True)]
        mean = interpolated(layer.samples[0], at)
        for sample in layer.samples[1:]:
            mean += interpolated(sample, at)
        if len(layer.samples) > 1:
            mean /= len(layer.samples)
        if where == box and out is None:
            out = mean.clamp_min_(floor)
            continue
        if out is None:
            out = mean.new_full(box.shape, floor)
        view = out[where.inside(box).slices]
        torch.maximum(view, mean, out=view)
    return torch.full(box.shape, floor, device=device) if out is None else out


def interpolated(sample: Sample, coordinates: Sequence[np.ndarray]) -> Tensor:
    """The sample's logits at these coordinates (one ascending array per axis), multi-linear, (n_z, n_y, n_x) float32."""
    x, places = sample.logits, []
    for axis, at in enumerate(coordinates):
        where = between(at, sample.start[axis], sample.stop[axis], x.shape[axis])
        first = int(where.lower[0])
        x = x.narrow(axis, first, int(where.upper[-1]) + 1 - first)
        places.append(where.moved(-first))
    x = x.float()
    # the last axis first: what is interpolated along the others then lies in long rows
    for axis in (2, 1, 0):
        x = interpolated_along(x, axis, places[axis])
    # what is a view of the logits must not be changed in place
    return x if any(place.weight.any() for place in places) else x.clone()
