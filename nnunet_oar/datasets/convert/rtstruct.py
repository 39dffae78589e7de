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

from nnunet_oar.datasets.convert.layout import FILE_ENDING, Case, Collection, counted, nothing_found, subfolders
from nnunet_oar.dicom.files import Header, headers
from nnunet_oar.dicom.names import Names, read_aliases
from nnunet_oar.dicom.series import Series, series_of
from nnunet_oar.dicom.structure_set import Roi, rasterised, read_structure_set
from nnunet_oar.dicom.volume import hu_image

NAME = "Clinical"
HELP = (
    "clinical patients: each folder in SRC holds a CT series and a structure set (RTSTRUCT); regions are recognised by TG-263 and "
    "other usual names, the rest is listed; an organ that a patient lacks is not annotated there"
)


@contextmanager
def gathered(
    folder: Path, organs: Sequence[str] | None = None, names: Path | None = None, *, disable_progress_bar: bool = False
) -> Iterator[Collection]:
    """The collection, with a NIfTI file of each CT and each region that live as long as the context.

    organs: which, in the order of their labels; None: all that are recognised. names: a file as `read_aliases`. Raises ValueError
    where no patient has a usable region; what is left out, and why, is in the remarks.
    """
    known = Names(None if names is None else read_aliases(names))
    unknown = [organ for organ in organs or () if known.organ(organ) != organ]
    if unknown:
        raise ValueError(f"no name is known for {unknown[0]!r}; add it with --names, or write it as TG-263 does")
    patients = subfolders(folder, ".*")
    if not patients:
        raise nothing_found(folder, "a folder for each patient")
    unmapped: Counter[str] = Counter()
    remarks: list[str] = []
    with TemporaryDirectory(prefix="nnunet_oar-") as work:
        cases = []
        for patient in tqdm(patients, desc="patients", unit="patient", disable=disable_progress_bar):
            try:
                masks, image, problems = _patient(patient, known, organs, unmapped)
            except ValueError as error:
                remarks.append(f"{patient.name}: left out, {error}")
                continue
            remarks += [f"{patient.name}: {problem}" for problem in problems]
            if masks:
                cases.append(_written(Path(work), re.sub(r"[^A-Za-z0-9_.-]", "_", patient.name), image, masks))
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


def _patient(
    folder: Path, names: Names, organs: Sequence[str] | None, unmapped: Counter[str]
) -> tuple[dict[str, np.ndarray], sitk.Image, list[str]]:
    """(organ -> mask, CT, remarks). Raises ValueError for a patient that cannot be used at all."""
    found = headers(folder)
    sets = [header for header in found if header.is_structure_set]
    if len(sets) != 1:
        there = ", ".join(str(header.path.relative_to(folder)) for header in sets)
        raise ValueError(f"{len(sets)} structure sets ({there}), keep the right one" if sets else "no structure set")
    structures = read_structure_set(sets[0].path)
    series = _series(found, structures.series, folder)
    frame = next(header.text("FrameOfReferenceUID") for header in found if header.path == series.slices[0].path)
    if frame and structures.frames and frame not in structures.frames:
        raise ValueError(f"{sets[0].path.name} was drawn in another frame of reference than the CT's")
    by_organ: dict[str, list[Roi]] = {}
    for roi in structures.rois:
        organ = names.organ(roi.name)
        if organ is None:
            unmapped[roi.name] += 1
        elif organs is None or organ in organs:
            by_organ.setdefault(organ, []).append(roi)
    masks, remarks = {}, []
    for organ, rois in by_organ.items():
        if len(rois) > 1:
            listed = " and ".join(repr(roi.name) for roi in rois)
            remarks.append(f"{organ} not annotated, as {listed} both stand for it")
            continue
        result = rasterised(rois[0], series)
        remarks += [f"{rois[0].name!r} ({organ}): {remark}" for remark in result.remarks]
        if result.mask is None:
            remarks.append(f"{organ} not annotated: {rois[0].name!r} {result.why}")
        else:
            masks[organ] = result.mask
    return masks, hu_image(series), remarks


def _series(found: Sequence[Header], referenced: frozenset[str], folder: Path) -> Series:
    """The series that the structure set refers to, where it is there; else the only one."""
    there = {header.text("SeriesInstanceUID") for header in found if header.is_ct} & referenced - {""}
    return series_of(found, folder, there.pop() if len(there) == 1 else None)


def _written(folder: Path, name: str, image: sitk.Image, masks: dict[str, np.ndarray]) -> Case:
    (folder / name).mkdir()
    files = {organ: folder / name / f"{organ}{FILE_ENDING}" for organ in masks}
    for organ, mask in masks.items():
        labels = sitk.GetImageFromArray(mask.astype(np.uint8))
        labels.CopyInformation(image)
        sitk.WriteImage(labels, str(files[organ]), True)
    ct = folder / name / f"ct{FILE_ENDING}"
    sitk.WriteImage(image, str(ct), True)
    return Case(name, ct, masks=files)
