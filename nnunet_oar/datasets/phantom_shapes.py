"""What synthetic CTs are drawn with: a grid, a smooth random deformation, and a canvas of HU and labels.

A region is drawn in an undeformed anatomical frame in millimetres, LPS as in ITK: +x the patient's left, +y posterior,
+z superior, its origin at a landmark of the region. The canvas deforms the coordinates of its voxels instead of warping
finished volumes, so every edge is drawn once, on the final grid, and no label is ever interpolated.
Points are (x, y, z), names ending in `_xyz_mm`; arrays, spacings and boxes are (z, y, x).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage
from scipy.interpolate import CubicSpline

AIR_HU = -1000.0
MINIMUM_HU, MAXIMUM_HU = -1024, 1500
FIELD_HALF_WIDTH_MM = 450.0  # random fields are defined on this cube about the origin of the anatomical frame

Box = tuple[slice, slice, slice]


@dataclass(frozen=True)
class Grid:
    """Where the voxels lie, (z, y, x) in mm from the landmark of the region; `lower_mm` is an outer edge, no centre."""

    lower_mm: tuple[float, float, float]
    extent_mm: tuple[float, float, float]
    spacing_mm: tuple[float, float, float]

    @property
    def shape(self) -> tuple[int, int, int]:
        return tuple(max(1, round(e / s)) for e, s in zip(self.extent_mm, self.spacing_mm, strict=True))

    def centres_mm(self, axis: int) -> np.ndarray:
        """Coordinates of the voxel centres along one axis, `(size,)`."""
        return self.lower_mm[axis] + (np.arange(self.shape[axis]) + 0.5) * self.spacing_mm[axis]


class SmoothField:
    """A random function of space, sum of cubic B-splines on a lattice; mean 0, standard deviation `sd`.

    Its coefficients are drawn at construction and know nothing of the grid: the anatomy is the same at every spacing.
    It is defined on a cube, all of the frame or, sooner drawn, the surroundings of an organ: centre_xyz_mm and
    half_width_mm. Outside it is 0. It is not deformed: leave 40 mm about the organ.
    """

    def __init__(
        self,
        rng: np.random.Generator,
        *,
        pitch_mm: float,
        sd: float,
        components: int = 1,
        centre_xyz_mm=(0.0, 0.0, 0.0),
        half_width_mm: float = FIELD_HALF_WIDTH_MM,
    ):
        count = 2 * int(np.ceil(half_width_mm / pitch_mm)) + 1
        knots_mm = (np.arange(count) - count // 2) * pitch_mm
        self.knots_mm = [knots_mm + centre for centre in centre_xyz_mm[::-1]]  # of z, y and x
        self.pitch_mm = pitch_mm
        # A sum of unit coefficients over a cubic B-spline lattice has variance 0.479 per axis.
        self.coefficients = rng.normal(0, sd / 0.479**1.5, (components, count, count, count)).astype(np.float32)

    def _weights(self, position_mm: np.ndarray, axis: int) -> np.ndarray:
        """Values of all basis functions along an axis, `(positions, knots)` float32."""
        u = np.abs(np.asarray(position_mm, float)[:, None] - self.knots_mm[axis]) / self.pitch_mm
        inner, outer = 2 / 3 - u**2 + u**3 / 2, (2 - u) ** 3 / 6
        return np.where(u < 1, inner, np.where(u < 2, outer, 0)).astype(np.float32)

    def on_grid(self, z_mm: np.ndarray, y_mm: np.ndarray, x_mm: np.ndarray) -> np.ndarray:
        """The field at every voxel centre, `(components, Z, Y, X)` float32."""
        rows = np.einsum("cijk,zi->czjk", self.coefficients, self._weights(z_mm, 0))
        rows = np.einsum("czjk,yj->czyk", rows, self._weights(y_mm, 1))
        weights = self._weights(x_mm, 2)
        columns = [np.flatnonzero(column) for column in weights.T]
        supports = [(k, slice(c[0], c[-1] + 1)) for k, c in enumerate(columns) if c.size]
        out = np.zeros((*rows.shape[:3], len(x_mm)), np.float32)
        # No matrix product: BLAS may round differently with another number of threads, and cases must not.
        for c, z in np.ndindex(rows.shape[:2]):
            for k, support in supports:
                out[c, z, :, support] += rows[c, z, :, k, None] * weights[support, k]
        return out


def on_grid(fields: tuple[SmoothField, ...], z_mm: np.ndarray, y_mm: np.ndarray, x_mm: np.ndarray) -> np.ndarray:
    """Sum of fields at every voxel centre, `(components, Z, Y, X)` float32; where that is faster, interpolated.

    Between points an eighth of the pitch apart a cubic spline is straight to less than 1 % of its standard deviation.
    """
    step_mm = min(field.pitch_mm for field in fields) / 8
    if len(x_mm) < 2 or len(y_mm) < 2 or x_mm[1] - x_mm[0] >= step_mm:
        return sum(field.on_grid(z_mm, y_mm, x_mm) for field in fields)
    lattices, weights = [], []
    for centres in (y_mm, x_mm):
        position = (centres - centres[0]) / step_mm
        index = position.astype(int)
        lattices.append(centres[0] + step_mm * np.arange(index[-1] + 2))
        weights.append((index, (position - index).astype(np.float32)))
    coarse = sum(field.on_grid(z_mm, *lattices) for field in fields)
    (row, row_weight), (column, column_weight) = weights
    out = np.empty((*coarse.shape[:2], len(y_mm), len(x_mm)), np.float32)
    # Slice by slice, as wherever a whole volume is worked on: a slice fits the cache, three times as fast.
    for c, z in np.ndindex(coarse.shape[:2]):
        rows = coarse[c, z, row] + row_weight[:, None] * (coarse[c, z, row + 1] - coarse[c, z, row])
        slopes = np.diff(rows, axis=1)
        out[c, z] = rows[:, column] + column_weight * slopes[:, column]
    return out


class Deformation:
    """Maps voxels to the anatomical frame: `(point + shear + smooth displacement) / scale`.

    coarse_mm, fine_mm: standard deviations of the displacement at 70 mm and at 25 mm between control points; they stay
    far below the pitch, so the map never folds and what is connected in the anatomical frame stays connected.
    """

    def __init__(
        self, rng: np.random.Generator, *, scale: float, coarse_mm: float, fine_mm: float, tilt_degrees: float
    ):
        self.scale = scale
        self.fields = (
            SmoothField(rng, pitch_mm=70, sd=coarse_mm, components=3),
            SmoothField(rng, pitch_mm=25, sd=fine_mm, components=3),
        )
        roll, yaw, pitch = np.radians(rng.uniform(-tilt_degrees, tilt_degrees, 3))
        self.linear = np.array([[1, roll, yaw], [-roll, 1, pitch], [-yaw, -pitch, 1]])  # of (x, y, z)
        # What `inverse` needs, as a table: asking the field for a few points at a time takes most of a small case.
        self.table_mm = np.arange(-FIELD_HALF_WIDTH_MM, FIELD_HALF_WIDTH_MM, 12.0)
        self.table = self.fields[0].on_grid(*[self.table_mm] * 3).transpose(3, 2, 1, 0)  # (x, y, z, component)
        self.margin_mm = 3 * fine_mm + 0.3 * coarse_mm  # how far `inverse` may be off

    def on_grid(self, grid: Grid) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Anatomical x, y and z of every voxel, three `(Z, Y, X)` float32 arrays."""
        z, y, x = (grid.centres_mm(axis).astype(np.float32) for axis in range(3))
        dx, dy, dz = on_grid(self.fields, z, y, x)
        rows = self.linear.astype(np.float32)
        for displacement, row in zip((dx, dy, dz), rows, strict=True):
            plane = row[0] * x + row[1] * y[:, None]
            for i in range(len(z)):
                displacement[i] += plane + row[2] * z[i]
                displacement[i] /= np.float32(self.scale)
        return dx, dy, dz

    def inverse(self, points_xyz_mm: np.ndarray) -> np.ndarray:
        """Where anatomical points `(N, 3)` come to lie on the grid's axes, (x, y, z) in mm, within `margin_mm`.

        For boxes only: it leaves the fine displacement out and reads the coarse one at the nearest entry of a table.
        """
        target, back = np.asarray(points_xyz_mm, float) * self.scale, np.linalg.inv(self.linear).T
        found = target @ back
        for _ in range(2):
            nearest = np.rint((found - self.table_mm[0]) / 12).astype(int).clip(0, len(self.table_mm) - 1)
            found = (target - self.table[tuple(nearest.T)]) @ back
        return found


