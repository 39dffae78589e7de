"""The head of the synthetic CTs, from chin to crown. Frame: see phantom_thorax.py; the foramen magnum is at z = 196.

Labelled are brainstem, eyes, parotid glands and mandible. Distractors: skull, brain with its ventricles and cisterns,
optic nerves and eye muscles, sinuses, teeth, tongue, masseter, submandibular glands, ears, a thermoplastic mask.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from nnunet_oar.datasets.phantom_organs import Organ
from nnunet_oar.datasets.phantom_shapes import AIR_HU, Box, Canvas, SmoothField, curve
from nnunet_oar.datasets.phantom_thorax import Patient
from nnunet_oar.datasets.phantom_thorax_wall import SKIN_MM

# Rounded boxes: centre, semi-axes (x, y, z) in mm, exponent.
CRANIUM = ((0, 12, 250), (76, 97, 87), 2.4)
FACE = ((0, -8, 196), (67, 80, 62), 3.0)
FORAMEN_Z_MM = 196.0
# Floor of the skull, z over y: beside the midline (anterior, middle and posterior fossa), and in it (clivus).
FLOOR_Y_MM = (-100, -40, -32, 4, 18, 30, 60, 85, 115)
FLOOR_Z_MM = (254, 251, 226, 220, 227, 208, 203, 215, 240)
CLIVUS_Y_MM = (-100, -40, -20, -3, 30, 60, 85, 115)
CLIVUS_Z_MM = (253, 249, 243, 239, 199, 201, 215, 240)


@dataclass(frozen=True)
class Tissues:
    """HU of the tissues of one head, and the thickness of its scalp and of the fat of its face in mm."""

    bone: float
    brain: float
    brainstem: float
    fluid: float
    parotid: float
    parotid_fat: float  # how much lobules and fat differ
    parotid_size: float
    gland: float  # submandibular
    scalp_mm: float
    cheek_mm: float


def sample_tissues(patient: Patient, rng: np.random.Generator) -> Tissues:
    brain = rng.uniform(30, 36) + 0.06 * patient.enhancement_hu
    fatness = (patient.fat_mm[0] - 7) / 18
    parotid = rng.uniform(-25, 42) - 15 * fatness
    return Tissues(
        bone=rng.uniform(850, 1250),
        brain=brain,
        brainstem=brain - rng.uniform(1, 5),
        fluid=rng.uniform(4, 12),
        parotid=parotid + 0.25 * patient.enhancement_hu,
        parotid_fat=rng.uniform(6, 16),
        parotid_size=rng.uniform(0.98, 1.18),
        gland=max(parotid, 10) + rng.uniform(5, 25) + 0.35 * patient.enhancement_hu,
        scalp_mm=rng.uniform(5.5, 7.5) + 2 * fatness,
        cheek_mm=rng.uniform(4, 6) + 5 * fatness,
    )


def draw_head(canvas: Canvas, patient: Patient, rng: np.random.Generator) -> None:
    """To be drawn after the body and before the spine: the cord ends where the brainstem begins."""
    tissues = sample_tissues(patient, rng)
    draw_soft_tissue(canvas, patient, tissues, rng)
    draw_skull_and_brain(canvas, patient, tissues, rng)
    draw_brainstem(canvas, tissues, rng)
    draw_skull_base(canvas, tissues, rng)
    draw_midface(canvas, patient, tissues, rng)
    for sign in (-1, 1):
        draw_orbit(canvas, patient, tissues, sign, rng)
    draw_mouth(canvas, patient, tissues, rng)
    for sign in (-1, 1):
        draw_parotid(canvas, patient, tissues, sign, rng)
    draw_mandible(canvas, tissues, rng)


def draw_layers(canvas: Canvas, box: Box, depth_mm: np.ndarray, patient: Patient, fat_to_mm) -> None:
    """Skin, fat and muscle of a shape, each where no deeper layer of another shape lies: the two grow together.

    depth_mm: of the voxels of the box in the shape. fat_to_mm: the depth at which the muscle begins.
    """
    skin, fat = np.float32(patient.skin_hu), np.float32(patient.fat_hu)
    hu = canvas.hu[box]
    canvas.paint(box, (depth_mm > 0) & (hu == AIR_HU), skin)
    canvas.paint(box, (depth_mm > SKIN_MM) & (hu == skin), fat)
    canvas.paint(box, (depth_mm > fat_to_mm) & ((hu == skin) | (hu == fat)), patient.muscle_hu)


def draw_soft_tissue(canvas: Canvas, patient: Patient, tissues: Tissues, rng: np.random.Generator) -> None:
    """Head and face, nose, ears, pads of fat, and in most a thermoplastic mask."""
    box = canvas.box((-100, -122, 130), (100, 124, 345))
    depth = np.maximum(*(canvas.superquadric_depth_mm(box, *shape) for shape in (CRANIUM, FACE)))
    _, y, z = canvas.coordinates(box)
    canvas.ellipsoid((0, -92, 212), (12, 17, 17), patient.skin_hu)
    canvas.ellipsoid((0, -91, 212), (9.5, 14, 14), 5)
    draw_layers(canvas, box, depth, patient, np.where(z > 232, 4.5, tissues.cheek_mm))
    if rng.random() < 0.75:
        shell = (depth > -4.5) & (depth < -2) & (y < 25) & (z > 155) & (canvas.hu[box] == AIR_HU)
        canvas.paint(box, shell, rng.uniform(-300, -80))
    for sign in (-1, 1):
        canvas.ellipsoid((sign * 77, 30, 220), (6, 14, 28), patient.skin_hu - 20)
        canvas.ellipsoid((sign * 82, 24, 220), (5, 8, 12), AIR_HU)
        for centre, semi in (  # cheek, infratemporal fossa, beside the pharynx, back of the neck
            ((46, -46, 186), (11, 16, 17)),
            ((42, -26, 212), (8, 14, 13)),
            ((27, -4, 192), (6, 8, 18)),
            ((38, 44, 165), (17, 7, 28)),
        ):
            place = np.array(centre) * (sign, 1, 1) + rng.normal(0, 1.5, 3)
            canvas.ellipsoid(place, np.array(semi) * rng.uniform(0.8, 1.15), patient.fat_hu + 12)


def _floor_mm(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Height of the floor of the skull."""
    beside, middle = np.interp(y, FLOOR_Y_MM, FLOOR_Z_MM), np.interp(y, CLIVUS_Y_MM, CLIVUS_Z_MM)
    share = np.clip((np.abs(x) - 12) / 10, 0, 1)
    return (middle + share * (beside - middle)).astype(np.float32)


