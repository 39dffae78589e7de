"""Section of AttentionAnatomy: paper 003."""

from __future__ import annotations

from dataclasses import dataclass

import nnunet_oar.plan.checks as check
from nnunet_oar.plan.base import SECTION, OARPlan, phase_of, plain, refuse_phases
from nnunet_oar.plan.checks import spec


@dataclass(frozen=True)
class Phase:
    """Part of a training: from epoch `start` to the next phase's. dice, focal, region: alpha, beta, gamma of equation (2) of paper
    003; elastic: whether slices are deformed."""

    start: int = spec(0, check.integer(0))
    learning_rate: float = spec(1e-3, check.number(0))
    dice: float = spec(1.0, check.number(0))
    focal: float = spec(1.0, check.number(0))
    region: float = spec(1.0, check.number(0))
    elastic: bool = spec(False, check.boolean)


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
    phases: tuple[Phase, ...] = spec(ATTENTION_PHASES, check.list_of(check.record(Phase, "start", "learning_rate")))
    # slices that are computed at once at prediction
    prediction_batch: int = spec(16, check.integer(1))

    def __post_init__(self):
        super().__post_init__()
        refuse_phases(self.phases)
        last = self.phase(self.epochs - 1)
        if not last.dice and not last.focal:
            raise ValueError(
                f"plans, section {SECTION!r}: phases start at {[phase.start for phase in self.phases]}, and the last of "
                f"{self.epochs} epochs is of one without dice and focal, in which no organ is learnt"
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
                f"plans, section {SECTION!r}: region_organs is {plain(self.region_organs)}; labels go from 1 to {len(self.organs)}"
            )
        if self.region_organs and len(self.region_organs) != len(self.regions):
            raise ValueError(
                f"plans, section {SECTION!r}: region_organs must have one entry for each of {len(self.regions)} regions"
            )

    def phase(self, epoch: int) -> Phase:
        return phase_of(self.phases, epoch)

    @property
    def in_plane_axes(self) -> tuple[int, int]:
        return tuple(axis for axis in range(3) if axis != self.slice_axis)
