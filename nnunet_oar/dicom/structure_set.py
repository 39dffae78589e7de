"""Structure sets (RTSTRUCT): what they hold, and their contours as masks on a CT series."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pydicom

from nnunet_oar.dicom.files import read
from nnunet_oar.dicom.outlines import filled
from nnunet_oar.dicom.series import Series

# of the distance between slices, that a contour may be off the plane of its slice: writers round, or give the table's position
OFF_PLANE = 0.25
# An organ of several parts leaves a gap or two. More gaps than that, and more than this share of the slices that it spans, mean
# that only every second or third slice was drawn.
GAPS, WITHOUT = 2, 0.2


@dataclass(frozen=True)
class Contour:
    """points_mm: (M, 3) in patient coordinates. image: SOPInstanceUID of the slice it was drawn on, empty where not said."""

    points_mm: np.ndarray
    image: str
    is_closed: bool


@dataclass(frozen=True)
class Roi:
    number: int
    name: str
    contours: tuple[Contour, ...]


@dataclass(frozen=True)
class StructureSet:
    """frames, series: UIDs that it refers to."""

    path: Path
    frames: frozenset[str]
    series: frozenset[str]
    rois: tuple[Roi, ...]


@dataclass(frozen=True)
class Rasterised:
    """mask: bool (N, rows, columns) on the series' slices, or None with the reason `why`. remarks: what else was noticed."""

    mask: np.ndarray | None
    why: str = ""
    remarks: tuple[str, ...] = ()


def read_structure_set(path: Path) -> StructureSet:
    """Raises ValueError, naming the file, where it cannot be read."""
    dataset = read(path)
    try:
        names = {int(roi.ROINumber): str(roi.get("ROIName", "")) for roi in dataset.get("StructureSetROISequence", [])}
        contours = {
            int(roi.ReferencedROINumber): tuple(map(_contour, roi.get("ContourSequence", None) or ()))
            for roi in dataset.get("ROIContourSequence", [])
        }
        frames = {
            str(roi.get("ReferencedFrameOfReferenceUID", "")) for roi in dataset.get("StructureSetROISequence", [])
        }
        series = {
            str(one.SeriesInstanceUID)
            for frame in dataset.get("ReferencedFrameOfReferenceSequence", [])
            for study in frame.get("RTReferencedStudySequence", [])
            for one in study.get("RTReferencedSeriesSequence", [])
        }
    except (AttributeError, TypeError, ValueError, KeyError) as error:
        raise ValueError(f"{path} is no complete structure set: {error}") from error
    rois = tuple(Roi(number, name, contours.get(number, ())) for number, name in names.items())
    return StructureSet(path, frozenset(frames - {""}), frozenset(series), rois)


def rasterised(roi: Roi, series: Series) -> Rasterised:
    """The region of interest on the slices of the series. On a slice, a voxel belongs to it whose centre an odd number of
    contours encloses: inner contours are holes."""
    closed = [contour for contour in roi.contours if contour.is_closed and len(contour.points_mm) >= 3]
    others = len(roi.contours) - len(closed)
    remarks = [f"{others} contours that enclose nothing (points, open lines)"] if others else []
    if not closed:
        return Rasterised(None, "has no closed contour", tuple(remarks))
    uids = {one.uid: index for index, one in enumerate(series.slices) if one.uid}
    absent = {contour.image for contour in closed if contour.image and contour.image not in uids} if uids else set()
    if absent:
        return Rasterised(None, f"was drawn on {len(absent)} slices that the series lacks", tuple(remarks))
    tolerance = OFF_PLANE * series.step_mm
    on_slices: dict[int, list[np.ndarray]] = {}
    for contour in closed:
        depths = contour.points_mm @ series.normal
        index = int(np.abs(series.distances_mm - np.median(depths)).argmin())
        off = float(np.abs(depths - series.distances_mm[index]).max())
        if off > tolerance or uids.get(contour.image, index) != index:
            return Rasterised(None, f"has a contour {off:.2f} mm off the nearest slice", tuple(remarks))
        on_slices.setdefault(index, []).append(series.corners(index, contour.points_mm))
    mask = np.zeros((len(series.slices), *series.shape), bool)
    for index, polygons in on_slices.items():
        points = np.concatenate(polygons)
        if (points < -0.5).any() or (points > np.array(series.shape) + 0.5).any():
            return Rasterised(None, "has a contour that reaches outside the images", tuple(remarks))
        mask[index] = filled(polygons, series.shape)
    slices = sorted(on_slices)
    extent = slices[-1] - slices[0] + 1
    if np.count_nonzero(np.diff(slices) > 1) > GAPS and extent - len(slices) > WITHOUT * extent:
        return Rasterised(None, f"is drawn on {len(slices)} of the {extent} slices that it spans", tuple(remarks))
    if extent > len(slices):
        remarks.append(f"not drawn on {extent - len(slices)} of the {extent} slices that it spans")
    if not mask.any():
        return Rasterised(None, "encloses the centre of no voxel", tuple(remarks))
    return Rasterised(mask, "", tuple(remarks))


def _contour(item: pydicom.Dataset) -> Contour:
    points = np.array(item.get("ContourData", None) or (), np.float64)
    if points.size % 3 or not np.isfinite(points).all():
        raise ValueError(f"a contour of {points.size} coordinates, not three for each point")
    images = item.get("ContourImageSequence", None) or ()
    image = str(images[0].get("ReferencedSOPInstanceUID", "")) if images else ""
    closed = str(item.get("ContourGeometricType", "")) in ("CLOSED_PLANAR", "CLOSEDPLANAR_XOR")
    return Contour(points.reshape(-1, 3), image, closed)


def names_of(rois: Iterable[Roi]) -> str:
    return ", ".join(repr(roi.name) for roi in rois)