def draw_skull_and_brain(canvas: Canvas, patient: Patient, tissues: Tissues, rng: np.random.Generator) -> None:
    """Calvaria of three layers, fluid, brain of grey and white matter with sulci, falx, ventricles."""
    head = {"centre_xyz_mm": (0, 12, 265), "half_width_mm": 145}
    folds, matter = SmoothField(rng, pitch_mm=8, sd=1.0, **head), SmoothField(rng, pitch_mm=14, sd=1.0, **head)
    sizes, wide = rng.uniform(0.6, 1.3, 3), rng.uniform(0.1, 0.26)
    box = canvas.box((-80, -90, 188), (80, 112, 340))
    x, y, z = canvas.coordinates(box)
    if x.size == 0:
        return
    depth = canvas.superquadric_depth_mm(box, *CRANIUM) - np.float32(tissues.scalp_mm)
    above_mm = z - _floor_mm(x, y)
    skull = depth > 0
    canvas.paint(box, skull & (above_mm > -5), tissues.bone)
    canvas.paint(box, skull & (depth > 2) & (depth < 4.8) & (above_mm > 3), 0.55 * tissues.bone)
    inside = (depth > 7) & (above_mm > 0)
    canvas.paint(box, inside, tissues.fluid)

    brain = inside & (depth > 8.5) & (above_mm > 1.5)
    grey = np.where(depth < 13, np.float32(1), np.tanh(2 * canvas.field(matter, box)))
    canvas.paint(box, brain, (tissues.brain + 3 * grey).astype(np.float32))
    sulci = (np.abs(canvas.field(folds, box)) < wide) & (depth < 12 + 60 * wide) & (above_mm > 6)
    canvas.paint(box, brain & sulci, tissues.fluid + 6)
    canvas.paint(box, inside & (np.abs(x) < 1.2) & (z > 262) & ((y < -30) | (y > 60) | (z > 290)), tissues.brain + 14)
    # the venous sinus along the falx and the tent above the cerebellum
    canvas.paint(box, inside & (np.abs(x) < 4) & (depth < 11) & (z > 245), patient.right_blood_hu + 10)
    tent = np.abs(z - (258 - 0.3 * np.abs(x) - 0.15 * (y - 40))) < 1.2
    canvas.paint(box, inside & tent & (y > 42), tissues.brain + 12)
    for sign in (-1, 1):
        horn = [(sign * 8, -38, 277), (sign * 9, 0, 283), (sign * 15, 32, 278), (sign * 24, 48, 268)]
        canvas.tube(*curve(horn, 5 * sizes[0]), tissues.fluid)
        canvas.tube(
            *curve([(sign * 24, 46, 270), (sign * 30, 22, 250), (sign * 30, 0, 246)], 3 * sizes[1]), tissues.fluid
        )
        canvas.ellipsoid((sign * 16, 6, 268), (10, 16, 9), tissues.brain + 4)  # thalamus
    canvas.ellipsoid((0, 4, 266), (2.2 * sizes[2], 13, 9), tissues.fluid)


