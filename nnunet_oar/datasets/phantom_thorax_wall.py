"""The wall of the synthetic trunk: skin, fat, muscle, spine, ribs, sternum, shoulders. Frame: see phantom_thorax.py.

Profiles are tables over z (mm, 0 at the carina), read with `profile`; half-widths are along x, half-depths along y.
"""

from __future__ import annotations

import numpy as np

from nnunet_oar.datasets.phantom_organs import Organ
from nnunet_oar.datasets.phantom_shapes import Box, Canvas, SmoothField, curve

# z: body half-width and half-depth to the surface of the muscles, y of the centre. Pelvis, trunk, neck; the neck ends
# within the head.
BODY_Z_MM = (-430, -370, -320, -260, -220, -120, -60, -30, 30, 60, 80, 98, 115, 135, 180, 205, 240)
BODY_WIDTH_MM = (165, 158, 144, 138, 142, 147, 149, 149, 152, 150, 125, 86, 66, 60, 60, 55, 1)
BODY_DEPTH_MM = (99, 98, 95, 94, 97, 100, 101, 101, 95, 86, 77, 67, 60, 57, 57, 54, 1)
BODY_Y_MM = (10, 11, 10, 10, 10, 10, 10, 10, 12, 14, 14, 12, 9, 5, 2, 2, 10)
# Inside of rib cage and abdominal wall; it closes at the apex of the lungs.
CAVITY_Z_MM = (-430, -370, -320, -260, -220, -150, -80, -30, 20, 50, 68, 78, 86)
CAVITY_WIDTH_MM = (95, 112, 121, 123, 124, 129, 129, 124, 109, 87, 63, 41, 8)
CAVITY_DEPTH_MM = (80, 82, 81, 81, 83, 84, 82, 78, 68, 55, 41, 27, 6)
CAVITY_Y_MM = (4, 1, 0, 0, 0, 0, 0, 1, 6, 14, 21, 26, 30)
# Edges between vertebrae, from the fifth lumbar to the first cervical one and beyond: a vertebra with the disc below it
# is 17 to 30 mm high. Number 0 is the lower edge of the third lumbar vertebra.
VERTEBRA_EDGES_MM = np.r_[-359, -329, -300, -300 + np.cumsum(np.linspace(28.5, 15.5, 25))]
VERTEBRA_NUMBERS = np.arange(len(VERTEBRA_EDGES_MM)) - 2
SPINE_Z_MM = (-430, -380, -350, -310, -260, -220, -150, -100, -40, 0, 50, 85, 130, 180)
SPINE_Y_MM = (88, 62, 44, 38, 38, 43, 49, 52, 53, 51, 45, 38, 26, 20)
SPINE_TOP_MM = 196.0  # where the cord leaves the skull
RIB_PAIRS = 11
SKIN_MM = 2.0


def profile(z_mm, table_z_mm, table) -> np.ndarray:
    return np.interp(z_mm, table_z_mm, table).astype(np.float32)


def spine_y_mm(z_mm):
    """y of the centre of the vertebral bodies; their front lies 16 mm before it, the canal 25 mm behind it."""
    return profile(z_mm, SPINE_Z_MM, SPINE_Y_MM)


def superellipse(canvas: Canvas, box: Box, z_mm, width_mm, depth_mm, y_mm, *, grow_mm=(0.0, 0.0, 0.0)) -> np.ndarray:
    """Mask of a cross-section that follows three profiles over z and has the roundness of a chest.

    grow_mm: by how much the side, the front and the back are moved outwards, numbers or arrays `(n, 1, 1)`. The
    profiles are read at the height of the slice, not at the deformed height: one number per slice, not per voxel.
    """
    side, front, back = grow_mm
    z = canvas.slice_z_mm(box)
    width = profile(z, z_mm, width_mm) + side
    depth = profile(z, z_mm, depth_mm) + (front + back) / 2
    centre = profile(z, z_mm, y_mm) + (back - front) / 2
    x, y, _ = canvas.coordinates(box)
    mask = np.zeros(x.shape, bool)
    for i in range(len(mask)):
        u, v = np.abs(x[i] / width[i]), np.abs((y[i] - centre[i]) / depth[i])
        mask[i] = u * u * np.sqrt(u) + v * v * np.sqrt(v) < 1  # exponent 2.5
    return mask


def cavity(canvas: Canvas, box: Box, grow_mm: float = 0.0) -> np.ndarray:
    return superellipse(canvas, box, CAVITY_Z_MM, CAVITY_WIDTH_MM, CAVITY_DEPTH_MM, CAVITY_Y_MM, grow_mm=(grow_mm,) * 3)