class Canvas:
    """HU and labels of one case while it is drawn. What is painted later covers what was painted before."""

    def __init__(self, grid: Grid, deformation: Deformation):
        self.grid, self.deformation = grid, deformation
        self.x_mm, self.y_mm, self.z_mm = deformation.on_grid(grid)
        self.hu = np.full(grid.shape, AIR_HU, np.float32)
        self.labels = np.zeros(grid.shape, np.uint8)

    def box(self, lower_xyz_mm, upper_xyz_mm) -> Box:
        """Slices that hold everything between two anatomical corners; empty outside the field of view."""
        corners = np.stack([lower_xyz_mm, upper_xyz_mm]).astype(float)
        steps = np.linspace(0, 1, 4)
        lattice = np.stack(np.meshgrid(steps, steps, steps), -1).reshape(-1, 3)
        found = self.deformation.inverse(corners[0] + lattice * (corners[1] - corners[0]))
        return self._slices(found.min(0) - 2, found.max(0) + 2)

    def slice_z_mm(self, box: Box) -> np.ndarray:
        """Heights of the slices `(n, 1, 1)`, not deformed: for shapes that need one number per slice, not per voxel."""
        return (self.grid.centres_mm(0)[box[0]] / self.deformation.scale)[:, None, None]

    def field(self, field: SmoothField, box: Box) -> np.ndarray:
        """A random field of one component on the voxels of the box; it is not deformed."""
        return on_grid((field,), *(self.grid.centres_mm(axis)[box[axis]] for axis in range(3)))[0]

    def coordinates(self, box: Box) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Anatomical x, y, z in mm of the voxels in the box."""
        return self.x_mm[box], self.y_mm[box], self.z_mm[box]

    def paint(self, box: Box, mask: np.ndarray, hu, label: int | None = 0) -> None:
        """Give the voxels of the mask, an array of the box's shape, their HU (number or array) and label.

        label: None keeps the label that is there (a lumen inside its organ); 0 makes it background.
        """
        if not mask.any():
            return
        np.copyto(self.hu[box], hu, where=mask)
        if label is not None:
            np.copyto(self.labels[box], np.uint8(label), where=mask)

    def tube(
        self,
        points_xyz_mm,
        radii_mm,
        hu,
        label: int | None = 0,
        *,
        stretch_xyz=(1.0, 1.0, 1.0),
        below_hu=None,
        within: int | None = None,
    ) -> None:
        """Paint a tube with rounded ends about a polyline `(N, 3)` whose radius varies from point to point.

        hu: a number, or a function of the anatomical (x, y, z) of the voxels (gas above fluid). stretch_xyz: the
        cross-section is so many times the radius along each axis (an oval oesophagus, a flat rib). below_hu: paint
        only where the HU is lower so far (vessels only inside lung). within: paint only where that label is.
        """
        points = np.asarray(points_xyz_mm, float)
        radii = np.broadcast_to(np.asarray(radii_mm, float), len(points))
        stretch = np.asarray(stretch_xyz, float)
        places = self.deformation.inverse(points)
        for i in range(len(points) - 1):
            reach = 1.15 * self.deformation.scale * max(radii[i], radii[i + 1]) * stretch
            ends = places[i : i + 2]
            box = self._slices(ends.min(0) - reach, ends.max(0) + reach)
            x, y, z = self.coordinates(box)
            if x.size == 0:
                continue
            start, step = points[i] / stretch, (points[i + 1] - points[i]) / stretch
            px, py, pz = x / stretch[0] - start[0], y / stretch[1] - start[1], z / stretch[2] - start[2]
            along = (px * step[0] + py * step[1] + pz * step[2]) / max(float(step @ step), 1e-6)
            along = np.clip(along, 0, 1)
            squared = (px - along * step[0]) ** 2 + (py - along * step[1]) ** 2 + (pz - along * step[2]) ** 2
            mask = squared < (radii[i] + along * (radii[i + 1] - radii[i])) ** 2
            if below_hu is not None:
                mask &= self.hu[box] < below_hu
            if within is not None:
                mask &= self.labels[box] == within
            self.paint(box, mask, hu(x, y, z) if callable(hu) else hu, label)

    def ellipsoid(
        self, centre_xyz_mm, semi_axes_mm, hu, label: int | None = 0, *, axes=None, within: int | None = None
    ) -> None:
        """Paint an ellipsoid. axes: `(3, 3)`, rows are the unit vectors of the semi-axes, default x, y, z.

        within: paint only where that label is.
        """
        box, distance = self.ellipsoid_distance(centre_xyz_mm, semi_axes_mm, axes=axes)
        mask = distance < 1
        if within is not None:
            mask &= self.labels[box] == within
        self.paint(box, mask, hu, label)

    def ellipsoid_distance(self, centre_xyz_mm, semi_axes_mm, *, axes=None, box: Box | None = None):
        """A box about an ellipsoid (or the given one) and, in it, the squared distance: below 1 is inside."""
        centre, semi = np.asarray(centre_xyz_mm, float), np.asarray(semi_axes_mm, float)
        axes = np.eye(3) if axes is None else np.asarray(axes, float)
        if box is None:
            half = np.sqrt(((axes * semi[:, None]) ** 2).sum(0))
            box = self.box(centre - half, centre + half)
        x, y, z = (c - np.float32(o) for c, o in zip(self.coordinates(box), centre, strict=True))
        if np.array_equal(axes, np.eye(3)):
            return box, sum((c * np.float32(1 / s)) ** 2 for c, s in zip((x, y, z), semi, strict=True))
        rows = (axes / semi[:, None]).astype(np.float32)
        return box, sum((a * x + b * y + c * z) ** 2 for a, b, c in rows)

    def superquadric_depth_mm(self, box: Box, centre_xyz_mm, semi_axes_mm, exponent: float) -> np.ndarray:
        """How deep the voxels of the box lie in a rounded box, along the line to its centre; negative outside.

        exponent: 2 is an ellipsoid, more has flatter sides.
        """
        coordinates = self.coordinates(box)
        depth = np.empty(coordinates[0].shape, np.float32)
        for i in range(len(depth)):
            offsets = [c[i] - np.float32(o) for c, o in zip(coordinates, centre_xyz_mm, strict=True)]
            share = sum(
                np.abs(o / np.float32(s)) ** np.float32(exponent) for o, s in zip(offsets, semi_axes_mm, strict=True)
            )
            share = np.maximum(share ** np.float32(1 / exponent), np.float32(1e-3))
            depth[i] = np.sqrt(sum(o * o for o in offsets)) * (1 / share - 1)
        return depth

    def drop_specks(self, fraction: float = 0.05) -> None:
        """Unlabel 26-connected pieces below that fraction of the largest piece: what covers an organ may cut some off.

        Larger pieces stay: where voxels are thicker than a collapsed oesophagus, it may come in two.
        """
        for label, box in enumerate(ndimage.find_objects(self.labels), start=1):
            if box is None:
                continue
            pieces, count = ndimage.label(self.labels[box] == label, np.ones((3, 3, 3)))
            if count > 1:
                sizes = np.bincount(pieces.ravel())
                small = sizes < fraction * sizes[1:].max()
                small[0] = False
                self.labels[box][small[pieces]] = 0

    def _slices(self, lower_xyz_mm: np.ndarray, upper_xyz_mm: np.ndarray) -> Box:
        """Slices of a range on the grid's axes, grown by what `Deformation.inverse` leaves out."""
        slices, margin = [], self.deformation.margin_mm
        for axis, (low, high) in enumerate(zip(lower_xyz_mm[::-1], upper_xyz_mm[::-1], strict=True)):
            edge, step, size = self.grid.lower_mm[axis], self.grid.spacing_mm[axis], self.hu.shape[axis]
            start, stop = int(np.floor((low - margin - edge) / step)), int(np.ceil((high + margin - edge) / step))
            slices.append(slice(min(max(start, 0), size), min(max(stop, 0), size)))
        return tuple(slices)


