"""A CT series as a volume in HU, and labels of that volume brought back to the series' slices."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import SimpleITK as sitk
from scipy import ndimage

from nnunet_oar.dicom.files import read
from nnunet_oar.dicom.series import Series, Slice


@dataclass(frozen=True)
class Stack:
    """The straight, even grid of a volume over a series. A series that is both by itself has its own grid.

    first_mm: centre of the first voxel. step_mm: between slices. offset: rows and columns from the grid's first pixel to the first
    slice's first pixel.
    """

    first_mm: np.ndarray
    step_mm: float
    shape: tuple[int, int, int]
    offset: tuple[int, int]
    is_resampled: bool

    @classmethod
    def over(cls, series: Series) -> Stack:
        rows, columns = series.shape
        if not series.is_tilted and series.is_even:
            shape = (len(series.slices), rows, columns)
            return cls(series.slices[0].origin_mm, series.step_mm, shape, (0, 0), False)
        step = float(np.median(np.diff(series.distances_mm)))
        length = series.distances_mm[-1] - series.distances_mm[0]
        shifts = series.shifts_vox
        before = np.ceil(-np.minimum(shifts.min(axis=0), 0) - 1e-6).astype(int)
        after = np.ceil(np.maximum(shifts.max(axis=0), 0) - 1e-6).astype(int)
        first = series.slices[0].origin_mm - (
            before[0] * series.spacing_mm[0] * series.down + before[1] * series.spacing_mm[1] * series.right
        )
        shape = (int(np.ceil(length / step - 1e-6)) + 1, rows + before[0] + after[0], columns + before[1] + after[1])
        return cls(first, step, tuple(int(n) for n in shape), (int(before[0]), int(before[1])), True)


def hu_image(series: Series) -> sitk.Image:
    """The series in HU: int16 where these are whole numbers, else float32; linear interpolation where it is tilted or uneven, and
    there the least value of the series where no slice reaches.

    Raises ValueError, naming the file, for pixels that cannot be decoded.
    """
    planes = [_hu(one, series.shape) for one in series.slices]
    whole = all(plane.dtype == np.int16 for plane in planes)
    array = np.stack(planes) if whole else np.stack([plane.astype(np.float32) for plane in planes])
    stack = Stack.over(series)
    if stack.is_resampled:
        array = _straightened(array, series, stack)
    image = sitk.GetImageFromArray(array)
    image.SetOrigin(stack.first_mm.tolist())
    image.SetSpacing([series.spacing_mm[1], series.spacing_mm[0], stack.step_mm])
    image.SetDirection(np.stack((series.right, series.down, series.normal), axis=1).ravel().tolist())
    return image


def labels_on_slices(labels: np.ndarray, series: Series) -> np.ndarray:
    """(N, rows, columns) of labels (Z, Y, X) of the volume of `hu_image`: themselves, unless that was resampled. Then a pixel
    has the label with the largest share in linear interpolation."""
    stack = Stack.over(series)
    if labels.shape != stack.shape:
        raise ValueError(f"labels must have the shape of the series' volume, {stack.shape}, got {labels.shape}")
    if not stack.is_resampled:
        return labels
    result = np.zeros((len(series.slices), *series.shape), labels.dtype)
    present = [label for label in np.unique(labels) if label]
    for index, shift in enumerate(series.shifts_vox + stack.offset):
        lower, weight = _between(series.distances_mm[index] - series.distances_mm[0], stack.step_mm, stack.shape[0])
        upper = min(lower + 1, stack.shape[0] - 1)
        largest, total = np.zeros(series.shape), np.zeros(series.shape)
        for label in present:
            share = (1 - weight) * (labels[lower] == label) + weight * (labels[upper] == label)
            if share.any():
                share = _shifted(share, -shift, 0.0)[: series.shape[0], : series.shape[1]]
                result[index][share > largest] = label
                largest = np.maximum(largest, share)
                total += share
        result[index][1 - total >= largest] = 0
    return result


def _hu(one: Slice, shape: tuple[int, int]) -> np.ndarray:
    dataset = read(one.path)
    syntax = dataset.file_meta.TransferSyntaxUID
    try:
        stored = dataset.pixel_array
    except Exception as error:
        compressed = not syntax.is_transfer_syntax or syntax.is_compressed
        hint = "; pip install 'nnunet_oar[dicom]' for compressed files" if compressed else ""
        text = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"{one.path}: its pixels ({syntax.name}) cannot be decoded: {text}{hint}") from error
    if stored.shape != shape:
        raise ValueError(f"{one.path}: its pixels have the shape {stored.shape}, its header says {shape}")
    if one.slope.is_integer() and one.intercept.is_integer():
        hu = stored.astype(np.int64) * int(one.slope) + int(one.intercept)
        if np.iinfo(np.int16).min <= hu.min() and hu.max() <= np.iinfo(np.int16).max:
            return hu.astype(np.int16)
        return hu.astype(np.float32)
    return (stored * one.slope + one.intercept).astype(np.float32)


def _straightened(array: np.ndarray, series: Series, stack: Stack) -> np.ndarray:
    outside = float(array.min())
    rows, columns = stack.shape[1:]
    planes = np.empty((len(array), rows, columns), np.float32)
    for index, shift in enumerate(series.shifts_vox + stack.offset):
        plane = np.full((rows, columns), outside, np.float32)
        plane[: array.shape[1], : array.shape[2]] = array[index]
        planes[index] = _shifted(plane, shift, outside)
    result = np.empty(stack.shape, np.float32)
    depths = series.distances_mm - series.distances_mm[0]
    for index in range(stack.shape[0]):
        position = np.interp(index * stack.step_mm, depths, np.arange(len(depths)))
        lower, weight = int(position), position - int(position)
        upper = min(lower + 1, len(depths) - 1)
        result[index] = (1 - weight) * planes[lower] + weight * planes[upper]
    return np.rint(result).astype(np.int16) if array.dtype == np.int16 else result


def _shifted(plane: np.ndarray, shift: np.ndarray, outside: float) -> np.ndarray:
    """Linear interpolation; rounding in positions is no shift."""
    return ndimage.shift(plane, shift, order=1, cval=outside) if np.abs(shift).max() > 1e-3 else plane


def _between(depth_mm: float, step_mm: float, size: int) -> tuple[int, float]:
    position = min(max(depth_mm / step_mm, 0.0), size - 1.0)
    return int(position), position - int(position)