def draw_body(
    canvas: Canvas, patient, rng: np.random.Generator, *, arms_down: float = 1 / 6, fat_share: float | np.ndarray = 1.0
) -> None:
    """Skin, subcutaneous fat, breasts, arms, and muscle with its planes of fat.

    arms_down: how probable it is that the arms lie at the sides. fat_share: how thick the fat is, in times of the
    patient's thickness about the chest; a number or `(Z, 1, 1)`, one for each slice.
    """
    everything = (slice(None),) * 3
    side, front, back = patient.fat_mm
    breasts = rng.uniform(0.75, 1.15) if rng.random() < 0.5 else 0.0
    arm = _arm_points(rng, arms_down)
    for inset, hu in ((0.0, patient.skin_hu), (SKIN_MM, patient.fat_hu)):
        grow = (fat_share * side - inset, fat_share * front - inset, fat_share * back - inset)
        mask = superellipse(canvas, everything, BODY_Z_MM, BODY_WIDTH_MM, BODY_DEPTH_MM, BODY_Y_MM, grow_mm=grow)
        canvas.paint(everything, mask, hu)
        for sign in (-1, 1):
            points, radii = curve(arm * (sign, 1, 1), (48 + side / 2, 45 + side / 2, 42 + side / 2), 25)
            canvas.tube(points, radii - inset, hu)
            if breasts:
                semi = np.array((62, 40, 62)) * breasts - inset
                canvas.ellipsoid((sign * 75, -98 - front / 2, -62), semi, hu)

    planes = SmoothField(rng, pitch_mm=15, sd=1.0)
    muscle = superellipse(canvas, everything, BODY_Z_MM, BODY_WIDTH_MM, BODY_DEPTH_MM, BODY_Y_MM)
    canvas.paint(everything, muscle, patient.muscle_hu)
    for sign in (-1, 1):
        points, radii = curve(arm * (sign, 1, 1), (42, 39, 36), 25)
        canvas.tube(points, radii, patient.muscle_hu)
    # Level sets of a random field are thin curved sheets: the fat between muscles.
    sheets = np.abs(canvas.field(planes, everything)) < patient.marbling
    sheets &= canvas.hu == np.float32(patient.muscle_hu)
    canvas.paint(everything, sheets, patient.fat_hu + 25)

    for sign in (-1, 1):
        points, radii = curve(arm * (sign, 1, 1), (17, 12, 11), 25)
        canvas.tube(points, radii, 480)
        canvas.tube(points, 0.55 * radii, 90)
        canvas.ellipsoid(arm[0] * (sign, 1, 1), (23, 22, 23), 330)


def _arm_points(rng: np.random.Generator, arms_down: float) -> np.ndarray:
    """Shoulder to elbow of the left arm: raised above the head, as for treatment of the chest, or at the side."""
    shoulder = np.array((158.0, 12, 62))
    if rng.random() < arms_down:
        return np.stack([shoulder, shoulder + (28, 8, -110), shoulder + (38, 14, -300)])
    outwards = rng.uniform(0, 30)
    return np.stack([shoulder, shoulder + (outwards - 5, -25, 90), shoulder + (outwards, -45, 260)])


def draw_spine(canvas: Canvas, patient, rng: np.random.Generator, *, cord_end_mm: float = -300.0) -> None:
    """Vertebral bodies with discs, canal with cord, arches, spinous and transverse processes.

    cord_end_mm: height of the tip of the cord; below it the canal holds nerve roots in fluid.
    """
    box = canvas.box((-40, -15, -365), (40, 125, SPINE_TOP_MM))
    x, y, z = canvas.coordinates(box)
    if x.size == 0:
        return
    index = np.interp(z, VERTEBRA_EDGES_MM, VERTEBRA_NUMBERS).astype(np.float32)
    phase = index - np.floor(index)  # 0 at the bottom of the disc, 0.2 at the lower and 1 at the upper end plate
    size = profile(z, (-260, -60, 80, 180), (1.12, 1.0, 0.86, 0.8))
    depth = (y - spine_y_mm(z)) / size
    x = x / size

    # muscle along the spine, on both sides of the arches
    beside = ((np.abs(x) - 24) / 19) ** 2 + ((depth - 40) / 15) ** 2 < 1
    below_skull = (z < SPINE_TOP_MM) & (z > VERTEBRA_EDGES_MM[0])
    canvas.paint(box, beside & below_skull, patient.muscle_hu + 3)

    waist = 1 - 0.09 * np.sin(np.pi * np.clip((phase - 0.2) / 0.8, 0, 1))
    radius = np.sqrt((x / 18.5) ** 2 + (depth / 15.5) ** 2) / waist
    canvas.paint(box, (radius < 1.0) & below_skull, 85)
    bone = (radius < 1.03) & (phase > 0.2) & below_skull
    canvas.paint(box, bone, np.where((radius > 0.9) | (phase < 0.28) | (phase > 0.93), 390, patient.marrow_hu))

    arch = ((x / 15) ** 2 + ((depth - 25.5) / 13.5) ** 2 < 1) & (radius > 1) & below_skull
    canvas.paint(box, arch, np.where((phase > 0.3) & (phase < 0.85), 350, 60))
    tilted = np.interp(z + 0.5 * (depth - 38), VERTEBRA_EDGES_MM, VERTEBRA_NUMBERS)
    tilted = tilted - np.floor(tilted)
    spinous = (np.abs(x) < 3.6) & (depth > 36) & (depth < 56) & (tilted > 0.35) & (tilted < 0.8)
    canvas.paint(box, spinous & below_skull, 340)
    canvas.paint(box, ((x / 9.5) ** 2 + ((depth - 25.5) / 8.5) ** 2 < 1) & below_skull, 14)
    roots = ((x / 6) ** 2 + ((depth - 28) / 4) ** 2 < 1) & below_skull & (z < cord_end_mm + 10)
    canvas.paint(box, roots, 26)
    taper = np.sqrt(np.clip((z - cord_end_mm) / 25, 0, 1))  # the conus
    cord = (x / 5.8) ** 2 + ((depth - 25.5) / 4.8) ** 2 < taper
    canvas.paint(box, cord & below_skull, 40, Organ.SPINAL_CORD)

    for low, high in zip(VERTEBRA_EDGES_MM[:-1], VERTEBRA_EDGES_MM[1:], strict=True):
        if high > SPINE_TOP_MM:
            break
        middle = low + 0.6 * (high - low)
        back = float(spine_y_mm(middle)) + 22
        for sign in (-1, 1):
            canvas.tube([(sign * 12, back, middle), (sign * 30, back + 9, middle + 3)], (5, 4), 320)


