"""Labels on the slices of a CT series as a DICOM structure set (RTSTRUCT, PS3.3 A.19)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom import config
from pydicom.charset import default_encoding
from pydicom.datadict import dictionary_VR
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.tag import Tag
from pydicom.uid import ImplicitVRLittleEndian, RTStructureSetStorage, generate_uid
from pydicom.valuerep import validate_value
from scipy import ndimage

from nnunet_oar.dicom.files import CT_IMAGE, read
from nnunet_oar.dicom.outlines import outlines
from nnunet_oar.dicom.series import Series
from nnunet_oar.files import written_whole
from nnunet_oar.version import __version__

# of the patient and the study, as in the CT
COPIED = (
    "PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyInstanceUID", "StudyDate", "StudyTime", "StudyID",
    "AccessionNumber", "ReferringPhysicianName",
)  # fmt: skip
CONTOUR_DATA = Tag("ContourData")
CHARACTERS = "ISO_IR 192"
LONGEST_NAME = 64  # LO
LONGEST_DESCRIPTION = 1024  # ST


@dataclass(frozen=True)
class About:
    """Where contours come from: `label` (at most 16 characters), `description` and `algorithm` for people to read."""

    label: str
    description: str
    algorithm: str


def require_references(series: Series) -> pydicom.Dataset:
    """The header of the series' first slice. Raises ValueError where the series lacks what a structure set must refer to."""
    header = read(series.slices[0].path, pixels=False)
    missing = [name for name in ("StudyInstanceUID", "FrameOfReferenceUID") if not str(header.get(name, None) or "")]
    missing += [] if series.uid else ["SeriesInstanceUID"]
    uids = [one.uid for one in series.slices]
    missing += [] if all(uids) else ["SOPInstanceUID"]
    where = series.slices[0].path.parent
    if missing:
        raise ValueError(
            f"{where}: the CT lacks {', '.join(missing)}, to which DICOM results must refer; export it with them, or write nifti"
        )
    if len(set(uids)) < len(uids):
        raise ValueError(f"{where}: several slices have one SOPInstanceUID; export the CT again, or write nifti")
    return header


def write_rtstruct(
    path: Path,
    series: Series,
    labels: np.ndarray,
    organs: Mapping[int, str],
    colours: Mapping[int, Sequence[int]],
    about: About,
) -> None:
    """One region of interest for each label that occurs.

    labels: (N, rows, columns) on the slices of the series. organs: label -> name. colours: label -> red, green, blue, 0 to 255.
    Contours run along the pixels' edges at each slice's own position, see outlines.py. Raises ValueError where no label occurs,
    for names that DICOM cannot hold or that are not unique, and as `require_references`; nothing is written then.
    """
    header, boxes = regions(series, labels, organs, "a structure set")
    contours = {label: _contours(labels, label, box, series) for label, box in boxes.items()}
    dataset = _structure_set(header, series, about)
    dataset.ReferencedFrameOfReferenceSequence = [_frame_of_reference(header, series)]
    dataset.StructureSetROISequence, dataset.ROIContourSequence, dataset.RTROIObservationsSequence = [], [], []
    for number, (label, sequence) in enumerate(contours.items(), start=1):
        dataset.StructureSetROISequence.append(
            _dataset(
                ROINumber=number,
                ReferencedFrameOfReferenceUID=header.FrameOfReferenceUID,
                ROIName=organs[label],
                ROIGenerationAlgorithm="AUTOMATIC",
                ROIGenerationDescription=about.algorithm[:LONGEST_NAME],
            )
        )
        dataset.ROIContourSequence.append(
            _dataset(ROIDisplayColor=list(colours[label]), ReferencedROINumber=number, ContourSequence=sequence)
        )
        dataset.RTROIObservationsSequence.append(
            _dataset(
                ObservationNumber=number, ReferencedROINumber=number, RTROIInterpretedType="ORGAN", ROIInterpreter=""
            )
        )
    with written_whole(path) as temporary:
        dataset.save_as(temporary, enforce_file_format=True)


def regions(
    series: Series, labels: np.ndarray, organs: Mapping[int, str], what: str
) -> tuple[pydicom.Dataset, dict[int, tuple[slice, slice, slice]]]:
    """What `require_references` returns, and label -> box of its pixels, of the labels that occur; arguments and errors
    as of `write_rtstruct`. what: is written."""
    if labels.shape != (len(series.slices), *series.shape):
        raise ValueError(
            f"labels must be on the series' {len(series.slices)} slices of {series.shape}, got {labels.shape}"
        )
    header = require_references(series)
    boxes = ndimage.find_objects(labels, max(organs))
    found = {label: boxes[label - 1] for label in organs if boxes[label - 1] is not None}
    if not found:
        raise ValueError(f"{series.slices[0].path.parent}: no organ was found, and {what} cannot be empty")
    require_names([organs[label] for label in found])
    return header, found


