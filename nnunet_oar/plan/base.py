"""What every trainer's section holds, and how a section is read and validated."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import nnunet_oar.plan.checks as check
from nnunet_oar.plan.checks import Triple, spec
from nnunet_oar.sides import side_pairs

SECTION = "oar"
RECIPES = ("paper", "fitted")
# whose sections there are: a misspelt name must not pass for a section of somebody else's
TRAINERS = (
    "OARCascadeTrainer",
    "OARInstanceCascadeTrainer",
    "OARHeatmapCascadeTrainer",
    "OARSharedEncoderTrainer",
    "OARAttentionTrainer",
)
# mirroring alone; and rotation in the plane of the slices; and what nnU-Net does
AUGMENTATIONS = ("flips", "rotation", "nnunet")
COARSE_LABELS = ("nearest", "covering")
# components under a twentieth of the largest dropped; the largest alone kept; gaps of a few slices closed and stray slices dropped
POSTPROCESSING = ("drop_small", "keep_largest", "bridge_slices")

P = TypeVar("P")


@dataclass(frozen=True)
class OARPlan:
    """What every trainer's section holds. Shapes are in array order (z, y, x where the planner is ours)."""

    trainer: str = spec("", check.string)
    # names of the channels 1, 2, ... in the order of the labels: the network is built from the plans alone
    organs: tuple[str, ...] = spec((), check.list_of(check.string))
    recipe: str = spec("paper", check.one_of(*RECIPES))
    batch_size: int = spec(1, check.integer(1))
    seed: int = spec(12345, check.integer(0, 2**32 - 1))
    # None: as many as there are training cases, or slices where the network sees slices, by the batch size
    epochs: int = spec(300, check.integer(1))
    iterations_per_epoch: int | None = spec(None, check.optional(check.integer(1)))
    # None: likewise of the validation cases
    val_iterations: int | None = spec(None, check.optional(check.integer(1)))
    # intensity of the preprocessed data = HU * slope + intercept; None where a scheme has lost HU
    intensity_from_hu: tuple[float, float] | None = spec(
        (1.0, 0.0), check.optional(check.list_of(check.number(-math.inf), 2))
    )
    hu_window: tuple[float, float] | None = spec(None, check.optional(check.window))
    # equation (4) of paper 003 for organs that a case does not annotate; false: they are background, as for stock nnU-Net
    recalibration: bool = spec(True, check.boolean)
    # whether a case may raise the logit of an organ that it does not annotate, as the equation's gradient does; false: only
    # lower it
    unannotated_may_rise: bool = spec(True, check.boolean)
    gradient_clip: float = spec(12.0, check.number(0))
    augmentation: str = spec("flips", check.one_of(*AUGMENTATIONS))
    flip_axes: tuple[int, ...] = spec((), check.list_of(check.integer(0, 2)))
    # array axis that runs from one side of the patient to the other, and the labels that change places when it is flipped
    left_right_axis: int | None = spec(None, check.optional(check.integer(0, 2)))
    swap_on_flip: tuple[tuple[int, int], ...] = spec((), check.list_of(check.list_of(check.integer(1), 2)))
    # organs' logits outside their box, and their lower bound inside it, relative to the background's
    floor: float = spec(-5.0, check.number(-1000, -0.1))
    # what nnunet_oar predict does to each organ's mask, in this order
    postprocessing: dict[str, tuple[str, ...]] = spec({}, check.dict_of(check.list_of(check.one_of(*POSTPROCESSING))))
    # the data set's least and greatest: what lies far outside at prediction is reported. Extents are in voxels of the working
    # spacing; organ_free_mm: the longest part of a CT without any organ, below the lowest and above the highest one
    organ_extent_vox: dict[str, tuple[Triple, Triple]] = spec({}, check.dict_of(check.list_of(check.shape, 2)))
    organ_volume_ml: dict[str, tuple[float, float]] = spec({}, check.dict_of(check.list_of(check.number(0), 2)))
    organ_mean_hu: dict[str, tuple[float, float]] = spec({}, check.dict_of(check.list_of(check.number(-1e6, 1e6), 2)))
    organ_free_mm: tuple[float, float] | None = spec(None, check.optional(check.list_of(check.number(0), 2)))
    # organs that all training cases hold which annotate everything
    always_present: tuple[str, ...] = spec((), check.list_of(check.string))
    # directions in which the array axes grow, for example SAR: superior, anterior, right; null where training cases differ
    array_orientation: str | None = spec(None, check.optional(check.orientation))

    def __post_init__(self):
        # what comes from JSON, from the fit and from defaults shall compare equal
        for f in dataclasses.fields(self):
            object.__setattr__(self, f.name, _frozen(getattr(self, f.name)))
        if self.hu_window is not None and self.intensity_from_hu is None:
            raise ValueError(
                f"plans, section {SECTION!r}: hu_window is {list(self.hu_window)}, but the normalisation scheme of this "
                f"configuration has lost the HU; plan with nnunet_oar plan, or set hu_window to null"
            )

        if self.intensity_from_hu is not None and not 0 < self.intensity_from_hu[0] < math.inf:
            raise ValueError(
                f"plans, section {SECTION!r}: intensity_from_hu is {list(self.intensity_from_hu)}; the first number, what an HU is "
                f"in units of the data, must be above 0 and finite"
            )
        if len(set(self.flip_axes)) < len(self.flip_axes):
            raise ValueError(
                f"plans, section {SECTION!r}: flip_axes is {list(self.flip_axes)}; each axis may be there once"
            )
        self._refuse_unfit_pairs("swap_on_flip")
        self._refuse_mirrored_sides()
        self._refuse_unknown_organs(
            "postprocessing", "organ_extent_vox", "organ_volume_ml", "organ_mean_hu", "always_present"
        )

    def _refuse_unfit_pairs(self, name: str) -> None:
        pairs = getattr(self, name)
        labels = [label for pair in pairs for label in pair]
        if labels and (
            max(labels) > len(self.organs) or len(set(labels)) < len(labels) or self.left_right_axis is None
        ):
            raise ValueError(
                f"plans, section {SECTION!r}: {name} is {plain(pairs)}; it needs left_right_axis and pairs of different labels "
                f"from 1 to {len(self.organs)}, each once"
            )

    def _refuse_unknown_organs(self, *names: str) -> None:
        for name in names:
            unknown = sorted(set(getattr(self, name)) - set(self.organs))
            if unknown:
                raise ValueError(
                    f"plans, section {SECTION!r}: {name} names {unknown[0]!r}, which is none of the organs {', '.join(self.organs)}"
                )

    def _refuse_mirrored_sides(self) -> None:
        """Never mirror a left organ into a right one without its label."""
        pairs, single = side_pairs({name: label for label, name in enumerate(self.organs, start=1)})
        if not single and self.swaps(pairs):
            return
        risky = self.flip_axes if self.left_right_axis is None else {self.left_right_axis} & set(self.flip_axes)
        if risky:
            example = single[0] if single else self.organs[pairs[0][0] - 1]
            raise ValueError(
                f"plans, section {SECTION!r}: flip_axes is {list(self.flip_axes)}, which may mirror {example} to the other side; "
                f"swap_on_flip must pair all organs with a side, or left_right_axis be known and not among flip_axes"
            )

    def swaps(self, pairs: Sequence[tuple[int, int]]) -> bool:
        """Whether mirroring exchanges the labels of each of these pairs, in whatever order."""
        return {frozenset(pair) for pair in pairs} <= {frozenset(pair) for pair in self.swap_on_flip}

    @property
    def data_window(self) -> tuple[float, float] | None:
        """`hu_window` in units of the preprocessed data."""
        if self.hu_window is None:
            return None
        slope, intercept = self.intensity_from_hu
        return self.hu_window[0] * slope + intercept, self.hu_window[1] * slope + intercept

    def to_section(self) -> dict:
        """The plain dict for the plans' JSON."""
        return plain(dataclasses.asdict(self))

    @staticmethod
    def trainer_of(section: Any) -> str:
        """The trainer whose section it is. Raises ValueError for what is no section of any of our trainers."""
        _require_object(section)
        if section.get("trainer") not in TRAINERS:
            raise ValueError(
                f"plans, section {SECTION!r}: trainer is {section.get('trainer')!r}; allowed is one of {', '.join(TRAINERS)}"
            )
        return section["trainer"]

    @classmethod
    def from_section(cls, section: Any) -> OARPlan:
        """Read and validate. Raises ValueError that names the key, what it holds and what is allowed."""
        _require_object(section)
        fields = {f.name: f for f in dataclasses.fields(cls)}
        unknown = sorted(set(section) - set(fields))
        if unknown:
            raise ValueError(
                f"plans, section {SECTION!r}: unknown key {unknown[0]!r}; {cls.__name__} knows {', '.join(fields)}"
            )
        values = {}
        for name, value in section.items():
            try:
                values[name] = fields[name].metadata["check"](value)
            except ValueError as error:
                raise ValueError(f"plans, section {SECTION!r}: {name} is {value!r}; allowed is {error}") from None
        return cls(**values)


def _require_object(section: Any) -> None:
    if not isinstance(section, Mapping):
        raise ValueError(f"plans: the section {SECTION!r} must be an object, got {section!r}")


def _frozen(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _frozen(item) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return tuple(_frozen(item) for item in value)
    return value


def plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [plain(item) for item in value]
    return value


def refuse_phases(phases: Sequence[Any]) -> None:
    """Raise ValueError unless each phase has a `start`, the first 0, in order."""
    starts = [phase.start for phase in phases]
    if not starts or starts[0] != 0 or starts != sorted(starts):
        raise ValueError(
            f"plans, section {SECTION!r}: phases start at {starts}; the first must start at 0, the others follow"
        )


def phase_of(phases: Sequence[P], epoch: int) -> P:
    """The phase that an epoch is in; of phases that start together, the last."""
    return [phase for phase in phases if phase.start <= epoch][-1]


def scaled_phases(phases: Sequence[P], old_epochs: int, epochs: int) -> tuple[P, ...]:
    """The phases of a training of `old_epochs` epochs, in the same proportions for another number."""
    return tuple(dataclasses.replace(phase, start=round(phase.start * epochs / old_epochs)) for phase in phases)
