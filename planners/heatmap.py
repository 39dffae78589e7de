"""Planner of OARHeatmapCascadeTrainer."""

from nnunet_oar.planners.base import OARPlanner
from nnunet_oar.trainers.heatmap import OARHeatmapCascadeTrainer


class OARHeatmapCascadePlanner(OARPlanner):
    trainer_class = OARHeatmapCascadeTrainer
