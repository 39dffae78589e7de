"""Masks of one slice as polygons, and back. Points are (row, column) of pixel corners: pixel (r, c) fills r to r + 1, c to c + 1.

Polygons run along the pixels' edges: their area is the mask's, and whoever asks for the centres of pixels gets the mask back,
to the pixel. A curve through the edges' midpoints would look smoother and lose half a pixel's area per component and slice, which
is 8 % of a spinal cord of six pixels.

A hole is joined to the outer border by a channel of no width (a key-hole), as DICOM PS3.3 C.8.8.6.3 asks of closed planar contours:
each polygon then means the same to readers that fill each contour by itself and to those that take the parity of all of them.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

Point = tuple[int, int]
_STEPS = ((0, 1), (1, 0), (0, -1), (-1, 0))


def outlines(mask: np.ndarray) -> list[np.ndarray]:
    """Closed polygons (M, 2), int, of a bool mask (Y, X): one for each component (4-connected), its holes joined by channels.

    The first point is not repeated at the end; the inside lies on the right-hand side of the way, with rows counted downwards.
    """
    mask = np.asarray(mask, bool)
    rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
    if not len(rows):
        return []
    first = np.array((rows[0], columns[0]))
    loops = _loops(mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1])
    # a channel leads to smaller columns, where it meets an outer loop or a hole of smaller columns
    holes = sorted((_from_leftmost(loop) for loop in loops if _area(loop) < 0), key=lambda loop: loop[0][::-1])
    outer = [loop for loop in loops if _area(loop) > 0]
    walks = [*outer, *holes]
    owner = {point: index for index, loop in enumerate(outer) for point in loop} if holes else {}
    channels: dict[tuple[int, Point], list[int]] = {}
    for index, hole in enumerate(holes, start=len(outer)):
        row, column = hole[0]
        end = next((row, c) for c in range(column - 1, -1, -1) if (row, c) in owner)
        channels.setdefault((owner[end], end), []).append(index)
        owner |= dict.fromkeys(hole, index)
    return [_corners(_joined(walks, index, channels)) + first for index in range(len(outer))]


def _joined(walks: list[list[Point]], index: int, channels: dict[tuple[int, Point], list[int]]) -> list[Point]:
    """The way along a loop, into each channel that begins on it, around the hole at its end, and back."""
    way: list[Point] = []
    # (loop, its points still to come, what follows when it is done)
    stack = [(index, iter(walks[index]), [])]
    while stack:
        loop, points, after = stack[-1]
        point = next(points, None)
        if point is None:
            way += after
            stack.pop()
            continue
        way.append(point)
        for hole in channels.pop((loop, point), ()):
            row, column = walks[hole][0]
            channel = [(row, c) for c in range(point[1] + 1, column)]
            stack.append((hole, iter([*channel, *walks[hole]]), [walks[hole][0], *reversed(channel), point]))
    return way


def filled(polygons: Iterable[np.ndarray], shape: tuple[int, int]) -> np.ndarray:
    """bool (Y, X): pixels whose centre lies inside an odd number of the closed polygons (M, 2) (even-odd rule over all)."""
    toggles = np.zeros((shape[0], shape[1] + 1), np.int64)
    for polygon in polygons:
        start = np.asarray(polygon, np.float64)
        end = np.roll(start, -1, axis=0)
        low, high = np.minimum(start[:, 0], end[:, 0]), np.maximum(start[:, 0], end[:, 0])
        # centres of rows in [low, high)
        first = np.clip(np.ceil(low - 0.5), 0, shape[0]).astype(np.int64)
        stop = np.clip(np.ceil(high - 0.5), 0, shape[0]).astype(np.int64)
        counts = stop - first
        edge = np.repeat(np.arange(len(start)), counts)
        row = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts) + first[edge]
        share = (row + 0.5 - start[edge, 0]) / (end[edge, 0] - start[edge, 0])
        crossing = start[edge, 1] + share * (end[edge, 1] - start[edge, 1])
        column = np.clip(np.ceil(crossing - 0.5), 0, shape[1]).astype(np.int64)
        np.add.at(toggles, (row, column), 1)
    return (np.cumsum(toggles[:, :-1], axis=1) % 2).astype(bool)


def _loops(mask: np.ndarray) -> list[list[Point]]:
    """Closed ways along the edges of the mask, each edge once; pixels that touch at a corner only are kept apart."""
    padded = np.pad(mask, 1)
    edges: dict[tuple[Point, int], None] = {}
    # direction of an edge: 0 to larger columns, 1 to larger rows, 2 to smaller columns, 3 to smaller rows
    neighbours = (padded[:-2, 1:-1], padded[1:-1, 2:], padded[2:, 1:-1], padded[1:-1, :-2])
    for direction, (neighbour, corner) in enumerate(zip(neighbours, ((0, 0), (0, 1), (1, 1), (1, 0)), strict=True)):
        starts = np.argwhere(mask & ~neighbour) + corner
        edges |= {((row, column), direction): None for row, column in starts.tolist()}
    loops = []
    while edges:
        first = edge = next(iter(edges))
        loop = []
        while edge in edges:
            del edges[edge]
            (row, column), direction = edge
            loop.append((row, column))
            end = (row + _STEPS[direction][0], column + _STEPS[direction][1])
            # to the right first: the next edge of the same pixel
            turns = ((end, (direction + turn) % 4) for turn in (1, 0, 3))
            edge = next(turn for turn in turns if turn in edges or turn == first)
        loops.append(loop)
    return loops


def _area(loop: list[Point]) -> float:
    """Positive with the inside on the right-hand side."""
    rows, columns = np.array(loop).T
    return float(columns @ np.roll(rows, -1) - rows @ np.roll(columns, -1)) / 2


def _from_leftmost(loop: list[Point]) -> list[Point]:
    start = min(range(len(loop)), key=lambda index: loop[index][::-1])
    return loop[start:] + loop[:start]


def _corners(loop: list[Point]) -> np.ndarray:
    """Without the points at which the way goes on straight."""
    points = np.array(loop)
    straight = (points - np.roll(points, 1, axis=0) == np.roll(points, -1, axis=0) - points).all(axis=1)
    return points[~straight]
