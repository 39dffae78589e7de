"""Planner of OARSharedEncoderTrainer."""

import numpy as np
from nnunet_oar.planners.base import OARPlanner
from nnunet_oar.trainers.shared_encoder import OARSharedEncoderTrainer

from nnunet_oar.plan import SharedEncoderPlan


class OARSharedEncoderPlanner(OARPlanner):
    trainer_class = OARSharedEncoderTrainer

    def determine_fullres_target_spacing(self) -> np.ndarray:
        """The paper resamples all data to 1 x 1 x 3 mm (section 2.1), (z, y, x) here."""
        if self.recipe == "paper" and self.overwrite_target_spacing is None:
            return np.array(SharedEncoderPlan.grid_spacing_mm)
        return super().determine_fullres_target_spacing()
