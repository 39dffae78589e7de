"""The abdomen of the synthetic CTs, from the diaphragm to the pelvis. Frame: see phantom_thorax.py.

Labelled are liver, spleen and stomach; the kidneys are in phantom_kidneys.py. Distractors: bowel with gas, stool or
contrast agent, pancreas, gall bladder, vessels, cysts and metastases of the liver, psoas, iliac bones, sacrum.
"""

from __future__ import annotations

import numpy as np

from nnunet_oar.datasets import phantom_thorax_wall as wall
from nnunet_oar.datasets.phantom_organs import Organ
from nnunet_oar.datasets.phantom_shapes import Canvas, SmoothField, curve
from nnunet_oar.datasets.phantom_thorax import Patient, dome_z_mm

GAS_HU = -930.0
FLOOR_MM = -460.0  # nothing is drawn below


def draw_abdomen(canvas: Canvas, patient: Patient, rng: np.random.Generator) -> None:
    """All organs of the peritoneum; to be drawn after the lungs, which it cuts off at the diaphragm."""
    draw_diaphragm(canvas, patient, rng)
    draw_colon(canvas, patient, rng)
    draw_small_bowel(canvas, patient, rng)
    draw_pancreas(canvas, patient, rng)
    draw_spleen(canvas, patient, rng)
    draw_liver(canvas, patient, rng)
    draw_stomach(canvas, patient, rng)


def room(canvas: Canvas, patient: Patient, box, margin_mm: float) -> np.ndarray:
    """Where organs can lie: so far inside the wall of the abdomen and below the diaphragm."""
    x, y, z = canvas.coordinates(box)
    return wall.cavity(canvas, box, -margin_mm) & (z < dome_z_mm(patient, x, y) - margin_mm)


def draw_diaphragm(canvas: Canvas, patient: Patient, rng: np.random.Generator) -> None:
    """Muscle of the diaphragm, fat below it with strands, crura beside the aorta."""
    box = canvas.box((-135, -100, FLOOR_MM), (135, 100, -70))
    x, y, z = canvas.coordinates(box)
    strands = SmoothField(rng, pitch_mm=12, sd=1.0)
    if x.size == 0:
        return
    canvas.paint(box, wall.cavity(canvas, box) & (z < dome_z_mm(patient, x, y)), patient.muscle_hu)
    texture = canvas.field(strands, box)
    fat = np.where(np.abs(texture) < 0.06, -20.0, patient.fat_hu + 8 + 4 * texture).astype(np.float32)
    canvas.paint(box, room(canvas, patient, box, 4), fat)
    for sign in (-1, 1):
        points = [(sign * 14 + 2, wall.spine_y_mm(z) - 16, z) for z in (-130, -160, -200, -250)]
        canvas.tube(points, (3, 5, 6, 4), patient.muscle_hu, stretch_xyz=(1, 1.8, 1))


def _content_hu(rng: np.random.Generator, contrast: bool) -> float:
    """What a stretch of bowel holds: gas, fluid, stool, or contrast agent that was drunk."""
    if contrast and rng.random() < 0.6:
        return rng.uniform(120, 350)
    return float(rng.choice((GAS_HU, -150, 10, 25, 50), p=(0.3, 0.1, 0.2, 0.2, 0.2)))


def _draw_bowel(canvas: Canvas, rng: np.random.Generator, points, radii, wall_hu, *, lumen: float, contrast: bool):
    """A tube of bowel; every few centimetres it holds something else."""
    canvas.tube(points, radii, wall_hu)
    i = 0
    while i < len(points) - 2:
        count = int(rng.integers(3, 9))
        canvas.tube(points[i : i + count], lumen * radii[i : i + count], _content_hu(rng, contrast))
        i += count + int(rng.integers(0, 2))


def draw_colon(canvas: Canvas, patient: Patient, rng: np.random.Generator) -> None:
    """From the caecum up, across and down to the pelvis, wide and narrow in turn."""
    course = [
        (-78, 8, -370),
        (-92, 22, -320),
        (-94, 26, -275),
        (-82, -8, -246),
        (-40, -58, -262),
        (15, -62, -268),
        (62, -50, -240),
        (92, 0, -212),
        (101, 28, -240),
        (102, 36, -300),
        (92, 30, -360),
        (62, 10, -400),
    ]
    points = np.array(course) + rng.normal(0, (3, 4, 7), (len(course), 3))
    points, radii = curve(points, rng.uniform(11, 20, len(points)))
    radii = radii * (1 + 0.13 * np.sin(np.arange(len(radii)) * 1.3))  # haustra
    _draw_bowel(canvas, rng, points, radii, patient.muscle_hu - 12, lumen=0.82, contrast=False)


