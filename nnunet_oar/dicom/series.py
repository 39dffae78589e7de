"""One CT series: chosen among the files of a folder, its slices checked and sorted along their common normal."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from nnunet_oar.dicom.files import ENHANCED_CT_IMAGE, Header, headers

# between the slices' orientations, and of each from orthonormal: scanners write six digits
ANGLE = 1e-3
# of the distance between slices, that a slice may be off its place in an even stack: positions are rounded
UNEVEN = 0.1
# of a pixel, that a slice may be shifted in its plane against the first one
SHIFTED = 0.25
# of the distance between slices: nearer ones are two of one place
TWICE = 0.02
# a gap that is so much wider than the median of as many on each side of it has lost slices
WIDER, AROUND = 1.5, 3
# degrees; gantries lean by up to 30
STEEPEST = 45.0
LARGEST_HU = 1e6
REQUIRED = (
    "ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "Rows", "Columns", "RescaleIntercept", "RescaleSlope",
)  # fmt: skip
# what all slices must have in common: (element, how many numbers; 0: text), what it is, tolerance
AGREEING = (
    ((("PatientID", 0), ("StudyInstanceUID", 0)), "patient or study", 0),
    ((("FrameOfReferenceUID", 0),), "frame of reference", 0),
    ((("ImageOrientationPatient", 6),), "orientation", ANGLE),
    ((("Rows", 1), ("Columns", 1), ("PixelSpacing", 2)), "size or pixel spacing", 1e-4),
)


@dataclass(frozen=True)
class Slice:
    """origin_mm: centre of the first pixel, (3,) in patient coordinates. distance_mm: of it from the patient's origin, along the
    series' normal."""

    path: Path
    uid: str
    origin_mm: np.ndarray
    distance_mm: float
    intercept: float
    slope: float


@dataclass(frozen=True)
class Series:
    """slices: by distance. shape: rows and columns. spacing_mm: between rows and between columns. right, down: unit vectors in
    which the column and the row index grow. thickness_mm: as the header says, 0 where it does not. units: what the header says
    that the rescaled values are, HU where it says nothing."""

    uid: str
    slices: tuple[Slice, ...]
    shape: tuple[int, int]
    spacing_mm: tuple[float, float]
    right: np.ndarray
    down: np.ndarray
    thickness_mm: float
    units: str = "HU"

    @property
    def normal(self) -> np.ndarray:
        return np.cross(self.right, self.down)

    @cached_property
    def origins_mm(self) -> np.ndarray:
        """(N, 3)"""
        return np.stack([one.origin_mm for one in self.slices])

    @cached_property
    def distances_mm(self) -> np.ndarray:
        """(N,), increasing"""
        return np.array([one.distance_mm for one in self.slices])

    @property
    def step_mm(self) -> float:
        """Mean distance between neighbours; of a single slice its thickness."""
        if len(self.slices) == 1:
            return self.thickness_mm
        return float(self.distances_mm[-1] - self.distances_mm[0]) / (len(self.slices) - 1)

    @property
    def shifts_vox(self) -> np.ndarray:
        """(N, 2): by how many rows and columns each slice's first pixel is shifted in its plane against the first slice's."""
        moved = self.origins_mm - self.origins_mm[0]
        return np.stack((moved @ self.down / self.spacing_mm[0], moved @ self.right / self.spacing_mm[1]), axis=1)

    @property
    def is_tilted(self) -> bool:
        """Whether slices are shifted in their planes against each other, as a tilted gantry leaves them."""
        return bool(np.abs(self.shifts_vox).max() > SHIFTED)

    @property
    def is_even(self) -> bool:
        even = self.distances_mm[0] + self.step_mm * np.arange(len(self.slices))
        return bool(np.abs(self.distances_mm - even).max() <= UNEVEN * self.step_mm)

    def patient_mm(self, index: int, corners: np.ndarray) -> np.ndarray:
        """(M, 3) of corners (M, 2), (row, column), of the pixels of one slice: pixel (r, c) fills r to r + 1, c to c + 1."""
        rows, columns = (corners - 0.5).T
        return (
            self.slices[index].origin_mm
            + rows[:, None] * self.spacing_mm[0] * self.down
            + columns[:, None] * self.spacing_mm[1] * self.right
        )

    def corners(self, index: int, points_mm: np.ndarray) -> np.ndarray:
        """The inverse of `patient_mm`, of points projected to the plane."""
        moved = points_mm - self.slices[index].origin_mm
        rows, columns = moved @ self.down / self.spacing_mm[0], moved @ self.right / self.spacing_mm[1]
        return np.stack((rows, columns), axis=1) + 0.5


