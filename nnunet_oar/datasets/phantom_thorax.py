"""Synthetic chest CT with the organs of SegTHOR. Frame: LPS in mm, origin at the carina, patient of average size.

The order of drawing is the order of what covers what. Distractors carry no label: lymph nodes, pulmonary arteries,
veins, the branches of the arch, the airway beyond the main bronchi, thyroid, liver, spleen, stomach, lung tumours.
The functions that draw the organs of the chest serve phantom_body.py too, which labels lungs and spinal cord as well.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from nnunet_oar.datasets import phantom_thorax_wall as wall
from nnunet_oar.datasets.phantom_organs import Organ
from nnunet_oar.datasets.phantom_shapes import AIR_HU, Canvas, Deformation, Grid, SmoothField, curve

LABELS = {"esophagus": 1, "heart": 2, "trachea": 3, "aorta": 4}
DESCRIPTION = "chest CT: oesophagus, heart, trachea, aorta"
SLICE_MM = (2.0, 2.5, 3.0, 4.0, 5.0)
MAX_SLICES = 120


@dataclass(frozen=True)
class Patient:
    """What differs between patients apart from shape; HU of tissues, fat thickness at (side, front, back) in mm."""

    fat_mm: tuple[float, float, float]
    fat_hu: float
    skin_hu: float
    muscle_hu: float
    marrow_hu: float
    blood_hu: float  # aorta and left heart
    right_blood_hu: float  # veins, right heart and pulmonary arteries: earlier or later in the passage of contrast
    enhancement_hu: float  # of well perfused tissue
    marbling: float
    mediastinal_fat_hu: float
    dome_mm: tuple[float, float]  # height of the right and the left half of the diaphragm


def sample_grid(rng: np.random.Generator) -> Grid:
    """Field of view, position in it and voxel size of one examination."""
    top, bottom = rng.uniform(52, 150), rng.uniform(-235, -160)
    slices = [s for s in SLICE_MM if (top - bottom) / s <= MAX_SLICES]
    in_plane = rng.uniform(0.8, 1.4)
    width, depth = rng.uniform(335, 405), rng.uniform(272, 325)
    centre_x, centre_y = rng.uniform(-14, 14), rng.uniform(14, 26)
    return Grid(
        lower_mm=(bottom, centre_y - depth / 2, centre_x - width / 2),
        extent_mm=(top - bottom, depth, width),
        spacing_mm=(float(rng.choice(slices)), in_plane, in_plane),
    )


def sample_deformation(rng: np.random.Generator) -> Deformation:
    return Deformation(rng, scale=rng.uniform(0.95, 1.05), coarse_mm=4.0, fine_mm=0.9, tilt_degrees=4)


def sample_patient(rng: np.random.Generator, *, plain_share: float = 0.45, contrast_hu=(25, 160)) -> Patient:
    """plain_share: of the patients without contrast agent. contrast_hu: from the least to the most with it, in blood."""
    habitus = rng.beta(1.6, 2.2)  # 0 lean, 1 obese
    contrast = 0.0 if rng.random() < plain_share else rng.uniform(*contrast_hu)
    blood = rng.uniform(36, 46)
    return Patient(
        fat_mm=(7 + 18 * habitus, 6 + 20 * habitus, 9 + 14 * habitus),
        fat_hu=rng.uniform(-112, -95),
        skin_hu=rng.uniform(5, 30),
        muscle_hu=rng.uniform(48, 60) - 8 * habitus + 0.05 * contrast,
        marrow_hu=rng.uniform(110, 230),
        blood_hu=blood + contrast,
        right_blood_hu=blood + contrast * rng.uniform(0.5, 1.3),
        enhancement_hu=contrast,
        marbling=rng.uniform(0.04, 0.12) + 0.1 * habitus,
        mediastinal_fat_hu=rng.uniform(-95, -45),
        dome_mm=tuple(np.array((-90, -101)) + rng.uniform(-12, 10) + rng.uniform(-4, 4, 2)),
    )


def draw(canvas: Canvas, rng: np.random.Generator) -> None:
    patient = sample_patient(rng)
    wall.draw_body(canvas, patient, rng)
    draw_lungs(canvas, patient, rng)
    draw_lung_vessels(canvas, patient, rng)
    draw_abdomen(canvas, patient, rng)
    wall.draw_spine(canvas, patient, rng)
    wall.draw_ribs(canvas, patient, rng)
    draw_veins_and_nodes(canvas, patient, rng)
    draw_heart(canvas, patient, rng)
    draw_oesophagus(canvas, patient, rng)
    draw_aorta(canvas, patient, rng)
    draw_airways(canvas, patient, rng)
    draw_table(canvas, patient, rng)


def shoulder_streaks(z_mm: np.ndarray) -> np.ndarray:
    """Strength (0 to 1) of the streaks that shoulders cause, by height of the slice."""
    return np.clip((z_mm - 35) / 25, 0, 1) * np.clip((125 - z_mm) / 30, 0, 1)


def dome_z_mm(patient: Patient, x, y):
    """Height of the diaphragm: two domes, steep towards the chest wall."""
    right, left = patient.dome_mm
    falls = (
        height - 66 * (((x - centre) / 74) ** 2 + ((y + 5) / 84) ** 2)
        for height, centre in ((right, -60.0), (left, 64.0))
    )
    return np.maximum(*falls)


def draw_lungs(canvas: Canvas, patient: Patient, rng: np.random.Generator) -> None:
    """Mediastinal fat, lungs with a gradient from front to back, now and then a tumour or collapsed lung."""
    box = canvas.box((-132, -92, -262), (132, 92, 90))
    x, y, z = canvas.coordinates(box)
    inside = wall.cavity(canvas, box)
    strands = SmoothField(rng, pitch_mm=9, sd=1.0)
    texture = canvas.field(strands, box)
    fat = np.where(np.abs(texture) < 0.12, 15.0, patient.mediastinal_fat_hu + 6 * texture)
    canvas.paint(box, inside, fat.astype(np.float32))

    half_width = wall.profile(canvas.slice_z_mm(box), (-90, -20, 30, 85), (25, 25, 29, 35))
    half_width = half_width - np.where(y < 0, np.float32(0.0028), np.float32(0.0006)) * y * y  # narrow in front
    lung = inside & (np.abs(x - rng.uniform(-3, 5)) > half_width)  # down to the diaphragm: the abdomen covers the rest
    density = rng.uniform(-870, -800)
    hu = density + 0.45 * y + 12 * texture
    canvas.paint(box, lung & (x > 0), hu, Organ.LUNG_LEFT)
    canvas.paint(box, lung & (x <= 0), hu, Organ.LUNG_RIGHT)
    if rng.random() < 0.2:  # fluid or collapsed lung at the back
        side, level = rng.choice((-1, 1)), rng.uniform(38, 62)
        canvas.paint(box, lung & (x * side > 0) & (y > level - 0.12 * (z + 60) ** 2 / 60), rng.uniform(5, 45))
    if rng.random() < 0.35:
        centre = (rng.choice((-1, 1)) * rng.uniform(32, 80), rng.uniform(-35, 45), rng.uniform(-60, 35))
        canvas.ellipsoid(centre, rng.uniform(8, 24, 3), rng.uniform(25, 50) + 0.15 * patient.enhancement_hu)


def draw_lung_vessels(canvas: Canvas, patient: Patient, rng: np.random.Generator) -> None:
    """Branching vessels from each hilum to the edge of the lung."""
    for sign in (-1, 1):
        hilum = np.array((sign * 34, 8, -24.0))
        for _ in range(16):
            target = np.array((sign * rng.uniform(40, 122), rng.uniform(-75, 75), rng.uniform(-150, 75)))
            stem = hilum + rng.normal(0, (2, 9, 12))
            _draw_branch(canvas, patient, rng, stem, target, radius_mm=rng.uniform(2.6, 4.8), depth=2)


def _draw_branch(canvas: Canvas, patient: Patient, rng: np.random.Generator, start, target, radius_mm, depth) -> None:
    way = target - start
    length = np.linalg.norm(way)
    if not depth:
        canvas.tube([start, target], (radius_mm, 0.8), patient.right_blood_hu - 10, None, below_hu=-500)
        return
    bends = [start + f * way + rng.normal(0, 0.045 * length, 3) for f in (0.33, 0.66)]
    points, radii = curve([start, *bends, target], (radius_mm, 0.8 * radius_mm, 0.6 * radius_mm, 0.8), 14)
    canvas.tube(points, radii, patient.right_blood_hu - 10, None, below_hu=-500)
    for _ in range(depth + 1):
        at = rng.integers(len(points) // 4, len(points) - 1)
        reach = rng.uniform(0.3, 0.55) * length
        end = points[at] + reach * (way / length + rng.normal(0, 0.6, 3))
        _draw_branch(canvas, patient, rng, points[at], end, 0.65 * radii[at], depth - 1)


def draw_abdomen(canvas: Canvas, patient: Patient, rng: np.random.Generator) -> None:
    """Below the diaphragm: liver, spleen, stomach with gas above fluid, fat."""
    box = canvas.box((-132, -95, -262), (132, 95, -70))
    x, y, z = canvas.coordinates(box)
    if x.size == 0:
        return
    inside, dome = wall.cavity(canvas, box), dome_z_mm(patient, x, y)
    canvas.paint(box, inside & (z < dome), patient.muscle_hu)  # the diaphragm, 4 mm thick
    canvas.paint(box, wall.cavity(canvas, box, -3) & (z < dome - 4), patient.fat_hu + 8)
    edge = 25 - 0.5 * (y + 20) + 0.25 * (z + 130)  # the left lobe reaches over the midline, in front of the stomach
    liver = wall.cavity(canvas, box, -5) & (z < dome - 4) & (x < edge) & ((y < 22) | (x < -28))
    canvas.paint(box, liver, rng.uniform(48, 66) + 0.35 * patient.enhancement_hu)

    canvas.ellipsoid((88, 34, -158), (26, 36, 36), rng.uniform(42, 52) + 0.45 * patient.enhancement_hu)
    stomach, semi = np.array((52.0, -12, -152)), np.array((33.0, 30, 28)) * rng.uniform(0.85, 1.15)
    canvas.ellipsoid(stomach, semi, 42 + 0.2 * patient.enhancement_hu)
    content, distance = canvas.ellipsoid_distance(stomach, semi - 4.5)
    gas = canvas.coordinates(content)[1] < stomach[1] - rng.uniform(-5, 22)
    canvas.paint(content, distance < 1, np.where(gas, -940.0, rng.uniform(5, 35)))
    colon = [(70, -60, -160), (100, -30, -185), (70, -45, -215), (20, -62, -225)]
    points, radii = curve(np.array(colon) + rng.normal(0, 6, (4, 3)), rng.uniform(12, 19))
    canvas.tube(points, radii, 35)
    for i in range(0, len(points) - 3, 4):
        canvas.tube(points[i : i + 3], 0.75 * radii[i : i + 3], rng.choice((-900, 10, 60)))
    for sign in (-1, 1):  # crura of the diaphragm, either side of the aorta
        points = [(sign * 14 + 2, wall.spine_y_mm(z) - 16, z) for z in (-130, -160, -200, -250)]
        canvas.tube(points, (3, 5, 6, 6), patient.muscle_hu, stretch_xyz=(1, 1.8, 1))


def draw_veins_and_nodes(canvas: Canvas, patient: Patient, rng: np.random.Generator) -> None:
    """Great veins, pulmonary arteries, azygos vein, thyroid, and lymph nodes as dense as the oesophagus."""
    venous = patient.right_blood_hu
    if rng.random() < 0.3 and patient.enhancement_hu:
        venous += rng.uniform(50, 250)  # contrast still running in through the arm
    cava = [(-27, -22, 62), (-27, -20, 40), (-28, -17, 10), (-28, -16, -25), (-26, -15, -45)]
    canvas.tube(*curve(cava, (7, 8.5, 9.5, 10, 10)), venous)
    left_innominate = [(38, -24, 66), (18, -33, 50), (-8, -33, 42), (-26, -22, 34)]
    canvas.tube(*curve(left_innominate, 6), venous)
    for sign in (-1, 1):
        jugular = [(sign * 27, -22, 58), (sign * 30, -22, 90), (sign * 30, -14, 180)]
        canvas.tube(*curve(jugular, 6), venous)
        canvas.tube(
            *curve([(sign * 18, -25, 78), (sign * 21, -23, 95), (sign * 19, -21, 116)], (5, 10, 5)),
            85 + 0.5 * patient.enhancement_hu,
        )  # thyroid
    canvas.tube([(-22, 2, -95), (-24, 6, -140), (-22, 14, -260)], 11, patient.right_blood_hu)
    azygos = [(-11, float(wall.spine_y_mm(z)) - 15, z) for z in (-200, -120, -60, -15)]
    azygos += [(-14, 24, 4), (-20, 6, 12), (-26, -10, 8)]
    canvas.tube(*curve(azygos, 3.6), venous)

    trunk = [(16, -42, -44), (20, -34, -28), (20, -20, -14), (28, -2, -10), (44, 12, -20), (54, 20, -40)]
    canvas.tube(*curve(trunk, (13, 14, 13, 11.5, 9.5, 7)), patient.right_blood_hu)
    right = [(18, -16, -18), (0, -9, -22), (-22, -5, -24), (-42, 4, -30), (-56, 10, -45)]
    canvas.tube(*curve(right, (11, 10.5, 10, 9, 6)), patient.right_blood_hu)
    for sign in (-1, 1):
        for height in (-48, -62):  # pulmonary veins
            canvas.tube([(sign * 20, 4, -52), (sign * 58, 10, height)], (7, 4.5), patient.blood_hu)

    stations = np.array(
        [
            (-16, -2, 12),
            (-13, -10, 30),
            (4, 12, -28),
            (12, -12, 0),
            (-30, 12, -28),
            (34, 16, -32),
            (14, 22, 50),
            (-14, 25, 60),
            (8, 24, -40),
            (-10, 26, -95),
        ],
        float,
    )
    for place in stations:
        if rng.random() < 0.6:
            semi = rng.uniform(2.5, 6.5) * rng.uniform(0.8, 1.3, 3)
            canvas.ellipsoid(place + rng.normal(0, 3, 3), semi, rng.uniform(28, 52) + 0.1 * patient.enhancement_hu)


def draw_heart(canvas: Canvas, patient: Patient, rng: np.random.Generator) -> None:
    """Muscle of the heart, four chambers, pericardial fat. The apex points to the left, forwards and down."""
    long_axis = np.array((0.70, -0.54, -0.47)) + rng.normal(0, 0.05, 3)
    long_axis /= np.linalg.norm(long_axis)
    across = np.cross(long_axis, (0, 0, 1.0))
    across /= np.linalg.norm(across)
    axes = np.stack([long_axis, across, np.cross(long_axis, across)])
    size = rng.uniform(0.98, 1.08)
    centre = np.array((20.0, -22, -79)) + rng.normal(0, 2, 3)
    parts = (  # centre relative to that of the heart, semi-axes in mm, axes
        ((0, 0, 0), (66, 48, 45), axes),
        ((-40, 6, 10), (25, 29, 35), None),
        ((-19, 24, 23), (32, 20, 25), None),
    )
    box = canvas.box(centre - 82, centre + 82)
    x, y, z = canvas.coordinates(box)
    if x.size == 0:
        return
    room = y < wall.spine_y_mm(z) - 24  # behind the heart run the oesophagus and the aorta
    room &= wall.cavity(canvas, box, -5)
    fat_mm = rng.uniform(2, 6)
    fat, inner = np.zeros(x.shape, bool), np.zeros(x.shape, bool)
    for offset, semi, orientation in parts:
        semi = np.array(semi) * size
        _, distance = canvas.ellipsoid_distance(centre + np.array(offset) * size, semi, axes=orientation, box=box)
        fat |= distance < (1 + fat_mm / semi.mean()) ** 2
        inner |= distance < 1
    inner &= room
    canvas.paint(box, fat & room, patient.fat_hu + 10)
    canvas.paint(box, inner, rng.uniform(42, 52) + 0.45 * patient.enhancement_hu, Organ.HEART)

    left, right = patient.blood_hu, patient.right_blood_hu
    chambers = (  # left and right ventricle, right and left atrium
        (centre + size * (10 * long_axis + np.array((8, 9, 4))), (42, 22, 22), axes, left),
        (centre + size * (4 * long_axis + np.array((-10, -20, -8))), (44, 13, 24), axes, right),
        (centre + size * np.array((-40, 6, 10)), (20, 24, 30), None, right),
        (centre + size * np.array((-19, 24, 23)), (29, 17, 22), None, left),
    )
    for middle, semi, orientation, hu in chambers:
        _, distance = canvas.ellipsoid_distance(middle, np.array(semi) * size, axes=orientation, box=box)
        canvas.paint(box, (distance < 1) & inner, hu, Organ.HEART)
    _draw_groove_fat(canvas, patient, rng, centre, size)


def _draw_groove_fat(canvas: Canvas, patient: Patient, rng: np.random.Generator, centre, size: float) -> None:
    """Fat with the coronary arteries between atria and ventricles; part of the heart, as in SegTHOR."""
    for offset in ((-20, -30, 12), (-24, -20, -30), (20, -36, 14)):
        place = centre + size * np.array(offset) + rng.normal(0, 2, 3)
        box, distance = canvas.ellipsoid_distance(place, rng.uniform(5, 10, 3))
        canvas.paint(box, (distance < 1) & (canvas.labels[box] == Organ.HEART), patient.fat_hu + 20, Organ.HEART)


def draw_oesophagus(canvas: Canvas, patient: Patient, rng: np.random.Generator) -> None:
    """A collapsed tube from behind the larynx to the stomach; bits of air in some, a thickened part in some."""
    z = np.array((112, 90, 60, 30, 0, -25, -60, -90, -115, -135, -150.0))
    x = np.array((1, 3, 5, 6, 3, 0, 1, 3, 9, 21, 35.0)) + rng.normal(0, 1.5, len(z))
    before_spine = np.array((23, 23, 23, 22.5, 22, 22, 22, 26, 37, 49, 56.0))
    y = wall.spine_y_mm(z) - before_spine
    points, radii = curve(np.stack([x, y, z], -1), 5.05, 4)
    wave = np.interp(np.arange(len(radii)), np.linspace(0, len(radii), 9), rng.uniform(0.92, 1.15, 9))
    radii = radii * rng.uniform(0.95, 1.05) * wave
    if rng.random() < 0.3:  # tumour
        middle = rng.uniform(0.25, 0.85) * len(radii)
        radii = radii * (1 + rng.uniform(0.2, 0.5) * np.exp(-0.5 * ((np.arange(len(radii)) - middle) / 5) ** 2))
    wall_hu = patient.muscle_hu + rng.uniform(-14, 2) + 0.08 * patient.enhancement_hu
    stretch = (rng.uniform(1.38, 1.6), 1, 1)
    canvas.tube(points, radii, wall_hu, Organ.ESOPHAGUS, stretch_xyz=stretch)
    canvas.tube(points, 0.4 * radii, wall_hu + rng.uniform(-12, 6), Organ.ESOPHAGUS, stretch_xyz=stretch)
    for _ in range(rng.choice(4, p=(0.4, 0.3, 0.2, 0.1))):
        start, count = rng.integers(2, len(points) - 10), rng.integers(3, 8)
        air = slice(start, start + count)
        offset = rng.normal(0, (1.2, 0.5, 0))
        lumen = radii[air] * rng.uniform(0.3, 0.55)
        canvas.tube(points[air] + offset, lumen, -820, Organ.ESOPHAGUS, stretch_xyz=(1.4, 1, 1))


def draw_aorta(canvas: Canvas, patient: Patient, rng: np.random.Generator) -> None:
    """Branches of the arch without label, then root, ascending part, arch to the left, descending part."""
    for start, way in (
        ((5, -14, 34), ((-10, -18, 55), (-20, -20, 80), (-24, -14, 180))),
        ((12, -4, 34), ((15, -12, 60), (22, -16, 90), (24, -12, 180))),
        ((20, 10, 30), ((24, 8, 55), (36, 0, 78), (80, -12, 86))),
    ):
        canvas.tube(*curve([start, *way], (6.5, 5, 4.5, 4)), patient.blood_hu - 3)

    top = rng.uniform(23, 32)
    arch = [
        (4, -17, -52),
        (-6, -23, -34),
        (-14, -28, -10),
        (-12, -26, 10),
        (4, -17, top),
        (18, 2, top + 1),
        (26, 22, top - 12),
    ]
    z = np.array((-8, -50, -100, -150, -200, -262))
    x = np.interp(z, (-200, -150, -100, -50, 0), (8, 14, 22, 26, 28))
    before_spine = np.interp(z, (-200, -150, -100, -50, 0), (31, 28, 20, 16, 14))
    descending = np.stack([x, wall.spine_y_mm(z) - before_spine, z], -1)
    points = np.vstack([arch, descending])
    radii = np.array((15, 16, 16.5, 15.5, 13.5, 12.5, 12.5, 12, 12, 11.5, 11, 10.5, 10.5)) * rng.uniform(0.88, 1.05)
    points[1:-1] += rng.normal(0, 0.8, points[1:-1].shape)
    points, radii = curve(points, radii)
    canvas.tube(points, radii, patient.blood_hu - 5, Organ.AORTA)
    canvas.tube(points, radii - 2, patient.blood_hu, Organ.AORTA)
    for _ in range(rng.integers(0, 5)):  # calcified plaques
        i = rng.integers(len(points) // 3, len(points))
        edge = points[i] + np.array((np.cos(a := rng.uniform(0, 6.3)), np.sin(a), 0)) * (radii[i] - 1)
        box, distance = canvas.ellipsoid_distance(edge, (2, 2, 4))
        canvas.paint(box, (distance < 1) & (canvas.labels[box] == Organ.AORTA), 600, Organ.AORTA)


def draw_airways(canvas: Canvas, patient: Patient, rng: np.random.Generator, *, above_mm: float = 75) -> None:
    """Trachea and stubs of both main bronchi, wall included; beyond them the airway goes on, and above for `above_mm`."""
    z = np.array((110, 85, 60, 30, 0.0))
    before_spine = np.array((41, 41, 40, 39, 38.0))
    x = np.array((0, -1, -2, -4, -3)) + np.r_[0, rng.normal(0, 1.5, 3), 0]
    trachea = np.stack([x, wall.spine_y_mm(z) - before_spine, z], -1)
    fork = trachea[-1]
    right = fork + np.array([(0, 0, 0), (-11, 1, -10), (-24, 4, -21)])
    left = fork + np.array([(0, 0, 0), (12, 0, -10), (26, 2, -18), (38, 5, -25)])
    beyond = [
        fork + np.array([(-24, 4, -21), (-36, 7, -36), (-48, 12, -70), (-62, 20, -100)]),
        fork + np.array([(-24, 4, -21), (-38, -2, -14), (-52, -8, 8)]),
        fork + np.array([(38, 5, -25), (48, 10, -40), (60, 20, -80)]),
        fork + np.array([(38, 5, -25), (50, -8, -20), (60, -18, 2)]),
    ]
    lumen = rng.uniform(7.0, 8.0)
    wall_hu, air_hu = patient.muscle_hu - rng.uniform(0, 25), AIR_HU + rng.uniform(5, 40)
    above = [trachea[0], trachea[0] + (0, 2, 15), trachea[0] + (0, 4, above_mm)]
    larynx = curve(above, (9, 13, 12))
    canvas.tube(*larynx, 90)
    labelled = [
        (curve(p, r), thickness)
        for p, r, thickness in (
            (trachea, (lumen, lumen, lumen, lumen, lumen + 0.6), 1.4),
            (right, (lumen, 7.4, 6.6), 1.2),
            (left, (lumen, 6.8, 6.4, 5.8), 1.2),
        )
    ]
    unlabelled = [curve(p, np.linspace(5.4, 2.4, len(p))) for p in beyond]
    for points, radii in unlabelled:
        canvas.tube(points, radii + 1.2, wall_hu)
    for (points, radii), thickness in labelled:
        canvas.tube(points, radii + thickness, wall_hu, Organ.TRACHEA)
    # lumens last: they open the rounded ends of the walls, whoever's label those carry
    for points, radii in unlabelled:
        canvas.tube(points, radii, air_hu, None)
    for (points, radii), _ in labelled:
        canvas.tube(points, radii, air_hu, Organ.TRACHEA)
    points, radii = larynx
    canvas.tube(points, np.full(len(radii), 5.5), air_hu, None, stretch_xyz=(1, 1.4, 1))


def draw_table(canvas: Canvas, patient: Patient, rng: np.random.Generator) -> None:
    """The flat table top of radiotherapy: a thin shell about foam; it flattens the fat of the back. Never deformed."""
    surface = (10 + 101 + patient.fat_mm[2]) * canvas.deformation.scale - rng.uniform(1, 5)
    thickness, half_width = rng.uniform(22, 45), rng.uniform(200, 265)
    y = canvas.grid.centres_mm(1)[:, None]
    x = np.abs(canvas.grid.centres_mm(2))
    depth = np.minimum(np.minimum(y - surface, surface + thickness - y), half_width - x)
    shell_mm = max(2.0, 0.6 * canvas.grid.spacing_mm[1])
    plane = np.where(depth < 0, AIR_HU, np.where(depth < shell_mm, rng.uniform(-350, -100), -900)).astype(np.float32)
    behind = canvas.grid.centres_mm(1) > surface
    canvas.hu[:, behind] = plane[behind]
    canvas.labels[:, behind] = 0