def draw_brainstem(canvas: Canvas, tissues: Tissues, rng: np.random.Generator) -> None:
    """Medulla, pons and midbrain with their cisterns, cerebellar peduncles, fourth ventricle."""
    spots = SmoothField(rng, pitch_mm=9, sd=1.5, centre_xyz_mm=(0, 28, 228), half_width_mm=80)
    size = rng.uniform(0.93, 1.07)
    points = [(0, 40.5, 188), (0, 39.5, 200), (0, 34, 214), (0, 24, 226), (0, 21, 238), (0, 24, 249), (0, 22, 257)]
    radii = np.array((5.5, 6.5, 8, 12.5, 13.5, 11, 10.5)) * size
    points, radii = curve(np.array(points) + rng.normal(0, (0.6, 0.8, 0), (7, 3)), radii, 3)
    canvas.tube([(0, 40.5, 190), (0, 38, 210)], 10, tissues.fluid)  # through the foramen magnum
    canvas.tube(points + (0, -3, 0), radii + 2, tissues.fluid)
    for sign in (-1, 1):
        canvas.tube([(sign * 10, 26, 234), (sign * 28, 44, 232)], (8, 9), tissues.brainstem + 2)
        canvas.tube([(sign * 8, 16, 250), (sign * 16, 4, 264)], 7, tissues.brain)
    box = canvas.box((-20, 0, FORAMEN_Z_MM), (20, 56, 262))
    texture = canvas.field(spots, box)
    canvas.tube(points, radii, tissues.brainstem, Organ.BRAINSTEM, stretch_xyz=(1.12, 0.95, 1))
    stem = canvas.labels[box] == Organ.BRAINSTEM
    canvas.paint(box, stem, tissues.brainstem + texture, None)
    canvas.ellipsoid((0, 40, 229), (8, 5.5, 13), tissues.fluid)
    canvas.tube([(0, 35, 240), (0, 32, 256)], 1.5, tissues.fluid, None)  # aqueduct


