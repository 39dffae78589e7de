"""AttentionAnatomy: Sun et al., a unified framework for whole-body organs at risk segmentation using multiple partially
annotated datasets (ISBI 2020)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from nnunet_oar.trainers.base import OARTrainer
from nnunet_oar.trainers.stages import StageOptimizers
from nnunet_oar.trainers.validation import count_voxels
from torch import Tensor, nn

from nnunet_oar.annotations import organ_labels
from nnunet_oar.body_regions import NO_REGION, BodyRegions, nearest_region, region_names
from nnunet_oar.data.slab_loader import SlabLoader
from nnunet_oar.data.slice_cache import SliceCache
from nnunet_oar.fit import Budget, DatasetFacts
from nnunet_oar.fit_attention import fit_attention
from nnunet_oar.losses import AttentionAnatomyLoss
from nnunet_oar.networks.attention_anatomy import AttentionAnatomyNet
from nnunet_oar.plan import AttentionPlan


class OARAttentionTrainer(OARTrainer):
    """One 2.5D network in phases: loss weights, learning rate and elastic deformation follow the epoch (section 2.5)."""

    plan_class, loader_class = AttentionPlan, SlabLoader

    @classmethod
    def fit_plan(cls, facts: DatasetFacts, recipe: str, budget: Budget) -> AttentionPlan:
        return fit_attention(facts, recipe, budget)

    @classmethod
    def make_network(cls, in_channels: int, plan: AttentionPlan, canvas: tuple[int, ...]) -> AttentionAnatomyNet:
        return AttentionAnatomyNet(in_channels, plan, canvas)

    @staticmethod
    def build_network_architecture(
        plans_manager, configuration_manager, num_input_channels: int, num_output_channels: int,
        enable_deep_supervision: bool = False,
    ) -> nn.Module:  # fmt: skip
        return OARAttentionTrainer.network_from_plans(configuration_manager, num_input_channels, num_output_channels)

    def prepare_data(self, dataset) -> None:
        plan = self.plan
        self.cache = SliceCache(
            dataset, plan.slice_axis, plan.data_window, list(organ_labels(self.dataset_json).values())
        )
        self.cache.build(dataset.identifiers)
        if not plan.regions:
            self.print_to_log_file(
                "The plans use no body regions: the sources annotate different organs and dataset.json had no key body_regions "
                "when they were made, or the body axis is not known. There is no classification (gamma = 0)."
            )

    def refuse_outdated_plan(self) -> None:
        plan, given = self.plan, region_names(self.preprocessed_dataset_json())
        again = f"run nnunet_oar plan -d {self.plans_manager.dataset_name} -tr {plan.trainer} again"
        if plan.region_organs and not self.annotations.complete:
            raise RuntimeError(
                "the plans derive body regions from the organs in a slice, but by now the sources in dataset.json annotate "
                f"different organs, which such regions would mistake for anatomy; {again}"
            )
        if plan.regions and not plan.region_organs and given != plan.regions:
            raise RuntimeError(
                f"the plans know the body regions {', '.join(plan.regions)}, but dataset.json has "
                f"{', '.join(given) or 'no key body_regions'}; {again}"
            )

    def body_regions(self, dataset, cases: Sequence[str]) -> dict[str, np.ndarray]:
        """Case -> (slices,) body region of each slice. Not kept here: nnU-Net writes what a trainer holds into debug.json."""
        plan, stored = self.plan, {name: self.cache.read(name) for name in cases}
        if plan.region_organs:
            return {name: nearest_region(case.holds, plan.region_organs) for name, case in stored.items()}
        given = BodyRegions.from_dataset_json(self.preprocessed_dataset_json())
        if not plan.regions or given is None:
            return {name: np.full(case.slices, NO_REGION) for name, case in stored.items()}
        transpose = self.plans_manager.transpose_forward
        return {
            name: given.of_preprocessed(name, dataset.load_case(name)[3], case.slices, plan.slice_axis, transpose)
            for name, case in stored.items()
        }

    def iterations_of_one_pass(self, cases: Sequence[str]) -> int:
        slices = sum(self.cache.read(name).slices for name in cases)
        return -(-slices // self.plan.batch_size)

    def make_loader(self, dataset, cases: Sequence[str], *, training: bool, **options) -> SlabLoader:
        regions = self.body_regions(dataset, cases)
        if self.plan.regions:
            known = sum(int((of_slices != NO_REGION).sum()) for of_slices in regions.values())
            total = sum(map(len, regions.values()))
            kind = "training" if training else "validation"
            self.print_to_log_file(
                f"Body regions {', '.join(self.plan.regions)}: known for {known} of {total} {kind} slices"
            )
        return super().make_loader(
            dataset,
            cases,
            training=training,
            regions=regions,
            epoch_batches=self.num_iterations_per_epoch,
            **options,
        )

    def configure_optimizers(self) -> tuple[StageOptimizers, PhaseRates]:
        """Adam (section 2.5); its rate is the phase's."""
        self.initial_lr, self.weight_decay = self.plan.phase(0).learning_rate, 0.0
        optimizer = torch.optim.Adam(self.network.parameters(), self.initial_lr)
        stages = StageOptimizers({"network": (self.network, optimizer)}, self.plan.gradient_clip, self.device)
        return stages, PhaseRates(stages, self.plan)

    def _build_loss(self) -> nn.Module:
        return AttentionAnatomyLoss()

    def on_train_epoch_start(self) -> None:
        super().on_train_epoch_start()
        phase = self.plan.phase(self.current_epoch)
        if phase.start == self.current_epoch:
            self.print_to_log_file(f"Phase: {phase}")

    def train_step(self, batch: dict) -> dict:
        loss, _, _ = self._loss_of(batch)
        self.optimizer.update("network", loss)
        return {"loss": np.float64(loss.item())}

    def _loss_of(self, batch: dict) -> tuple[Tensor, Tensor, Tensor]:
        batch = {key: value.to(self.device, non_blocking=True) for key, value in batch.items()}
        out = self.network({"slab": batch["slab"]})
        loss = self.partial_loss(
            out["logits"],
            batch["target"],
            batch["annotated"],
            out["region"],
            batch["region"],
            self.plan.phase(self.current_epoch),
        )
        return loss, out["logits"], out["region"]

    def validation_step(self, batch: dict) -> dict:
        """Pseudo Dice over slices that are sampled as in training; hits of the region branch."""
        loss, logits, region_logits = self._loss_of(batch)
        known = batch["region"] != NO_REGION
        hits = 0
        if self.plan.regions and bool(known.any()):
            hits = int((region_logits.argmax(1).cpu()[known] == batch["region"][known]).sum())
        return {
            "loss": loss.cpu().numpy(),
            **count_voxels(logits.argmax(1), batch["target"][:, 0].to(self.device), batch["annotated"]),
            "region_hits": hits,
            "regions": int(known.sum()),
        }

    def on_validation_epoch_end(self, val_outputs: list[dict]) -> None:
        super().on_validation_epoch_end(val_outputs)
        known = sum(output["regions"] for output in val_outputs)
        if self.plan.regions and known:
            hits = sum(output["region_hits"] for output in val_outputs)
            self.print_to_log_file(f"Body region: {hits / known:.4f} of {known} slices right")


class PhaseRates:
    """Learning rate of the epoch's phase; a closed form, so that a resumed training needs no state."""

    def __init__(self, optimizer: StageOptimizers, plan: AttentionPlan):
        self.optimizer, self.plan = optimizer, plan

    def step(self, epoch: int) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = self.plan.phase(epoch).learning_rate
