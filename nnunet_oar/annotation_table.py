"""What the label maps of a raw data set hold, beside what its sources declare (`nnunet_oar annotations`)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import nibabel
import numpy as np
import SimpleITK as sitk
from tqdm import tqdm

from nnunet_oar.annotations import OWN_KEYS, Annotations, differences, organ_labels, without_own_keys
from nnunet_oar.files import written_whole

EVERYTHING = "(all cases)"


@dataclass
class Row:
    """One organ in one source. voxels: case -> voxels of the organ, cases without it left out."""

    source: str
    organ: str
    cases: int
    annotated: bool
    voxels: dict[str, int] = field(default_factory=dict)


def examine_labels(
    dataset_json: Mapping, files: Mapping[str, str], threads: int = 1, disable_progress_bar: bool = False
) -> list[Row]:
    """Count voxels of each organ in each source. files: case -> label map of each training case.

    Raises ValueError for an invalid key `annotations`, a case in no or two sources, or a label map that cannot be read.
    """
    labels, annotations = organ_labels(dataset_json), Annotations.from_dataset_json(dataset_json)
    sources = {case: annotations.source(case) for case in files}
    with ThreadPoolExecutor(threads) as pool:
        progress = tqdm(pool.map(_voxels, files.values()), "reading labels", len(files), disable=disable_progress_bar)
        counted = dict(zip(files, progress, strict=True))

    rows = []
    for source in annotations.sources or (None,):
        cases = [case for case in files if sources[case] is source]
        for organ, label in labels.items():
            voxels = {case: counted[case][label] for case in cases if counted[case].get(label)}
            annotated = source is None or organ in source.organs
            rows.append(Row(source.name if source else EVERYTHING, organ, len(cases), annotated, voxels))
    return rows


def _voxels(file: str) -> dict[int, int]:
    try:
        array = sitk.GetArrayFromImage(sitk.ReadImage(file))
    except RuntimeError as error:
        # SimpleITK refuses headers that nibabel, and with it nnU-Net, reads
        try:
            array = np.asanyarray(nibabel.load(file).dataobj)
        except (OSError, nibabel.filebasedimages.ImageFileError):
            raise ValueError(f"{file} cannot be read: {str(error).splitlines()[-1]}") from None
    values, counts = np.unique(array, return_counts=True)
    return {int(value): int(count) for value, count in zip(values, counts, strict=True)}


def format_table(rows: list[Row]) -> str:
    head = ("source", "organ", "cases", "annotated", "cases with it", "voxels")
    body = [
        (
            row.source,
            row.organ,
            str(row.cases),
            "yes" if row.annotated else "no",
            str(len(row.voxels)),
            str(sum(row.voxels.values())),
        )
        for row in rows
    ]
    widths = [max(len(line[column]) for line in (head, *body)) for column in range(len(head))]
    lines = []
    for line in (head, *body):
        cells = [
            value.ljust(width) if column in (0, 1, 3) else value.rjust(width)
            for column, (value, width) in enumerate(zip(line, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def warnings(rows: list[Row]) -> list[str]:
    """One sentence for each declaration that the label maps contradict."""
    found = []
    for row in rows:
        if not row.cases:
            found.append(f"source {row.source} has no training case")
        elif row.annotated and not row.voxels:
            found.append(
                f"source {row.source} declares {row.organ}, but none of its {row.cases} cases holds a voxel of it: training would "
                f"learn that it is absent there"
            )
        elif not row.annotated and row.voxels:
            cases = sorted(row.voxels)
            found.append(
                f"source {row.source} does not declare {row.organ}, but {len(cases)} of its cases hold voxels of it (first: "
                f"{cases[0]}, {row.voxels[cases[0]]} voxels): they are ignored in training"
            )
    return list(dict.fromkeys(found))


def update_preprocessed(raw: Path, preprocessed: Path) -> list[str]:
    """Copy the keys of dataset.json that are ours to the preprocessed copy; returns the keys that changed.

    Raises ValueError where `labels` differ, which no copying mends, and where there is no copy.
    """
    source, target = raw / "dataset.json", preprocessed / "dataset.json"
    if not target.is_file():
        raise ValueError(f"{target} does not exist; run nnunet_oar prepare first")
    of_raw, of_copy = json.loads(source.read_text()), json.loads(target.read_text())
    changed = differences(of_raw, of_copy)
    if "labels" in changed:
        raise ValueError(f"the labels in {source} and {target} differ, too; run nnunet_oar prepare again")
    if changed:
        merged = without_own_keys(of_copy) | {key: of_raw[key] for key in OWN_KEYS if key in of_raw}
        with written_whole(target) as temporary:
            temporary.write_text(json.dumps(merged, indent=2) + "\n")
    return changed
