"""CTs and label maps as NIfTI files: checked, read, merged and written. Arrays are in the file's own axis order, (I, J, K)."""

from __future__ import annotations

import shutil
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import nibabel
import numpy as np
import SimpleITK as sitk
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError
from nibabel.wrapstruct import WrapStructError

from nnunet_oar.headers import held_and_needed, require_numbers

# Largest difference between the affines of a CT and its labels, in mm (per voxel, and of the origin): formats round.
TOLERANCE_MM = 1e-3
# Between the directions of an axis in two affines of one file: 45 degrees
LEAST_COSINE = 0.7


def open_volume(path: Path) -> nibabel.Nifti1Image:
    """The header; voxels are read when asked for. Raises ValueError for what is no NIfTI file of three dimensions."""
    with _reading(path):
        image = nibabel.load(path)
    if not isinstance(image, nibabel.Nifti1Image) or len(image.shape) != 3:
        raise ValueError(f"{path} must be a NIfTI file of three dimensions, its shape is {image.shape}")
    require_one_direction(path, image)
    _require_no_shear(path)
    return image


def require_one_direction(path: Path, image: nibabel.Nifti1Image) -> None:
    """Raise ValueError where it is not certain in which directions the array's axes run: a header may hold two affines, of which
    readers choose differently, or none, where they guess. That decides where left is."""
    sform = image.get_sform(coded=True)[0]
    try:
        qform = image.get_qform(coded=True)[0]
    except ValueError:  # rounded, so that it is no rotation; all readers take the sform then
        qform = None
    if sform is None and qform is None:
        raise ValueError(
            f"{path} does not say how it lies in the patient (its sform has the code 0, its qform too, or it is no rotation), so "
            f"that left and right may be mistaken for each other; set the affine that is right, for example with fslorient"
        )
    # of each axis the cosine between the two; a shear that a qform cannot hold changes little
    if sform is not None and qform is not None and (_cosines(sform, qform) < LEAST_COSINE).any():
        raise ValueError(
            f"{path} holds two affines (sform and qform) in which the array's axes run in different directions, so that left and "
            f"right may be mistaken for each other; keep the one that is right, for example with fslorient"
        )


