"""Miniatures of published data sets: NIfTI files of a few voxels with the affines that real ones have."""

from pathlib import Path

import nibabel
import numpy as np
from scipy.spatial.transform import Rotation

SHAPE = (5, 6, 4)
# voxel -> RAS mm; rotated about two axes, and shifted as a scanner's table is
OBLIQUE = np.eye(4)
OBLIQUE[:3, :3] = Rotation.from_euler("xyz", (8, -6, 10), degrees=True).as_matrix() * (-0.8, -0.8, 2.4)
OBLIQUE[:3, 3] = 120.5, 90.25, -733.125
LEFT_HANDED = np.array([[-0.9, 0, 0, 200], [0, 0.9, 0, -150], [0, 0, 3, -40.5], [0, 0, 0, 1]], dtype=np.float64)
# KiTS19: slices along the first array axis, from the head down, no origin
SLICES_FIRST = np.array([[0, 0, -0.75, 0], [0, -0.75, 0, 0], [-5, 0, 0, 0], [0, 0, 0, 1]], dtype=np.float64)
GEOMETRY = (
    "dim", "pixdim", "qform_code", "sform_code", "quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y",
    "qoffset_z", "srow_x", "srow_y", "srow_z", "xyzt_units",
)  # fmt: skip


def write_volume(path: Path, array, affine=OBLIQUE, *, sform: int | None = 1, qform: int | None = 1) -> Path:
    """sform, qform: their codes; None leaves one out."""
    array = np.asarray(array)
    image = nibabel.Nifti1Image(array, None, dtype=array.dtype)
    image.set_sform(affine, sform or 0)
    image.set_qform(affine, qform or 0)
    image.header.set_xyzt_units("mm")
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(image, path)
    return path


def write_ct(path: Path, shape=SHAPE, affine=OBLIQUE, **codes) -> Path:
    """Every voxel has its own value."""
    return write_volume(path, np.arange(np.prod(shape), dtype=np.int16).reshape(shape) - 1000, affine, **codes)


def write_mask(path: Path, *voxels, affine=OBLIQUE, shape=SHAPE, value=1, dtype=np.uint8, **codes) -> Path:
    """0 but at the voxels, or in the slices, with these indices."""
    mask = np.zeros(shape, dtype)
    for index in voxels:
        mask[index] = value
    return write_volume(path, mask, affine, **codes)


def read(path: Path) -> np.ndarray:
    return np.asanyarray(nibabel.load(path).dataobj)


def geometry(path: Path) -> dict[str, bytes]:
    """What the header says of the grid, bit by bit."""
    header = nibabel.load(path).header
    return {name: header[name].tobytes() for name in GEOMETRY}


def everything(folder: Path) -> list[str]:
    """Names of all files and folders below, hidden ones too."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))
