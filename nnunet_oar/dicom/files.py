"""The DICOM files below a folder, by their headers."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pydicom
from pydicom.errors import InvalidDicomError

# endings under which a file that cannot be read is a damaged slice, and not a file of another kind
ENDINGS = (".dcm", ".dicom", ".ima")
CT_IMAGE = "1.2.840.10008.5.1.4.1.1.2"
ENHANCED_CT_IMAGE = "1.2.840.10008.5.1.4.1.1.2.1"
RTSTRUCT = "1.2.840.10008.5.1.4.1.1.481.3"
NO_IMAGES = ("RTSTRUCT", "RTDOSE", "RTPLAN", "RTRECORD", "SEG", "REG", "SR", "PR", "KO")
HEADER = (
    "SpecificCharacterSet", "ImageType", "SOPClassUID", "SOPInstanceUID", "Modality", "SeriesDescription", "PatientID",
    "StudyInstanceUID", "SeriesInstanceUID", "InstanceNumber", "ImagePositionPatient", "ImageOrientationPatient",
    "FrameOfReferenceUID", "SamplesPerPixel", "PhotometricInterpretation", "NumberOfFrames", "Rows", "Columns", "PixelSpacing",
    "SliceThickness", "RescaleIntercept", "RescaleSlope",
)  # fmt: skip


@dataclass(frozen=True)
class Header:
    """What is needed of one file to sort it. `dataset` holds the elements named in HEADER, no pixels."""

    path: Path
    dataset: pydicom.Dataset

    def text(self, keyword: str) -> str:
        """The value as text; empty where it is missing or empty."""
        return str(self.dataset.get(keyword, None) or "")

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

    Raises ValueError, naming the file, for one that is DICOM by its ending or beginning and cannot be read.
    """
    found = [Header(path, dataset) for path in _files(folder) if (dataset := _header(path)) is not None]
    return [header for header in found if header.text("Modality") or header.text("SOPClassUID")]


def holds_images(folder: Path) -> bool:
    """Whether DICOM files lie in the folder or below, other than results drawn on images and plans made from them."""
    found = (Header(path, _header(path)) for path in _files(folder) if looks_like_dicom(path))
    return any(header.dataset is None or header.text("Modality") not in NO_IMAGES for header in found)


def read(path: Path) -> pydicom.Dataset:
    """The whole file. Raises ValueError, naming it, where it cannot be read."""
    try:
        # force: archives leave out the preamble
        dataset = pydicom.dcmread(path, force=True)
        if "TransferSyntaxUID" not in dataset.file_meta:
            dataset.file_meta.TransferSyntaxUID = pydicom.uid.ImplicitVRLittleEndian
        return dataset
    except Exception as error:
        raise ValueError(f"{path} is damaged and cannot be read: {_first_line(error)}") from error


def _files(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not path.name.startswith(".") and path.name != "DICOMDIR":
            yield path


def _header(path: Path) -> pydicom.Dataset | None:
    try:
        return pydicom.dcmread(path, stop_before_pixels=True, specific_tags=list(HEADER))
    except InvalidDicomError:
        return _without_preamble(path)
    except Exception as error:
        if not looks_like_dicom(path):
            return None
        raise ValueError(f"{path} is damaged and cannot be read: {_first_line(error)}") from error


def _without_preamble(path: Path) -> pydicom.Dataset | None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            dataset = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=list(HEADER), force=True)
        if "Modality" in dataset or "SOPClassUID" in dataset:
            return dataset
    except Exception:  # whatever bytes make of the parser
        pass
    if path.suffix.lower() in ENDINGS:
        raise ValueError(f"{path} is damaged or no DICOM file; remove or replace it")
    return None


def looks_like_dicom(path: Path) -> bool:
    """By its ending or its first bytes."""
    if path.suffix.lower() in ENDINGS:
        return True
    with open(path, "rb") as file:
        start = file.read(132)
    # without a preamble a file begins with an element of group 8
    return start[128:] == b"DICM" or (start[:2] == b"\x08\x00" and start[3:4] == b"\x00")


def _first_line(error: Exception) -> str:
    lines = str(error).splitlines()
    return lines[0] if lines else type(error).__name__
