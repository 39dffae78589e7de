"""Two stages per instance: find each kidney in the zoomed CT, segment the box of each, merge.

Paper: Chen et al., Using two-stage network to segment kidneys and kidney tumors (KiTS19), sections 2.1 and 2.2, figure 2. How
instances are told apart, the growing of boxes that cut an organ and the merging are ours, see docs/papers.md.
"""

from __future__ import annotations

import torch
from torch import Tensor

from nnunet_oar.instances import find_instances
from nnunet_oar.networks.cascade import TwoStageNetwork
from nnunet_oar.networks.layers import Layer
from nnunet_oar.networks.volume import PredictionReport, Volume
from nnunet_oar.plan import InstancePlan
from nnunet_oar.roi import Box


class InstanceCascadeNetwork(TwoStageNetwork):
    """One box per instance (`InstancePlan` holds every number); the localiser tells foreground, class 1, from background.

    Buffer `largest_instance_mm` (3,): the extent of the largest instances of the training cases, set by the trainer; 0: not known.
    """

    def __init__(self, in_channels: int, plan: InstancePlan, canvas: tuple[int, ...] | None = None):
        super().__init__(in_channels, plan, canvas, coarse_classes=2)
        self.register_buffer("largest_instance_mm", torch.zeros(3))

    def predict_layers(self, volume: Volume, report: PredictionReport) -> list[Layer]:
        instances = self.localise(self.zoomed(volume), volume.shape)
        if not instances:
            report.warn("the localiser found nothing: the result is empty")
        layers = []
        for number, instance in enumerate(instances, start=1):
            name = f"instance {number}"
            report.localised[name] = instance
            # the other kidney may reach into the box
            wanted = self.plan.fine_box(instance, volume.shape)
            box, fine = self.segment_growing(volume, wanted, report, largest_only=True)
            report.boxes[name] = box
            # where boxes overlap the most probable label of all of them stays
            layers += [Layer.of_box(label, box, (box, fine[0, label])) for label in range(1, self.num_classes)]
        return layers

    def localise(self, coarse_image: Tensor, image_shape: tuple[int, ...]) -> list[Box]:
        """Normalised zoomed CT (1, C, *coarse_shape) -> boxes of the instances in voxels of the image, the largest first."""
        plan, known = self.plan, bool(self.largest_instance_mm.any())
        mm = [size * old / new for size, old, new in zip(plan.spacing_mm, image_shape, plan.coarse_shape, strict=True)]
        boxes = find_instances(
            self.coarse_labels(coarse_image),
            plan.max_instances,
            voxel_mm=mm,
            fraction=plan.component_fraction,
            join_mm=plan.join_mm,
            largest_mm=self.largest_instance_mm.tolist() if plan.separate and known else None,
        )
        return [box.rescaled(plan.coarse_shape, image_shape) for box in boxes]