def _cosines(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Between the directions of each array axis in two affines; NaN where one has none."""
    with np.errstate(invalid="ignore"):
        first, second = (of[:3, :3] / np.linalg.norm(of[:3, :3], axis=0) for of in (first, second))
    return np.sum(first * second, axis=0)


def _require_no_shear(path: Path) -> None:
    """SimpleITK, with which nnU-Net verifies a data set where its first case is none of these, stops at a shear."""
    header = sitk.ImageFileReader()
    header.SetFileName(str(path))
    try:
        header.ReadImageInformation()
    except RuntimeError as error:
        if "orthonormal" in str(error):
            raise ValueError(
                f"{path} has axes that are not at right angles (a tilted gantry?), at which nnU-Net stops; resample it, "
                f"and its labels, onto a grid without shear first"
            ) from None


def require_same_grid(image: nibabel.Nifti1Image, labels: nibabel.Nifti1Image) -> None:
    """Raise ValueError, naming both files, unless they have one shape and one affine."""
    files = f"{image.get_filename()} and {labels.get_filename()}"
    if image.shape != labels.shape:
        raise ValueError(f"{files} must have one shape, got {image.shape} and {labels.shape} voxels")
    difference = np.abs(image.affine - labels.affine).max()
    # the comparison is false where an affine holds NaN
    if not difference <= TOLERANCE_MM:
        raise ValueError(f"{files} must lie on one grid, their affines differ by up to {difference:.3g} mm")


def copy_image(source: Path, target: Path) -> None:
    """Byte for byte. Raises ValueError, naming the file, where its voxels cannot be read or are not finite."""
    image = _require_whole(source)
    with _reading(source):
        require_numbers(image)
    shutil.copyfile(source, target)


def read_label_map(path: Path, organs: Sequence[str]) -> np.ndarray:
    """uint8 (I, J, K). Raises ValueError, naming the file, for a value other than 0 and those of the organs, 1, 2, ..."""
    labels, voxels = _read_whole_numbers(path)
    for value in np.flatnonzero(voxels):
        if value > len(organs):
            known = ", ".join(f"{label} ({organ})" for label, organ in enumerate(("background", *organs)))
            raise ValueError(f"{path} holds the value {value}, expected {known}")
    return labels


def merge_masks(masks: Mapping[int, Path]) -> tuple[np.ndarray, int]:
    """Label map uint8 (I, J, K) of the masks (label -> file), and the number of voxels that two or more of them claim.

    Such a voxel goes to the organ with fewer voxels, of two with equally many to the one with the higher label. Raises
    ValueError, naming the file, for a mask that holds anything but 0 and one other value, and for one of another shape.
    """
    merged, claimed_twice = None, None
    # number of voxels of each label; every organ takes the background
    sizes = np.full(256, np.iinfo(np.int64).max)
    for label, path in sorted(masks.items()):
        mask, voxels = _read_whole_numbers(path)
        values = [int(value) for value in np.flatnonzero(voxels[1:]) + 1]
        if len(values) > 1:
            raise ValueError(f"{path} holds the values {', '.join(map(str, values))}, expected one organ's mask")
        if merged is None:
            merged, claimed_twice = np.zeros(mask.shape, np.uint8, order="F"), np.zeros(mask.size, bool)
        if mask.shape != merged.shape:
            raise ValueError(f"{path} must have the shape of the case's other masks, {merged.shape}, got {mask.shape}")
        inside = np.flatnonzero(mask.reshape(-1, order="F"))
        sizes[label] = inside.size
        flat = merged.reshape(-1, order="F")  # a view, as the order is the array's own
        holder = flat[inside]
        claimed_twice[inside[holder > 0]] = True
        flat[inside] = np.where(sizes[holder] >= inside.size, label, holder)
    return merged, int(np.count_nonzero(claimed_twice))


def write_labels(labels: np.ndarray, image_file: Path, path: Path) -> None:
    """labels: uint8 (I, J, K), written with everything that the CT's header says of the grid."""
    image = open_volume(image_file)
    header = image.header.copy()
    header.set_data_dtype(np.uint8)
    header["cal_min"], header["cal_max"] = 0, 0  # the CT's display window
    header.extensions.clear()
    nibabel.save(type(image)(labels, image.affine, header), path)


def _read_whole_numbers(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """uint8 (I, J, K) in Fortran order as in the file, and how many voxels have the value 0, 1, ..., 255.

    Raises ValueError, naming the file, where a voxel is no whole number from 0 to 255, whatever type it is stored as.
    """
    image = _require_whole(path)
    with _reading(path):
        stored = np.asanyarray(image.dataobj)
    if stored.dtype.kind not in "biuf":
        raise ValueError(f"{path} must hold numbers, it holds {stored.dtype}")
    labels, voxels = np.empty(stored.shape, np.uint8, order="F"), np.zeros(256, np.int64)
    # by slabs: a temporary of the whole array would be eight times its size
    for index in range(stored.shape[2]):
        slab = stored[..., index]
        with np.errstate(invalid="ignore"):
            converted = slab.astype(np.uint8)
        wrong = slab[converted != slab]
        if wrong.size:
            raise ValueError(f"{path} holds the value {wrong[0]}, expected whole numbers from 0 to 255")
        labels[..., index] = converted
        voxels += np.bincount(converted.ravel(), minlength=256)
    return labels, voxels


def _require_whole(path: Path) -> nibabel.Nifti1Image:
    """The volume, after its file was read to the end, where gzip has its checksum: nibabel stops at the last voxel."""
    image = open_volume(path)
    with _reading(path):
        held, needed = held_and_needed(path, image)
    if held < needed:
        raise ValueError(f"{path} cannot be read: it holds {held} bytes of the {needed} that its header promises")
    return image


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Whatever goes wrong inside becomes a ValueError that names the file."""
    try:
        yield
    except (ImageFileError, HeaderDataError, WrapStructError, OSError, EOFError, ValueError, zlib.error) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
