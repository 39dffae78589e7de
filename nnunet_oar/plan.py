"""The section "oar" of a configuration in the plans: every hyper-parameter of a trainer, validated.

A configuration of `nnUNetOARPlans.json` (or the copy of stock plans beside a checkpoint) carries a plain dict under the key
`SECTION`. It becomes a frozen dataclass here, whose defaults are the paper's numbers. What is learnt lives in the checkpoint.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import nnunet_oar.plan_checks as check
from nnunet_oar.plan_checks import Triple, spec
from nnunet_oar.roi import Box
from nnunet_oar.sides import side_pairs

SECTION = "oar"
RECIPES = ("paper", "fitted")
# whose sections there are: a misspelt name must not pass for a section of somebody else's
TRAINERS = ("OARCascadeTrainer", "OARInstanceCascadeTrainer", "OARHeatmapCascadeTrainer", "OARAttentionTrainer")
# mirroring alone; and rotation in the plane of the slices; and what nnU-Net does
AUGMENTATIONS = ("flips", "rotation", "nnunet")
TEST_TIME = ("boxes", "flips")
COARSE_LABELS = ("nearest", "covering")
CENTRES = ("midpoint", "weighted")


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
    gradient_clip: float = spec(12.0, check.number(0))
    augmentation: str = spec("flips", check.one_of(*AUGMENTATIONS))
    flip_axes: tuple[int, ...] = spec((), check.list_of(check.integer(0, 2)))
    # array axis that runs from one side of the patient to the other, and the labels that change places when it is flipped
    left_right_axis: int | None = spec(None, check.optional(check.integer(0, 2)))
    swap_on_flip: tuple[tuple[int, int], ...] = spec((), check.list_of(check.list_of(check.integer(1), 2)))
    # organs' logits outside their box, and their lower bound inside it, relative to the background's
    floor: float = spec(-5.0, check.number(-1000, -0.1))

    def __post_init__(self):
        # what comes from JSON, from the fit and from defaults shall compare equal
        for f in dataclasses.fields(self):
            object.__setattr__(self, f.name, _frozen(getattr(self, f.name)))
        if self.hu_window is not None and self.intensity_from_hu is None:
            raise ValueError(
                f"plans, section {SECTION!r}: hu_window is {list(self.hu_window)}, but the normalisation scheme of this "
                f"configuration has lost the HU; plan with nnunet_oar plan, or set hu_window to null"
            )

        labels = [label for pair in self.swap_on_flip for label in pair]
        if labels and (
            max(labels) > len(self.organs) or len(set(labels)) < len(labels) or self.left_right_axis is None
        ):
            raise ValueError(
                f"plans, section {SECTION!r}: swap_on_flip is {_plain(self.swap_on_flip)}; it needs left_right_axis and pairs "
                f"of different labels from 1 to {len(self.organs)}"
            )

        self._refuse_mirrored_sides()

    def _refuse_mirrored_sides(self) -> None:
        """Never mirror a left organ into a right one without its label."""
        pairs, single = side_pairs({name: label for label, name in enumerate(self.organs, start=1)})
        swapped = {frozenset(pair) for pair in self.swap_on_flip}
        if not single and all(frozenset(pair) in swapped for pair in pairs):
            return
        risky = self.flip_axes if self.left_right_axis is None else {self.left_right_axis} & set(self.flip_axes)
        if risky:
            example = single[0] if single else self.organs[pairs[0][0] - 1]
            raise ValueError(
                f"plans, section {SECTION!r}: flip_axes is {list(self.flip_axes)}, which may mirror {example} to the other side; "
                f"swap_on_flip must pair all organs with a side, or left_right_axis be known and not among flip_axes"
            )

    @property
    def data_window(self) -> tuple[float, float] | None:
        """`hu_window` in units of the preprocessed data."""
        if self.hu_window is None:
            return None
        slope, intercept = self.intensity_from_hu
        return self.hu_window[0] * slope + intercept, self.hu_window[1] * slope + intercept

    def to_section(self) -> dict:
        """The plain dict for the plans' JSON."""
        return _plain(dataclasses.asdict(self))

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


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [_plain(item) for item in value]
    return value