def valid_value(header: pydicom.Dataset, keyword: str) -> Any:
    """Of an element that may be empty: nothing where it breaks the standard, as a date "anonymized" does, which would make the
    file unreadable to some."""
    value = header.get(keyword, None)
    try:
        validate_value(
            dictionary_VR(keyword), value if isinstance(value, str) or not value else str(value), config.RAISE
        )
    except ValueError:
        return ""
    return value or ""


def require_names(names: Sequence[str]) -> None:
    """Raise ValueError for a name of a region that DICOM cannot hold, and for one given twice."""
    for name in names:
        if not name.strip() or len(name.encode()) > LONGEST_NAME or "\\" in name or not name.isprintable():
            raise ValueError(f"a region's name must have 1 to {LONGEST_NAME} bytes and no backslash, got {name!r}")
    if len(set(names)) < len(names):
        raise ValueError(
            "two regions cannot have one name: " + ", ".join(sorted(n for n in names if names.count(n) > 1))
        )


def _structure_set(header: pydicom.Dataset, series: Series, about: About) -> FileDataset:
    now = datetime.now()
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = RTStructureSetStorage, generate_uid(prefix=None)
    # with explicit types a contour could not be longer than 65534 bytes
    meta.TransferSyntaxUID = ImplicitVRLittleEndian
    dataset = FileDataset(None, {}, file_meta=meta, preamble=b"\0" * 128)
    dataset.SpecificCharacterSet = CHARACTERS
    dataset.SOPClassUID, dataset.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    for keyword in COPIED:
        setattr(dataset, keyword, valid_value(header, keyword))
    dataset.Modality, dataset.SeriesInstanceUID, dataset.SeriesNumber = "RTSTRUCT", generate_uid(prefix=None), 1
    dataset.SeriesDescription, dataset.OperatorsName, dataset.InstanceNumber = about.label, "", 1
    dataset.FrameOfReferenceUID = header.FrameOfReferenceUID
    dataset.PositionReferenceIndicator = header.get("PositionReferenceIndicator", None) or ""
    dataset.Manufacturer, dataset.ManufacturerModelName, dataset.SoftwareVersions = (
        "nnunet_oar",
        "nnunet_oar",
        __version__,
    )
    dataset.InstanceCreationDate = dataset.StructureSetDate = dataset.SeriesDate = now.strftime("%Y%m%d")
    dataset.InstanceCreationTime = dataset.StructureSetTime = dataset.SeriesTime = now.strftime("%H%M%S")
    dataset.StructureSetLabel = about.label[:16]
    dataset.StructureSetDescription = about.description[:LONGEST_DESCRIPTION]
    dataset.ApprovalStatus = "UNAPPROVED"
    return dataset


def _frame_of_reference(header: pydicom.Dataset, series: Series) -> Dataset:
    images = [_reference(one.uid) for one in series.slices]
    of_series = _dataset(SeriesInstanceUID=series.uid, ContourImageSequence=images)
    study = _dataset(
        # the class of studies, retired, which readers still expect
        ReferencedSOPClassUID="1.2.840.10008.3.1.2.3.1",
        ReferencedSOPInstanceUID=header.StudyInstanceUID,
        RTReferencedSeriesSequence=[of_series],
    )
    return _dataset(FrameOfReferenceUID=header.FrameOfReferenceUID, RTReferencedStudySequence=[study])


def _contours(labels: np.ndarray, label: int, box: tuple[slice, slice, slice], series: Series) -> list[Dataset]:
    found = []
    first = np.array((box[1].start, box[2].start))
    for index in range(box[0].start, box[0].stop):
        for corners in outlines(labels[index][box[1:]] == label):
            points = series.patient_mm(index, corners + first)
            contour = _dataset(
                ContourImageSequence=[_reference(series.slices[index].uid)],
                ContourGeometricType="CLOSED_PLANAR",
                NumberOfContourPoints=len(points),
            )
            contour[CONTOUR_DATA] = _numbers(points.ravel())
            # as the file's: else pydicom would make an object of each number before writing it
            contour.set_original_encoding(True, True, default_encoding)
            found.append(contour)
    return found


def _numbers(values: np.ndarray) -> RawDataElement:
    text = "\\".join(np.char.mod("%.8g", values.round(4) + 0.0).tolist()).encode()
    return RawDataElement(CONTOUR_DATA, "DS", len(text) + len(text) % 2, text + b" " * (len(text) % 2), 0, True, True)


def _reference(uid: str) -> Dataset:
    return _dataset(ReferencedSOPClassUID=CT_IMAGE, ReferencedSOPInstanceUID=uid)


def _dataset(**elements) -> Dataset:
    dataset = Dataset()
    for keyword, value in elements.items():
        setattr(dataset, keyword, value)
    return dataset
