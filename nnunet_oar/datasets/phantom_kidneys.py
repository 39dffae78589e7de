"""The kidneys of the synthetic CTs, with cysts and, where asked for, tumours. Frame: see phantom_thorax.py."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from nnunet_oar.datasets import phantom_thorax_wall as wall
from nnunet_oar.datasets.phantom_organs import Organ
from nnunet_oar.datasets.phantom_shapes import Canvas, SmoothField
from nnunet_oar.datasets.phantom_thorax import Patient

TUMOUR_ML = (1.35, 30.0)  # as drawn; smooth deformation changes it by up to a quarter
CORTEX_MM = 7.0


@dataclass(frozen=True)
class Kidney:
    """sign: 1 left, -1 right. axes: `(3, 3)`, rows are the unit vectors of pole, hilum and the third direction."""

    sign: int
    centre_mm: np.ndarray
    axes: np.ndarray
    semi_axes_mm: np.ndarray
    hu: float


def draw_kidneys(
    canvas: Canvas, patient: Patient, rng: np.random.Generator, *, tumours: bool = False, single_share: float = 0.0
) -> None:
    """Both kidneys with their fat, or one of them in that share of the patients; tumours: in one of them or in each."""
    hu = rng.uniform(28, 38) + patient.enhancement_hu * rng.uniform(0.7, 1.0)
    kidneys = [sample_kidney(rng, sign, hu) for sign in (1, -1)]
    if rng.random() < single_share:
        kidneys = [kidneys[rng.integers(2)]]
    for kidney in kidneys:
        draw_kidney(canvas, patient, rng, kidney)
    if tumours:
        both = rng.random() < 0.3
        for kidney in kidneys if both else [kidneys[rng.integers(len(kidneys))]]:
            draw_tumour(canvas, patient, rng, kidney)


def sample_kidney(rng: np.random.Generator, sign: int, hu: float) -> Kidney:
    pole = np.array((-sign * rng.uniform(0.1, 0.26), rng.uniform(-0.22, -0.06), 1.0))
    hilum = np.array((-sign * 0.85, rng.uniform(-0.6, -0.3), 0.0))
    pole /= np.linalg.norm(pole)
    hilum -= (hilum @ pole) * pole
    hilum /= np.linalg.norm(hilum)
    height = -226 if sign > 0 else -240
    centre = np.array((sign * 62, 43, height)) + rng.normal(0, (2, 2, 6), 3)
    semi = np.array((56, 28.5, 25)) * rng.uniform(0.93, 1.09) * rng.uniform(0.96, 1.04, 3)
    return Kidney(sign, centre, np.stack([pole, hilum, np.cross(pole, hilum)]), semi, hu)


def draw_kidney(canvas: Canvas, patient: Patient, rng: np.random.Generator, kidney: Kidney) -> None:
    """Fat about it, cortex, medulla, sinus with the renal pelvis, vessels, now and then cysts."""
    centre, axes, semi = kidney.centre_mm, kidney.axes, kidney.semi_axes_mm
    label, tissue = (
        Organ.of_side("KIDNEY", kidney.sign),
        SmoothField(rng, pitch_mm=9, sd=1.0, centre_xyz_mm=centre, half_width_mm=110),
    )
    fat_mm = 3 + 0.35 * (patient.fat_mm[0] - 7) + rng.uniform(0, 3)
    early = rng.uniform(0, 0.5) if rng.random() < 0.5 else 0.0  # the cortex takes the contrast agent first
    box = canvas.box(centre - 75, centre + 75)
    texture = canvas.field(tissue, box)
    _, fat = canvas.ellipsoid_distance(centre, semi + fat_mm, axes=axes, box=box)
    canvas.paint(box, (fat < 1) & wall.cavity(canvas, box, -3) & (canvas.hu[box] < 180), patient.fat_hu + 6)

    hilum = centre + axes[1] * 0.72 * semi[1]
    for end, radius, hu, behind in (
        ((-22, 14, -228), 4.5, patient.right_blood_hu, -4),
        ((8, 12, -222), 3.0, patient.blood_hu, 3),
    ):
        canvas.tube([hilum + (0, behind, 0), 0.5 * (hilum + np.array(end)) + (0, -3, 0), end], radius, hu)

    _, inside = canvas.ellipsoid_distance(centre, semi, axes=axes, box=box)
    _, inner = canvas.ellipsoid_distance(centre, semi - CORTEX_MM, axes=axes, box=box)
    medulla = (inner < 1) & (texture > -0.4)  # columns of cortex reach in between the pyramids
    uneven = np.where(medulla, -early * 0.5 * patient.enhancement_hu - 2, early * 0.3 * patient.enhancement_hu)
    canvas.paint(box, inside < 1, (kidney.hu + uneven + 2 * texture).astype(np.float32), label)
    # the sinus opens to the hilum
    sinus = np.array((0.36, 0.62, 0.36)) * semi
    canvas.ellipsoid(hilum + axes[1] * 5, sinus, patient.fat_hu + 25, axes=axes)
    urine = rng.uniform(300, 900) if patient.enhancement_hu and rng.random() < 0.1 else rng.uniform(2, 18)
    canvas.ellipsoid(hilum + axes[1] * 5, np.array((0.55, 0.75, 0.5)) * sinus, urine, axes=axes)
    for _ in range(rng.choice(4, p=(0.6, 0.2, 0.12, 0.08))):
        way = rng.normal(0, 1, 3)
        place = centre + (way / np.linalg.norm(way) * semi * 0.8) @ axes
        canvas.ellipsoid(place, np.full(3, rng.uniform(3, 11)), rng.uniform(0, 14), None, within=label)


def draw_tumour(canvas: Canvas, patient: Patient, rng: np.random.Generator, kidney: Kidney) -> None:
    """A round mass of log-uniform volume, towards one of the poles.

    Its centre lies between half-way to the surface (endophytic) and just beyond the surface (exophytic).
    """
    volume_ml = np.exp(rng.uniform(*np.log(TUMOUR_ML)))
    radius = (3000 * volume_ml / (4 * np.pi)) ** (1 / 3) / canvas.deformation.scale
    shape = np.exp(rng.normal(0, 0.08, 3))
    semi = radius * shape / shape.prod() ** (1 / 3)
    # Towards the side, the front and the pole: behind the kidney is the wall, in the middle the spine.
    pole = rng.choice((-1, 1)) * rng.uniform(0.2, 1.3)
    way = np.array((kidney.sign * rng.uniform(0.1, 1), rng.uniform(-0.9, 0.1), pole))
    local = kidney.axes @ way
    surface = local / np.sqrt(((local / kidney.semi_axes_mm) ** 2).sum())
    depth = rng.uniform(0.5, 1.05) * np.interp(radius, (8, 20), (1, 0.9))
    centre = kidney.centre_mm + depth * (surface @ kidney.axes)
    # Enhanced tumours are somewhat darker than the kidney, most so where they are dead in the middle.
    hu = kidney.hu - rng.uniform(10, 30) - rng.uniform(0, 0.35) * patient.enhancement_hu
    dead = rng.uniform(10, 35) if volume_ml > 6 and rng.random() < 0.5 else 0.0
    tissue = SmoothField(rng, pitch_mm=7, sd=1.0, centre_xyz_mm=centre, half_width_mm=70)
    box, distance = canvas.ellipsoid_distance(centre, semi)
    texture = canvas.field(tissue, box)
    rim = 1 - np.clip(distance, 0, 1)
    canvas.paint(box, distance < 1, (hu - dead * rim + 5 * texture).astype(np.float32), Organ.KIDNEY_TUMOUR)
