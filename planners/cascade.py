"""Planner of OARCascadeTrainer."""

from nnunet_oar.planners.base import OARPlanner
from nnunet_oar.trainers.cascade import OARCascadeTrainer


class OARCascadePlanner(OARPlanner):
    trainer_class = OARCascadeTrainer