@dataclass(frozen=True)
class TwoStagePlan(OARPlan):
    """Localise in the zoomed CT, segment boxes of it, both with the network of papers 000 and 002 (the defaults are theirs)."""

    # paper 000, sections 2.1.2 and 2.1.3, paper 002, section 2.1: one network architecture for both stages, input 128^3
    coarse_shape: Triple = spec((128, 128, 128), check.shape)
    fine_shape: Triple = spec((128, 128, 128), check.shape)
    coarse_features: int = spec(16, check.integer(1))
    fine_features: int = spec(16, check.integer(1))
    coarse_strides: tuple[Triple, ...] = spec(((2, 2, 2),) * 4, check.strides)
    fine_strides: tuple[Triple, ...] = spec(((2, 2, 2),) * 4, check.strides)
    dropout: float = spec(0.3, check.number(0, 0.99))
    # what a voxel of the zoomed labels shows: "nearest" the label at its centre; "covering" the organ that fills most of it,
    # however little that is, so that no organ is too thin to be localised
    coarse_labels: str = spec("nearest", check.one_of(*COARSE_LABELS))
    # in voxels of the working spacing: margin about what is to be segmented, least box
    margin_vox: Triple = spec((10, 10, 10), check.list_of(check.integer(0), 3))
    min_box_vox: Triple = spec((128, 128, 128), check.shape)
    component_fraction: float = spec(0.05, check.number(0, 1))
    learning_rate: float = spec(5e-4, check.number(0))
    lr_decay: float = spec(0.985, check.number(0, 1))
    weight_decay: float = spec(1e-5, check.number(0))
    cross_entropy_weight: float = spec(0.0, check.number(0))
    flip_axes: tuple[int, ...] = spec((0, 1, 2), check.list_of(check.integer(0, 2)))
    # guard (off in the papers): how often a box that cuts an organ is grown
    grow_attempts: int = spec(0, check.integer(0, 5))

    def __post_init__(self):
        super().__post_init__()
        for stage in ("coarse", "fine"):
            shape, strides = getattr(self, f"{stage}_shape"), getattr(self, f"{stage}_strides")
            total = [math.prod(stride[axis] for stride in strides) for axis in range(3)]
            # one voxel at the deepest level leaves instance norm nothing to measure
            if all(size <= step for size, step in zip(shape, total, strict=True)):
                raise ValueError(
                    f"plans, section {SECTION!r}: {stage}_shape is {list(shape)}; with {stage}_strides one axis at least must be "
                    f"longer than {total}"
                )

    def fine_box(self, around: Box, image_shape: Sequence[int], min_box: Sequence[int] | None = None) -> Box:
        """The box that the second stage sees: `around` + margin, at least `min_box` (default: min_box_vox), inside the image."""
        return around.grow(self.margin_vox).at_least(min_box or self.min_box_vox).within(image_shape)


@dataclass(frozen=True)
class CascadePlan(TwoStagePlan):
    """The second stage segments one box of all organs (paper 000)."""

    trainer: str = spec("OARCascadeTrainer", check.string)
    # section 2.2.1: larger least boxes as augmentation
    extra_box_vox: tuple[Triple, ...] = spec(((150, 200, 200), (200, 256, 256)), check.list_of(check.shape))
    margin_jitter: float = spec(0.0, check.number(0, 1))
    # how often the crop of a case that leaves organs out is grown towards the image's faces in training: at prediction the box is
    # that of all organs
    reach_unannotated: float = spec(0.0, check.number(0, 1))
    # organ -> over what its logits are averaged at prediction ("boxes": also the larger least boxes; "flips": also mirrored)
    test_time: dict[str, tuple[str, ...]] = spec({}, check.dict_of(check.list_of(check.one_of(*TEST_TIME))))
    # guard (off in the paper): whether an empty localisation means "everywhere"
    fallback_whole: bool = spec(False, check.boolean)
    # label -> least and greatest extent (3 + 3 voxels of the working spacing) in the data set
    organ_extent_vox: dict[str, tuple[Triple, Triple]] = spec({}, check.dict_of(check.list_of(check.shape, 2)))

    def __post_init__(self):
        super().__post_init__()
        unknown = sorted((set(self.test_time) | set(self.organ_extent_vox)) - set(self.organs))
        if unknown:
            raise ValueError(
                f"plans, section {SECTION!r}: test_time or organ_extent_vox names {unknown[0]!r}, which is none of the organs "
                f"{', '.join(self.organs)}"
            )


