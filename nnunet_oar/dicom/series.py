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
REQUIRED = (
    "ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "Rows", "Columns", "RescaleIntercept", "RescaleSlope",
)  # fmt: skip


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
    which the column and the row index grow. thickness_mm: as the header says, 0 where it does not."""

    uid: str
    slices: tuple[Slice, ...]
    shape: tuple[int, int]
    spacing_mm: tuple[float, float]
    right: np.ndarray
    down: np.ndarray
    thickness_mm: float

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
        there = _counted(header.text("Modality") or "no modality" for header in found)
        raise ValueError(f"{folder} holds no CT series; found {there or 'no DICOM file'}")
    groups: dict[str, list[Header]] = {}
    for header in ct:
        groups.setdefault(header.text("SeriesInstanceUID"), []).append(header)
    if uid is not None:
        if uid not in groups:
            raise ValueError(f"{folder} has no CT series {uid}; it has {_listed(groups)}")
        return _checked(groups[uid], uid, folder, resample)
    # a scout has a series of its own beside the slices
    volumes = {name: group for name, group in groups.items() if not all(header.is_localiser for header in group)}
    if not volumes:
        raise ValueError(f"{folder} holds localiser images only, no CT volume")
    if len(volumes) > 1:
        raise ValueError(f"{folder} holds {len(volumes)} CT series, choose one with --series: {_listed(volumes)}")
    name, group = next(iter(volumes.items()))
    return _checked(group, name, folder, resample)


def _checked(group: list[Header], uid: str, folder: Path, resample: bool) -> Series:
    where = f"{folder}, series {uid or 'without UID'}"
    for header in group:
        _check_image(header, len(group))
    first = group[0]
    cosines = [_numbers(header, "ImageOrientationPatient", 6) for header in group]
    for header, orientation in zip(group, cosines, strict=True):
        right, down = orientation[:3], orientation[3:]
        lengths = np.linalg.norm([right, down], axis=1)
        if np.abs(lengths - 1).max() > ANGLE or abs(right @ down) > ANGLE:
            raise ValueError(
                f"{header.path}: ImageOrientationPatient {orientation.tolist()} is no pair of unit vectors"
            )
        if np.abs(orientation - cosines[0]).max() > ANGLE:
            raise ValueError(f"{where}: {header.path.name} and {first.path.name} differ in orientation")
    right = cosines[0][:3] / np.linalg.norm(cosines[0][:3])
    down = cosines[0][3:] - (cosines[0][3:] @ right) * right
    down /= np.linalg.norm(down)
    shapes = [(int(header.dataset.Rows), int(header.dataset.Columns)) for header in group]
    spacings = [_numbers(header, "PixelSpacing", 2) for header in group]
    frames = [header.text("FrameOfReferenceUID") for header in group]
    if not (spacings[0] > 0).all():
        raise ValueError(f"{first.path}: PixelSpacing must be above 0, got {spacings[0].tolist()}")
    for header, shape, spacing, frame in zip(group, shapes, spacings, frames, strict=True):
        if shape != shapes[0] or np.abs(spacing - spacings[0]).max() > 1e-4 * spacings[0].min():
            raise ValueError(f"{where}: {header.path.name} and {first.path.name} differ in size or pixel spacing")
        if frame != frames[0]:
            raise ValueError(f"{where}: {header.path.name} and {first.path.name} differ in frame of reference")
    normal = np.cross(right, down)
    slices = []
    for header in group:
        origin = _numbers(header, "ImagePositionPatient", 3)
        slices.append(
            Slice(
                header.path,
                header.text("SOPInstanceUID"),
                origin,
                float(origin @ normal),
                float(_numbers(header, "RescaleIntercept", 1)[0]),
                float(_numbers(header, "RescaleSlope", 1)[0]),
            )
        )
    order = sorted(range(len(group)), key=lambda index: slices[index].distance_mm)
    thickness = first.dataset.get("SliceThickness", None)
    series = Series(
        uid,
        tuple(slices[index] for index in order),
        shapes[0],
        tuple(spacings[0].tolist()),
        right,
        down,
        float(thickness) if thickness and math.isfinite(thickness) and thickness > 0 else 0.0,
    )
    _check_stack(series, where, resample)
    return series


def _check_image(header: Header, images: int) -> None:
    path = header.path
    if header.text("SOPClassUID") == ENHANCED_CT_IMAGE or int(header.dataset.get("NumberOfFrames", None) or 1) > 1:
        raise ValueError(f"{path} holds many frames (enhanced CT), which is not read; export one file per slice")
    if header.is_localiser:
        raise ValueError(f"{path} is a localiser image under the same series UID as {images - 1} others; remove it")
    if (
        header.text("PhotometricInterpretation") not in ("", "MONOCHROME2")
        or header.dataset.get("SamplesPerPixel", 1) != 1
    ):
        raise ValueError(
            f"{path} is no CT slice: its pixels are {header.text('PhotometricInterpretation') or 'in colour'}"
        )
    missing = [keyword for keyword in REQUIRED if header.dataset.get(keyword, None) in (None, "")]
    if missing:
        raise ValueError(f"{path} lacks {missing[0]}, without which place or HU of its pixels are not known")


def _check_stack(series: Series, where: str, resample: bool) -> None:
    slices = series.slices
    if len(slices) == 1:
        if series.thickness_mm <= 0:
            raise ValueError(f"{where}: one slice without SliceThickness; how thick it is cannot be known")
        return
    gaps = np.diff(series.distances_mm)
    usual = float(np.median(gaps))
    for index in np.flatnonzero(gaps <= max(TWICE * usual, 1e-3)):
        pair = f"{slices[index].path.name} and {slices[index + 1].path.name}"
        raise ValueError(f"{where}: {pair} lie at the same place; keep one of them")
    missing = _missing(gaps, usual)
    if missing:
        at = ", ".join(
            f"{series.distances_mm[index]:.1f} and {series.distances_mm[index + 1]:.1f} mm" for index in missing
        )
        raise ValueError(f"{where}: slices are missing between {at} (usual distance {usual:.2f} mm)")
    if resample:
        return
    if series.is_tilted:
        degrees = math.degrees(math.atan2(np.linalg.norm(_drift(series)), abs(gaps.sum())))
        raise ValueError(
            f"{where}: slices are shifted against each other by a tilt of {degrees:.1f} degrees; --resample accepts that"
        )
    if not series.is_even:
        raise ValueError(
            f"{where}: slices lie {gaps.min():.2f} to {gaps.max():.2f} mm from each other; --resample accepts that"
        )


def _missing(gaps: np.ndarray, usual: float) -> list[int]:
    """Gaps of whole multiples of the usual distance, where these are rare: many are a change of spacing."""
    multiples = gaps / usual
    wide = np.flatnonzero((multiples > 1.5) & (np.abs(multiples - np.round(multiples)) < UNEVEN * multiples))
    return [int(index) for index in wide] if 0 < len(wide) <= max(1, len(gaps) // 10) else []


def _drift(series: Series) -> np.ndarray:
    moved = series.origins_mm[-1] - series.origins_mm[0]
    return moved - (moved @ series.normal) * series.normal


def _numbers(header: Header, keyword: str, count: int) -> np.ndarray:
    try:
        values = np.atleast_1d(np.array(header.dataset[keyword].value, dtype=np.float64))
    except (TypeError, ValueError, KeyError):
        values = np.zeros(0)
    if values.shape != (count,) or not np.isfinite(values).all():
        raise ValueError(f"{header.path}: {keyword} must be {count} numbers")
    return values


def _listed(groups: dict[str, list[Header]]) -> str:
    return ", ".join(
        f"{uid or 'without UID'} ({len(group)} images{', ' + text if (text := group[0].text('SeriesDescription')) else ''})"
        for uid, group in groups.items()
    )


def _counted(values: Iterable[str]) -> str:
    values = list(values)
    return ", ".join(f"{values.count(value)} of {value}" for value in sorted(set(values)))
