"""Organs of one CT from a trained model, straight from and to the CT's own voxels.

The networks see the positions that nnU-Net's preprocessing and their own resizing would give together, and their logits are
evaluated where the CT's voxels are, organ by organ and only where the organ can win. Neither the CT at the working spacing nor
logits of its size exist. docs/benchmarks.md compares with stock nnUNetv2_predict.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nnunetv2.preprocessing.resampling.default_resampling import compute_new_shape
from torch import Tensor

from nnunet_oar.components import drop_below, label_components
from nnunet_oar.inference.image import Image, as_image, turned, turned_axes
from nnunet_oar.inference.model import Model, load_model
from nnunet_oar.inference.plausibility import implausible
from nnunet_oar.inference.postprocessing import postprocess
from nnunet_oar.inference.volume import Intensities, OriginalVolume
from nnunet_oar.networks.layers import Grid, Part, labels_of, of_organ, positive_box, probabilities_of
from nnunet_oar.networks.volume import PredictionReport
from nnunet_oar.plan import AttentionPlan
from nnunet_oar.roi import Box
from nnunet_oar.sides import side_pairs

logger = logging.getLogger(__name__)

# nnU-Net's reorienting readers turn arrays so: inferior to superior, posterior to anterior, left to right
CANONICAL = "SAR"
READERS = ("SimpleITKIO", "SimpleITKIOWithReorient", "NibabelIO", "NibabelIOWithReorient")


@dataclass
class Prediction:
    """labels: (Z, Y, X) in the axis order of the image, uint8 or uint16. warnings: what should make somebody look twice.

    organs: of each organ that was found `voxels`, `ml`, `mean_hu`, `extent_mm` and `extent_vox` (of the working spacing; both
    along the model's axes) and `box` (in voxels of the image turned to these). boxes: of each fold, what the network cut out, in
    voxels of the working spacing; axes: the letters towards which the model's axes, and so those of the boxes, grow. agreement:
    organ -> the least Dice of a single fold with the result; None for one fold.
    probabilities: (K, Z, Y, X) float16 in the image's axis order, where asked for.
    """

    image: Image
    labels: np.ndarray
    organs: dict[str, dict[str, Any]] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    boxes: list[dict[str, Box]] = field(default_factory=list)
    axes: str = ""
    postprocessed: dict[str, dict[str, int]] = field(default_factory=dict)
    agreement: dict[str, float] | None = None
    probabilities: np.ndarray | None = None

    @property
    def label_image(self) -> Any:
        """In the form of what was predicted: a SimpleITK or nibabel image on the same grid, or an array."""
        return self.image.with_labels(self.labels)

    @contextmanager
    def timed(self, step: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds[step] = self.seconds.get(step, 0.0) + time.perf_counter() - start


class OARPredictor:
    """A model folder, loaded once and used for any number of CTs.

    device: "auto", "cpu", "cuda", "cuda:1", "mps". folds: None for all that are trained; their logits are averaged, as nnU-Net
    does. organs: names to keep, None for all. remove_small_mm3: components below this volume are dropped. postprocessing: whether
    to do what the plans say.

    Raises ValueError for a folder that is no model of ours, see `load_model`.
    """

    def __init__(
        self,
        model_folder: Path | str,
        device: str | torch.device = "auto",
        folds: Sequence[int | str] | int | str | None = None,
        checkpoint_name: str = "checkpoint_final.pth",
        *,
        organs: Sequence[str] | None = None,
        remove_small_mm3: float = 0.0,
        postprocessing: bool = True,
        trust_checkpoint: bool = False,
    ):
        self.device = choose_device(device)
        folds = [folds] if isinstance(folds, (int, str)) else folds
        self.model: Model = load_model(model_folder, folds, checkpoint_name, trust_checkpoint)
        self.plan = self.model.plan
        if self.model.reader not in READERS:
            raise ValueError(f"{model_folder} reads with {self.model.reader}; expected one of {', '.join(READERS)}")
        unknown = sorted(set(organs or ()) - set(self.plan.organs))
        if unknown:
            raise ValueError(f"the model has no organ {unknown[0]!r}; it has {', '.join(self.plan.organs)}")
        self.organs = tuple(organs) if organs else self.plan.organs
        self.remove_small_mm3, self.postprocessing = remove_small_mm3, postprocessing
        for network in self.model.networks:
            network.to(self.device)

    def predict(
        self, image: Any, spacing_mm: Sequence[float] | None = None, direction: Sequence[float] | None = None
    ) -> Any:
        """Label image of a SimpleITK or nibabel image, on the same grid, or label array of an array (see `as_image`).

        What there is to distrust is logged as warnings; `run` returns it. Raises ValueError for what is no CT, or has another
        number of channels than the model.
        """
        result = self.run(as_image(image, spacing_mm, direction))
        for text in result.warnings:
            logger.warning(text)
        return result.label_image

    def run(self, image: Image, probabilities: bool = False) -> Prediction:
        """The same with everything that is known about the result."""
        self._refuse_unfit(image)
        plan, organs = self.plan, len(self.plan.organs)
        labels = np.zeros(image.array.shape[1:], np.uint8 if organs < 256 else np.uint16)
        result = Prediction(image, labels, warnings=list(image.remarks))
        letters = result.axes = self._letters(image, result)
        array, labels = (turned(of, image.orientation, letters) for of in (image.array, result.labels))
        spacing_mm = [image.spacing_mm[axis] for axis in turned_axes(image.orientation, letters)]
        odds = None
        if probabilities:
            result.probabilities = np.zeros((organs + 1, *result.labels.shape), np.float16)
            result.probabilities[0] = 1
            odds = turned(result.probabilities, image.orientation, letters)
        valid = None if array.min() == array.max() else nonzero_box(array)
        if valid is None:
            result.warnings.append("the image has one value everywhere: no organ can be found, the result is empty")
            return result
        self._refuse_thin(valid.shape)
        inside = (slice(None), *valid.slices)
        shape = working_shape(valid.shape, spacing_mm, self.model.configuration["spacing"])
        with result.timed("normalise"):
            foreground = self.model.plans["foreground_intensity_properties_per_channel"]
            intensities = Intensities(self.model.configuration, foreground, plan)
            volume = OriginalVolume(array[inside], shape, intensities, self.device)
        where = self._segment(volume, labels[valid.slices], result, odds if odds is None else odds[inside])
        where = {label: box.moved(valid.start) for label, box in where.items()}
        with result.timed("postprocess"):
            self._clean(labels, where, spacing_mm, letters, result)
        with result.timed("measure"):
            found = measured(array[0], labels, where, plan.organs, spacing_mm, valid.shape, shape)
        result.warnings += implausible(plan, found, labels.shape, spacing_mm, letters, result.agreement, self.organs)
        self._keep_wanted(labels, where, found, result)
        return result

    def predict_folder(self, source: Path | str, output: Path | str) -> dict[str, list[str]]:
        """What `nnunet_oar predict -i SOURCE -o OUTPUT` writes for one image, a folder of them or DICOM; returns case -> warnings.

        Raises ValueError for a source that holds no case, and, when the others are done, for cases that could not be predicted.
        """
        from nnunet_oar.inference.batch import predict_cases
        from nnunet_oar.inference.cases import Outputs, find_cases, require_other_folder

        source, output = Path(source), Path(output)
        require_other_folder(source, output)
        cases = find_cases(source, self.model.channels)
        output.mkdir(parents=True, exist_ok=True)
        outcomes = list(predict_cases(self, cases, output, Outputs()))
        failed = [outcome.error for outcome in outcomes if outcome.error is not None]
        if failed:
            raise ValueError("; ".join(failed))
        return {outcome.case.name: list(outcome.warnings) for outcome in outcomes}

    def _refuse_unfit(self, image: Image) -> None:
        channels = image.array.shape[0]
        if channels != self.model.channels:
            raise ValueError(f"the model needs {self.model.channels} channels, got {channels}")

    def _refuse_thin(self, shape: Sequence[int]) -> None:
        """shape: of what is not 0."""
        if min(shape) == 1 and not isinstance(self.plan, AttentionPlan):
            raise ValueError(
                f"the CT is one voxel thick where it is not 0, {tuple(shape)}; {self.plan.trainer} sees volumes and can make "
                f"nothing of a single slice"
            )

    def _letters(self, image: Image, result: Prediction) -> str:
        """The directions in which the axes grow in the arrays that the networks were trained on."""
        forward = self.model.plans["transpose_forward"]
        if self.plan.array_orientation is not None:
            return self.plan.array_orientation
        if self.model.reader.endswith("WithReorient"):
            return "".join(CANONICAL[axis] for axis in forward)
        if side_pairs({name: label for label, name in enumerate(self.plan.organs)}) != ([], []):
            result.warnings.append(
                "the training CTs were not stored in one orientation, or before it was recorded: check left and right"
            )
        return "".join(image.orientation[axis] for axis in forward)

    def _segment(
        self, volume: OriginalVolume, labels: np.ndarray, result: Prediction, odds: np.ndarray | None
    ) -> dict[int, Box]:
        """Fill `labels` (and `odds`), views of what is valid; returns label -> box that holds all its voxels."""
        plan, networks = self.plan, self.model.networks
        reports = [PredictionReport(quiet=True) for _ in networks]
        grid, where = Grid(labels.shape, volume.shape), {}
        agreement = _Agreement(len(networks), len(plan.organs))
        with torch.inference_mode():
            generators = [
                network.predict_parts(volume, report) for network, report in zip(networks, reports, strict=True)
            ]
            while True:
                with result.timed("networks"):
                    parts = [next(generator, None) for generator in generators]
                if None in parts:
                    break
                with result.timed("labels"):
                    self._fill(parts, grid, labels, odds, where, agreement)
        for fold, report in zip(self.model.folds, reports, strict=True):
            prefix = f"fold {fold}: " if len(reports) > 1 else ""
            result.warnings += [prefix + text for text in report.warnings]
        result.boxes = [report.boxes for report in reports]
        result.agreement = agreement.dice(plan.organs) if len(networks) > 1 else None
        return where

    def _fill(self, parts: list[Part], grid: Grid, labels, odds, where: dict[int, Box], agreement: _Agreement) -> None:
        floor, folds = self.plan.floor, [part.layers for part in parts]
        layers = [layer for of_fold in folds for layer in of_fold]
        for label in {layer.label for layer in layers}:
            box = positive_box(of_organ(layers, label), grid)
            if box is not None:
                where[label] = where[label].union(box) if label in where else box
        whole = grid.box(parts[0].start, parts[0].stop)
        positive = positive_box(layers, grid)
        positive = positive and positive.intersection(whole)
        for slab in grid.slabs(positive) if positive else ():
            winners = labels_of(folds, grid, slab, floor)
            labels[slab.slices] = winners[0].cpu().numpy()
            agreement.count(winners)
        if odds is not None:
            for slab in grid.slabs(whole):
                found = probabilities_of(folds, len(self.plan.organs), grid, slab, floor, self.device)
                odds[(slice(None), *slab.slices)] = found.cpu().numpy()

    def _clean(self, labels: np.ndarray, where: dict[int, Box], spacing_mm, letters: str, result: Prediction) -> None:
        plan = self.plan
        if self.postprocessing:
            steps = {label: plan.postprocessing.get(organ, ()) for label, organ in enumerate(plan.organs, start=1)}
            axis = next(index for index, letter in enumerate(letters) if letter in "SI")
            changes = postprocess(labels, where, steps, axis, spacing_mm)
            result.postprocessed = {plan.organs[label - 1]: change for label, change in changes.items()}
        if self.remove_small_mm3 <= 0:
            return
        for label, box in where.items():
            here, organ = labels[box.slices], plan.organs[label - 1]
            mask = here == label
            mask &= ~drop_below(mask, self.remove_small_mm3 / np.prod(spacing_mm))
            if mask.any():
                here[mask] = 0
                change = result.postprocessed.setdefault(organ, {"added": 0, "removed": 0, "components_removed": 0})
                change["removed"] += int(np.count_nonzero(mask))
                change["components_removed"] += len(label_components(mask)[2])

    def _keep_wanted(self, labels: np.ndarray, where: dict[int, Box], found: dict, result: Prediction) -> None:
        """Leave out the organs that were not asked for: after all were looked at, as a side is told by its partner."""
        for label, box in where.items():
            if self.plan.organs[label - 1] not in self.organs:
                here = labels[box.slices]
                here[here == label] = 0
        result.organs, result.postprocessed, result.agreement = (
            of and {organ: value for organ, value in of.items() if organ in self.organs}
            for of in (found, result.postprocessed, result.agreement)
        )


class _Agreement:
    """Voxels of each label in the result, in each fold, and in both."""

    def __init__(self, folds: int, organs: int):
        self.counts = np.zeros((folds, 3, organs + 1), np.int64)

    def count(self, winners: list[Tensor]) -> None:
        result, *folds = (of.flatten().long() for of in winners)
        for counts, fold in zip(self.counts, folds, strict=False):
            for row, labels in zip(counts, (result, fold, result[result == fold]), strict=True):
                row += torch.bincount(labels, minlength=len(row)).cpu().numpy()

    def dice(self, organs: Sequence[str]) -> dict[str, float]:
        least = {}
        for label, organ in enumerate(organs, start=1):
            result, fold, both = self.counts[:, :, label].T
            if (result + fold).any():
                least[organ] = float((2 * both / np.maximum(result + fold, 1)).min())
        return least


def working_shape(shape: Sequence[int], spacing_mm: Sequence[float], wanted_mm: Sequence[float]) -> tuple[int, ...]:
    """What nnU-Net's preprocessing would resample an image to."""
    return tuple(max(1, int(size)) for size in compute_new_shape(shape, spacing_mm, wanted_mm))


def nonzero_box(array: np.ndarray) -> Box | None:
    """What is left of (C, Z, Y, X) when faces that are 0 in all channels are cut off, as nnU-Net does; None if all is 0."""
    start, stop = [0, 0, 0], list(array.shape[1:])
    for axis in range(3):
        inside = array[(slice(None), *map(slice, start, stop))]
        filled = (index for index in range(inside.shape[axis + 1]) if inside.take(index, axis + 1).any())
        first = next(filled, None)
        if first is None:
            return None
        backwards = reversed(range(inside.shape[axis + 1]))
        last = next(index for index in backwards if inside.take(index, axis + 1).any())
        start[axis], stop[axis] = start[axis] + first, start[axis] + last + 1
    return Box(tuple(start), tuple(stop))


def measured(
    image: np.ndarray,
    labels: np.ndarray,
    where: Mapping[int, Box],
    organs: Sequence[str],
    spacing_mm: Sequence[float],
    shape: Sequence[int],
    working: Sequence[int],
) -> dict[str, dict[str, Any]]:
    """As Prediction.organs. where: label -> box that holds its voxels; `shape` voxels of the image are `working` ones."""
    found = {}
    for label, box in sorted(where.items()):
        mask = labels[box.slices] == label
        tight = Box.from_mask(mask)
        if tight is None:
            continue
        voxels = int(np.count_nonzero(mask))
        sizes = list(zip(tight.shape, spacing_mm, shape, working, strict=True))
        found[organs[label - 1]] = {
            "voxels": voxels,
            "ml": voxels * float(np.prod(spacing_mm)) / 1000,
            "mean_hu": float(image[box.slices][mask].mean(dtype=np.float64)),
            "extent_mm": [size * spacing for size, spacing, _, _ in sizes],
            "extent_vox": [size * to / of for size, _, of, to in sizes],
            "box": tight.moved(box.start),
        }
    return found


def choose_device(device: str | torch.device) -> torch.device:
    """Raises ValueError for one that this machine, or this torch, has not got."""
    if str(device) == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        chosen = torch.device(device)
        torch.empty(1, device=chosen)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(
            f"device {device!r} cannot be used here ({str(error).splitlines()[0]}); choose cpu or auto"
        ) from None
    return chosen
