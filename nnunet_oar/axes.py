"""Which array axis is which in the patient. The one place that knows: everything else asks `anatomical_axes`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import SimpleITK as sitk

_AXIS_OF = {"R": 0, "L": 0, "A": 1, "P": 1, "I": 2, "S": 2}


class AnatomicalAxes(NamedTuple):
    """Array axes (0, 1, 2 of the preprocessed data) along which a patient's directions run.

    sides_agree: False where left is at the low end of the axis in some cases and at the high end in others. nnU-Net looks at
    arrays only, so no network can then tell a left organ from a right one. letters: the directions in which the axes grow, as
    `orientation`; None where cases differ.
    """

    left_right: int
    anterior_posterior: int
    inferior_superior: int
    sides_agree: bool
    letters: str | None = None


def orientation(direction: Sequence[float]) -> str:
    """Patient direction in which each array axis (z, y, x) grows, for example "SPL".

    direction: ITK's 9 direction cosines, row-major, columns are the index axes (x, y, z). Oblique images are assigned to the
    nearest directions as SimpleITK's DICOMOrient does, so that this agrees with what SimpleITKIOWithReorient makes of a file.
    """
    return sitk.DICOMOrientImageFilter_GetOrientationFromDirectionCosines([float(value) for value in direction])[::-1]


def array_orientation(properties: Mapping) -> str | None:
    """`orientation` of a case as nnU-Net's reader returned it, from the case's properties; None where they do not tell."""
    if "sitk_stuff" in properties:
        direction = properties["sitk_stuff"]["direction"]
        return orientation(direction) if len(direction) == 9 else None
    if "nibabel_stuff" in properties:
        stuff = properties["nibabel_stuff"]
        # nnU-Net transposes nibabel's (x, y, z) arrays to (z, y, x); the reorienting reader keeps both affines
        affine = np.asarray(stuff.get("reoriented_affine", stuff["original_affine"]))
        cosines = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
        return orientation((np.diag((-1.0, -1.0, 1.0)) @ cosines).ravel())  # nibabel's world is RAS, ITK's LPS
    return None


def anatomical_axes(cases: Iterable[Mapping], transpose_forward: Sequence[int]) -> AnatomicalAxes | None:
    """The axes of the preprocessed data where all cases (their nnU-Net properties) agree, else None.

    transpose_forward: the plans' transposition, from the reader's axes to those of the preprocessed data.
    """
    codes = {array_orientation(properties) for properties in cases}
    if None in codes:
        return None
    patient_axes = {tuple(_AXIS_OF[code[axis]] for axis in transpose_forward) for code in codes}
    if len(patient_axes) != 1:
        return None
    found = patient_axes.pop()
    sides = {letter for code in codes for letter in code if letter in "LR"}
    letters = "".join(next(iter(codes))[axis] for axis in transpose_forward) if len(codes) == 1 else None
    return AnatomicalAxes(*(found.index(axis) for axis in range(3)), sides_agree=len(sides) == 1, letters=letters)
