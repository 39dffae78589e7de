"""Instance cascade of KiTS19: Chen et al., Using two-stage network to segment kidneys and kidney tumors (KiTS19 challenge)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from nnunet_oar.trainers.cascade import OARCascadeTrainer
from torch import Tensor, nn

from nnunet_oar.annotations import organ_labels
from nnunet_oar.data.instance_loader import InstanceCache, InstanceLoader
from nnunet_oar.fit import Budget, DatasetFacts
from nnunet_oar.fit_instances import fit_instance_cascade
from nnunet_oar.losses import DiceCrossEntropyLoss
from nnunet_oar.networks.instance_cascade import InstanceCascadeNetwork
from nnunet_oar.plan import InstancePlan
from nnunet_oar.roi import Box

# Of the training cases' instances this percentile, per axis, is the largest: a fused pair of kidneys shall not set the measure
LARGEST_PERCENTILE = 95


class OARInstanceCascadeTrainer(OARCascadeTrainer):
    """Localiser of the foreground and segmenter of one instance at a time, trained side by side (sections 2.1 and 2.2)."""

    plan_class, loader_class = InstancePlan, InstanceLoader
    needs_instances = True
    localised = "instances"

    @classmethod
    def fit_plan(cls, facts: DatasetFacts, recipe: str, budget: Budget) -> InstancePlan:
        return fit_instance_cascade(facts, recipe, budget)

    @classmethod
    def make_network(cls, in_channels: int, plan: InstancePlan, canvas: tuple[int, ...]) -> InstanceCascadeNetwork:
        return InstanceCascadeNetwork(in_channels, plan, canvas)

    @staticmethod
    def build_network_architecture(
        plans_manager, configuration_manager, num_input_channels: int, num_output_channels: int,
        enable_deep_supervision: bool = False,
    ) -> nn.Module:  # fmt: skip
        return OARInstanceCascadeTrainer.network_from_plans(
            configuration_manager, num_input_channels, num_output_channels
        )

    def prepare_data(self, dataset) -> None:
        self.cache = InstanceCache(dataset, self.plan, list(organ_labels(self.dataset_json).values()), self.annotations)
        self.cache.build(dataset.identifiers)

    def learn_from_cases(self, cases: Sequence[str]) -> None:
        # -pretrained_weights may have brought those of another data set
        self.network.largest_instance_mm.zero_()
        sizes = [box.shape for case in cases for box in self.cache.read(case).instances]
        if not sizes:
            return
        largest = np.percentile(sizes, LARGEST_PERCENTILE, axis=0, method="lower") * self.plan.spacing_mm
        self.network.largest_instance_mm.copy_(torch.from_numpy(largest))
        self.print_to_log_file(
            f"{len(sizes)} instances in {len(cases)} training cases, the largest {largest.round(1).tolist()} mm; at prediction "
            f"what is larger than that by a fifth on any axis is divided if it has a neck"
        )

    def _build_loss(self) -> nn.Module:
        """Weighted Dice of background and foreground, and of background and organs (sections 2.1 and 2.2)."""
        plan = self.plan
        weights = {"coarse": plan.coarse_weights, "fine": plan.fine_weights}
        return nn.ModuleDict(
            {
                stage: DiceCrossEntropyLoss(plan.cross_entropy_weight, of_stage, include_background=True)
                for stage, of_stage in weights.items()
            }
        )

    def stage_loss(self, stage: str, logits: Tensor, target: Tensor, annotated: Tensor) -> Tensor:
        target, annotated = self.partial_target(target, annotated)
        if stage == "coarse":
            labels = torch.tensor(self.plan.instance_labels, device=target.device)
            target = torch.isin(target, labels).to(target.dtype)
            if annotated is not None:
                # foreground that is annotated in part is as good as not annotated
                annotated = annotated[:, (labels - 1).to(annotated.device)].all(1, keepdim=True)
        return self.loss[stage](self.partial_logits(logits, annotated), target, annotated)

    def true_boxes(self, batch: dict) -> list[list[Box]]:
        return batch["instances"]

    def score_boxes(self, coarse: Tensor, shape: tuple[int, ...], truth: Sequence[Box]) -> tuple[int, float | None]:
        """How many instances lie wholly inside one of the boxes that prediction would crop, and the size of all these boxes
        relative to those of the truth."""
        found = self.network.localise(coarse, shape) if truth else []
        if not found:
            return 0, None
        boxes, needed = ([self.plan.fine_box(box, shape) for box in of] for of in (found, truth))
        inside = sum(any(box.contains(instance) for box in boxes) for instance in truth)
        return inside, sum(box.volume for box in boxes) / sum(box.volume for box in needed)