def draw_small_bowel(canvas: Canvas, patient: Patient, rng: np.random.Generator) -> None:
    """Loops about the middle of the abdomen."""
    contrast = rng.random() < 0.35
    wall_hu = 38 + 0.35 * patient.enhancement_hu
    for _ in range(11):
        middle = np.array((rng.uniform(-55, 55), rng.uniform(-55, 0), rng.uniform(-385, -255)))
        points = middle + rng.normal(0, (24, 15, 17), (6, 3))
        points[:, 0] = points[:, 0].clip(-80, 80)
        points[:, 1] = points[:, 1].clip(-68, 12)
        points, radii = curve(points, rng.uniform(9, 13), 7)
        points[:, 1] = points[:, 1].clip(-70, 14)
        _draw_bowel(canvas, rng, points, radii, wall_hu + rng.uniform(-6, 6), lumen=0.75, contrast=contrast)


def draw_pancreas(canvas: Canvas, patient: Patient, rng: np.random.Generator) -> None:
    """Head in the loop of the duodenum, body across the aorta, tail towards the spleen; adrenal glands."""
    hu = rng.uniform(30, 45) + 0.4 * patient.enhancement_hu
    duodenum = [(-24, -36, -212), (-40, -16, -218), (-42, -4, -240), (-34, -4, -262), (0, -8, -268), (26, -10, -256)]
    points, radii = curve(np.array(duodenum) + rng.normal(0, 2.5, (6, 3)), rng.uniform(9, 12))
    _draw_bowel(canvas, rng, points, radii, patient.muscle_hu - 12, lumen=0.7, contrast=rng.random() < 0.3)
    course = [(-26, -12, -242), (-22, -16, -224), (0, -22, -208), (28, -12, -200), (56, 8, -192), (76, 22, -188)]
    points, radii = curve(np.array(course) + rng.normal(0, 2, (6, 3)), (11, 13, 9, 9, 8.5, 6))
    radii = radii * (1 + 0.12 * np.sin(np.arange(len(radii)) * 1.9)) * rng.uniform(0.85, 1.1)
    canvas.tube(points, radii, hu)
    splenic = points[len(points) // 3 :] + (0, 7, 5)
    canvas.tube(splenic, 4, patient.right_blood_hu)
    for sign in (-1, 1):
        gland = np.array((sign * 29, 26, -178)) + rng.normal(0, 2, 3)
        for side in (-6, 6):
            canvas.tube([gland, gland + (side, 12, -12)], 2.6, 30 + 0.5 * patient.enhancement_hu)


def draw_spleen(canvas: Canvas, patient: Patient, rng: np.random.Generator) -> None:
    """A bowl against the wall at the back of the left dome; stomach and kidney fill its hollow."""
    pulp = SmoothField(rng, pitch_mm=18, sd=1.0)
    size = rng.uniform(0.88, 1.14)
    centre = np.array((93, 36, -163)) + rng.normal(0, (2, 3, 5), 3)
    long = np.array((0.18, -0.42, -0.89)) / np.linalg.norm((0.18, -0.42, -0.89))
    across = np.cross(long, (1.0, 0.5, 0))
    across /= np.linalg.norm(across)
    axes = np.stack([long, across, np.cross(long, across)])
    hu = rng.uniform(43, 54) + patient.enhancement_hu * rng.uniform(0.42, 0.52)
    uneven = 4 + 0.12 * patient.enhancement_hu * (rng.random() < 0.3)  # early after the injection it is striped
    box = canvas.box(centre - 75, centre + 75)
    _, outer = canvas.ellipsoid_distance(centre, np.array((60, 46, 34)) * size, axes=axes, box=box)
    _, hollow = canvas.ellipsoid_distance(centre + (-44, -22, 4), (40, 32, 62), box=box)
    mask = (outer < 1) & (hollow > 1) & room(canvas, patient, box, 5)
    canvas.paint(box, mask, hu + uneven * canvas.field(pulp, box) / 2, Organ.SPLEEN)


def draw_liver(canvas: Canvas, patient: Patient, rng: np.random.Generator) -> None:
    """Right lobe under the whole right dome, left lobe across the midline; veins, gall bladder, now and then lesions."""
    tissue, shape = SmoothField(rng, pitch_mm=20, sd=1.0), SmoothField(rng, pitch_mm=38, sd=6.0)
    plain = rng.uniform(18, 44) if rng.random() < 0.2 else rng.uniform(48, 66)  # steatosis in one of five
    hu = plain + 0.35 * patient.enhancement_hu
    low, reach, slope = rng.uniform(-212, -188), rng.uniform(14, 42), rng.uniform(0.45, 0.7)
    lesions = rng.integers(1, 6) if rng.random() < 0.3 else 0
    lesion_hu = rng.uniform(5, 15) if rng.random() < 0.5 else hu - rng.uniform(15, 40)
    box = canvas.box((-135, -95, -290), (75, 95, -70))
    x, y, z = canvas.coordinates(box)
    if x.size == 0:
        return
    uneven_mm = canvas.field(shape, box)
    left_edge = reach - 0.5 * (y + 20) + 0.25 * (z + 130) + uneven_mm
    lower_edge = low + slope * x + 0.12 * y + 0.0016 * (x + 60) ** 2 + uneven_mm
    # below the porta it draws back to the right, and from the front of the spine
    medial_edge = -28 + 0.9 * (z + 190) + 0.012 * (y - 10) ** 2 + uneven_mm
    behind = (y < 22) | (x < -28 + 0.3 * uneven_mm)
    behind &= (z > -190) | (x < medial_edge)
    bed = ((x + 50) / 46) ** 2 + ((y - 64) / 46) ** 2 + ((z + 245) / 76) ** 2
    behind &= bed > 1  # where the right kidney lies, nothing between it and spine or wall
    organ = room(canvas, patient, box, 5) & (x < left_edge) & (z > lower_edge) & behind
    # the fissure of the round ligament
    organ &= (np.abs(x - 4 - 0.1 * (z + 150)) > 2.5) | (y > -25) | (z > -140)
    canvas.paint(box, organ, hu + 3 * canvas.field(tissue, box), Organ.LIVER)

    venous = {"label": None, "within": Organ.LIVER}
    vein_hu = patient.right_blood_hu - 3
    for way in (  # three hepatic veins, the portal vein and its branches
        [(-25, 4, -112), (-62, 8, -124), (-100, 10, -150)],
        [(-24, 0, -112), (-40, -30, -122), (-52, -58, -150)],
        [(-22, 0, -112), (2, -28, -118), (22, -50, -130)],
        [(-14, -8, -196), (-30, -8, -172), (-62, -2, -166), (-96, 12, -172)],
        [(-62, -2, -166), (-82, -20, -190), (-92, -34, -214)],
        [(-32, -8, -170), (-16, -32, -154), (4, -46, -150)],
    ):
        points = np.array(way) + rng.normal(0, 3, (len(way), 3))
        canvas.tube(*curve(points, np.linspace(5.5, 2, len(points)), 8), vein_hu, **venous)
    for _ in range(lesions):
        place = np.array((rng.uniform(-110, 5), rng.uniform(-60, 50), rng.uniform(-200, -115)))
        canvas.ellipsoid(place, rng.uniform(4, 13, 3), lesion_hu, **venous)
    if rng.random() < 0.85:
        middle = np.array((-46, -46, -212)) + rng.normal(0, 3, 3)
        semi = np.array((14, 20, 24)) * rng.uniform(0.7, 1.15)
        canvas.ellipsoid(middle, semi + 1.5, 40)
        canvas.ellipsoid(middle, semi, rng.uniform(2, 16))


def draw_stomach(canvas: Canvas, patient: Patient, rng: np.random.Generator) -> None:
    """From the fundus under the left dome to the pylorus; gas at the front, what was eaten or drunk behind it."""
    course = [
        (60, 20, -138),
        (58, 6, -152),
        (58, -14, -176),
        (52, -38, -204),
        (34, -52, -222),
        (8, -52, -226),
        (-16, -42, -216),
    ]
    points = np.array(course, float) + rng.normal(0, 2.5, (len(course), 3))
    fill = rng.uniform(0.72, 1.08)
    radii = np.array((25, 30, 29, 25, 20, 16, 10)) * fill
    points, radii = curve(points, radii, 6)
    wall_mm = np.minimum(rng.uniform(3.5, 6), 0.5 * radii)
    wall_hu = rng.uniform(36, 48) + 0.25 * patient.enhancement_hu
    level, lumps = rng.uniform(-58, 4), rng.uniform(0, 25)
    content = rng.uniform(150, 320) if rng.random() < 0.15 else rng.uniform(0, 45)
    food = SmoothField(rng, pitch_mm=10, sd=1.0, centre_xyz_mm=(30, -15, -180), half_width_mm=130)
    canvas.tube(points, radii + 1.5, patient.fat_hu + 15)
    canvas.tube(points, radii, wall_hu, Organ.STOMACH)

    def filling(x, y, z):
        return np.where(y < level, GAS_HU, content)

    canvas.tube(points, radii - wall_mm, filling, within=Organ.STOMACH, label=Organ.STOMACH)
    box = canvas.box((-50, -95, -265), (110, 60, -100))
    solid = (canvas.labels[box] == Organ.STOMACH) & (canvas.hu[box] == np.float32(content))
    canvas.paint(box, solid, content + lumps * np.tanh(canvas.field(food, box)), None)
    # the dome and the wall hold it: what would reach beyond them is not drawn
    x, y, z = canvas.coordinates(box)
    outside = (canvas.labels[box] == Organ.STOMACH) & ~room(canvas, patient, box, 4)
    canvas.paint(box, outside, patient.muscle_hu)


def draw_pelvis(canvas: Canvas, patient: Patient, rng: np.random.Generator) -> None:
    """Psoas and iliac muscles, iliac bones, sacrum, the great vessels below the kidneys. Drawn after the bowel."""
    for sign in (-1, 1):
        psoas = [(-212, 27, 4, 6), (-250, 32, 2, 12), (-300, 40, -2, 17), (-350, 50, -8, 19), (-430, 68, -26, 17)]
        points = [(sign * x, float(wall.spine_y_mm(z)) + y, z) for z, x, y, _ in psoas]
        points[-1] = (sign * 72, 0, -430)
        canvas.tube(*curve(points, [radius for *_, radius in psoas]), patient.muscle_hu + 2)
        square = [(sign * 62, 66, -225), (sign * 66, 68, -270), (sign * 72, 66, -318)]
        canvas.tube(*curve(square, (6, 9, 9)), patient.muscle_hu, stretch_xyz=(1.7, 1, 1))
        normal = np.array((sign * 0.74, -0.62, -0.25))
        normal /= np.linalg.norm(normal)
        along = np.cross(normal, (0, 0, 1.0))
        along /= np.linalg.norm(along)
        axes = np.stack([normal, along, np.cross(normal, along)])
        centre = np.array((sign * 100, 38, -392)) + rng.normal(0, 1.5, 3)
        canvas.ellipsoid(centre - 9 * normal * (1, 1, 1), (9, 62, 66), patient.muscle_hu, axes=axes)
        canvas.ellipsoid(centre, (6.5, 66, 74), 420, axes=axes)
        canvas.ellipsoid(centre, (4, 62, 70), patient.marrow_hu, axes=axes)
    sacrum = np.array([(0, float(wall.spine_y_mm(z)), z) for z in (-366, -385, -405, -430, -455)])
    canvas.tube(sacrum, (23, 23, 21, 18, 15), 330, stretch_xyz=(2, 0.8, 1))
    canvas.tube(sacrum, (21, 21, 19, 16, 13), patient.marrow_hu - 20, stretch_xyz=(2, 0.8, 1))
    aorta = [(8, float(wall.spine_y_mm(z)) - 31, z) for z in (-255, -285, -322)]
    canvas.tube(aorta, (10.5, 10, 9), patient.blood_hu)
    canvas.tube(
        [(-22, 12, -250), (-20, 8, -290), (-15, 8, -335)], 11, patient.right_blood_hu, stretch_xyz=(1.1, 0.8, 1)
    )
    for sign in (-1, 1):
        artery = [(6, 6, -320), (sign * 24, 4, -355), (sign * 48, 2, -400), (sign * 66, -18, -450)]
        canvas.tube(*curve(artery, (7, 6, 5.5, 5)), patient.blood_hu)
        canvas.tube(*curve(np.array(artery) + (-6, 13, -8), (8, 7, 7, 6)), patient.right_blood_hu)
