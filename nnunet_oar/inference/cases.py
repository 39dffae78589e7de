"""Which cases a folder holds, and what is written for each."""

from __future__ import annotations

import csv
import hashlib
import json
import pickle
import platform
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

import nibabel
import numpy as np
import torch
from nibabel.filebasedimages import ImageFileError

from nnunet_oar.dicom.files import first_image, looks_like_dicom
from nnunet_oar.dicom.rtstruct import About, require_references, write_rtstruct
from nnunet_oar.dicom.segmentation import write_segmentation
from nnunet_oar.dicom.volume import labels_on_slices
from nnunet_oar.evaluation.picture import COLOURS, contour_picture
from nnunet_oar.files import sha256_of, written_whole
from nnunet_oar.headers import is_nifti, require_whole
from nnunet_oar.inference.image import ENDINGS, Image, read_dicom, read_image, turned, turned_axes, write_labels
from nnunet_oar.inference.predictor import CANONICAL, OARPredictor, Prediction
from nnunet_oar.networks.precision import precision_of
from nnunet_oar.version import __version__

# files of these names lie beside the results
RESERVED = ("dataset", "plans", "statistics")
CHANNEL = re.compile(r"_(\d{4})$")
PROBABILITIES, PREVIEW, DICOM = (".npz", ".pkl"), ".png", ".dcm"
# of all that may be written for a case
RESULTS = (*ENDINGS, DICOM, f".seg{DICOM}", *PROBABILITIES, PREVIEW)


@dataclass(frozen=True)
class Outputs:
    """What is written: in which format, and besides labels and manifest. region_names: organ -> name in DICOM results."""

    probabilities: bool = False
    preview: bool = False
    format: str = "nifti"
    region_names: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Case:
    """files: one per channel. ending: of the result's file."""

    name: str
    files: tuple[Path, ...]
    ending: str

    @property
    def refers(self) -> bool:
        """Whether the result is DICOM and refers to the CT, by UIDs that it must then have."""
        return self.ending.endswith(DICOM)

    def output(self, folder: Path) -> Path:
        return folder / f"{self.name}{self.ending}"

    def results(self, outputs: Outputs) -> list[str]:
        """The names of all files that are written for it, but the manifest."""
        endings = [
            self.ending,
            *(PROBABILITIES if outputs.probabilities else ()),
            *((PREVIEW,) if outputs.preview else ()),
        ]
        return [f"{self.name}{ending}" for ending in endings]

    def source(self, output: Path) -> dict:
        """What tells the files, wherever they lie, from others; output: the folder of the results."""
        return {"sha256": _digest(self.files)}

    def done(self, folder: Path, outputs: Outputs, predictor: OARPredictor) -> bool:
        """Whether the folder holds the results of this model on these files with these options (see `made_with`), undamaged."""
        known, names = _manifest_of(folder, self), self.results(outputs)
        if not set(names) <= set(known["files"]):
            return False
        if self.refers and known.get("region_names") != outputs.region_names:
            return False
        try:
            for path in (folder / name for name in names):
                if not path.is_file():
                    return False
                if is_nifti(path):
                    require_whole(path, nibabel.load(path))
            return _same(known, made_with(self, predictor, folder))
        except (ValueError, OSError, ImageFileError):
            return False

    def read(self) -> Image:
        return read_image(self.files)


@dataclass(frozen=True)
class DicomCase(Case):
    """files: the folder of the series."""

    series: str | None = None
    resample: bool = False

    def source(self, output: Path) -> dict:
        files = (path for path in self.files[0].rglob("*") if path.is_file() and looks_like_dicom(path))
        if self.files[0].resolve() in output.resolve().parents:
            # results may be DICOM, too
            files = (path for path in files if output.resolve() not in path.resolve().parents)
        return {"sha256": _digest(sorted(files)), "series": self.series, "resample": self.resample}

    def read(self) -> Image:
        image = read_dicom(self.files[0], self.series, self.resample)
        if self.refers:
            require_references(image.series)
        return image


def find_cases(
    source: Path, channels: int, form: str | None = None, series: str | None = None, resample: bool = False
) -> list[Case]:
    """The cases of one image file, of a folder of images in nnU-Net's naming (CASE_0000.nii.gz) or, for one channel, any other, or
    of DICOM files: of one folder of them, or of each sub-folder.

    form: nifti, rtstruct or dicomseg; None: as the image, NIfTI for DICOM. series, resample: as dicom.series.read_series. Raises
    ValueError, naming file or folder, for what holds no image, two files of one case, lacks a channel, or cannot give this format.
    """
    if not source.exists():
        raise ValueError(f"{source} does not exist")
    files = [source] if source.is_file() else sorted(path for path in source.iterdir() if not path.name.startswith("."))
    images = {path: ending for path in files if (ending := _ending(path)) is not None}
    dicom = [path for path in files if path not in images and path.is_file() and looks_like_dicom(path)]
    if images and dicom:
        raise ValueError(
            f"{source} holds images ({min(images)}) and DICOM files ({dicom[0]}); keep one of the two there"
        )
    cases = (
        _image_cases(source, images, channels, form) if images else _dicom_cases(source, dicom, form, series, resample)
    )
    if images and (series is not None or resample):
        raise ValueError(f"--series and --resample are for DICOM; {source} holds images such as {min(images).name}")
    if not images and channels > 1:
        raise ValueError(f"the model needs {channels} channels, and a DICOM series is one")
    for case in cases:
        if case.name in RESERVED:
            raise ValueError(f"{case.files[0]}: rename it, as {case.name}.json means something else among the results")
    return cases


