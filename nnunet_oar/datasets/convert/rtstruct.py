"""Patients of a clinical archive: SRC/PATIENT/ holds a CT series and the structure set (RTSTRUCT) drawn on it, in any sub-folders.

A patient that would have to be guessed at is left out, a region of interest that would have to be is not annotated there; both are
said. Slices that are uneven or of a tilted gantry are not resampled here: contours belong to the slices that they were drawn on.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import SimpleITK as sitk
from tqdm import tqdm

from nnunet_oar.datasets.convert.layout import (
    FILE_ENDING,
    Case,
    Collection,
    counted,
    entries,
    nothing_found,
    subfolders,
)
from nnunet_oar.dicom.files import Header, headers, looks_like_dicom
from nnunet_oar.dicom.names import Names, read_aliases
from nnunet_oar.dicom.series import Series, series_of
from nnunet_oar.dicom.structure_set import Roi, StructureSet, rasterised, read_structure_set
from nnunet_oar.dicom.volume import hu_image

NAME = "Clinical"
HELP = (
    "clinical patients: each folder in SRC holds a CT series and a structure set (RTSTRUCT); regions are recognised by TG-263 and "
    "other usual names, the rest is listed; an organ that a patient lacks is not annotated there"
)


@contextmanager
def gathered(
    folder: Path,
    work: Path,
    organs: Sequence[str] | None = None,
    names: Path | None = None,
    *,
    disable_progress_bar: bool = False,
) -> Iterator[Collection]:
    """The collection, with a NIfTI file of each CT and each region in `work` that live as long as the context.

    organs: which, in the order of their labels; None: all that are recognised. names: a file as `read_aliases`. Raises ValueError
    where no patient has a usable region; what is left out, and why, is in the remarks.
    """
    known = Names(None if names is None else read_aliases(names))
    unknown = [organ for organ in organs or () if known.organ(organ) != organ]
    if unknown:
        hint = (
            f"write {organ!r}"
            if (organ := known.organ(unknown[0]))
            else "add it with --names, or write it as TG-263 does"
        )
        raise ValueError(f"--organs: no organ is called {unknown[0]!r}; {hint}")
    if organs and len(set(organs)) < len(organs):
        raise ValueError("--organs: each organ may be named once")
    patients = _named(folder)
    unmapped: Counter[str] = Counter()
    remarks: list[str] = []
    with TemporaryDirectory(prefix=".nnunet_oar-", dir=work) as temporary:
        cases = []
        for name, patient in tqdm(patients.items(), "patients", unit="patient", disable=disable_progress_bar):
            try:
                case, problems = _converted(patient, name, Path(temporary), known, organs, unmapped)
            except ValueError as error:
                remarks.append(f"{patient.name}: left out, {error}")
                continue
            remarks += [f"{patient.name}: {problem}" for problem in problems]
            if case.masks:
                cases.append(case)
            else:
                remarks.append(f"{patient.name}: left out, no usable region")
        if unmapped:
            listed = ", ".join(f"{name!r} ({counted(count, 'patient')})" for name, count in unmapped.most_common())
            remarks.append(f"names that stand for no known organ: {listed}; --names FILE tells more names")
        found = known.ordered(organ for case in cases for organ in case.masks)
        missing = [organ for organ in organs or () if organ not in found]
        if missing or not cases:
            what = f"no patient has {missing[0]}" if missing else "no patient has a usable region"
            raise ValueError("\n  ".join([f"{folder}: {what}", *remarks]))
        yield Collection(tuple(organs or found), tuple(cases), remarks=tuple(remarks))


def _named(folder: Path) -> dict[str, Path]:
    """Case -> patient's folder. Raises ValueError where there is none, or two would be one case."""
    loose = [path for path in entries(folder, ".*") if path.is_file() and looks_like_dicom(path)]
    if loose:
        raise ValueError(f"{loose[0]} lies beside the patients; each patient needs a folder of its own in {folder}")
    found: dict[str, Path] = {}
    for path in subfolders(folder, ".*"):
        name = re.sub(r"[^\w.-]", "_", path.name)
        if name in found:
            raise ValueError(f"{found[name]} and {path} would both be the case {name}; rename one of them")
        found[name] = path
    if not found:
        raise nothing_found(folder, "a folder for each patient")
    return found


def _converted(
    folder: Path, name: str, work: Path, names: Names, organs: Sequence[str] | None, unmapped: Counter[str]
) -> tuple[Case, list[str]]:
    """(the case, with the masks that can be used; remarks). Raises ValueError for a patient that cannot be used at all."""
    found = headers(folder)
    sets = [header for header in found if header.is_structure_set]
    if len(sets) != 1:
        there = ", ".join(str(header.path.relative_to(folder)) for header in sets)
        raise ValueError(f"{len(sets)} structure sets ({there}), keep the right one" if sets else "no structure set")
    structures = read_structure_set(sets[0].path)
    series = _series(found, structures, folder)
    frame = next(header.text("FrameOfReferenceUID") for header in found if header.path == series.slices[0].path)
    unmapped.update({roi.name for roi in structures.rois if names.organ(roi.name) is None})
    by_organ: dict[str, list[Roi]] = {}
    for roi in structures.rois:
        organ = names.organ(roi.name)
        if organ is not None and (organs is None or organ in organs):
            by_organ.setdefault(organ, []).append(roi)
    (work / name).mkdir()
    image = hu_image(series)
    masks, remarks = {}, []
    for organ, rois in by_organ.items():
        # an empty region beside a drawn one is a left-over
        drawn = [roi for roi in rois if roi.contours] or rois[:1]
        if len(drawn) > 1:
            listed = " and ".join(repr(roi.name) for roi in drawn)
            remarks.append(f"{organ} not annotated, as {listed} both stand for it")
            continue
        roi = drawn[0]
        if not _same_frame(roi, frame, series, structures):
            remarks.append(f"{organ} not annotated: {roi.name!r} was drawn in another frame of reference than the CT's")
            continue
        result = rasterised(roi, series)
        remarks += [f"{roi.name!r} ({organ}): {remark}" for remark in result.remarks]
        if result.mask is None:
            remarks.append(f"{organ} not annotated: {roi.name!r} {result.why}")
        else:
            masks[organ] = work / name / f"mask{len(masks)}{FILE_ENDING}"
            labels = sitk.GetImageFromArray(result.mask.view(np.uint8))
            labels.CopyInformation(image)
            sitk.WriteImage(labels, str(masks[organ]), True)
    ct = work / name / f"ct{FILE_ENDING}"
    sitk.WriteImage(image, str(ct), True)
    return Case(name, ct, masks=masks), remarks


def _series(found: Sequence[Header], structures: StructureSet, folder: Path) -> Series:
    """The series that the structure set refers to; the only one where it refers to none, or the CT has no UID."""
    there = {header.text("SeriesInstanceUID") for header in found if header.is_ct}
    referenced = there & structures.series
    if structures.series and there - {""} and not referenced:
        raise ValueError(f"{structures.path.name} was drawn on a series that is not there")
    return series_of(found, folder, referenced.pop() if len(referenced) == 1 else None)


def _same_frame(roi: Roi, frame: str, series: Series, structures: StructureSet) -> bool:
    """Where one of the two does not say, the series that was drawn on must be this one."""
    return roi.frame == frame if roi.frame and frame else series.uid in structures.series
