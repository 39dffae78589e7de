"""Structure sets (RTSTRUCT): what they hold, and their contours as masks on a CT series."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pydicom
from pydicom.dataelem import RawDataElement

from nnunet_oar.dicom.files import read
from nnunet_oar.dicom.outlines import filled
from nnunet_oar.dicom.series import Series

# of the distance between slices, that a contour may be off the plane of its slice: writers round, or give the table's position
OFF_PLANE = 0.25
# An organ of several parts leaves a gap or two. More gaps than that, or slices drawn one by one, mean that only every second or
# third slice was drawn where more than the first share of the slices that it spans is without a contour; more than the second share
# is taken for that in any case.
GAPS, WITHOUT, MOST_WITHOUT = 2, 0.2, 0.5


@dataclass(frozen=True)
class Contour:
    """points_mm: (M, 3) in patient coordinates. image: SOPInstanceUID of the slice it was drawn on, empty where not said."""

    points_mm: np.ndarray
    image: str
    is_closed: bool


@dataclass(frozen=True)
class Roi:
    """frame: UID of the frame of reference that it was drawn in; empty where not said."""

    number: int
    frame: str
    name: str
    contours: tuple[Contour, ...]


@dataclass(frozen=True)
class StructureSet:
    """series: UIDs that it refers to."""

    path: Path
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
        regions = list(dataset.get("StructureSetROISequence", None) or ())
        drawn = list(dataset.get("ROIContourSequence", None) or ())
        numbers = [int(roi.ROINumber) for roi in regions]
        contours = {
            int(roi.ReferencedROINumber): tuple(map(_contour, roi.get("ContourSequence", None) or ())) for roi in drawn
        }
        rois = tuple(
            Roi(
                number,
                str(roi.get("ReferencedFrameOfReferenceUID", None) or ""),
                str(roi.get("ROIName", "")),
                contours.get(number, ()),
            )
            for number, roi in zip(numbers, regions, strict=True)
        )
        series = {
            str(one.get("SeriesInstanceUID", ""))
            for frame in dataset.get("ReferencedFrameOfReferenceSequence", None) or ()
            for study in frame.get("RTReferencedStudySequence", None) or ()
            for one in study.get("RTReferencedSeriesSequence", None) or ()
        }
    except Exception as error:  # values are read when they are asked for, and damaged ones fail in many ways
        raise ValueError(f"{path} is no complete structure set: {(str(error).splitlines() or [''])[0]}") from error
    if len(set(numbers)) < len(numbers) or len(contours) < len(drawn):
        raise ValueError(f"{path} gives several regions one number: which contours are whose is not known")
    if not rois:
        raise ValueError(f"{path} is no complete structure set: it names no region")
    return StructureSet(path, frozenset(series - {""}), rois)


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
        if off > tolerance:
            return Rasterised(None, f"has a contour {off:.2f} mm off the nearest slice", tuple(remarks))
        if uids.get(contour.image, index) != index:
            return Rasterised(None, "has a contour that names another slice than it lies in", tuple(remarks))
        on_slices.setdefault(index, []).append(series.corners(index, contour.points_mm))
    mask = np.zeros((len(series.slices), *series.shape), bool)
    for index, polygons in on_slices.items():
        points = np.concatenate(polygons)
        if (points < -0.5).any() or (points > np.array(series.shape) + 0.5).any():
            return Rasterised(None, "has a contour that reaches outside the images", tuple(remarks))
        mask[index] = filled(polygons, series.shape)
        if _cross(polygons, series.shape):
            return Rasterised(None, "has contours on one slice that are the same or cross each other", tuple(remarks))
    slices = sorted(on_slices)
    extent = slices[-1] - slices[0] + 1
    gaps, without = np.count_nonzero(np.diff(slices) > 1), 1 - len(slices) / extent
    if without > MOST_WITHOUT or (without > WITHOUT and (gaps > GAPS or gaps == len(slices) - 1)):
        return Rasterised(None, f"is drawn on {len(slices)} of the {extent} slices that it spans", tuple(remarks))
    if extent > len(slices):
        remarks.append(f"not drawn on {extent - len(slices)} of the {extent} slices that it spans")
    if not mask.any():
        return Rasterised(None, "encloses the centre of no voxel", tuple(remarks))
    return Rasterised(mask, "", tuple(remarks))


def _cross(polygons: list[np.ndarray], shape: tuple[int, int]) -> bool:
    """Whether two contours enclose pixels in common and neither lies in the other: by parity these would be a hole."""
    masks = [filled([polygon], shape) for polygon in polygons] if len(polygons) > 1 else []
    for index, one in enumerate(masks):
        for other in masks[:index]:
            common = np.count_nonzero(one & other)
            sizes = sorted((np.count_nonzero(one), np.count_nonzero(other)))
            if common and (common < sizes[0] or sizes[0] == sizes[1]):
                return True
    return False


def _contour(item: pydicom.Dataset) -> Contour:
    stored = item.get_item("ContourData") if "ContourData" in item else None
    # the text itself: pydicom makes an object of each number
    text = stored.value if isinstance(stored, RawDataElement) else None
    values = text.split(b"\\") if text else (item.get("ContourData", None) or ())
    points = np.array(values, dtype=np.float64)
    if points.size % 3 or not np.isfinite(points).all():
        raise ValueError(f"a contour of {points.size} coordinates, not three for each point")
    images = item.get("ContourImageSequence", None) or ()
    image = str(images[0].get("ReferencedSOPInstanceUID", "")) if images else ""
    closed = str(item.get("ContourGeometricType", "")) in ("CLOSED_PLANAR", "CLOSEDPLANAR_XOR")
    return Contour(points.reshape(-1, 3), image, closed)
