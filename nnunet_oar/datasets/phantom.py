"""Synthetic CTs with known labels, and a raw nnU-Net data set of them: for tests, demonstrations and benchmarks.

What can be drawn is in phantom_regions.REGIONS.
"""

from __future__ import annotations

import json
import multiprocessing
import zlib
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from tqdm import tqdm

from nnunet_oar.datasets.phantom_body import BODY_REGIONS
from nnunet_oar.datasets.phantom_regions import REGIONS, Region
from nnunet_oar.datasets.phantom_shapes import Canvas, scanned
from nnunet_oar.files import folder_written_whole

FILE_ENDING = ".nii.gz"


@dataclass(frozen=True)
class Phantom:
    """One case. Axes z (inferior to superior), y (anterior to posterior), x (the patient's right to left).

    image_hu: `(Z, Y, X)` int16. labels: `(Z, Y, X)` uint8, all organs of the region, annotated by the case's source or
    not. spacing_mm: (z, y, x). origin_xyz_mm: centre of voxel [0, 0, 0] in ITK's order and LPS; the direction is the
    identity. body_regions: (first slice, first slice after it, name) of each part of the body from below; together
    they hold every slice. Empty where a region's drawing has no such parts.
    """

    image_hu: np.ndarray
    labels: np.ndarray
    spacing_mm: tuple[float, float, float]
    origin_xyz_mm: tuple[float, float, float]
    body_regions: tuple[tuple[int, int, str], ...] = ()


def make_phantom(region: str, seed: int, case: int, spacing_mm: tuple[float, float, float] | None = None) -> Phantom:
    """Draw one case, the same in every process, whatever other cases are made.

    spacing_mm: (z, y, x) instead of the case's own; field of view and anatomy stay. Raises ValueError for an unknown
    region, a negative seed or case, or a spacing out of range.
    """
    known = _known_region(region)
    examination = known.examination(case)
    if seed < 0 or case < 0:
        raise ValueError(f"seed and case must be 0 or more, got seed {seed} and case {case}")
    # One stream per purpose: another spacing uses up more noise, but must not change the anatomy.
    entropy = [seed, case, zlib.crc32(region.encode())]
    grids, shapes, organs, scans = (np.random.default_rng(s) for s in np.random.SeedSequence(entropy).spawn(4))
    grid = examination.sample_grid(grids)
    if spacing_mm is not None:
        grid = replace(grid, spacing_mm=_checked_spacing(spacing_mm))

    canvas = Canvas(grid, examination.sample_deformation(shapes))
    borders_mm = examination.draw(canvas, organs)
    canvas.drop_specks()
    shift_xyz_mm = scans.uniform((-20, -200, -900), (20, 200, 900))  # a scanner's origin is anywhere
    blur_mm, noise_hu = scans.uniform(0.6, 1.0), scans.uniform(9, 26)
    heights_mm = grid.centres_mm(0) / canvas.deformation.scale
    streaks = examination.streaks(heights_mm) * scans.uniform(0, 1)
    image = scanned(canvas.hu, grid.spacing_mm, scans, blur_mm=blur_mm, noise_hu=noise_hu, streaks=streaks)
    first_xyz_mm = [grid.centres_mm(axis)[0] for axis in (2, 1, 0)]
    origin = tuple(float(round(o, 3)) for o in first_xyz_mm + shift_xyz_mm)
    labels = known.relabelled(canvas.labels)
    regions = () if borders_mm is None else _body_regions(heights_mm, borders_mm)
    return Phantom(image, labels, grid.spacing_mm, origin, regions)


def _body_regions(heights_mm: np.ndarray, borders_mm: tuple[float, ...]) -> tuple[tuple[int, int, str], ...]:
    """Ranges of slices from below; heights_mm: of the slices, ascending; borders_mm: between BODY_REGIONS, descending."""
    edges = [0, *(int(np.searchsorted(heights_mm, border)) for border in borders_mm[::-1]), len(heights_mm)]
    ranges = zip(edges[:-1], edges[1:], BODY_REGIONS[::-1], strict=True)
    return tuple((start, stop, name) for start, stop, name in ranges if stop > start)


