"""Planner of OARAttentionTrainer."""

from nnunet_oar.planners.base import OARPlanner
from nnunet_oar.trainers.attention import OARAttentionTrainer


class OARAttentionPlanner(OARPlanner):
    trainer_class = OARAttentionTrainer