def require_other_folder(source: Path, output: Path) -> None:
    """Raise ValueError where results would replace the images."""
    if output.resolve() in (source.resolve(), source.resolve().parent if source.is_file() else None):
        raise ValueError(f"{output} is the folder of the CTs, which the results would replace; choose another one")


def _ending(path: Path) -> str | None:
    return next((ending for ending in ENDINGS if path.name.lower().endswith(ending)), None)


def _image_cases(source: Path, images: Mapping[Path, str], channels: int, form: str | None) -> list[Case]:
    if form not in (None, "nifti"):
        raise ValueError(f"--format {form} refers to a DICOM series, and {min(images)} is none")
    if source.is_file() and channels > 1:
        raise ValueError(f"{source} is one file and the model needs {channels}, one per channel; give the folder")
    found: dict[str, dict[int, tuple[Path, str]]] = {}
    for path, ending in images.items():
        name = path.name[: -len(ending)]
        match = CHANNEL.search(name)
        if channels == 1 and match and match[1] != "0000" and not _first_channel(images, name):
            match = None  # a number of the case's name
        channel = int(match[1]) if match else 0
        of_case = found.setdefault(CHANNEL.sub("", name) if match else name, {})
        if channel in of_case:
            raise ValueError(f"{of_case[channel][0]} and {path} would be the same case; rename one of them")
        of_case[channel] = (path, ending)
    cases = []
    for name, of_case in sorted(found.items()):
        if sorted(of_case) != list(range(channels)):
            have = ", ".join(f"_{channel:04d}" for channel in sorted(of_case))
            raise ValueError(
                f"{source}: {name} has the channels {have}, the model needs {channels}, from _0000 to _{channels - 1:04d}"
            )
        ending = ".nii.gz" if form == "nifti" else of_case[0][1]
        # a header file and one of voxels cannot be there whole or not at all
        ending = ".mha" if ending == ".mhd" else ending
        cases.append(Case(name, tuple(of_case[channel][0] for channel in range(channels)), ending))
    return cases


def _first_channel(images: Mapping[Path, str], name: str) -> bool:
    """Whether the file of that name is another channel of a case whose first one is there."""
    first = CHANNEL.sub("_0000", name)
    return any(path.name[: -len(ending)] == first for path, ending in images.items())


def _dicom_cases(
    source: Path, files: Sequence[Path], form: str | None, series: str | None, resample: bool
) -> list[Case]:
    if source.is_file() and files:
        raise ValueError(f"{source} is one slice; give the folder of the series")
    folders = []
    if source.is_dir():
        below = [path for path in sorted(source.iterdir()) if path.is_dir() and not path.name.startswith(".")]
        # a series that is named is looked for everywhere
        folders = [source] if files or series else _with_images(below, source)
    if not folders:
        raise ValueError(f"{source} holds no image; expected files that end in {', '.join(ENDINGS)}, or DICOM files")
    ending = {None: ".nii.gz", "nifti": ".nii.gz", "rtstruct": ".dcm", "dicomseg": ".seg.dcm"}[form]
    return [
        # the name of . and .. is that of the folder they stand for
        DicomCase(
            folder.name if folder.name not in ("", "..") else folder.resolve().name,
            (folder,), ending, series, resample,
        )
        for folder in folders
    ]  # fmt: skip


def _with_images(folders: Sequence[Path], source: Path) -> list[Path]:
    """Those that hold DICOM images. Raises ValueError where two are of one study: what is one patient's is one case."""
    found: list[Path] = []
    studies: dict[str, Path] = {}
    for folder in folders:
        try:
            header = first_image(folder)
        except ValueError:
            found.append(folder)  # a case of its own fails by itself
            continue
        if header is None:
            continue
        study = header.text("StudyInstanceUID")
        if study and header.is_ct and not header.is_localiser:
            if study in studies:
                raise ValueError(
                    f"{studies[study]} and {folder} hold CTs of one study; choose one with --series UID or by -i"
                )
            studies[study] = folder
        found.append(folder)
    return found


