"""One image to predict: read from a file, checked, brought into a model's axis order, and its labels brought back."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import SimpleITK as sitk
from nibabel.filebasedimages import ImageFileError

from nnunet_oar.axes import orientation
from nnunet_oar.datasets.convert.volumes import require_one_direction
from nnunet_oar.dicom.series import Series, read_series
from nnunet_oar.dicom.volume import Stack, hu_image
from nnunet_oar.headers import NIFTI, is_nifti, require_numbers, require_sound_header, require_whole, says_directions

ENDINGS = (*NIFTI, ".nrrd", ".mha", ".mhd")
_OPPOSITE = dict(zip("RLAPSI", "LRPAIS", strict=True))
# what no scanner makes: a header in the wrong unit, or a damaged one
SPACING_MM = (0.01, 50.0)
LONGEST_MM = 4000.0


@dataclass(frozen=True)
class Image:
    """An image in the axis order of its file, (C, Z, Y, X) for ITK's (x, y, z).

    orientation: of the three spatial array axes, as axes.orientation. source: the SimpleITK or nibabel image, or None; labels
    get its geometry. series: what it was read from, if from DICOM. remarks: what should be known about any result on it.
    """

    array: np.ndarray
    spacing_mm: tuple[float, float, float]
    orientation: str
    source: sitk.Image | nibabel.spatialimages.SpatialImage | None = None
    series: Series | None = None
    remarks: tuple[str, ...] = ()

    def with_labels(self, labels: np.ndarray) -> Any:
        """What was given, with labels (Z, Y, X) in place of the intensities: a SimpleITK or a nibabel image, or the array."""
        if isinstance(self.source, sitk.Image):
            image = sitk.GetImageFromArray(labels)
            image.CopyInformation(self.source)
            return image
        if self.source is not None:
            header = self.source.header.copy()
            header.set_data_dtype(labels.dtype)
            return type(self.source)(labels.transpose(), self.source.affine, header)
        return labels


def as_image(source: Any, spacing_mm: Sequence[float] | None = None, direction: Sequence[float] | None = None) -> Image:
    """What a caller holds: a SimpleITK or nibabel image, an array (Z, Y, X) or (C, Z, Y, X) with `spacing_mm` (z, y, x) and
    `direction` (ITK's nine cosines, row-major), or a list of images or arrays, one per channel."""
    if isinstance(source, (sitk.Image, nibabel.spatialimages.SpatialImage)) and (
        spacing_mm is not None or direction is not None
    ):
        raise ValueError("spacing_mm and direction are for arrays; an image says itself how it lies")
    if isinstance(source, (list, tuple)):
        channels = [as_image(one, spacing_mm, direction) for one in source]
        return stacked(channels, [f"channel {index}" for index in range(len(channels))])
    if isinstance(source, np.ndarray):
        if spacing_mm is None or direction is None:
            raise ValueError(
                "an array needs spacing_mm, (z, y, x), and direction, ITK's nine cosines: without them left and right, and the "
                "size of the organs, are not known"
            )
        if source.ndim not in (3, 4):
            raise ValueError(f"an array must be (Z, Y, X) or (C, Z, Y, X), got {source.shape}")
        if np.shape(direction) not in ((9,), (3, 3)) or not abs(np.linalg.det(np.reshape(direction, (3, 3)))) > 0.5:
            raise ValueError(f"direction must be ITK's nine cosines, whose axes span space, got {direction}")
        image = Image(
            source if source.ndim == 4 else source[None], _triple(spacing_mm), orientation(np.ravel(direction))
        )
    elif isinstance(source, sitk.Image):
        if source.GetDimension() != 3 or source.GetNumberOfComponentsPerPixel() != 1:
            raise ValueError(_not_one_ct(source.GetSize(), source.GetNumberOfComponentsPerPixel()))
        array = sitk.GetArrayViewFromImage(source)[None]
        image = Image(array, _triple(source.GetSpacing()[::-1]), orientation(source.GetDirection()), source)
    elif isinstance(source, nibabel.spatialimages.SpatialImage):
        if len(source.shape) != 3 or source.get_data_dtype().fields:
            raise ValueError(_not_one_ct(source.shape, len(source.get_data_dtype().fields or ()) or 1))
        letters = "".join(nibabel.aff2axcodes(source.affine))[::-1]
        spacing = np.linalg.norm(source.affine[:3, :3], axis=0)[::-1]
        array = np.asanyarray(source.dataobj).transpose()[None]
        image = Image(array, _triple(spacing), letters, source)
    else:
        raise ValueError(f"expected a SimpleITK or nibabel image, or an array, got {type(source).__name__}")
    _refuse_implausible(image)
    return image


def read_image(paths: Sequence[Path]) -> Image:
    """One file per channel. Raises ValueError, naming the file, for what cannot be read or is no CT."""
    images = []
    for path in paths:
        try:
            image = as_image(_read(path))
            if not is_nifti(path) and not says_directions(path):
                image = replace(
                    image, remarks=(f"{path.name} does not say how it lies in the patient: check left and right",)
                )
            images.append(image)
        except (ValueError, OSError, EOFError, RuntimeError, ImageFileError, MemoryError) as error:
            text = str(error) if isinstance(error, ValueError) else _last_line(error)
            raise ValueError(text if str(path) in text else f"{path}: {text}") from error
    return images[0] if len(images) == 1 else stacked(images, [str(path) for path in paths])


def read_dicom(folder: Path, series_uid: str | None = None, resample: bool = False) -> Image:
    """The CT series of a folder, as dicom.series.read_series. Raises ValueError, naming folder or file, for what is none."""
    series = read_series(folder, series_uid, resample)
    remarks = ()
    if Stack.over(series).is_resampled:
        remarks = ("the slices are tilted or uneven and were resampled to an even grid",)
    if series.units != "HU":
        remarks += (f"the DICOM files call their values {series.units} (RescaleType) and not HU: check them",)
    try:
        return replace(as_image(hu_image(series)), series=series, remarks=remarks)
    except ValueError as error:
        raise ValueError(str(error) if str(folder) in str(error) else f"{folder}: {error}") from error


def write_labels(image: Any, path: Path) -> None:
    """A label image as `Image.with_labels` returns it, of a file. Raises ValueError where it is not there whole afterwards: ITK
    does not notice that a disk is full."""
    if isinstance(image, sitk.Image):
        sitk.WriteImage(image, str(path), True)
    else:
        nibabel.save(image, path)
    if is_nifti(path):
        try:
            require_whole(path, nibabel.load(path))
        except (ValueError, OSError, ImageFileError) as error:
            raise ValueError(f"the labels could not be written to {path.parent}; is the disk full?") from error


def stacked(images: Sequence[Image], names: Sequence[str]) -> Image:
    """Channels of one image; they must lie on one grid."""
    first = images[0]
    for image, name in zip(images[1:], names[1:], strict=True):
        same = image.array.shape == first.array.shape and image.orientation == first.orientation
        ours, theirs = _geometry(image), _geometry(first)
        if not same or ours.shape != theirs.shape or not np.allclose(ours, theirs, rtol=1e-3, atol=1e-2):
            raise ValueError(f"{name} and {names[0]} are channels of one image and must lie on one grid")
    array = np.concatenate([image.array for image in images])
    remarks = tuple(remark for image in images for remark in image.remarks)
    return Image(array, first.spacing_mm, first.orientation, first.source, remarks=remarks)


def _geometry(image: Image) -> np.ndarray:
    """Spacing, and where the file says so origin and direction."""
    if isinstance(image.source, sitk.Image):
        return np.concatenate((image.spacing_mm, image.source.GetOrigin(), image.source.GetDirection()))
    affine = () if image.source is None else image.source.affine.ravel()
    return np.concatenate((image.spacing_mm, affine))


def turned_axes(letters: str, wanted: str) -> list[int]:
    """For each axis that shall grow towards one of `wanted`, or against it, which of the axes it is that grow towards `letters`."""
    return [next(axis for axis in range(3) if letters[axis] in (want, _OPPOSITE[want])) for want in wanted]


def turned(array: np.ndarray, letters: str, wanted: str) -> np.ndarray:
    """A view of an array whose last three axes grow towards `letters`, with axes that grow towards `wanted`."""
    lead, order = array.ndim - 3, turned_axes(letters, wanted)
    array = array.transpose(*range(lead), *(lead + axis for axis in order))
    steps = [slice(None, None, 1 if letters[axis] == want else -1) for axis, want in zip(order, wanted, strict=True)]
    return array[(..., *steps)]


def _read(path: Path):
    if not path.is_file():
        raise ValueError(f"{path} {'is a folder' if path.is_dir() else 'does not exist'}")
    require_sound_header(path)
    if is_nifti(path):
        header = nibabel.load(path)
        require_whole(path, header)
        require_numbers(header)
        if len(header.shape) == 3:
            require_one_direction(path, header)
    try:
        return sitk.ReadImage(str(path))
    except RuntimeError as error:
        # a shear, with which nnU-Net reads by nibabel, too
        if is_nifti(path) and "orthonormal" in str(error):
            return nibabel.load(path)
        raise


def _refuse_implausible(image: Image) -> None:
    if 0 in image.array.shape:
        raise ValueError(f"the image is empty, its shape is {image.array.shape[1:]}")
    if image.array.dtype.kind not in "biuf":
        raise ValueError(f"voxels must be numbers, got {image.array.dtype}")
    sizes = [size * spacing for size, spacing in zip(image.array.shape[1:], image.spacing_mm, strict=True)]
    if not all(SPACING_MM[0] <= spacing <= SPACING_MM[1] for spacing in image.spacing_mm) or max(sizes) > LONGEST_MM:
        spacing = " x ".join(f"{value:.4g}" for value in image.spacing_mm)
        raise ValueError(
            f"voxels of {spacing} mm (z, y, x), {image.array.shape[1:]} of them, are not those of a CT; check the header's spacing"
        )
    if image.array.dtype.kind == "f":
        bad = sum(int(np.count_nonzero(~np.isfinite(plane))) for channel in image.array for plane in channel)
        if bad:
            raise ValueError(f"{bad} voxels are NaN or infinite; repair the image first")


def _triple(values: Sequence[float]) -> tuple[float, float, float]:
    values = tuple(float(value) for value in values)
    if len(values) != 3 or not all(math.isfinite(value) and value > 0 for value in values):
        raise ValueError(f"spacing must be three numbers of mm above 0, got {values}")
    return values


def _not_one_ct(shape: Sequence[int], components: int) -> str:
    what = f"{components} values in each voxel" if components > 1 else f"{len(shape)} dimensions, {tuple(shape)}"
    return f"expected one CT of three dimensions, got {what}; give one file per channel or time point"


def _last_line(error: Exception) -> str:
    """ITK's errors begin with lines of source code."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"cannot be read: {lines[-1] if lines else type(error).__name__}"
