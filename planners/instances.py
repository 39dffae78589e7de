"""Planner of OARInstanceCascadeTrainer."""

from nnunet_oar.planners.base import OARPlanner
from nnunet_oar.trainers.instances import OARInstanceCascadeTrainer


class OARInstanceCascadePlanner(OARPlanner):
    trainer_class = OARInstanceCascadeTrainer
