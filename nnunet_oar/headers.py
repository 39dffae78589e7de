"""What a file says of itself before a reader repairs it: ITK and nibabel make a spacing of 0 to 1 and of -2 to 2, and ITK takes
compressed voxels whose checksum is wrong."""

from __future__ import annotations

import gzip
import math
import re
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import BinaryIO

import nibabel
import numpy as np

NIFTI = (".nii.gz", ".nii")
# of a voxel's size in two places of one header: formats round
SIZE_TOLERANCE = 0.01
# longer than any header of text
LONGEST = 1 << 20
# what lies between name and value, and which line is the last
NRRD = b":", lambda line: line.strip() == b""
META = b"=", lambda line: line.startswith(b"ElementDataFile")


def is_nifti(path: Path) -> bool:
    return path.name.lower().endswith(NIFTI)


def require_sound_header(path: Path) -> None:
    """Raise ValueError, naming the file, for a spacing that is none, and for compressed voxels that are damaged.

    path: .nii, .nii.gz, .nrrd, .mha or .mhd; what is not even such a header is left to the reader.
    """
    if is_nifti(path):
        _nifti(path)
    elif path.name.lower().endswith(".nrrd"):
        _text(path, *NRRD, _nrrd_spacing, _nrrd_check)
    else:
        _text(path, *META, _meta_spacing, _meta_check)


def says_directions(path: Path) -> bool:
    """Whether a .nrrd, .mha or .mhd file says how its axes lie in the patient, which ITK guesses where it does not."""
    nrrd = path.name.lower().endswith(".nrrd")
    with open(path, "rb") as file:
        fields = _fields(file, *(NRRD if nrrd else META))
    return bool({"space"} & set(fields) if nrrd else {"transformmatrix", "orientation", "rotation"} & set(fields))


def require_whole(path: Path, image: nibabel.spatialimages.SpatialImage) -> None:
    """Raise ValueError unless a NIfTI file holds all voxels of its header, with gzip's checksum: ITK reads what is missing as it
    pleases."""
    with _to_the_end(path):
        held, needed = held_and_needed(path, image)
    if held < needed:
        raise ValueError(f"{path} is cut off: it holds {held} bytes of the {needed} that its header promises")


def held_and_needed(path: Path, image: nibabel.spatialimages.SpatialImage) -> tuple[int, int]:
    """Bytes that a NIfTI file holds, read to the end, where gzip has its checksum, and that its header promises. Raises what
    reading does."""
    needed = image.dataobj.offset + math.prod(image.shape) * image.get_data_dtype().itemsize
    with _opened(path) as file:
        return sum(map(len, iter(partial(file.read, 1 << 20), b""))), needed


def require_numbers(image: nibabel.spatialimages.SpatialImage) -> None:
    """Raise ValueError for a spacing that is none, or of which the header says two things, and for voxels that are not finite: ITK
    repairs the one, takes one of the others, which is not nibabel's, and keeps the last without a word."""
    columns = image.affine[:3, :3]
    zooms, lengths = [float(size) for size in image.header.get_zooms()[:3]], np.linalg.norm(columns, axis=0)
    if not all(np.isfinite(size) and size > 0 for size in (*zooms, *lengths)):
        raise ValueError(f"the header's spacing must be above 0 mm, got {[*zooms, *lengths.tolist()]}")
    angles = columns.T @ columns / np.outer(lengths, lengths)
    # a gantry's tilt makes the columns longer than the distance of the slices
    sheared = np.abs(angles - np.eye(len(lengths))).max() > SIZE_TOLERANCE
    if len(zooms) == 3 and not sheared and not np.allclose(lengths, zooms, rtol=SIZE_TOLERANCE):
        said = " and ".join(" x ".join(f"{size:.4g}" for size in sizes) for sizes in (zooms, lengths))
        raise ValueError(
            f"the header holds two sizes of a voxel, {said} mm (pixdim and sform), of which readers choose differently; correct "
            f"the one that is wrong"
        )
    if image.get_data_dtype().kind == "f":
        bad = int(np.count_nonzero(~np.isfinite(np.asanyarray(image.dataobj))))
        if bad:
            raise ValueError(f"{bad} voxels are NaN or infinite; repair the image first")