@dataclass(frozen=True)
class InstancePlan(TwoStagePlan):
    """The second stage segments one box per instance, a kidney with its tumours (paper 002; its numbers are the defaults)."""

    trainer: str = spec("OARInstanceCascadeTrainer", check.string)
    spacing_mm: tuple[float, float, float] = spec((1.0, 1.0, 1.0), check.list_of(check.number(1e-3), 3))
    # array axis across the slices, in which training rotates
    slice_axis: int = spec(0, check.integer(0, 2))
    hu_window: tuple[float, float] | None = spec((-95.0, 155.0), check.optional(check.window))
    augmentation: str = spec("rotation", check.one_of(*AUGMENTATIONS))
    min_box_vox: Triple = spec((64, 64, 64), check.shape)
    # what makes an instance: the components of these labels together; other labels are segmented where the boxes show them
    instance_labels: tuple[int, ...] = spec((1, 2), check.list_of(check.integer(1)))
    max_instances: int = spec(2, check.integer(1))
    # components that are nearer to each other than this are one instance (a tumour beside its kidney)
    join_mm: float = spec(10.0, check.number(0))
    # whether a component larger than any instance in training is divided at its neck (kidneys that touch at a coarse grid)
    separate: bool = spec(True, check.boolean)
    # Dice weights of background and foreground, and of background and organs
    coarse_weights: tuple[float, ...] = spec((0.01, 0.99), check.list_of(check.number(0), 2))
    fine_weights: tuple[float, ...] = spec((0.01, 0.14, 0.85), check.list_of(check.number(0)))

    def __post_init__(self):
        super().__post_init__()
        if self.organs and len(self.fine_weights) != len(self.organs) + 1:
            raise ValueError(
                f"plans, section {SECTION!r}: fine_weights is {list(self.fine_weights)}; allowed are {len(self.organs) + 1} "
                f"numbers, of the background and of {', '.join(self.organs)}"
            )
        if self.organs and not 1 <= max(self.instance_labels, default=0) <= len(self.organs):
            raise ValueError(
                f"plans, section {SECTION!r}: instance_labels is {list(self.instance_labels)}; allowed are labels from 1 to "
                f"{len(self.organs)}, one at least"
            )


