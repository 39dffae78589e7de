"""What data sets of synthetic CTs there are: their labels, and which examinations they are made of."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np

from nnunet_oar.datasets import phantom_body, phantom_thorax
from nnunet_oar.datasets.phantom_organs import Organ
from nnunet_oar.datasets.phantom_shapes import Canvas, Deformation, Grid

HEAD_ORGANS = ("brainstem", "eye_left", "eye_right", "parotid_left", "parotid_right", "mandible", "spinal_cord")
THORAX_ORGANS = ("heart", "lung_left", "lung_right", "trachea", "esophagus", "spinal_cord")
ABDOMEN_ORGANS = ("liver", "spleen", "stomach", "kidney_left", "kidney_right")
ALL_ORGANS = (*HEAD_ORGANS, "lung_left", "lung_right", "trachea", "heart", "esophagus", *ABDOMEN_ORGANS)


@dataclass(frozen=True)
class Examination:
    """How a case of one kind is drawn.

    draw: `(canvas, rng)`, returns the heights in mm at which the regions of the body change (from above; see
    phantom_body.BODY_REGIONS), or None. streaks: strength by height of the slice. annotated: the labels its source gives.
    """

    name: str
    sample_grid: Callable[[np.random.Generator], Grid]
    sample_deformation: Callable[[np.random.Generator], Deformation]
    draw: Callable[[Canvas, np.random.Generator], tuple[float, ...] | None]
    streaks: Callable[[np.ndarray], np.ndarray]
    annotated: tuple[str, ...]


@dataclass(frozen=True)
class Region:
    """A kind of data set. Its cases are dealt in turn to its examinations.

    labels: name -> value in the files. values: what is drawn -> value in the files; the rest becomes background.
    summary: for the help of the command line.
    """

    labels: Mapping[str, int]
    values: Mapping[Organ, int]
    description: str
    summary: str
    examinations: tuple[Examination, ...]

    @property
    def partially_annotated(self) -> bool:
        return any(set(e.annotated) != set(self.labels) for e in self.examinations)

    def examination(self, case: int) -> Examination:
        return self.examinations[case % len(self.examinations)]

    def relabelled(self, drawn: np.ndarray) -> np.ndarray:
        """The labels of the data set, uint8, from those of a canvas."""
        table = np.zeros(max(Organ) + 1, np.uint8)
        for organ, value in self.values.items():
            table[organ] = value
        return table[drawn]

    def annotated(self, labels: np.ndarray, case: int) -> np.ndarray:
        """Labels of the data set, those that the source of the case does not annotate turned into background."""
        table = np.zeros(max(self.labels.values()) + 1, np.uint8)
        for name in self.examination(case).annotated:
            table[self.labels[name]] = self.labels[name]
        return table[labels]


def _whole_body(name: str, view: phantom_body.FieldOfView, annotated, **options) -> Examination:
    return Examination(
        name,
        partial(phantom_body.sample_grid, view=view),
        phantom_body.sample_deformation,
        partial(phantom_body.draw, view=view, **options),
        phantom_body.streaks,
        tuple(annotated),
    )


def _numbered(names) -> dict[str, int]:
    return {name: value for value, name in enumerate(names, start=1)}


def _same_names(labels: Mapping[str, int]) -> dict[Organ, int]:
    return {Organ[name.upper()]: value for name, value in labels.items()}


def _region(labels: Mapping[str, int], description: str, summary: str, *examinations, values=None) -> Region:
    return Region(labels, _same_names(labels) if values is None else values, description, summary, examinations)


THORAX = _region(
    phantom_thorax.LABELS,
    phantom_thorax.DESCRIPTION,
    "chest with oesophagus, heart, trachea and aorta, as in SegTHOR",
    Examination(
        "thorax",
        phantom_thorax.sample_grid,
        phantom_thorax.sample_deformation,
        phantom_thorax.draw,
        phantom_thorax.shoulder_streaks,
        tuple(phantom_thorax.LABELS),
    ),
)
HEAD_AND_NECK = _region(
    _numbered(HEAD_ORGANS),
    "head-and-neck CT: brainstem, eyes, parotid glands, mandible, spinal cord",
    "from above the eyes to the upper chest, with brainstem, eyes, parotid glands, mandible and spinal cord",
    _whole_body("headneck", phantom_body.HEAD_AND_NECK, HEAD_ORGANS),
)
ABDOMEN = _region(
    _numbered(ABDOMEN_ORGANS),
    "abdominal CT: liver, spleen, stomach, kidneys",
    "from the lower heart to the upper pelvis, with liver, spleen, stomach and kidneys",
    _whole_body("abdomen", phantom_body.ABDOMEN, ABDOMEN_ORGANS),
)
KIDNEYS = _region(
    {"kidney": 1, "tumour": 2},
    "abdominal CT with contrast agent: kidneys and their tumours",
    "abdomen with contrast agent, with kidneys and kidney tumours, as in KiTS19",
    _whole_body("kidneys", phantom_body.KIDNEYS, ("kidney", "tumour"), kidney_tumours=True),
    values={Organ.KIDNEY_LEFT: 1, Organ.KIDNEY_RIGHT: 1, Organ.KIDNEY_TUMOUR: 2},
)
THREE_SOURCES = _region(
    _numbered(ALL_ORGANS),
    "head-and-neck, chest and abdominal CT of three sources, each of which annotates its own organs only",
    "17 organs from three sources with overlapping fields of view (headneck, thorax, abdomen in turn), each source "
    "annotating its own organs only; all organs of the training cases are in labelsTr_full",
    _whole_body("headneck", phantom_body.HEAD_AND_NECK, HEAD_ORGANS),
    _whole_body("thorax", phantom_body.THORAX, THORAX_ORGANS),
    _whole_body("abdomen", phantom_body.ABDOMEN, ABDOMEN_ORGANS),
)

REGIONS = {
    "thorax": THORAX,
    "headneck": HEAD_AND_NECK,
    "abdomen": ABDOMEN,
    "kidneys": KIDNEYS,
    "three-sources": THREE_SOURCES,
}