def write_case(case: Case, prediction: Prediction, predictor: OARPredictor, folder: Path, outputs: Outputs) -> None:
    """All files of a case, each there whole or not at all; the labels last, so that where they are everything is.

    Two processes may write the same case, as when a cluster gives up a worker that is still at it: the last one wins.
    """
    start = time.perf_counter()
    made, names = made_with(case, predictor, folder), case.results(outputs)
    before = _manifest_of(folder, case)
    same = _same(before, made)
    # which say the organs' names; other results do not
    dicom = {name for name in before["files"] if name.endswith(DICOM)}
    regions = dict(outputs.region_names)
    if same and not case.refers:
        regions = before.get("region_names", regions)
    # results in other formats may lie beside the new ones where the new manifest is true of them, too
    kept = set(before["files"]) - set(names) if same else set()
    if before.get("region_names") != regions:
        kept -= dicom
    for name in {*before["files"], *names} - kept:
        (folder / name).unlink(missing_ok=True)

    def write_manifest():
        written = {"files": sorted({*kept, *names}), "region_names": regions}
        with written_whole(folder / f"{case.name}.json", shared=True, keep_ending=True) as file:
            file.write_text(json.dumps(manifest(case, prediction, predictor) | made | written, indent=1))

    # first: whatever ends this process, no file lies beside a manifest of others
    write_manifest()
    if outputs.probabilities:
        _write_probabilities(case, prediction, predictor, folder)
    if outputs.preview:
        _write_preview(case, prediction, predictor, folder)
    with written_whole(case.output(folder), shared=True, keep_ending=True) as temporary:
        _write_result(temporary, prediction, predictor, outputs)
        prediction.seconds["write"] = time.perf_counter() - start
        write_manifest()


def _manifest_of(folder: Path, case: Case) -> dict:
    """What the folder says of the case; {"files": []} where nothing, or nothing that can be read."""
    try:
        known = json.loads((folder / f"{case.name}.json").read_text())
    except (ValueError, OSError):
        known = None
    if not isinstance(known, dict) or not isinstance(known.get("files"), list):
        return {"files": []}
    ours = {f"{case.name}{ending}" for ending in RESULTS}
    return known | {"files": [name for name in known["files"] if isinstance(name, str) and name in ours]}


def _digest(files: Iterable[Path]) -> str:
    """Of the contents of the files, in this order."""
    return hashlib.sha256("".join(map(sha256_of, files)).encode()).hexdigest()


def _same(known: Mapping, made: Mapping) -> bool:
    return all(known.get(key) == value for key, value in made.items())


def _write_result(path: Path, prediction: Prediction, predictor: OARPredictor, outputs: Outputs) -> None:
    if outputs.format == "nifti":
        write_labels(prediction.label_image, path)
        return
    organs = predictor.plan.organs
    names = {label: outputs.region_names.get(organ, organ) for label, organ in enumerate(organs, start=1)}
    colours = {label: COLOURS[(label - 1) % len(COLOURS)] for label in names}
    rgb = {label: [int(colour[at : at + 2], 16) for at in (1, 3, 5)] for label, colour in colours.items()}
    series = prediction.image.series
    labels = labels_on_slices(prediction.labels, series)
    if outputs.format == "rtstruct":
        write_rtstruct(path, series, labels, names, rgb, _about(prediction, predictor))
    else:
        write_segmentation(path, series, labels, names, rgb, _about(prediction, predictor))


def _about(prediction: Prediction, predictor: OARPredictor) -> About:
    """The manifest in short, for whoever has the DICOM file alone."""
    model, plan = predictor.model, predictor.plan
    hashes = ", ".join(f"fold {fold} {digest[:16]}" for fold, digest in model.hashes.items())
    algorithm = f"nnunet_oar {__version__} {plan.trainer}"
    warnings = "; ".join(prediction.warnings) or "none"
    description = (
        f"Automatic contours, not reviewed. {algorithm}, data set {model.plans.get('dataset_name')}, {model.checkpoint_name} "
        f"(SHA-256 {hashes}), {plan.recipe} recipe. Warnings: {warnings}"
    )
    return About("nnunet_oar", description, algorithm)


def manifest(case: Case, prediction: Prediction, predictor: OARPredictor) -> dict:
    """How a result came about: enough to repeat it, and to see at a glance what to distrust."""
    plan = predictor.plan
    return {
        "case": case.name,
        "input": [path.name for path in case.files],
        "series": prediction.image.series and prediction.image.series.uid,
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
        # not those of the file
        "boxes_are_in": {"axes": prediction.axes, "spacing_mm": list(predictor.model.configuration["spacing"])},
        "seconds": {step: _rounded(seconds) for step, seconds in prediction.seconds.items()},
        "device": str(predictor.device),
        "precision": precision_of(predictor.device),
        "threads": torch.get_num_threads(),
        "versions": versions(),
    }


def made_with(case: Case, predictor: OARPredictor, output: Path) -> dict:
    """Files, model and options, as the manifest in the folder `output` has them: where one differs the contours are others."""
    model, plan = predictor.model, predictor.plan
    return {
        "source": case.source(output),
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
    with written_whole(folder / f"{case.name}.npz", shared=True, keep_ending=True) as temporary:
        np.savez_compressed(temporary, probabilities=array)
    properties = reader_class().read_images([str(path) for path in case.files])[1]
    with written_whole(folder / f"{case.name}.pkl", shared=True, keep_ending=True) as temporary:
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