@dataclass(frozen=True)
class HeatmapPlan(OARPlan):
    """Heat maps find the organs, a binary network of its own segments each (paper 001; its numbers are the defaults)."""

    trainer: str = spec("OARHeatmapCascadeTrainer", check.string)
    spacing_mm: tuple[float, float, float] = spec((1.0, 1.0, 1.0), check.list_of(check.number(1e-3), 3))
    # volumes of the localiser differ in shape: one at a time
    batch_size: int = spec(1, check.integer(1, 1))
    # section III, "Data set" and "Gaussian Variance": 3 mm, 150 mm^2 whatever the spacing, threshold 0.1
    localizer_spacing_mm: tuple[float, float, float] = spec((3.0, 3.0, 3.0), check.list_of(check.number(1e-3), 3))
    # training sees at most this of a case at once; null: all of it
    localizer_crop: Triple | None = spec(None, check.optional(check.shape))
    localizer_features: int = spec(32, check.integer(1))
    localizer_strides: tuple[Triple, ...] = spec(((2, 2, 2),) * 4, check.strides)
    sigma2_mm2: float = spec(150.0, check.number(1e-3))
    # how much more than a voxel without heat one of full heat weighs in the loss; 0: the paper's
    heat_weight: float = spec(0.0, check.number(0))
    threshold: float = spec(0.1, check.number(0, 1))
    # the region above the threshold -> where the organ is: "midpoint" of its bounding box, or "weighted" by the heat, which is
    # right at the image's border, too
    centre: str = spec("midpoint", check.one_of(*CENTRES))
    # section II.A.2: voxels of the working spacing beyond the mean size; measured: at the end of training replaced by what holds
    # 99% of the training organs
    margin_vox: Triple = spec((10, 10, 10), check.list_of(check.integer(0), 3))
    measured_margin: bool = spec(False, check.boolean)
    # training crops lie off the truth by up to this share of the margin, as those of the localiser do
    margin_jitter: float = spec(0.5, check.number(0, 1))
    # organ -> voxels of the working spacing that one voxel of its network's grid spans; strides of its network
    organ_step_vox: dict[str, tuple[float, float, float]] = spec({}, check.dict_of(check.list_of(check.number(0.1), 3)))
    organ_strides: dict[str, tuple[Triple, ...]] = spec({}, check.dict_of(check.strides))
    organ_features: int = spec(16, check.integer(1))
    # crops in one iteration, and how often an organ is drawn that the case does not hold, relative to one that it holds: its
    # network must learn what is none
    organs_per_iteration: int = spec(2, check.integer(1))
    absent_share: float = spec(0.25, check.number(0, 1))
    # section III, "Optimization"
    localizer_learning_rate: float = spec(1e-3, check.number(0))
    organ_learning_rate: float = spec(1e-5, check.number(0))
    lr_decay: float = spec(0.985, check.number(0, 1))
    # guard (off in the paper): how often a box that cuts an organ is grown
    grow_attempts: int = spec(0, check.integer(0, 5))

    def __post_init__(self):
        super().__post_init__()
        for name in ("organ_step_vox", "organ_strides"):
            given = getattr(self, name)
            if set(given) != set(self.organs):
                raise ValueError(
                    f"plans, section {SECTION!r}: {name} has the organs {', '.join(given)}; allowed are "
                    f"{', '.join(self.organs)}, each once"
                )

    def localizer_shape(self, image_shape: Sequence[int]) -> Triple:
        """The grid on which an image of the working spacing is searched."""
        return tuple(
            max(1, round(size * spacing / wanted))
            for size, spacing, wanted in zip(image_shape, self.spacing_mm, self.localizer_spacing_mm, strict=True)
        )

    def organ_shape(self, organ: str, box_shape: Sequence[int]) -> Triple:
        """The grid of an organ's network for a box of the working spacing: the larger the box, the more voxels."""
        return tuple(
            max(1, round(size / step)) for size, step in zip(box_shape, self.organ_step_vox[organ], strict=True)
        )

    def organ_box(
        self,
        centre_vox: Sequence[float],
        size_mm: Sequence[float],
        margin_mm: Sequence[float],
        image_shape: Sequence[int],
    ) -> Box:
        """The box that an organ's network sees: size + margin about its centre (edge coordinates), cut at the image's faces."""
        start, stop = [], []
        for centre, size, margin, spacing, extent in zip(
            centre_vox, size_mm, margin_mm, self.spacing_mm, image_shape, strict=True
        ):
            reach = (size / 2 + margin) / spacing
            first = min(max(0, math.floor(centre - reach)), extent - 1)
            start.append(first)
            stop.append(max(min(extent, math.ceil(centre + reach)), first + 1))
        return Box(tuple(start), tuple(stop))