def _opened(path: Path):
    return gzip.open(path) if path.name.lower().endswith(".gz") else open(path, "rb")


@contextmanager
def _to_the_end(path: Path) -> Iterator[None]:
    """A file that cannot be read, or whose checksum is wrong, becomes a ValueError that names it."""
    try:
        yield
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{path} cannot be read to its end: {error}") from None


def _nifti(path: Path) -> None:
    image = nibabel.load(path)
    if "pixdim" not in image.header:
        return
    size = image.header.template_dtype.itemsize
    with _opened(path) as file:
        stored = type(image.header)(file.read(size), check=False)
    _require_spacing(path, [float(value) for value in stored["pixdim"][1 : 1 + min(3, len(image.shape))]])


def _text(
    path: Path,
    separator: bytes,
    is_last: Callable[[bytes], bool],
    spacing: Callable[[dict[str, str]], list[float]],
    check: Callable[[dict[str, str]], Callable[[BinaryIO], Iterator[bytes]] | None],
) -> None:
    with open(path, "rb") as file:
        fields = _fields(file, separator, is_last)
        _require_spacing(path, spacing(fields))
        read = check(fields)
        if read is not None:
            with _to_the_end(path):
                sum(map(len, read(file)))


def _fields(file: BinaryIO, separator: bytes, is_last: Callable[[bytes], bool]) -> dict[str, str]:
    """Of a header of text, which is read to its end; names in small letters."""
    fields: dict[str, str] = {}
    while file.tell() < LONGEST and (line := file.readline(LONGEST)):
        key, found, value = line.partition(separator)
        if found:
            fields[key.strip().lower().decode("ascii", "replace")] = value.strip().decode("ascii", "replace")
        if is_last(line):
            break
    return fields


def _nrrd_spacing(fields: dict[str, str]) -> list[float]:
    vectors = re.findall(r"\(([^)]*)\)", fields.get("space directions", ""))
    if vectors:
        return [math.hypot(*_numbers(vector.replace(",", " "))) for vector in vectors]
    return _numbers(fields.get("spacings", ""))


def _nrrd_check(fields: dict[str, str]):
    compressed = fields.get("encoding", "").lower() in ("gzip", "gz")
    elsewhere = {"data file", "datafile"} & set(fields)
    return None if elsewhere or not compressed else (lambda file: iter(partial(gzip.open(file).read, 1 << 20), b""))


def _meta_spacing(fields: dict[str, str]) -> list[float]:
    """Without the sign: below 0 an axis runs the other way, which the format allows and ITK reads so."""
    return [abs(value) for value in _numbers(fields.get("elementspacing", "") or fields.get("elementsize", ""))]


def _meta_check(fields: dict[str, str]):
    compressed = fields.get("compresseddata", "").lower() == "true"
    local = fields.get("elementdatafile", "").upper() == "LOCAL"
    return _inflated if compressed and local else None


def _inflated(file: BinaryIO) -> Iterator[bytes]:
    inflate = zlib.decompressobj()
    for chunk in iter(partial(file.read, 1 << 20), b""):
        yield inflate.decompress(chunk)
    if not inflate.eof:
        raise EOFError("its compressed voxels end too early")


def _numbers(text: str) -> list[float]:
    numbers = []
    for word in text.split():
        try:
            numbers.append(float(word))
        except ValueError:
            numbers.append(math.nan)
    return numbers


def _require_spacing(path: Path, spacing: list[float]) -> None:
    if not all(math.isfinite(value) and value > 0 for value in spacing):
        raise ValueError(f"{path}: the header's spacing must be above 0 mm, got {spacing}")
