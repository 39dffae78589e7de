"""CT series made with pydicom alone, and an independent reader of structure sets: geometry of their own, nothing of ours."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pydicom
from matplotlib.path import Path as Polygon
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

# patient directions in which columns and rows grow
POSITIONS = {
    "head first, supine": ((1, 0, 0), (0, 1, 0)),
    "head first, prone": ((-1, 0, 0), (0, -1, 0)),
    "feet first, supine": ((-1, 0, 0), (0, 1, 0)),
    "feet first, prone": ((1, 0, 0), (0, -1, 0)),
    "head first, on the right side": ((0, 1, 0), (-1, 0, 0)),
    "sagittal": ((0, 1, 0), (0, 0, -1)),
    "coronal": ((1, 0, 0), (0, 0, -1)),
}


def oblique(seed: int) -> tuple[np.ndarray, np.ndarray]:
    matrix = np.linalg.qr(np.random.default_rng(seed).normal(size=(3, 3)))[0]
    return matrix[0], matrix[1]


@dataclass
class Geometry:
    """rows, columns, spacing (between rows, between columns) and the place of each slice."""

    shape: tuple[int, int] = (40, 48)
    spacing: tuple[float, float] = (1.5, 1.2)
    depths: np.ndarray = field(default_factory=lambda: np.arange(20) * 3.0)
    right: tuple = (1, 0, 0)
    down: tuple = (0, 1, 0)
    first: tuple = (-30.0, 12.0, -250.0)
    # mm along `down` for each mm along the normal
    tilt: float = 0.0

    @property
    def normal(self):
        return np.cross(self.right, self.down)

    def origin(self, index: int) -> np.ndarray:
        depth = self.depths[index]
        return np.array(self.first) + depth * (self.normal + self.tilt * np.array(self.down, float))

    def points(self) -> np.ndarray:
        """(N, rows, columns, 3): centres of the pixels in patient coordinates."""
        rows, columns = np.mgrid[: self.shape[0], : self.shape[1]].astype(float)
        plane = rows[..., None] * self.spacing[0] * np.array(self.down) + columns[..., None] * self.spacing[
            1
        ] * np.array(self.right)
        return np.stack([self.origin(index) + plane for index in range(len(self.depths))])


def write_series(
    folder: Path, hu: np.ndarray, geometry: Geometry, change=None, *, order=None, **elements
) -> list[Path]:
    """hu: (N, rows, columns); returns the files by slice. elements: of all slices. change(index, dataset): of each before it is
    written, which it is not where that returns False."""
    folder.mkdir(parents=True, exist_ok=True)
    study, series, frame = (generate_uid(prefix=None) for _ in range(3))
    names = np.arange(len(hu)) if order is None else order
    paths = []
    for index, plane in enumerate(hu):
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = CTImageStorage, generate_uid(prefix=None)
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        ds = FileDataset(None, {}, file_meta=meta, preamble=b"\0" * 128)
        ds.SOPClassUID, ds.SOPInstanceUID = CTImageStorage, meta.MediaStorageSOPInstanceUID
        ds.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
        ds.Modality, ds.Manufacturer, ds.SeriesDescription = "CT", "tests", "synthetic"
        ds.PatientName, ds.PatientID, ds.PatientBirthDate, ds.PatientSex = "Phantom^One", "P1", "", "O"
        ds.StudyInstanceUID, ds.SeriesInstanceUID, ds.FrameOfReferenceUID = study, series, frame
        ds.StudyDate, ds.StudyTime, ds.StudyID, ds.AccessionNumber = "20200101", "120000", "1", ""
        ds.ReferringPhysicianName, ds.PositionReferenceIndicator = "", ""
        ds.SeriesNumber, ds.InstanceNumber, ds.AcquisitionNumber = 1, int(index) + 1, 1
        ds.KVP = None
        ds.ImagePositionPatient = [round(float(value), 6) for value in geometry.origin(index)]
        ds.ImageOrientationPatient = [round(float(value), 9) for value in (*geometry.right, *geometry.down)]
        ds.PixelSpacing, ds.SliceThickness = list(map(float, geometry.spacing)), 3.0
        ds.Rows, ds.Columns, ds.SamplesPerPixel, ds.PhotometricInterpretation = *plane.shape, 1, "MONOCHROME2"
        ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 16, 15, 0
        ds.RescaleIntercept, ds.RescaleSlope = -1024, 1
        ds.PixelData = (plane.astype(np.int64) + 1024).astype(np.uint16).tobytes()
        for keyword, value in elements.items():
            setattr(ds, keyword, value)
        if change is not None and change(index, ds) is False:
            continue
        paths.append(folder / f"slice{names[index]:04d}.dcm")
        ds.save_as(paths[-1], enforce_file_format=True)
    return paths


def read_back(path: Path, geometry: Geometry, finer: int = 1) -> dict[str, np.ndarray]:
    """Region -> share of each pixel that lies inside, float (N, rows, columns), at `finer` x `finer` points a pixel.

    Contours go to the slice whose image they name; of all contours of a slice the parity counts.
    """
    ds = pydicom.dcmread(path)
    names = {roi.ROINumber: str(roi.ROIName) for roi in ds.StructureSetROISequence}
    frame = ds.ReferencedFrameOfReferenceSequence[0]
    images = frame.RTReferencedStudySequence[0].RTReferencedSeriesSequence[0].ContourImageSequence
    slices = {str(image.ReferencedSOPInstanceUID): index for index, image in enumerate(images)}
    offsets = (np.arange(finer) + 0.5) / finer - 0.5
    rows = (np.arange(geometry.shape[0])[:, None] + offsets).ravel()
    columns = (np.arange(geometry.shape[1])[:, None] + offsets).ravel()
    grid = np.stack(np.meshgrid(rows, columns, indexing="ij"), axis=-1).reshape(-1, 2)
    found = {}
    for item in ds.ROIContourSequence:
        share = np.zeros((len(geometry.depths), *geometry.shape))
        inside = np.zeros((len(geometry.depths), len(grid)), bool)
        for contour in item.ContourSequence:
            points = np.array(contour.ContourData, float).reshape(-1, 3)
            assert len(points) == contour.NumberOfContourPoints
            index = slices[str(contour.ContourImageSequence[0].ReferencedSOPInstanceUID)]
            moved = points - geometry.origin(index)
            # in the plane of its own slice
            assert np.abs(moved @ geometry.normal).max() < 1e-3
            polygon = np.stack(
                (
                    moved @ np.array(geometry.down) / geometry.spacing[0],
                    moved @ np.array(geometry.right) / geometry.spacing[1],
                ),
                1,
            )
            inside[index] ^= Polygon(np.concatenate((polygon, polygon[:1]))).contains_points(grid)
        for index in range(len(share)):
            shape = (geometry.shape[0], finer, geometry.shape[1], finer)
            share[index] = inside[index].reshape(shape).mean(axis=(1, 3))
        found[names[item.ReferencedROINumber]] = share
    return found


def dice(a: np.ndarray, b: np.ndarray) -> float:
    return 2 * np.count_nonzero(a & b) / (np.count_nonzero(a) + np.count_nonzero(b))


def add(dataset: Dataset, **elements) -> Dataset:
    for keyword, value in elements.items():
        setattr(dataset, keyword, value)
    return dataset