def draw_skull_base(canvas: Canvas, tissues: Tissues, rng: np.random.Generator) -> None:
    """Petrous bones, mastoids with air cells, ear canals, jaw joints, cheek bones."""
    cells = SmoothField(rng, pitch_mm=6, sd=1.0, centre_xyz_mm=(0, 36, 206), half_width_mm=110)
    axis = np.array((0.80, 0.56, 0.2)) / np.linalg.norm((0.80, 0.56, 0.2))
    for sign in (-1, 1):
        along = axis * (sign, 1, 1)
        across = np.cross(along, (0, 0, 1.0))
        across /= np.linalg.norm(across)
        axes = np.stack([along, across, np.cross(along, across)])
        canvas.ellipsoid((sign * 38, 20, 217), (26, 8, 9), 1.2 * tissues.bone, axes=axes)
        canvas.ellipsoid((sign * 55, 36, 207), (12, 14, 19), 0.6 * tissues.bone)
        box, distance = canvas.ellipsoid_distance((sign * 54, 36, 206), (9.5, 11, 15))
        canvas.paint(box, (distance < 1) & (np.abs(canvas.field(cells, box)) > 0.4), -750)
        canvas.tube([(sign * 76, 24, 217), (sign * 44, 21, 218)], 3.2, AIR_HU + 30)
        arch = [(sign * 60, 14, 218), (sign * 65, -18, 217), (sign * 58, -44, 213), (sign * 44, -60, 216)]
        canvas.tube(*curve(arch, (4, 3, 4, 5)), 0.7 * tissues.bone)
    canvas.tube([(0, -6, 232), (0, 28, 203)], (8, 7), 0.6 * tissues.bone, stretch_xyz=(1.5, 0.6, 1))  # clivus
    # what the bones covered of the posterior fossa: the way of the medulla stays free
    canvas.tube([(0, 43, 192), (0, 42, 204)], 8, tissues.fluid, None)


def draw_midface(canvas: Canvas, patient: Patient, tissues: Tissues, rng: np.random.Generator) -> None:
    """Upper jaw, nasal cavity, paranasal sinuses, some of them full of fluid, pharynx."""
    air, bone = AIR_HU + 20, 0.6 * tissues.bone
    cells = SmoothField(rng, pitch_mm=8, sd=1.0, centre_xyz_mm=(0, -55, 218), half_width_mm=75)
    for sign in (-1, 1):
        full = rng.random() < 0.15
        size = rng.uniform(0.8, 1.05)
        canvas.ellipsoid((sign * 27, -54, 205), np.array((15, 18, 16)) * size + 2, bone)
        canvas.ellipsoid((sign * 27, -54, 205), np.array((15, 18, 16)) * size, 20 if full else air)
    canvas.ellipsoid((0, -55, 219), (14, 28, 30), bone)
    box, distance = canvas.ellipsoid_distance((0, -55, 218), (12.5, 28, 28))
    x, _, z = canvas.coordinates(box)
    texture = canvas.field(cells, box)
    walls = np.where(z > 218, 350, 45)  # ethmoid cells above, conchae below
    free = (np.abs(texture) > np.where(z > 218, 0.25, 0.5)) & (np.abs(x) > 1.2)
    canvas.paint(box, distance < 1, np.where(free, air, walls).astype(np.float32))
    canvas.ellipsoid((0, -22, 230), (15, 12, 10), bone)
    canvas.ellipsoid((0, -22, 230), (13, 10.5, 8.5), air)
    if rng.random() < 0.8:
        frontal = np.array((rng.normal(0, 3), -72.0, 253))
        canvas.ellipsoid(frontal, (16, 6, 11), tissues.bone)
        canvas.ellipsoid(frontal, (13, 3.8, 8.5), air)
    throat = [(0, -8, 148), (0, -8, 175), (0, -13, 196), (0, -22, 208)]
    canvas.tube(*curve(throat, (8, 9, 10, 11)), patient.muscle_hu - 5, stretch_xyz=(1.6, 1, 1))
    canvas.tube(*curve(throat, np.array((4, 4.5, 5.5, 7)) * rng.uniform(0.7, 1.1)), air, stretch_xyz=(1.8, 0.9, 1))