def read_series(folder: Path, uid: str | None = None, resample: bool = False) -> Series:
    """The CT series of a folder and what is below, or of several the one with this SeriesInstanceUID.

    resample: accept uneven slices and a tilted gantry, which `volume.hu_image` then resamples. Raises ValueError with one
    sentence for what is no complete CT series, and where there are several.
    """
    return series_of(headers(folder), folder, uid, resample)


def series_of(found: Sequence[Header], folder: Path, uid: str | None = None, resample: bool = False) -> Series:
    """`read_series` of headers that were read already."""
    ct = [header for header in found if header.is_ct]
    if not ct:
        there = _counted(header.kind for header in found)
        raise ValueError(f"{folder} holds no CT series; found {there or 'no DICOM file'}")
    groups: dict[str, list[Header]] = {}
    for header in ct:
        groups.setdefault(header.text("SeriesInstanceUID"), []).append(header)
    if uid is None:
        # a scout has a series of its own beside the slices
        volumes = [name for name, group in groups.items() if not all(header.is_localiser for header in group)]
        if not volumes:
            raise ValueError(f"{folder} holds localiser images only, no CT volume")
        if len(volumes) > 1:
            listed = _listed({name: groups[name] for name in volumes})
            raise ValueError(f"{folder} holds {len(volumes)} CT series; predict --series UID chooses one: {listed}")
        uid = volumes[0]
    elif uid not in groups:
        raise ValueError(f"{folder} has no CT series {uid}; it has {_listed(groups)}")
    for header in found:
        if uid and header.text("SeriesInstanceUID") == uid and not header.is_ct:
            raise ValueError(f"{header.path} is of the CT series and no CT image, but {header.kind}; a damaged slice?")
    return _checked(groups[uid], uid, folder, resample)


def _checked(group: list[Header], uid: str, folder: Path, resample: bool) -> Series:
    where = f"{folder}, series {uid or 'without UID'}"
    for header in group:
        _check_image(header, len(group))
    _check_agreement(group, where)
    first = group[0]
    orientation = first.numbers("ImageOrientationPatient", 6)
    right = orientation[:3] / np.linalg.norm(orientation[:3])
    down = orientation[3:] - (orientation[3:] @ right) * right
    down /= np.linalg.norm(down)
    normal = np.cross(right, down)
    slices = []
    for header in group:
        origin = header.numbers("ImagePositionPatient", 3)
        slope, intercept = header.number("RescaleSlope"), header.number("RescaleIntercept")
        slices.append(
            Slice(header.path, header.text("SOPInstanceUID"), origin, float(origin @ normal), intercept, slope)
        )
    series = Series(
        uid,
        tuple(sorted(slices, key=lambda one: one.distance_mm)),
        (int(first.number("Rows")), int(first.number("Columns"))),
        tuple(first.numbers("PixelSpacing", 2).tolist()),
        right,
        down,
        max(0.0, first.number("SliceThickness", 0.0)),
        ", ".join(sorted({header.text("RescaleType").strip().upper() or "HU" for header in group})),
    )
    _check_stack(series, where, resample)
    return series


def _check_image(header: Header, images: int) -> None:
    path = header.path
    if header.text("SOPClassUID") == ENHANCED_CT_IMAGE or header.number("NumberOfFrames", 1) > 1:
        raise ValueError(f"{path} holds many frames (enhanced CT), which is not read; export one file per slice")
    if header.is_localiser:
        raise ValueError(f"{path} is a localiser image under the same series UID as {images - 1} others; remove it")
    if header.text("PhotometricInterpretation") not in ("", "MONOCHROME2") or header.number("SamplesPerPixel", 1) != 1:
        raise ValueError(
            f"{path} is no CT slice: its pixels are {header.text('PhotometricInterpretation') or 'in colour'}"
        )
    missing = [keyword for keyword in REQUIRED if header.dataset.get(keyword, None) in (None, "")]
    if missing:
        raise ValueError(f"{path} lacks {missing[0]}, without which place or HU of its pixels are not known")
    stored = header.number("BitsStored", 16)
    if header.number("HighBit", stored - 1) != stored - 1:
        raise ValueError(
            f"{path}: HighBit must be BitsStored - 1, got {header.text('HighBit')} and {header.text('BitsStored')}"
        )
    slope, intercept = header.number("RescaleSlope"), header.number("RescaleIntercept")
    if not 0 < slope <= LARGEST_HU or abs(intercept) > LARGEST_HU:
        raise ValueError(f"{path}: RescaleSlope {slope:g} and RescaleIntercept {intercept:g} make no HU")
    right, down = np.split(header.numbers("ImageOrientationPatient", 6), 2)
    if np.abs(np.linalg.norm([right, down], axis=1) - 1).max() > ANGLE or abs(right @ down) > ANGLE:
        raise ValueError(f"{path}: ImageOrientationPatient {[*right, *down]} is no pair of unit vectors")
    if not (header.numbers("PixelSpacing", 2) > 0).all():
        raise ValueError(f"{path}: PixelSpacing must be above 0, got {header.text('PixelSpacing')}")
    if not (header.number("Rows") > 0 and header.number("Columns") > 0):
        raise ValueError(f"{path}: it has {header.text('Rows')} rows and {header.text('Columns')} columns")


