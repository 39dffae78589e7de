"""Two folders of label maps scored against each other, organ by organ, on all cores."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import BrokenExecutor, Executor, Future, ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path

import nibabel
import numpy as np
import SimpleITK as sitk
from nibabel.filebasedimages import ImageFileError

from nnunet_oar.annotations import Annotations, organ_labels
from nnunet_oar.evaluation.dice import common_cases, require_same_grid
from nnunet_oar.evaluation.metrics import DEFAULT_TOLERANCE_MM, pairs, scores
from nnunet_oar.headers import require_numbers, require_sound_header, require_whole

# crops that wait for a process, for each of them: enough to keep it busy, few enough for the memory
WAITING = 3


@dataclass(frozen=True)
class Task:
    """What is compared: label maps `<case><file_ending>` in two folders."""

    predictions: Path
    references: Path
    labels: Mapping[str, int]
    annotations: Annotations
    file_ending: str = ".nii.gz"
    # of organs that have one of their own
    tolerances_mm: Mapping[str, float] = field(default_factory=dict)
    default_tolerance_mm: float = DEFAULT_TOLERANCE_MM
    # nnU-Net's ignore label: what the reference marks with it is left out of both maps
    ignored: int | None = None

    @classmethod
    def of(
        cls,
        predictions: Path,
        references: Path,
        dataset_json: Path,
        tolerances_mm: Mapping[str, float],
        default_tolerance_mm: float = DEFAULT_TOLERANCE_MM,
    ) -> Task:
        """Raises ValueError for a dataset.json that cannot be read or lacks what is needed, and for tolerances of other organs."""
        try:
            description = json.loads(Path(dataset_json).read_text())
            labels, annotations = organ_labels(description), Annotations.from_dataset_json(description)
            ending = description["file_ending"]
            ignored = description["labels"].get("ignore")
        except (OSError, KeyError, TypeError, AttributeError, json.JSONDecodeError, UnicodeDecodeError) as error:
            raise ValueError(f"{dataset_json} is no dataset.json: {error!r}") from error
        if not labels:
            raise ValueError(f"{dataset_json} names no organ")
        unknown = sorted(set(tolerances_mm) - set(labels))
        if unknown:
            raise ValueError(f"a tolerance is given for {unknown[0]!r}; the organs are {', '.join(labels)}")
        return cls(
            predictions, references, labels, annotations, ending, dict(tolerances_mm), default_tolerance_mm, ignored
        )

    @property
    def cases(self) -> list[str]:
        """In alphabetical order. Raises ValueError where a case lies in one folder only, or there is none."""
        return common_cases(self.predictions, self.references, self.file_ending)

    def tolerance_mm(self, organ: str) -> float:
        return self.tolerances_mm.get(organ, self.default_tolerance_mm)

    def organs(self, case: str) -> dict[str, int]:
        """Those that the case is scored on, see `Annotations.scored`."""
        return {
            organ: label
            for (organ, label), of in zip(self.labels.items(), self.annotations.scored(case), strict=True)
            if of
        }


def evaluate(task: Task, processes: int) -> Iterator[tuple[str, dict[str, dict]]]:
    """(case, organ -> `metrics.scores`), case by case in alphabetical order; organs that a case does not annotate are left out.

    Raises ValueError before anything is scored for what is not on one voxel grid, or lies in one folder only.
    """
    cases = task.cases
    for case in cases:
        require_same_grid(case, *(header_of(path) for path in files_of(task, case)))
    with _pool(processes) as pool:
        waiting: list[tuple[str, str, Future]] = []
        done: dict[str, dict[str, dict]] = {case: {} for case in cases}
        at = 0
        for case, organ, pair, spacing_mm in _crops(task, cases):
            arguments = (pair.prediction, pair.reference, spacing_mm, task.tolerance_mm(organ))
            waiting.append((case, organ, pool.submit(scores, *arguments)))
            while len(waiting) > WAITING * processes:
                _take(waiting, done)
            # what is complete goes out while the rest is computed
            while cases[at] != case and all(of != cases[at] for of, _, _ in waiting):
                yield cases[at], done.pop(cases[at])
                at += 1
        while waiting:
            _take(waiting, done)
    for case in cases[at:]:
        yield case, done[case]


class _Here(Executor):
    """Computes at once: for a single process, another one would only cost its start."""

    def submit(self, function, /, *args, **kwargs) -> Future:
        future: Future = Future()
        future.set_result(function(*args, **kwargs))
        return future


def _pool(processes: int) -> Executor:
    return _Here() if processes == 1 else ProcessPoolExecutor(processes, mp_context=get_context("spawn"))


def _take(waiting: list[tuple[str, str, Future]], done: dict[str, dict[str, dict]]) -> None:
    case, organ, future = waiting.pop(0)
    try:
        done[case][organ] = future.result()
    except (BrokenExecutor, MemoryError) as error:
        raise ValueError(f"{case}, {organ}: a process ended, perhaps for want of memory; use fewer with -np") from error


def _crops(task: Task, cases: Iterable[str]):
    for case in cases:
        # slices from the feet to the head: contours are drawn in the planes across that axis
        images = [sitk.DICOMOrient(_label_map(path), "LPS") for path in files_of(task, case)]
        arrays = [sitk.GetArrayViewFromImage(image) for image in images]
        if task.ignored is not None:
            arrays = [np.where(arrays[1] == task.ignored, 0, array) for array in arrays]
        for array, path in zip(arrays, files_of(task, case), strict=True):
            _refuse_other_labels(array, task, path)
        organs = task.organs(case)
        names = {label: organ for organ, label in organs.items()}
        for pair in pairs(*arrays, list(names)):
            yield case, names[pair.label], pair, images[0].GetSpacing()[::-1]


def files_of(task: Task, case: str) -> list[Path]:
    """Prediction and reference."""
    return [folder / f"{case}{task.file_ending}" for folder in (task.predictions, task.references)]


def header_of(path: Path) -> sitk.ImageFileReader:
    """Of a label map. Raises ValueError, naming the file, for what is none of three dimensions."""
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        raise ValueError(f"{path} cannot be read: {str(error).splitlines()[-1]}") from error
    if reader.GetDimension() != 3 or reader.GetNumberOfComponents() != 1:
        raise ValueError(f"{path} is no label map of three dimensions")
    return reader


def _refuse_other_labels(array: np.ndarray, task: Task, path: Path) -> None:
    """Another model's labels, or a wrong dataset.json, would else count as organs that were missed."""
    known = {0, *task.labels.values(), *([] if task.ignored is None else [task.ignored])}
    # all values have to be looked at only where the labels have a gap, or the map goes beyond them
    if array.min() < 0 or array.max() > max(known) or len(known) <= max(known):
        others = sorted({int(value) for value in np.unique(array)} - known)
        if others:
            raise ValueError(f"{path} holds labels that dataset.json does not name: {', '.join(map(str, others[:5]))}")


def _label_map(path: Path) -> sitk.Image:
    """Raises ValueError, naming the file, for one that is damaged or holds anything but whole numbers."""
    try:
        require_sound_header(path)
        if path.name.lower().endswith((".nii", ".nii.gz")):
            header = nibabel.load(path)
            require_whole(path, header)
            require_numbers(header)
        image = sitk.ReadImage(str(path))
    except (RuntimeError, ImageFileError, ValueError) as error:
        text = str(error).splitlines()[-1]
        raise ValueError(text if str(path) in text else f"{path} cannot be read: {text}") from error
    array = sitk.GetArrayViewFromImage(image)
    if array.dtype.kind == "f" and not all(np.array_equal(plane, np.rint(plane)) for plane in array):
        raise ValueError(f"{path} holds values that are no whole numbers; a label map is expected")
    return image
