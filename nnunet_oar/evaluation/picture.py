"""One picture of a case: three slices with the contours of the organs.

Arrays are (z, y, x) with z from inferior to superior, y from anterior to posterior and x from the patient's right to
left: what ITK holds with the identity as direction (LPS). `load_lps` brings any file into this order.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import SimpleITK as sitk
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke

from nnunet_oar.evaluation.dice import dice_per_organ
from nnunet_oar.files import written_whole

# Okabe and Ito's colours, which colour-blind readers can tell apart; their black is white here, on dark pictures.
COLOURS = ("#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7", "#FFFFFF")
WINDOW_HU = (-160, 240)  # soft tissue: level 40, width 400
BACKGROUND = "#101010"
MAX_PANEL_INCHES = (5.0, 14.0)  # height of the highest panel, width of the three together
DPI = 120
SOLID = {"linestyles": "solid", "linewidths": 1.3}
DASHED = {"linestyles": "dashed", "linewidths": 1.3}
# An organ counts as visible in a slice that shows at least this share of its largest cross-section.
VISIBLE_SHARE = 0.25


class Slices(NamedTuple):
    """2D arrays as they are looked at: row 0 is the top of the picture, column 0 its left."""

    axial: np.ndarray
    coronal: np.ndarray
    sagittal: np.ndarray


# Letters at the left, right, upper and lower border of each slice.
BORDERS = Slices(axial="RLAP", coronal="RLHF", sagittal="APHF")


def load_lps(path: Path) -> tuple[np.ndarray, tuple[float, float, float]]:
    """(array in the order of this module, spacing in mm as (z, y, x)) of a 3D image file in any orientation.

    Axes are permuted and flipped, never resampled: an oblique image stays in its own planes.
    """
    image = sitk.ReadImage(str(path))
    if image.GetDimension() != 3:
        raise ValueError(f"{path} must hold a 3D image, got {image.GetDimension()} dimensions")
    image = sitk.DICOMOrient(image, "LPS")
    return sitk.GetArrayFromImage(image), image.GetSpacing()[::-1]


def oriented_slices(volume: np.ndarray, voxel: tuple[int, int, int]) -> Slices:
    """The three slices of `volume` (z, y, x) through `voxel`, as radiologists look at them.

    The patient's right is on the left of the axial and coronal slices, anterior on the left of the sagittal one;
    anterior is up in the axial slice, the head in the others.
    """
    z, y, x = voxel
    return Slices(axial=volume[z], coronal=volume[::-1, y], sagittal=volume[::-1, :, x])


def best_voxel(organs: Iterable[np.ndarray], shape: tuple[int, int, int]) -> tuple[int, int, int]:
    """Where to cut: for each axis the slice that shows most organs, of several the one nearest to the centre of all.

    organs: masks of `shape`, used one after the other; where all are empty or there is none, the centre of the volume.
    """
    areas_of = [[mask.sum(axis=others) for others in ((1, 2), (0, 2), (0, 1))] for mask in organs if mask.any()]
    if not areas_of:
        return tuple(size // 2 for size in shape)
    voxel = []
    for axis in range(3):
        areas = np.stack([areas[axis] for areas in areas_of])
        visible = (areas >= VISIBLE_SHARE * areas.max(axis=1, keepdims=True)).sum(axis=0)
        occupied = np.flatnonzero(areas.any(axis=0))
        candidates = np.flatnonzero(visible == visible.max())
        centre = (occupied[0] + occupied[-1]) / 2
        voxel.append(int(candidates[np.abs(candidates - centre).argmin()]))
    return tuple(voxel)


def contour_picture(
    image_hu: np.ndarray,
    prediction: np.ndarray,
    reference: np.ndarray | None,
    spacing_mm: tuple[float, float, float],
    labels: Mapping[str, int],
    path: Path,
    title: str = "",
) -> None:
    """Write a PNG with an axial, a coronal and a sagittal slice: the prediction solid, the reference dashed.

    image_hu, prediction, reference: `(Z, Y, X)`, see this module's first lines; spacing_mm: (z, y, x). labels: organ ->
    value, each with a colour of its own for the first eight. The legend gives the Dice over the whole volume.
    Raises ValueError where shapes differ or the spacing is not three positive numbers.
    """
    maps = [prediction] if reference is None else [prediction, reference]
    if image_hu.ndim != 3 or any(labelled.shape != image_hu.shape for labelled in maps):
        shapes = [array.shape for array in (image_hu, *maps)]
        raise ValueError(f"image and label maps must have one shape (Z, Y, X), got {shapes}")
    if len(spacing_mm) != 3 or min(spacing_mm) <= 0:
        raise ValueError(f"spacing_mm must be three positive numbers (z, y, x), got {spacing_mm}")
    organs = {organ: label for organ, label in labels.items() if label != 0}
    # One mask at a time: those of all organs of a large CT would take gigabytes.
    masks = (np.logical_or.reduce([labelled == label for labelled in maps]) for label in organs.values())
    voxel = best_voxel(masks, image_hu.shape)

    sz, sy, sx = spacing_mm
    pixel_mm = Slices(axial=(sy, sx), coronal=(sz, sx), sagittal=(sz, sy))
    background = oriented_slices(image_hu, voxel)
    contours = [oriented_slices(labelled, voxel) for labelled in maps]

    scores = {} if reference is None else dice_per_organ(prediction, reference, organs)
    handles = _legend_handles(list(organs), scores, with_reference=reference is not None)
    figure, axes = _panels(background, pixel_mm, handles, title)
    for number, (name, axis) in enumerate(zip(Slices._fields, axes, strict=True)):
        _draw_image(axis, background[number], pixel_mm[number], BORDERS[number])
        axis.set_title(f"{name}, slice {voxel[number] + 1} of {image_hu.shape[number]}", color="white", fontsize=11)
        for slices, style in zip(contours, (SOLID, DASHED), strict=False):
            for index, label in enumerate(organs.values()):
                _draw_contour(axis, slices[number] == label, COLOURS[index % len(COLOURS)], style)
    _save(figure, Path(path))


def _panels(slices: Slices, pixel_mm: Slices, legend: list[Line2D], title: str) -> tuple[Figure, list[Axes]]:
    """A figure with one panel per slice side by side, all in one scale, titles above and a legend below."""
    heights, widths = np.array([np.multiply(s.shape, mm) for s, mm in zip(slices, pixel_mm, strict=True)]).T
    inches_per_mm = min(MAX_PANEL_INCHES[0] / heights.max(), MAX_PANEL_INCHES[1] / widths.sum())
    heights, widths = heights * inches_per_mm, widths * inches_per_mm
    gap = 0.3
    # Wide enough for the titles even where few slices make a strip.
    width = max(widths.sum() + 4 * gap, 9.0)
    entry = 0.9 + 0.1 * max((len(line.get_label()) for line in legend), default=0)  # about, in inches
    columns = max(1, min(len(legend), int(width / entry)))
    below = 0.3 + 0.27 * -(-len(legend) // columns)
    height = heights.max() + below + (0.75 if title else 0.4)
    figure = Figure(figsize=(width, height), facecolor=BACKGROUND)
    if title:
        figure.suptitle(title, color="white", fontsize=13, y=1 - 0.12 / height, va="top")
    axes, left = [], (width - widths.sum() - 2 * gap) / 2
    for w, h in zip(widths, heights, strict=True):
        bottom = below + (heights.max() - h) / 2
        axes.append(figure.add_axes((left / width, bottom / height, w / width, h / height)))
        left += w + gap
    figure.legend(
        handles=legend, loc="lower center", ncols=columns, labelcolor="white", frameon=False, fontsize=12,
        handlelength=2.5,
    )  # fmt: skip
    return figure, axes


def _draw_image(axis: Axes, image_hu: np.ndarray, pixel_mm: tuple[float, float], borders: str) -> None:
    low, high = WINDOW_HU
    axis.imshow(image_hu, cmap="gray", vmin=low, vmax=high, aspect=pixel_mm[0] / pixel_mm[1], interpolation="bilinear")
    axis.set_axis_off()
    axis.autoscale(False)  # contours start a voxel outside
    high_enough = axis.get_position().height * axis.figure.get_figheight() > 0.6  # inches; else the letters collide
    for letter, (x, y), horizontal, vertical in zip(
        borders if high_enough else borders[:2],
        ((0.015, 0.5), (0.985, 0.5), (0.5, 0.985), (0.5, 0.015)),
        ("left", "right", "center", "center"),
        ("center", "center", "top", "bottom"),
        strict=False,
    ):
        text = axis.text(x, y, letter, transform=axis.transAxes, ha=horizontal, va=vertical, color="white", fontsize=14)
        text.set_path_effects([withStroke(linewidth=2.5, foreground="black")])  # readable on bone


def _draw_contour(axis: Axes, mask: np.ndarray, colour: str, style: dict) -> None:
    if not mask.any():
        return
    rows, columns = (np.arange(-1, size + 1) for size in mask.shape)
    # A layer of background around it closes the contour of an organ that the image's border cuts.
    padded = np.pad(mask, 1).astype(np.float32)
    axis.contour(columns, rows, padded, levels=[0.5], colors=[colour], **style)


def _legend_handles(organs: list[str], scores: Mapping[str, float | None], with_reference: bool) -> list[Line2D]:
    handles = []
    for index, organ in enumerate(organs):
        text = organ
        if with_reference:
            text += "  absent" if scores[organ] is None else f"  {scores[organ]:.3f}"
        handles.append(Line2D([], [], color=COLOURS[index % len(COLOURS)], linewidth=2.5, label=text))
    if with_reference:
        handles.append(Line2D([], [], color="white", linestyle="solid", linewidth=1.3, label="prediction"))
        handles.append(Line2D([], [], color="white", linestyle="dashed", linewidth=1.3, label="reference (Dice)"))
    return handles


def _save(figure: Figure, path: Path) -> None:
    with written_whole(path) as temporary:
        figure.savefig(temporary, format="png", dpi=DPI, facecolor=figure.get_facecolor())
