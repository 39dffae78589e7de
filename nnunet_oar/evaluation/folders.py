"""Two folders of label maps scored against each other, organ by organ, on all cores."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path

import SimpleITK as sitk

from nnunet_oar.annotations import Annotations, organ_labels
from nnunet_oar.evaluation.dice import cases_of, require_same_grid
from nnunet_oar.evaluation.metrics import pairs, scores, tolerance_of

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
    tolerances_mm: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def of(cls, predictions: Path, references: Path, dataset_json: Path, tolerances_mm: Mapping[str, float]) -> Task:
        """Raises ValueError for a dataset.json that cannot be read or lacks what is needed, and for tolerances of other organs."""
        try:
            description = json.loads(Path(dataset_json).read_text())
            labels, annotations = organ_labels(description), Annotations.from_dataset_json(description)
            ending = description["file_ending"]
        except (OSError, KeyError, TypeError, AttributeError, json.JSONDecodeError) as error:
            raise ValueError(f"{dataset_json} is no dataset.json: {error!r}") from error
        unknown = sorted(set(tolerances_mm) - set(labels))
        if unknown:
            raise ValueError(f"a tolerance is given for {unknown[0]!r}; the organs are {', '.join(labels)}")
        return cls(predictions, references, labels, annotations, ending, dict(tolerances_mm))

    @property
    def cases(self) -> list[str]:
        """In alphabetical order. Raises ValueError where a case lies in one folder only, or there is none."""
        found = [cases_of(folder, self.file_ending) for folder in (self.predictions, self.references)]
        for missing, folder in ((found[1] - found[0], self.predictions), (found[0] - found[1], self.references)):
            if missing:
                raise ValueError(
                    f"{folder} lacks {len(missing)} of the cases to score: {', '.join(sorted(missing)[:5])}"
                )
        if not found[0]:
            raise ValueError(
                f"neither {self.predictions} nor {self.references} holds a file that ends in {self.file_ending}"
            )
        return sorted(found[0])

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
        require_same_grid(case, *(_header(path) for path in _files(task, case)))
    with _pool(processes) as pool:
        waiting: list[tuple[str, str, Future]] = []
        done: dict[str, dict[str, dict]] = {case: {} for case in cases}
        at = 0
        for case, organ, pair, spacing_mm in _crops(task, cases):
            arguments = (pair.prediction, pair.reference, spacing_mm, tolerance_of(organ, task.tolerances_mm))
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
    done[case][organ] = future.result()


def _crops(task: Task, cases: Iterable[str]):
    for case in cases:
        # slices from the feet to the head: contours are drawn in the planes across that axis
        images = [sitk.DICOMOrient(sitk.ReadImage(str(path)), "LPS") for path in _files(task, case)]
        arrays = [sitk.GetArrayViewFromImage(image) for image in images]
        organs = task.organs(case)
        names = {label: organ for organ, label in organs.items()}
        for pair in pairs(*arrays, list(names)):
            yield case, names[pair.label], pair, images[0].GetSpacing()[::-1]


def _files(task: Task, case: str) -> list[Path]:
    return [folder / f"{case}{task.file_ending}" for folder in (task.predictions, task.references)]


def _header(path: Path) -> sitk.ImageFileReader:
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        raise ValueError(f"{path} cannot be read: {str(error).splitlines()[-1]}") from error
    return reader