@dataclass(frozen=True)
class Phase:
    """Part of a training: from epoch `start` to the next phase's. dice, focal, region: alpha, beta, gamma of equation (2) of paper
    003; elastic: whether slices are deformed."""

    start: int
    learning_rate: float
    dice: float = 1.0
    focal: float = 1.0
    region: float = 1.0
    elastic: bool = False

    @classmethod
    def read(cls, value: Any) -> Phase:
        """From what the JSON holds."""
        checks = {"start": check.integer(0), "elastic": check.boolean}
        names = [f.name for f in dataclasses.fields(cls)]
        if isinstance(value, Phase):
            value = dataclasses.asdict(value)
        if not isinstance(value, Mapping) or not {"start", "learning_rate"} <= set(value) <= set(names):
            raise ValueError(f"an object with {', '.join(names)}")
        try:
            return cls(**{name: checks.get(name, check.number(0))(item) for name, item in value.items()})
        except ValueError as error:
            raise ValueError(f"an object with {', '.join(names)}, each {error}") from None


# section 2.5; the length of the last phase is not given
ATTENTION_PHASES = (
    Phase(0, 1e-3, dice=0.0, focal=0.0, region=1.0),
    Phase(20, 1e-3),
    Phase(50, 5e-4, focal=0.0),
    Phase(70, 1e-4, focal=0.0, region=0.0, elastic=True),
)


@dataclass(frozen=True)
class AttentionPlan(OARPlan):
    """Slices one by one, organs weighed by where in the body a slice lies (paper 003; its numbers are the defaults)."""

    trainer: str = spec("OARAttentionTrainer", check.string)
    batch_size: int = spec(16, check.integer(1))
    epochs: int = spec(100, check.integer(1))
    # section 2.1: five neighbouring slices, the centre 320 x 320 of each
    slices: int = spec(5, check.integer(1))
    slice_shape: tuple[int, int] = spec((320, 320), check.list_of(check.integer(2), 2))
    # array axis across the slices
    slice_axis: int = spec(0, check.integer(0, 2))
    features: int = spec(32, check.integer(1))
    stages: int = spec(6, check.integer(2, 8))
    # section 2.2.2; false: without equation (1), the plain network
    attention: bool = spec(True, check.boolean)
    attention_epsilon: float = spec(1e-6, check.number(1e-12, 1))
    # names of the body regions (none: no classification); organs that a slice of each holds where regions are derived from these
    regions: tuple[str, ...] = spec((), check.list_of(check.string))
    region_organs: tuple[tuple[int, ...], ...] = spec((), check.list_of(check.list_of(check.integer(1))))
    phases: tuple[Phase, ...] = spec(ATTENTION_PHASES, check.list_of(Phase.read))
    # slices that are computed at once at prediction
    prediction_batch: int = spec(16, check.integer(1))

    def __post_init__(self):
        super().__post_init__()
        starts = [phase.start for phase in self.phases]
        if not starts or starts[0] != 0 or starts != sorted(starts):
            raise ValueError(
                f"plans, section {SECTION!r}: phases start at {starts}; the first must start at 0, the others follow"
            )
        if self.slices % 2 == 0:
            raise ValueError(f"plans, section {SECTION!r}: slices is {self.slices}; allowed is an odd number")
        step = 2 ** (self.stages - 1)
        if any(size % step for size in self.slice_shape) or max(self.slice_shape) <= step:
            raise ValueError(
                f"plans, section {SECTION!r}: slice_shape is {list(self.slice_shape)}; with {self.stages} stages both must be "
                f"multiples of {step} and one larger"
            )
        if any(label > len(self.organs) for labels in self.region_organs for label in labels):
            raise ValueError(
                f"plans, section {SECTION!r}: region_organs is {_plain(self.region_organs)}; labels go from 1 to {len(self.organs)}"
            )
        if self.region_organs and len(self.region_organs) != len(self.regions):
            raise ValueError(
                f"plans, section {SECTION!r}: region_organs must have one entry for each of {len(self.regions)} regions"
            )

    def phase(self, epoch: int) -> Phase:
        """The phase that an epoch is in; of phases that start together, the last."""
        return [phase for phase in self.phases if phase.start <= epoch][-1]

    @property
    def in_plane_axes(self) -> tuple[int, int]:
        return tuple(axis for axis in range(3) if axis != self.slice_axis)