def _check_agreement(group: list[Header], where: str) -> None:
    """Raise ValueError where the slices are not of one patient, one place and one grid."""
    first = group[0]
    for header in group[1:]:
        for keywords, what, tolerance in AGREEING:
            for keyword, count in keywords:
                if count:
                    ours, theirs = (of.numbers(keyword, count) for of in (header, first))
                    same = np.abs(ours - theirs).max() <= tolerance
                else:
                    same = header.text(keyword) == first.text(keyword)
                if not same:
                    raise ValueError(f"{where}: {header.path.name} and {first.path.name} differ in {what}")


def _check_stack(series: Series, where: str, resample: bool) -> None:
    slices = series.slices
    if len(slices) == 1:
        if series.thickness_mm <= 0:
            raise ValueError(f"{where}: one slice without SliceThickness; how thick it is cannot be known")
        return
    gaps = np.diff(series.distances_mm)
    for index in np.flatnonzero(gaps <= max(TWICE * float(np.median(gaps)), 1e-3)):
        pair = f"{slices[index].path.name} and {slices[index + 1].path.name}"
        raise ValueError(f"{where}: {pair} lie at the same place; keep one of them")
    missing = _missing(gaps)
    if missing:
        at = ", ".join(
            f"{series.distances_mm[index]:.1f} and {series.distances_mm[index + 1]:.1f} mm" for index in missing
        )
        raise ValueError(f"{where}: slices are missing between {at} (usual distance {np.median(gaps):.2f} mm)")
    tilt = _tilt(series)
    if tilt is None:
        raise ValueError(
            f"{where}: slices are shifted in their planes against each other, and not evenly as by a tilted gantry"
        )
    if resample:
        return
    if series.is_tilted:
        raise ValueError(
            f"{where}: slices are shifted against each other by a tilt of {tilt:.1f} degrees; predict --resample accepts that"
        )
    if not series.is_even:
        raise ValueError(
            f"{where}: slices lie {gaps.min():.2f} to {gaps.max():.2f} mm from each other; predict --resample accepts that"
        )


def _missing(gaps: np.ndarray) -> list[int]:
    """Gaps that are much wider than those around them. Where the distance changes for good, half of these are as wide."""
    found = []
    for index, gap in enumerate(gaps):
        around = np.concatenate((gaps[max(0, index - AROUND) : index], gaps[index + 1 : index + 1 + AROUND]))
        if len(around) and gap > WIDER * np.median(around):
            found.append(index)
    return found


def _tilt(series: Series) -> float | None:
    """Degrees by which the stack leans; None where it does not lean evenly, or by more than any gantry."""
    depths = series.distances_mm - series.distances_mm[0]
    slope = series.shifts_vox[-1] / depths[-1]
    degrees = math.degrees(math.atan(np.linalg.norm(slope * series.spacing_mm)))
    even = np.abs(series.shifts_vox - depths[:, None] * slope).max() <= 2 * SHIFTED
    return degrees if even and degrees <= STEEPEST else None


def _listed(groups: dict[str, list[Header]]) -> str:
    return ", ".join(
        f"{uid or 'without UID'} ({len(group)} images{', ' + text if (text := group[0].text('SeriesDescription')) else ''})"
        for uid, group in groups.items()
    )


def _counted(values: Iterable[str]) -> str:
    values = list(values)
    return ", ".join(f"{values.count(value)} of {value}" for value in sorted(set(values)))
