"""Which cases a folder holds, and what is written for each."""

from __future__ import annotations

import csv
import json
import pickle
import platform
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch

from nnunet_oar.evaluation.picture import contour_picture
from nnunet_oar.files import written_whole
from nnunet_oar.inference.image import ENDINGS, Image, turned, turned_axes, write_labels
from nnunet_oar.inference.predictor import CANONICAL, OARPredictor, Prediction
from nnunet_oar.networks.precision import precision_of
from nnunet_oar.version import __version__

# files of these names lie beside the results
RESERVED = ("dataset", "plans", "statistics")
CHANNEL = re.compile(r"_(\d{4})$")


@dataclass(frozen=True)
class Case:
    """files: one per channel."""

    name: str
    files: tuple[Path, ...]
    ending: str

    def output(self, folder: Path) -> Path:
        # a header file and one of voxels cannot be there whole or not at all
        return folder / f"{self.name}{'.mha' if self.ending == '.mhd' else self.ending}"

    def done(self, folder: Path, probabilities: bool) -> bool:
        return self.output(folder).is_file() and (not probabilities or (folder / f"{self.name}.npz").is_file())


@dataclass(frozen=True)
class Outputs:
    """What is written besides labels and manifest."""

    probabilities: bool = False
    preview: bool = False


def find_cases(source: Path, channels: int) -> list[Case]:
    """The cases of one image file, or of a folder in nnU-Net's naming (CASE_0000.nii.gz) or, for one channel, any other.

    Raises ValueError, naming file or folder, for what holds no image, two files of one case, or lacks a channel.
    """
    if source.is_file():
        files = [source]
        if channels > 1:
            raise ValueError(f"{source} is one file and the model needs {channels}, one per channel; give the folder")
    elif source.is_dir():
        files = sorted(path for path in source.iterdir() if not path.name.startswith("."))
    else:
        raise ValueError(f"{source} does not exist")
    found: dict[str, dict[int, tuple[Path, str]]] = {}
    for path in files:
        ending = next((ending for ending in ENDINGS if path.name.lower().endswith(ending)), None)
        if ending is None:
            continue
        name = path.name[: -len(ending)]
        match = CHANNEL.search(name)
        channel = int(match[1]) if match else 0
        of_case = found.setdefault(CHANNEL.sub("", name), {})
        if channel in of_case:
            raise ValueError(f"{of_case[channel][0]} and {path} would be the same case; rename one of them")
        of_case[channel] = (path, ending)
    if not found:
        dicom = " (DICOM is not read yet; convert it)" if any(path.suffix.lower() == ".dcm" for path in files) else ""
        raise ValueError(f"{source} holds no image; expected files that end in {', '.join(ENDINGS)}{dicom}")
    cases = []
    for name, of_case in sorted(found.items()):
        if name in RESERVED:
            raise ValueError(
                f"{of_case[min(of_case)][0]}: rename it, as {name}.json means something else among the results"
            )
        if sorted(of_case) != list(range(channels)):
            have = ", ".join(f"_{channel:04d}" for channel in sorted(of_case))
            raise ValueError(
                f"{source}: {name} has the channels {have}, the model needs {channels}, from _0000 to _{channels - 1:04d}"
            )
        cases.append(Case(name, tuple(of_case[channel][0] for channel in range(channels)), of_case[0][1]))
    return cases


def write_case(case: Case, prediction: Prediction, predictor: OARPredictor, folder: Path, outputs: Outputs) -> None:
    """All files of a case, each there whole or not at all; the labels last, so that where they are everything is."""
    start = time.perf_counter()
    if outputs.probabilities:
        _write_probabilities(case, prediction, predictor, folder)
    if outputs.preview:
        _write_preview(case, prediction, predictor, folder)
    with written_whole(case.output(folder), keep_ending=True) as temporary:
        write_labels(prediction.label_image, temporary)
        prediction.seconds["write"] = time.perf_counter() - start
        with written_whole(folder / f"{case.name}.json") as file:
            file.write_text(json.dumps(manifest(case, prediction, predictor), indent=1))