def draw_ribs(canvas: Canvas, patient, rng: np.random.Generator) -> None:
    """Ribs from the vertebrae round the cavity, sloping forwards, with cartilage in front; collar bones, sternum."""
    tops = VERTEBRA_EDGES_MM[VERTEBRA_EDGES_MM < 80][::-1]
    for pair in range(RIB_PAIRS):
        start_z = tops[pair]
        drop = np.interp(pair, (0, 3, 7, 10), (28, 52, 78, 70))
        end_degrees = np.interp(pair, (0, 6, 7, 8, 10), (158, 163, 150, 135, 95))
        degrees = np.arange(22.0, end_degrees, 9)
        along = (degrees - 22) / 140
        z = start_z - drop * along**1.2
        angle = np.radians(degrees)
        width = profile(z, CAVITY_Z_MM, CAVITY_WIDTH_MM) + 6.5
        depth = profile(z, CAVITY_Z_MM, CAVITY_DEPTH_MM) + 6.5
        x = width * np.abs(np.sin(angle)) ** 0.8
        y = profile(z, CAVITY_Z_MM, CAVITY_Y_MM) + depth * np.sign(np.cos(angle)) * np.abs(np.cos(angle)) ** 0.8
        head = (20, float(spine_y_mm(start_z)) + 14, start_z + 3)
        points = np.vstack([head, np.stack([x, y, z], -1)])
        bone = np.r_[True, degrees < 128]
        for sign in (-1, 1):
            side = points * (sign, 1, 1)
            if (~bone).sum() > 1:
                canvas.tube(side[~bone], 4.0, 95, stretch_xyz=(1, 1, 1.5))
            canvas.tube(side[bone], 4.0, 430, stretch_xyz=(1, 1, 1.5))
            canvas.tube(side[bone], 2.2, patient.marrow_hu, stretch_xyz=(1, 1, 1.5))

    front = [(0, _front_y_mm(z) - 6.0, z) for z in (46, 25, 0, -30, -60, -85)]
    canvas.tube(front, (9, 7.5, 6, 6, 6, 4), 380, stretch_xyz=(2.3, 1, 1))
    canvas.tube(front, (6.5, 5, 3.8, 3.8, 3.8, 2), patient.marrow_hu - 60, stretch_xyz=(2.3, 1, 1))
    for sign in (-1, 1):
        neck = _front_y_mm(46)
        points, radii = curve(
            np.array([(14, neck - 8, 50), (60, neck - 14, 62), (105, neck + 22, 80), (140, 0, 84)]) * (sign, 1, 1),
            (8, 6, 6, 7),
        )
        canvas.tube(points, radii, 430)
        canvas.tube(points, 0.5 * radii, 150)
        normal = np.array((sign * 0.62, 0.78, 0.0))
        axes = np.array([normal, (-normal[1] * sign, normal[0] * sign, 0), (0, 0, 1)])
        canvas.ellipsoid((sign * 98, 70, 22), (4.5, 34, 58), 360, axes=axes)


def _front_y_mm(z_mm: float) -> float:
    """y of the inside of the chest wall in the midline."""
    return float(profile(z_mm, CAVITY_Z_MM, CAVITY_Y_MM) - profile(z_mm, CAVITY_Z_MM, CAVITY_DEPTH_MM))