def draw_orbit(canvas: Canvas, patient: Patient, tissues: Tissues, sign: int, rng: np.random.Generator) -> None:
    """Cone of bone and fat; globe with sclera, vitreous body and lens; optic nerve and four muscles."""
    centre = np.array((sign * rng.uniform(30, 33.5), rng.uniform(-70, -66), rng.uniform(234, 238)))
    radius = rng.uniform(11.7, 12.5)
    label = Organ.of_side("EYE", sign)
    apex = np.array((sign * 13.0, -22, 238))
    rim = centre + (0, 9, 0)
    canvas.tube([rim + (0, 2, 0), apex], (19.5, 5), 0.5 * tissues.bone)
    canvas.tube([rim, apex], (17.5, 3.5), patient.fat_hu + 15)
    back = apex + 0.12 * (rim - apex)
    for side in ((1, 0), (-1, 0), (0, 1), (0, -1)):
        attached = centre + (side[0] * 11.5, 3, side[1] * 11.5)
        canvas.tube(*curve([back, 0.5 * (attached + back) + np.array((side[0], 0, side[1])) * 4, attached], 1.9), 55)
    canvas.tube([back, centre + (-sign * 3, 10, 0)], 2.2, 36)
    canvas.ellipsoid(centre + (0, -5, 0), (radius + 2, radius - 1, radius - 2), patient.skin_hu + 20)  # lids
    # the globe does not lie in the bone of the rim: 24 mm across, in a cone of 35 mm
    canvas.ellipsoid(centre, np.full(3, radius), 55, label)
    canvas.ellipsoid(centre, np.full(3, radius - 1.3), rng.uniform(6, 16), label)
    canvas.ellipsoid(centre + (0, -0.68 * radius, 0), (4.4, 2.1, 4.4), rng.uniform(65, 110), within=label, label=label)


def draw_mouth(canvas: Canvas, patient: Patient, tissues: Tissues, rng: np.random.Generator) -> None:
    """Tongue, floor of the mouth, palate, teeth, hyoid bone, submandibular glands, muscles of chewing."""
    canvas.ellipsoid((0, -40, 168), (24, 30, 21), patient.fat_hu + 70)
    canvas.ellipsoid((0, -38, 170), (21, 27, 16), patient.muscle_hu - rng.uniform(0, 15))
    if rng.random() < 0.6:
        canvas.ellipsoid((0, -45, 187), (18, 20, rng.uniform(1.5, 4)), AIR_HU + 20)
    canvas.ellipsoid((0, -48, 192), (25, 27, 3.5), 0.45 * tissues.bone)
    alveolar = curve([(-25, -22, 187), (-21, -46, 187), (0, -65, 187), (21, -46, 187), (25, -22, 187)], 5)
    canvas.tube(*alveolar, 0.45 * tissues.bone, stretch_xyz=(1, 1, 1.3))
    hyoid = [(-19, -14, 148), (-12, -28, 146), (0, -34, 145), (12, -28, 146), (19, -14, 148)]
    canvas.tube(*curve(hyoid, 2.6), 320)
    for sign in (-1, 1):
        gland = np.array((sign * 27, -16, 151)) + rng.normal(0, 2, 3)
        canvas.ellipsoid(gland, np.array((10, 15, 12)) * rng.uniform(0.85, 1.1) + 2, patient.fat_hu + 15)
        canvas.ellipsoid(gland, np.array((9, 14, 11)) * rng.uniform(0.85, 1.1), tissues.gland)
        canvas.ellipsoid((sign * 54, -18, 186), (9, 17, 28), patient.muscle_hu + rng.uniform(-5, 5))  # masseter
        canvas.ellipsoid((sign * 38, -8, 184), (6, 13, 23), patient.muscle_hu)  # pterygoid muscle
        canvas.tube(
            *curve([(sign * 55, 38, 196), (sign * 50, 22, 150), (sign * 28, -14, 95)], (6, 9, 8)), patient.muscle_hu + 2
        )