def write_dataset(
    folder: Path,
    region: str,
    cases: int,
    test_cases: int = 0,
    seed: int = 0,
    spacing_mm: tuple[float, float, float] | None = None,
    processes: int = 1,
    disable_progress_bar: bool = False,
) -> list[str]:
    """Write a raw nnU-Net data set to `folder`, which must be new or empty; returns the case ids, test cases last.

    The labels of the test cases are kept in labelsTs, where nnU-Net does not look. Everything is written beside the
    folder first and moved there when it is complete.

    Where a region has several sources, the cases are dealt to them in turn. labelsTr then holds what the source
    annotates, labelsTr_full and labelsTs all organs, and dataset.json says under `annotations` which source annotates
    what, and under `body_regions` which slices of the training cases show which part of the body.

    Raises ValueError for an unknown region, numbers out of range, and a folder that is not empty.
    """
    folder = Path(folder).resolve()
    known = _known_region(region)
    if cases < 1 or test_cases < 0 or processes < 1:
        raise ValueError(
            f"a data set needs 1 case, 0 test cases and 1 process or more, got {cases}, {test_cases} and {processes}"
        )
    if seed < 0:
        raise ValueError(f"seed must be 0 or more, got {seed}")
    if spacing_mm is not None:
        spacing_mm = _checked_spacing(spacing_mm)
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
        raise ValueError(f"{folder} exists and is not an empty folder; name a new one, nothing is overwritten")

    numbers = range(cases + test_cases)
    if known.partially_annotated:
        names = [f"{known.examination(case).name}_{case:03d}" for case in numbers]
    else:
        names = [f"phantom_{region}_{case:03d}" for case in numbers]
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder_written_whole(folder) as partial:
        jobs = [
            (partial, "Tr" if case < cases else "Ts", name, region, seed, case, spacing_mm)
            for case, name in enumerate(names)
        ]
        body_regions = _write_all(jobs, processes, disable_progress_bar)
        description = {
            "name": f"phantom_{region}",
            "description": f"Synthetic {known.description}. Drawn, not scanned; seed {seed}.",
            "channel_names": {"0": "CT"},
            "labels": {"background": 0, **known.labels},
            "numTraining": cases,
            "file_ending": FILE_ENDING,
        }
        if known.partially_annotated:
            description["annotations"] = {
                source.name: {"cases": [f"{source.name}_*"], "labels": list(source.annotated)}
                for source in known.examinations
            }
            in_training = dict(zip(names[:cases], body_regions[:cases], strict=True))
            description["body_regions"] = {"names": list(BODY_REGIONS), "cases": in_training}
        (partial / "dataset.json").write_text(json.dumps(description, indent=2) + "\n")
    return names


def _write_all(jobs: list[tuple], processes: int, disable_progress_bar: bool) -> list:
    """Write the cases; returns their body regions in the order of the jobs."""
    with tqdm(total=len(jobs), unit="case", disable=disable_progress_bar) as bar:
        if processes == 1:
            results = []
            for job in jobs:
                results.append(_write_case(*job))
                bar.update()
            return results
        context = multiprocessing.get_context("spawn")  # forking a process with threads can hang
        with ProcessPoolExecutor(min(processes, len(jobs)), mp_context=context) as pool:
            futures = [pool.submit(_write_case, *job) for job in jobs]
            try:
                for future in as_completed(futures):
                    future.result()
                    bar.update()
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
            return [future.result() for future in futures]


def _write_case(folder: Path, part: str, name: str, region: str, seed: int, case: int, spacing_mm):
    phantom, known = make_phantom(region, seed, case, spacing_mm), REGIONS[region]
    files = {f"images{part}/{name}_0000": phantom.image_hu, f"labels{part}/{name}": phantom.labels}
    if part == "Tr" and known.partially_annotated:
        files[f"labelsTr_full/{name}"] = phantom.labels
        files[f"labelsTr/{name}"] = known.annotated(phantom.labels, case)
    for file, array in files.items():
        path = folder / f"{file}{FILE_ENDING}"
        path.parent.mkdir(exist_ok=True)
        image = sitk.GetImageFromArray(array)
        image.SetSpacing(phantom.spacing_mm[::-1])
        image.SetOrigin(phantom.origin_xyz_mm)
        sitk.WriteImage(image, str(path), useCompression=True)
    return phantom.body_regions


def _known_region(region: str) -> Region:
    if region not in REGIONS:
        raise ValueError(f"region must be one of {', '.join(REGIONS)}, got {region!r}")
    return REGIONS[region]


def _checked_spacing(spacing_mm) -> tuple[float, float, float]:
    spacing = tuple(float(s) for s in spacing_mm)
    if len(spacing) != 3 or not all(0.3 <= s <= 20 for s in spacing):
        raise ValueError(f"spacing_mm must be three numbers (z, y, x) from 0.3 to 20, got {spacing_mm}")
    return spacing
