"""Two-stage cascade of SegTHOR: Chen et al., Two-stage network for OAR segmentation (ISBI SegTHOR challenge 2019)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from nnunet_oar.trainers.base import OARTrainer
from nnunet_oar.trainers.stages import RateSchedule, StageOptimizers
from nnunet_oar.trainers.validation import count_voxels
from nnunetv2.utilities.collate_outputs import collate_outputs
from torch import Tensor, nn

from nnunet_oar.annotations import organ_labels
from nnunet_oar.data.cascade_loader import CascadeLoader
from nnunet_oar.data.coarse_cache import CoarseCache
from nnunet_oar.fit import Budget, DatasetFacts, fit_cascade
from nnunet_oar.losses import DiceCrossEntropyLoss
from nnunet_oar.networks.cascade import CascadeNetwork
from nnunet_oar.plan import CascadePlan
from nnunet_oar.roi import Box


class OARCascadeTrainer(OARTrainer):
    """Localiser and segmenter, trained side by side from one loader (sections 2.1 and 2.2).

    The segmenter's crops come from the truth, so neither stage depends on the other: each has its own optimiser, clipping, loss
    scaling and random numbers, and the result is that of training one after the other.
    """

    plan_class, loader_class = CascadePlan, CascadeLoader
    # what the localiser's recall counts, for the log
    localised = "organs"

    @classmethod
    def fit_plan(cls, facts: DatasetFacts, recipe: str, budget: Budget) -> CascadePlan:
        return fit_cascade(facts, recipe, budget)

    @classmethod
    def make_network(cls, in_channels: int, plan: CascadePlan, canvas: tuple[int, ...]) -> CascadeNetwork:
        return CascadeNetwork(in_channels, plan, canvas)

    @staticmethod
    def build_network_architecture(
        plans_manager, configuration_manager, num_input_channels: int, num_output_channels: int,
        enable_deep_supervision: bool = False,
    ) -> nn.Module:  # fmt: skip
        return OARCascadeTrainer.network_from_plans(configuration_manager, num_input_channels, num_output_channels)

    def prepare_data(self, dataset) -> None:
        plan = self.plan
        labels = list(organ_labels(self.dataset_json).values())
        self.cache = CoarseCache(dataset, plan.coarse_shape, plan.data_window, labels, plan.coarse_labels)
        self.cache.build(dataset.identifiers)

    def configure_optimizers(self) -> tuple[StageOptimizers, RateSchedule]:
        """Adam with L2 weight decay, the rate reduced each epoch (section 2.1.3)."""
        plan = self.plan
        self.initial_lr, self.weight_decay = plan.learning_rate, plan.weight_decay
        stages = {
            name: (module, torch.optim.Adam(module.parameters(), plan.learning_rate, weight_decay=plan.weight_decay))
            for name, module in self.network.stages.items()
        }
        optimizer = StageOptimizers(stages, plan.gradient_clip, self.device)
        return optimizer, RateSchedule(optimizer, plan)

    def _build_loss(self) -> nn.Module:
        return DiceCrossEntropyLoss(self.plan.cross_entropy_weight)

    def on_train_epoch_start(self) -> None:
        super().on_train_epoch_start()
        self._iteration = self.current_epoch * self.num_iterations_per_epoch

    def train_step(self, batch: dict) -> dict:
        loss = sum(self.train_stage(stage, batch) for stage in self.network.stages)
        self._iteration += 1
        return {"loss": np.float64(loss)}

    def train_stage(self, stage: str, batch: dict) -> float:
        """One update of one stage. Its dropout is a function of (seed, fold, iteration, stage): neither an interruption nor the
        other stage changes it."""
        torch.manual_seed(self.seed_of(self._iteration, stage))
        loss, _, _ = self._stage_loss(stage, batch)
        self.optimizer.update(stage, loss)
        return loss.item()

    def _stage_loss(self, stage: str, batch: dict) -> tuple[Tensor, Tensor, Tensor]:
        images = batch[stage].to(self.device, non_blocking=True)
        target = batch[f"{stage}_target"].to(self.device, non_blocking=True)
        annotated = batch[f"{stage}_annotated"].to(self.device, non_blocking=True)
        logits = self.network({stage: images})[stage]
        return self.stage_loss(stage, logits, target, annotated), logits, target

    def stage_loss(self, stage: str, logits: Tensor, target: Tensor, annotated: Tensor) -> Tensor:
        return self.partial_loss(logits, target, annotated)

    def validation_step(self, batch: dict) -> dict:
        """Pseudo Dice of the fine stage on the box of the truth; recall and size of the localiser's box."""
        loss, logits, target = self._stage_loss("fine", batch)
        coarse = batch["coarse"].to(self.device, non_blocking=True)
        contained, present, excess = [], 0, []
        for index, (shape, truth) in enumerate(zip(batch["image_shape"], self.true_boxes(batch), strict=True)):
            found, size = self.score_boxes(coarse[index : index + 1], shape, truth)
            contained.append(found)
            present += len(truth)
            # a localiser that finds what the case does not annotate needs a larger box, rightly
            if size is not None and batch["coarse_annotated"][index].all():
                excess.append(size)
        return {
            "loss": loss.cpu().numpy(),
            **count_voxels(logits.argmax(1), target[:, 0], batch["fine_annotated"]),
            "organs_in_box": int(np.sum(contained)),
            "organs": present,
            "box_excess": excess,
        }

    def true_boxes(self, batch: dict) -> list[list[Box]]:
        """Of each sample: what the localiser should find."""
        return [list(organs.values()) for organs in batch["organs"]]

    def score_boxes(self, coarse: Tensor, shape: tuple[int, ...], truth: Sequence[Box]) -> tuple[int, float | None]:
        """How many organs lie wholly inside the box that prediction would crop, and its size relative to the box of the truth."""
        found = self.network.localise(coarse, shape) if truth else None
        if found is None:
            return 0, None
        box = self.plan.fine_box(found, shape)
        needed = self.plan.fine_box(Box.around(truth), shape)
        return sum(box.contains(organ) for organ in truth), box.volume / needed.volume

    def on_validation_epoch_end(self, val_outputs: list[dict]) -> None:
        own = ("organs_in_box", "organs", "box_excess")
        outputs = collate_outputs([{key: output[key] for key in own} for output in val_outputs])
        self.box_recall = sum(outputs["organs_in_box"]) / max(1, sum(outputs["organs"]))
        excess = f"{np.mean(outputs['box_excess']):.2f}" if outputs["box_excess"] else "not known"
        super().on_validation_epoch_end(val_outputs)
        self.print_to_log_file(
            f"Localiser: box recall {self.box_recall:.4f} of {sum(outputs['organs'])} {self.localised}, box volume relative to "
            f"the needed one: {excess}"
        )