def manifest(case: Case, prediction: Prediction, predictor: OARPredictor) -> dict:
    """How a result came about: enough to repeat it, and to see at a glance what to distrust."""
    model, plan = predictor.model, predictor.plan
    return {
        "case": case.name,
        "input": [path.name for path in case.files],
        "shape": list(prediction.labels.shape),
        "spacing_mm": list(prediction.image.spacing_mm),
        "warnings": prediction.warnings,
        "organs": {
            name: {
                "label": plan.organs.index(name) + 1,
                **{key: _rounded(organ[key]) for key in ("voxels", "ml", "mean_hu", "extent_mm")},
            }
            for name, organ in prediction.organs.items()
        },
        "absent": [name for name in predictor.organs if name not in prediction.organs],
        "postprocessing": prediction.postprocessed,
        "fold_agreement": prediction.agreement
        and {name: _rounded(dice) for name, dice in prediction.agreement.items()},
        "boxes": [
            {name: [list(box.start), list(box.stop)] for name, box in boxes.items()} for boxes in prediction.boxes
        ],
        "seconds": {step: _rounded(seconds) for step, seconds in prediction.seconds.items()},
        "model": {
            "trainer": plan.trainer,
            "dataset": model.plans.get("dataset_name"),
            "plans": model.plans.get("plans_name"),
            "recipe": plan.recipe,
            "epochs": model.epochs,
            "checkpoint": model.checkpoint_name,
            "sha256": model.hashes,
        },
        "options": {
            "organs": list(predictor.organs),
            "remove_small_mm3": predictor.remove_small_mm3,
            "postprocessing": predictor.postprocessing,
        },
        "device": str(predictor.device),
        "precision": precision_of(predictor.device),
        "threads": torch.get_num_threads(),
        "versions": versions(),
    }


def versions() -> dict[str, str]:
    packages = ("nnunetv2", "torch", "numpy", "SimpleITK", "nibabel")
    return {"nnunet_oar": __version__, "python": platform.python_version()} | {name: version(name) for name in packages}


def _rounded(value):
    return [_rounded(item) for item in value] if isinstance(value, list) else round(value, 4)


def _write_probabilities(case: Case, prediction: Prediction, predictor: OARPredictor, folder: Path) -> None:
    """As nnU-Net: the array in its reader's axis order, and the reader's properties, for nnUNetv2_ensemble."""
    import nnunetv2.imageio.nibabel_reader_writer as nibabel_readers
    import nnunetv2.imageio.simpleitk_reader_writer as sitk_readers

    reader = predictor.model.reader
    reader_class = getattr(sitk_readers, reader, None) or getattr(nibabel_readers, reader)
    array, letters = prediction.probabilities, prediction.image.orientation
    if reader.endswith("WithReorient"):
        array = turned(array, letters, CANONICAL)
    with written_whole(folder / f"{case.name}.npz", keep_ending=True) as temporary:
        np.savez_compressed(temporary, probabilities=array)
    properties = reader_class().read_images([str(path) for path in case.files])[1]
    with written_whole(folder / f"{case.name}.pkl") as temporary:
        temporary.write_bytes(pickle.dumps(properties))


def _write_preview(case: Case, prediction: Prediction, predictor: OARPredictor, folder: Path) -> None:
    image: Image = prediction.image
    # the picture's order: z from inferior to superior, y from anterior to posterior, x from right to left
    wanted = "SPL"
    array, labels = (turned(of, image.orientation, wanted) for of in (image.array[0], prediction.labels))
    spacing = tuple(image.spacing_mm[axis] for axis in turned_axes(image.orientation, wanted))
    organs = {name: predictor.plan.organs.index(name) + 1 for name in predictor.organs}
    contour_picture(array, labels, None, spacing, organs, folder / f"{case.name}.png", case.name)


def write_statistics(cases: Sequence[Case], folder: Path, name: str = "statistics") -> None:
    """Volumes and mean HU of all cases that have a manifest, as CSV and JSON."""
    rows = []
    for case in cases:
        file = folder / f"{case.name}.json"
        if file.is_file():
            organs = json.loads(file.read_text())["organs"]
            rows += [
                {"case": case.name, "organ": organ, **{key: of[key] for key in ("label", "ml", "mean_hu")}}
                for organ, of in organs.items()
            ]
    with written_whole(folder / f"{name}.json") as temporary:
        temporary.write_text(json.dumps(rows, indent=1))
    with written_whole(folder / f"{name}.csv") as temporary, open(temporary, "w", newline="") as file:
        table = csv.DictWriter(file, ("case", "organ", "label", "ml", "mean_hu"))
        table.writeheader()
        table.writerows(rows)
