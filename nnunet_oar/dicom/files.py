"""The DICOM files below a folder, by their headers."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pydicom
from pydicom.multival import MultiValue
from pydicom.uid import (
    UID,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    MediaStorageDirectoryStorage,
)

# of a medium: it says what lies where and holds no image
DIRECTORY = "DICOMDIR"
# endings under which a file that cannot be read is a damaged slice, and not a file of another kind
ENDINGS = (".dcm", ".dicom", ".ima")
CT_IMAGE = "1.2.840.10008.5.1.4.1.1.2"
ENHANCED_CT_IMAGE = "1.2.840.10008.5.1.4.1.1.2.1"
RTSTRUCT = "1.2.840.10008.5.1.4.1.1.481.3"
NO_IMAGES = ("RTSTRUCT", "RTDOSE", "RTPLAN", "RTRECORD", "SEG", "REG", "SR", "PR", "KO")
HEADER = (
    "SpecificCharacterSet", "ImageType", "SOPClassUID", "SOPInstanceUID", "Modality", "SeriesDescription", "PatientID",
    "StudyInstanceUID", "SeriesInstanceUID", "ImagePositionPatient", "ImageOrientationPatient", "FrameOfReferenceUID",
    "SamplesPerPixel", "PhotometricInterpretation", "NumberOfFrames", "Rows", "Columns", "BitsStored", "HighBit", "PixelSpacing",
    "SliceThickness", "RescaleIntercept", "RescaleSlope", "RescaleType",
)  # fmt: skip


@dataclass(frozen=True)
class Header:
    """What is needed of one file to sort it. `dataset` holds the elements named in HEADER, no pixels."""

    path: Path
    dataset: pydicom.Dataset

    def text(self, keyword: str) -> str:
        """The value as text; empty where it is missing or empty."""
        value = self.dataset.get(keyword, None)
        text = "\\".join(map(str, value)) if isinstance(value, MultiValue) else str(value or "")
        # it is printed, whatever a file holds
        return "".join(character if character.isprintable() else "?" for character in text)

    def numbers(self, keyword: str, count: int) -> np.ndarray:
        """(count,) float64. Raises ValueError, naming file and element, for anything else."""
        try:
            values = np.atleast_1d(np.array(self.dataset[keyword].value, dtype=np.float64))
        except (TypeError, ValueError, KeyError, OverflowError):
            values = np.zeros(0)
        if values.shape != (count,) or not np.isfinite(values).all():
            raise ValueError(f"{self.path}: {keyword} must be {'a number' if count == 1 else f'{count} numbers'}")
        return values

    def number(self, keyword: str, default: float | None = None) -> float:
        """One number; `default`, if there is one, where the element is missing or empty."""
        if default is not None and self.text(keyword) == "":
            return default
        return float(self.numbers(keyword, 1)[0])

    @property
    def kind(self) -> str:
        """Of the file, for people: its modality, and of CT that is no plain CT image its class."""
        modality = self.text("Modality") or "no modality"
        name = UID(self.text("SOPClassUID")).name
        return f"CT ({name})" if modality == "CT" and not self.is_ct else modality

    @property
    def is_ct(self) -> bool:
        # some archives empty the class; a CT's secondary captures (dose sheets) have their own
        return self.text("Modality") == "CT" and self.text("SOPClassUID") in ("", CT_IMAGE, ENHANCED_CT_IMAGE)

    @property
    def is_structure_set(self) -> bool:
        return self.text("Modality") == "RTSTRUCT" or self.text("SOPClassUID") == RTSTRUCT

    @property
    def is_localiser(self) -> bool:
        return "LOCALIZER" in (self.dataset.get("ImageType", None) or ())


def headers(folder: Path) -> list[Header]:
    """All DICOM files in the folder and below, in alphabetical order; other files are passed over.

    Raises ValueError, naming the file, for one that is DICOM by its ending or beginning and cannot be read, or that has no ending
    as the DICOM files beside it have none.
    """
    found, others = [], []
    for path in _files(folder):
        header = _header(path)
        if header is not None:
            found.append(header)
        elif _without_ending(path):
            others.append(path)
    beside = {header.path.parent for header in found if _without_ending(header.path)}
    damaged = [path for path in others if path.parent in beside]
    if damaged:
        raise ValueError(
            f"{damaged[0]} is damaged or no DICOM file, among DICOM files without endings; remove or replace it"
        )
    return found


def first_image(folder: Path) -> Header | None:
    """A DICOM file in the folder or below, other than results drawn on images and plans made from them. Raises as `headers`."""
    for path in _files(folder):
        header = _header(path) if looks_like_dicom(path) else None
        if header is not None and header.text("Modality") not in NO_IMAGES:
            return header
    return None


def read(path: Path, pixels: bool = True) -> pydicom.Dataset:
    """The whole file, or all of it but the pixels. Raises ValueError, naming it, where it cannot be read."""
    try:
        # force: archives leave out the preamble
        dataset = pydicom.dcmread(path, force=True, stop_before_pixels=not pixels)
        if "TransferSyntaxUID" not in dataset.file_meta:
            dataset.file_meta.TransferSyntaxUID = _SYNTAX[dataset.original_encoding]
        return dataset
    except Exception as error:
        raise ValueError(f"{path} is damaged and cannot be read: {_first_line(error)}") from error


def looks_like_dicom(path: Path) -> bool:
    """By its ending or its first bytes; the directory of a medium does not."""
    if path.name == DIRECTORY:
        return False
    if path.suffix.lower() in ENDINGS:
        return True
    with open(path, "rb") as file:
        start = file.read(132)
    # without a preamble a file begins with an element of group 2 or 8
    return start[128:] == b"DICM" or (
        start[:1] in (b"\x02", b"\x08") and start[1:2] == b"\x00" and start[3:4] == b"\x00"
    )


# of (implicit, little endian), where a file does not say: what pydicom found
_SYNTAX = {
    (True, True): ImplicitVRLittleEndian,
    (False, True): ExplicitVRLittleEndian,
    (False, False): ExplicitVRBigEndian,
}


def _files(folder: Path) -> Iterator[Path]:
    """In alphabetical order; links to folders are followed, each folder once."""
    seen = set()
    for root, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(root)
        folders[:] = [] if real in seen else sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names) if real not in seen else ():
            if not name.startswith(".") and name != DIRECTORY:
                yield Path(root, name)
        seen.add(real)


def _without_ending(path: Path) -> bool:
    """CT, or CT.1.2.840.17"""
    return path.suffix == "" or path.suffix[1:].isdigit()


def _header(path: Path) -> Header | None:
    """None for what is no DICOM file by its ending and its first bytes, and for a directory of a medium."""
    if not looks_like_dicom(path):
        return None
    try:
        dataset = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=list(HEADER), force=True)
        # values are read when they are asked for, and damaged ones fail in many ways
        for element in dataset:
            element.value  # noqa: B018
        if dataset.file_meta.get("MediaStorageSOPClassUID") == MediaStorageDirectoryStorage:
            return None
    except Exception as error:
        raise ValueError(f"{path} is damaged and cannot be read: {_first_line(error)}") from error
    if not dataset.get("Modality", None):
        raise ValueError(f"{path} is damaged or no DICOM file: it says no modality; remove or replace it")
    return Header(path, dataset)


def _first_line(error: Exception) -> str:
    lines = str(error).splitlines()
    return lines[0] if lines else type(error).__name__