def draw_parotid(canvas: Canvas, patient: Patient, tissues: Tissues, sign: int, rng: np.random.Generator) -> None:
    """Two lobes, before and behind the ramus of the mandible, of gland and fat; the vein that runs through it."""
    label, lobules = (
        Organ.of_side("PAROTID", sign),
        SmoothField(rng, pitch_mm=7, sd=1.0, centre_xyz_mm=(sign * 54, 12, 190), half_width_mm=75),
    )
    size, shift = tissues.parotid_size * rng.uniform(0.96, 1.04), rng.normal(0, 1.2, 3)
    outer = (np.array((sign * 57.5, 8, 190)) + shift, np.array((6.5, 20, 25)) * size)
    deep = (np.array((sign * 51, 21, 189)) + shift, np.array((10.5, 10.5, 21)) * size)
    lower, upper = np.array((sign * 54 - 22, -20, 158)), np.array((sign * 54 + 22, 42, 224))
    box = canvas.box(lower, upper)
    mask = np.minimum(*(canvas.ellipsoid_distance(*lobe, box=box)[1] for lobe in (outer, deep)))
    soft = canvas.hu[box] < 200  # not the mastoid
    canvas.paint(box, (mask < 1.25) & soft, patient.fat_hu + 15)
    texture = np.tanh(canvas.field(lobules, box))
    canvas.paint(box, (mask < 1) & soft, tissues.parotid + tissues.parotid_fat * texture, label)
    vein = [(sign * 49, 14, 214), (sign * 50, 15, 190), (sign * 45, 12, 164)]
    canvas.tube(*curve(vein, 2.3), patient.right_blood_hu, None, within=label)


def draw_mandible(canvas: Canvas, tissues: Tissues, rng: np.random.Generator) -> None:
    """Horseshoe, two rami with joints and muscle processes; teeth of both jaws, some missing, some filled."""
    height, chin = rng.uniform(2.2, 2.7), rng.uniform(-67, -63)
    body = [
        (-44, 2, 166),
        (-37, -22, 161),
        (-25, -47, 159),
        (0, chin, 159),
        (25, -47, 159),
        (37, -22, 161),
        (44, 2, 166),
    ]
    shapes = [(curve(body, 5.3), (1, 1, height))]
    for sign in (-1, 1):
        ramus = [(sign * 45, 3, 164), (sign * 47, 1, 180), (sign * 48, 2, 198)]
        shapes.append((curve(ramus, (5.2, 4.7, 4.0)), (1, 2.9, 1)))
        shapes.append((curve([(sign * 48, 7, 196), (sign * 51, 11, 212)], (4, 5.2)), (1.3, 1, 1)))
        shapes.append((curve([(sign * 47, -7, 196), (sign * 46, -9, 209)], (3.5, 2.2)), (1, 1.8, 1)))
    for (points, radii), stretch in shapes:
        canvas.tube(points, radii, tissues.bone, Organ.MANDIBLE, stretch_xyz=stretch)
    for (points, radii), stretch in shapes[:3]:
        canvas.tube(points, 0.55 * radii, rng.uniform(250, 450), Organ.MANDIBLE, stretch_xyz=stretch)
    arch = np.array([(-26, -20), (-21, -44), (0, chin + 3), (21, -44), (26, -20)])
    for z in (177, 186.5):
        places, _ = curve(np.c_[arch, np.full(5, z)], 1, 8.5)
        for place in places:
            if rng.random() < 0.15:
                continue
            filled = rng.random() < 0.06
            canvas.ellipsoid(place, (3.6, 3.6, 6.5), 3000 if filled else 1.3 * tissues.bone, None)


def dental_streaks(z_mm: np.ndarray) -> np.ndarray:
    """Strength (0 to 1) of the streaks of fillings, by height of the slice."""
    return np.clip((z_mm - 166) / 8, 0, 1) * np.clip((196 - z_mm) / 8, 0, 1)
