"""The section "oar" of a configuration in the plans: every hyper-parameter of a trainer, validated.

A configuration of `nnUNetOARPlans.json` (or the copy of stock plans beside a checkpoint) carries a plain dict under the key
`SECTION`. It becomes a frozen dataclass here, whose defaults are the paper's numbers. What is learnt lives in the checkpoint.
"""

from nnunet_oar.plan.attention import ATTENTION_PHASES, AttentionPlan, Phase
from nnunet_oar.plan.base import COARSE_LABELS, RECIPES, SECTION, TRAINERS, OARPlan, scaled_phases
from nnunet_oar.plan.checks import Triple
from nnunet_oar.plan.heatmap import HeatmapPlan
from nnunet_oar.plan.shared_encoder import SHARED_PHASES, SharedEncoderPlan, SharedPhase
from nnunet_oar.plan.two_stage import CascadePlan, InstancePlan, TwoStagePlan

__all__ = [
    "ATTENTION_PHASES",
    "COARSE_LABELS",
    "RECIPES",
    "SECTION",
    "SHARED_PHASES",
    "TRAINERS",
    "AttentionPlan",
    "CascadePlan",
    "HeatmapPlan",
    "InstancePlan",
    "OARPlan",
    "Phase",
    "SharedEncoderPlan",
    "SharedPhase",
    "Triple",
    "TwoStagePlan",
    "scaled_phases",
]
