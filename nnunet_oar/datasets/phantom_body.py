"""One synthetic anatomy from the crown to the pelvis, of which every examination shows a field of view.

Frame: that of phantom_thorax.py (LPS in mm, origin at the carina), which gives the chest; phantom_head.py,
phantom_abdomen.py and phantom_kidneys.py give the rest. The order of drawing is the order of what covers what.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from nnunet_oar.datasets import phantom_thorax as thorax
from nnunet_oar.datasets import phantom_thorax_wall as wall
from nnunet_oar.datasets.phantom_abdomen import draw_abdomen, draw_pelvis
from nnunet_oar.datasets.phantom_head import dental_streaks, draw_head, draw_layers
from nnunet_oar.datasets.phantom_kidneys import draw_kidneys
from nnunet_oar.datasets.phantom_shapes import Canvas, Deformation, Grid, SmoothField, curve

MAX_SLICES = 130
MARGIN_MM = 60.0  # more than a deformation moves anything up or down
# How thick the fat is, in times of that about the chest: more on the belly, less on the neck.
FAT_Z_MM = (-430, -330, -270, -170, 60, 130)
FAT_SHARE = (1.1, 1.15, 1.2, 1.0, 1.0, 0.4)
BODY_REGIONS = ("head", "upper chest", "chest", "upper abdomen", "abdomen")
SHOULDERS_MM = 95.0  # above the collar bones
CARINA_MM = 0.0
KIDNEYS_END_MM = -300.0  # lower edge of the third lumbar vertebra


@dataclass(frozen=True)
class FieldOfView:
    """Ranges in mm from which the field of view and the voxels of an examination are drawn, and what goes with it."""

    top_mm: tuple[float, float]
    bottom_mm: tuple[float, float]
    width_mm: tuple[float, float]
    depth_mm: tuple[float, float]
    centre_y_mm: tuple[float, float]
    in_plane_mm: tuple[float, float]
    slice_mm: tuple[float, ...]
    arms_down: float  # probability; arms lie above the head otherwise
    plain_share: float  # of the examinations without contrast agent
    contrast_hu: tuple[float, float]  # what the agent adds to blood


HEAD_AND_NECK = FieldOfView(
    top_mm=(285, 352),
    bottom_mm=(-30, 35),
    width_mm=(250, 310),
    depth_mm=(262, 300),
    centre_y_mm=(4, 14),
    in_plane_mm=(0.8, 1.25),
    slice_mm=(2.0, 2.5, 3.0, 4.0),
    arms_down=1.0,
    plain_share=0.5,
    contrast_hu=(25, 130),
)
THORAX = FieldOfView(
    top_mm=(85, 130),
    bottom_mm=(-275, -205),
    width_mm=(335, 405),
    depth_mm=(272, 325),
    centre_y_mm=(14, 26),
    in_plane_mm=(0.8, 1.4),
    slice_mm=(2.5, 3.0, 4.0, 5.0),
    arms_down=1 / 6,
    plain_share=0.45,
    contrast_hu=(25, 160),
)
ABDOMEN = FieldOfView(
    top_mm=(-62, -38),
    bottom_mm=(-400, -345),
    width_mm=(335, 405),
    depth_mm=(272, 325),
    centre_y_mm=(10, 22),
    in_plane_mm=(0.8, 1.4),
    slice_mm=(2.5, 3.0, 4.0, 5.0),
    arms_down=0.0,
    plain_share=0.35,
    contrast_hu=(40, 150),
)
KIDNEYS = FieldOfView(
    top_mm=(-125, -38),
    bottom_mm=(-400, -335),
    width_mm=(335, 405),
    depth_mm=(272, 325),
    centre_y_mm=(10, 22),
    in_plane_mm=(0.8, 1.1),
    slice_mm=(2.0, 2.5, 3.0, 4.0, 5.0),
    arms_down=0.0,
    plain_share=0.0,
    contrast_hu=(60, 160),
)


def sample_grid(rng: np.random.Generator, view: FieldOfView) -> Grid:
    """Field of view, position in it and voxel size of one examination."""
    top, bottom = rng.uniform(*view.top_mm), rng.uniform(*view.bottom_mm)
    slices = [s for s in view.slice_mm if (top - bottom) / s <= MAX_SLICES]
    width, depth, in_plane = rng.uniform(*view.width_mm), rng.uniform(*view.depth_mm), rng.uniform(*view.in_plane_mm)
    centre_x, centre_y = rng.uniform(-10, 10), rng.uniform(*view.centre_y_mm)
    return Grid(
        lower_mm=(bottom, centre_y - depth / 2, centre_x - width / 2),
        extent_mm=(top - bottom, depth, width),
        spacing_mm=(float(rng.choice(slices)), in_plane, in_plane),
    )


def sample_deformation(rng: np.random.Generator) -> Deformation:
    # The head is 30 cm from the origin: tilted by more, it would leave its field of view.
    return Deformation(rng, scale=rng.uniform(0.94, 1.05), coarse_mm=3.0, fine_mm=0.6, tilt_degrees=2.5)


def draw(
    canvas: Canvas, rng: np.random.Generator, view: FieldOfView, *, kidney_tumours: bool = False
) -> tuple[float, float, float, float]:
    """Draw what the canvas shows of a patient.

    kidney_tumours: give the patient one or two; some such patients have one kidney only. Returns the heights in mm, in
    the frame, where one of BODY_REGIONS ends and the next begins, from above.
    """
    # A stream for each part: what lies outside the field of view draws no numbers, and must not change the rest.
    seeds = np.random.SeedSequence(int(rng.integers(2**63))).spawn(3 + len(PARTS))
    of_patient, of_body, of_kidneys, *of_parts = (np.random.default_rng(seed) for seed in seeds)
    patient = thorax.sample_patient(of_patient, plain_share=view.plain_share, contrast_hu=view.contrast_hu)
    heights = canvas.slice_z_mm((slice(None),) * 3)
    fat_share = wall.profile(heights, FAT_Z_MM, FAT_SHARE)
    wall.draw_body(canvas, patient, of_body, arms_down=view.arms_down, fat_share=fat_share)
    bottom, top = canvas.grid.lower_mm[0], canvas.grid.lower_mm[0] + canvas.grid.extent_mm[0]
    for (part, lowest, highest), stream in zip(PARTS, of_parts, strict=True):
        if bottom - MARGIN_MM < highest and lowest < top + MARGIN_MM:
            part(canvas, patient, stream)
    draw_kidneys(canvas, patient, of_kidneys, tumours=kidney_tumours, single_share=0.15 if kidney_tumours else 0.0)
    thorax.draw_table(canvas, patient, of_body)
    return SHOULDERS_MM, CARINA_MM, max(patient.dome_mm), KIDNEYS_END_MM


def draw_neck(canvas: Canvas, patient: thorax.Patient, rng: np.random.Generator) -> None:
    """Nape, fat about the great vessels and before the trapezius, lymph nodes, vessels between neck and skull."""
    nape = canvas.box((-52, -26, 60), (52, 86, 192))
    depth = canvas.superquadric_depth_mm(nape, (0, 30, 125), (50, 54, 64), 2.5)
    draw_layers(canvas, nape, depth, patient, 5.0)
    strands = SmoothField(rng, pitch_mm=8, sd=1.0, centre_xyz_mm=(0, 0, 130), half_width_mm=120)
    box = canvas.box((-70, -70, 60), (70, 75, 205))
    texture = canvas.field(strands, box)
    places = canvas.labels[box] == 0
    fat = np.where(np.abs(texture) < 0.1, 10.0, patient.fat_hu + 12).astype(np.float32)
    x, y, z = canvas.coordinates(box)
    sheath = ((np.abs(x) - 27) / 11) ** 2 + ((y + 14) / 10) ** 2 < 1
    triangle = ((np.abs(x) - 44) / 9) ** 2 + ((y - 18) / 14) ** 2 < 1
    soft = (canvas.hu[box] > 20) & (canvas.hu[box] < 110) & places
    canvas.paint(box, ((sheath & (z > 75) & (z < 175)) | (triangle & (z > 70) & (z < 150))) & soft, fat)
    for sign in (-1, 1):
        canvas.tube(*curve([(sign * 25, -13, 170), (sign * 26, 2, 186), (sign * 22, 8, 208)], 3), patient.blood_hu)
        canvas.tube(
            *curve([(sign * 30, -12, 170), (sign * 30, 8, 188), (sign * 30, 14, 208)], 4.5), patient.right_blood_hu
        )
        for _ in range(rng.integers(2, 7)):
            place = np.array((sign * rng.uniform(28, 42), rng.uniform(-15, 15), rng.uniform(80, 168)))
            canvas.ellipsoid(place, rng.uniform(2, 6, 3), rng.uniform(30, 55) + 0.2 * patient.enhancement_hu)


def draw_airways(canvas: Canvas, patient: thorax.Patient, rng: np.random.Generator) -> None:
    """The larynx ends below the hyoid bone; the head has the pharynx."""
    thorax.draw_airways(canvas, patient, rng, above_mm=40)


def draw_spine(canvas: Canvas, patient: thorax.Patient, rng: np.random.Generator) -> None:
    """The cord ends beside the first or second lumbar vertebra."""
    wall.draw_spine(canvas, patient, rng, cord_end_mm=rng.uniform(-258, -226))


PARTS = (  # and from which to which height they reach, in mm, to leave out what is far from the field of view
    (draw_head, 128, 350),
    (draw_neck, 60, 210),
    (thorax.draw_lungs, -262, 90),
    (thorax.draw_lung_vessels, -180, 100),
    (draw_abdomen, -460, -70),
    (draw_pelvis, -470, -210),
    (draw_spine, -365, 200),
    (wall.draw_ribs, -290, 90),
    (thorax.draw_veins_and_nodes, -275, 190),
    (thorax.draw_heart, -170, 5),
    (thorax.draw_oesophagus, -160, 120),
    (thorax.draw_aorta, -275, 190),
    (draw_airways, -110, 165),
)


def streaks(z_mm: np.ndarray) -> np.ndarray:
    """Strength (0 to 1) of the streaks that shoulders and teeth cause, by height of the slice."""
    return np.maximum(thorax.shoulder_streaks(z_mm), 0.7 * dental_streaks(z_mm))