def curve(points_xyz_mm, radii_mm, step_mm: float = 5.0) -> tuple[np.ndarray, np.ndarray]:
    """A smooth line through `(N, 3)` points and the radius along it, sampled about every step_mm."""
    points = np.asarray(points_xyz_mm, float)
    length = np.r_[0, np.cumsum(np.linalg.norm(np.diff(points, axis=0), axis=1))]
    samples = np.linspace(0, length[-1], max(2, int(np.ceil(length[-1] / step_mm)) + 1))
    radii = np.broadcast_to(np.asarray(radii_mm, float), len(points))
    return CubicSpline(length, points)(samples), np.interp(samples, length, radii)


def scanned(
    hu: np.ndarray, spacing_mm, rng: np.random.Generator, *, blur_mm: float, noise_hu: float, streaks: np.ndarray
) -> np.ndarray:
    """The drawn HU `(Z, Y, X)` as a scanner would show them, int16: blurred (partial volume) and with correlated noise.

    blur_mm: sigma in plane. noise_hu: standard deviation at 1 x 1 x 3 mm; larger voxels average some of it away.
    streaks: `(Z,)`, 0 to 1, how strong the horizontal streaks of the shoulders are in a slice.
    """
    spacing = np.asarray(spacing_mm, float)
    sigma_vox = np.maximum((0.35 * spacing[0], blur_mm, blur_mm) / spacing, 0.4)
    image = ndimage.gaussian_filter(hu, sigma_vox, truncate=2.5)
    level = noise_hu * np.clip((3 / spacing.prod()) ** 0.25, 0.4, 1.1)

    noise = rng.standard_normal(hu.shape, dtype=np.float32)
    fine = (0, *(0.8 * blur_mm / spacing[1:]))
    noise = ndimage.gaussian_filter(noise, fine, truncate=2.5)
    # Filtered back-projection leaves little noise at low frequencies: this gives CT noise its grain.
    noise -= ndimage.uniform_filter(noise, (1, *np.maximum(3, np.round(5 / spacing[1:])).astype(int)))
    image += noise * np.float32(level / noise.std())

    slices = np.flatnonzero(streaks > 0.05)
    if slices.size:
        streak = rng.standard_normal((slices.size, *hu.shape[1:]), dtype=np.float32)
        streak = ndimage.gaussian_filter(streak, (0, 0.8 / spacing[1], 20 / spacing[2]), truncate=2.5)
        streak *= np.float32(1.2 * level / streak.std()) * streaks[slices, None, None].astype(np.float32)
        image[slices] += streak
    return np.clip(np.rint(image), MINIMUM_HU, MAXIMUM_HU).astype(np.int16)
