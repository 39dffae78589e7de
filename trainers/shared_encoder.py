"""Coarse and fine segmentation on one encoder: Zhang et al., Segmentation of thoracic organs at risk in CT images combining coarse
and fine network (SegTHOR challenge, ISBI 2019)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from nnunet_oar.trainers.base import OARTrainer
from nnunet_oar.trainers.stages import RateSchedule, StageOptimizers
from nnunet_oar.trainers.validation import count_voxels
from torch import Tensor, nn

from nnunet_oar.annotations import organ_labels
from nnunet_oar.data.shared_encoder_loader import BodyCache, SharedEncoderLoader
from nnunet_oar.fit import Budget, DatasetFacts
from nnunet_oar.fit_shared_encoder import fit_shared_encoder
from nnunet_oar.losses import HardVoxelDiceLoss
from nnunet_oar.networks.shared_encoder import SharedEncoderNet
from nnunet_oar.pairs import refuse_contradicted_pairs
from nnunet_oar.plan import SharedEncoderPlan
from nnunet_oar.roi import Box, resize


class OARSharedEncoderTrainer(OARTrainer):
    """Coarse segmentation first, then also the organs' decoders, in phases (section 3.1); the loss of both goes into the encoder.

    Where the decoders look is the phase's: at the truth, moved at random, or where the coarse branch finds the organ. Boxes have no
    gradient.
    """

    plan_class, loader_class = SharedEncoderPlan, SharedEncoderLoader

    @classmethod
    def fit_plan(cls, facts: DatasetFacts, recipe: str, budget: Budget) -> SharedEncoderPlan:
        return fit_shared_encoder(facts, recipe, budget)

    @classmethod
    def make_network(cls, in_channels: int, plan: SharedEncoderPlan, canvas: tuple[int, ...]) -> SharedEncoderNet:
        return SharedEncoderNet(in_channels, plan, canvas)

    @staticmethod
    def build_network_architecture(
        plans_manager, configuration_manager, num_input_channels: int, num_output_channels: int,
        enable_deep_supervision: bool = False,
    ) -> nn.Module:  # fmt: skip
        return OARSharedEncoderTrainer.network_from_plans(
            configuration_manager, num_input_channels, num_output_channels
        )

    def prepare_data(self, dataset) -> None:
        self.cache = BodyCache(dataset, self.plan, list(organ_labels(self.dataset_json).values()))
        self.cache.build(dataset.identifiers)
        cases = [self.cache.read(case) for case in dataset.identifiers]
        for count, what in (
            (sum(not case.found for case in cases), "no threshold between body and air was found: they are used whole"),
            (
                sum(case.cut_organs for case in cases),
                "the body's box would have cut labels: it was enlarged in training",
            ),
        ):
            if count:
                self.print_to_log_file(f"In {count} of {len(cases)} cases {what}")

    def learn_from_cases(self, cases: Sequence[str]) -> None:
        organs = {case: self.annotated_organs(case, self.cache.read(case).organs) for case in cases}
        refuse_contradicted_pairs(self.plan, organs)
        held = {label for of_case in organs.values() for label in of_case}
        for label in range(1, len(self.plan.organs) + 1):
            self.network.organ_known[label - 1] = label in held
        self.tell_missing(held)

    def configure_optimizers(self) -> tuple[StageOptimizers, RateSchedule]:
        """Adam with a decaying rate; the paper names no optimiser."""
        plan = self.plan
        self.initial_lr, self.weight_decay = plan.learning_rate, 0.0
        optimizer = torch.optim.Adam(self.network.parameters(), plan.learning_rate)
        stages = StageOptimizers({"network": (self.network, optimizer)}, plan.gradient_clip, self.device)
        return stages, RateSchedule(stages, plan)

    def _build_loss(self) -> nn.Module:
        weight = self.plan.cross_entropy_weight
        return nn.ModuleDict(
            {
                "coarse": HardVoxelDiceLoss(0.0, weight),
                "fine": HardVoxelDiceLoss(self.plan.hard_voxel_weight, weight),
            }
        )

    def on_train_epoch_start(self) -> None:
        super().on_train_epoch_start()
        self._iteration = self.current_epoch * self.num_iterations_per_epoch
        phase = self.plan.phase(self.current_epoch)
        if phase.start == self.current_epoch:
            self.print_to_log_file(f"From this epoch on, training is of {phase}")
        if self._scores_begin:
            # a checkpoint of the coarse phase cannot predict, however well it scored; boxes of the truth are easier than found ones
            self._best_ema = None
        # -pretrained_weights may have brought a value of its own
        self.network.decoders_trained.fill_(phase.fine)

    @property
    def _scores_begin(self) -> bool:
        """Whether the pseudo Dice of this epoch is of something else than that of the one before."""
        epoch, now = self.current_epoch, self.plan.phase(self.current_epoch)
        if not epoch:
            return now.fine
        before = self.plan.phase(epoch - 1)
        return now.fine and (now.fine, now.boxes) != (before.fine, before.boxes)

    @property
    def _boxes(self) -> str:
        return self.plan.phase(self.current_epoch).boxes

    def train_step(self, batch: dict) -> dict:
        out, loss, target, annotated = self._coarse(batch)
        phase = self.plan.phase(self.current_epoch)
        if phase.fine:
            shape = tuple(target.shape[2:])
            found = self.network.find_organs(out["coarse"].detach(), shape) if phase.boxes == "coarse" else {}
            rng = np.random.default_rng(self.seed_of(self._iteration, "boxes"))
            boxes = self._drawn_boxes(self._true_boxes(target, annotated), found, annotated, shape, rng)
            losses = [self._fine(out["features"], label, box, target)[1] for label, box in boxes.items()]
            if losses:
                loss = loss + torch.stack(losses).mean()
        self.optimizer.update("network", loss)
        self._iteration += 1
        return {"loss": np.float64(loss.item())}

    def _coarse(self, batch: dict) -> tuple[dict, Tensor, Tensor, Tensor]:
        """What the network makes of the image, the loss of its coarse segmentation, target and what of it is annotated."""
        batch = {key: value.to(self.device, non_blocking=True) for key, value in batch.items()}
        target, annotated = self.partial_target(batch["target"], batch["annotated"])
        coarse_target, _ = self.partial_target(batch["coarse_target"], batch["annotated"])
        if annotated is None:
            annotated = torch.ones_like(batch["annotated"])
        out = self.network({"image": batch["image"]})
        one_hot = torch.cat([coarse_target == label for label in range(len(self.plan.organs) + 1)], 1)
        # the background of a sample that leaves an organ out is not known
        known = torch.cat((annotated.all(1, keepdim=True), annotated), 1)
        maps = [out["coarse"], *(out["coarse_maps"] if self.plan.each_map else ())]
        loss = torch.stack([self.loss["coarse"](of_block, one_hot, known) for of_block in maps]).mean()
        return out, loss, target, annotated

    def _fine(self, features: Sequence[Tensor], label: int, box: Box, target: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of one organ in its box, and their loss."""
        logits = self.network.decode(features, label, box)
        return logits, self.loss["fine"].of_logits(logits, target[(..., *box.slices)] == label)

    def _drawn_boxes(
        self,
        truth: dict[int, Box],
        found: dict[int, Box],
        annotated: Tensor,
        shape: tuple[int, ...],
        rng: np.random.Generator,
    ) -> dict[int, Box]:
        """Where the decoders look in training: label -> box on a grid of `shape`, of some of the organs that the sample annotates
        and holds (`truth`), or that the coarse branch finds (`found`), whose boxes come first."""
        plan = self.plan
        labels = [label for label in sorted(truth.keys() | found.keys()) if annotated[0, label - 1]]
        count = min(len(labels), plan.organs_per_iteration or len(labels))
        labels = sorted(rng.choice(labels, count, replace=False).tolist()) if labels else []
        boxes = {}
        for label in labels:
            # an organ that the coarse branch does not find here has a decoder that must learn it all the same
            if label in found:
                box = self._affordable(label, found[label], rng)
            else:
                box = _moved_sides(truth[label], plan.jitter_vox, rng)
            if plan.grow_attempts:
                # a box that prediction has grown shows more than the organ's own: unseen, it would be called the organ
                box = _grown_at_random(box, plan.total_stride, rng)
            boxes[label] = self.network.fine_box(box, shape)
        return boxes

    def _affordable(self, label: int, box: Box, rng: np.random.Generator) -> Box:
        """The box that was found, or a random part of it that is as large as the truth's may be drawn: a coarse branch that is lost
        may find an organ everywhere, for which a step's memory was not planned."""
        plan = self.plan
        extent = plan.organ_extent_vox.get(plan.organs[label - 1])
        if extent is None:
            return box
        organ = np.ceil(np.multiply(extent[1], plan.spacing_mm) / plan.grid_spacing_mm).astype(int)
        size = np.minimum(box.shape, organ + np.multiply(2, plan.jitter_vox))
        start = np.add(box.start, rng.integers(0, np.subtract(box.shape, size) + 1))
        return Box(tuple(start.tolist()), tuple((start + size).tolist()))

    def _true_boxes(self, target: Tensor, annotated: Tensor) -> dict[int, Box]:
        boxes = {label: Box.from_mask(target[0, 0] == label) for label in range(1, len(self.plan.organs) + 1)}
        return {label: box for label, box in boxes.items() if box is not None and annotated[0, label - 1]}

    def validation_step(self, batch: dict) -> dict:
        """Pseudo Dice of the decoders in the boxes of the phase, of the coarse segmentation while they are not trained; how many
        organs lie in the box that the coarse branch would give their decoder. In boxes of the coarse branch, an organ that it does
        not find is missed."""
        out, loss, target, annotated = self._coarse(batch)
        shape = tuple(target.shape[2:])
        found = self.network.find_organs(out["coarse"], shape)
        truth = self._true_boxes(target, annotated)
        inside = [
            label in found and self.network.fine_box(found[label], shape).contains(truth[label]) for label in truth
        ]
        if self.network.decoders_trained:
            logits = torch.full((1, len(self.plan.organs) + 1, *shape), self.plan.floor, device=self.device)
            logits[:, 0] = 0
            losses = []
            looked_at = found if self._boxes == "coarse" else truth
            for label, box in looked_at.items():
                if not annotated[0, label - 1]:
                    continue
                box = self.network.fine_box(box, shape)
                organ, of_organ = self._fine(out["features"], label, box, target)
                logits[(slice(None), label, *box.slices)] = organ[:, 0]
                losses.append(of_organ)
            if losses:
                loss = loss + torch.stack(losses).mean()
            prediction = logits.argmax(1)
        else:
            prediction = resize(out["coarse"], shape, mode="linear").argmax(1)
        return {
            "loss": loss.cpu().numpy(),
            **count_voxels(prediction, target[:, 0], batch["annotated"]),
            "organs_in_box": sum(inside),
            "organs": len(truth),
        }

    def on_validation_epoch_end(self, val_outputs: list[dict]) -> None:
        super().on_validation_epoch_end(val_outputs)
        if self._scores_begin:
            # the running mean starts anew, too: scores of something else say nothing of these. nnU-Net's logger takes a second
            # log of an epoch for a mistake and says so: its list is changed instead
            mean = self.logger.get_value("mean_fg_dice", step=None)[-1]
            self.logger.get_value("ema_fg_dice", step=None)[-1] = mean
        inside, organs = (sum(output[key] for output in val_outputs) for key in ("organs_in_box", "organs"))
        where = "of the truth" if self._boxes == "truth" else "that it finds"
        what = f"decoders in boxes {where}" if self.network.decoders_trained else "coarse branch"
        self.print_to_log_file(
            f"Coarse branch: box recall {inside / max(1, organs):.4f} of {organs} organs; the pseudo dice is that of the {what}"
        )


def _moved_sides(box: Box, reach: Sequence[int], rng: np.random.Generator) -> Box:
    """Each side of the box moved by up to `reach` voxels; one voxel of it stays."""
    start = np.add(box.start, rng.integers(np.negative(reach), np.add(reach, 1)))
    stop = np.add(box.stop, rng.integers(np.negative(reach), np.add(reach, 1)))
    start = np.minimum(start, np.subtract(box.stop, 1))
    return Box(tuple(start), tuple(np.maximum(stop, np.maximum(start, box.start) + 1)))


def _grown_at_random(box: Box, reach: Sequence[int], rng: np.random.Generator) -> Box:
    """The box itself in half of the draws, else each side moved outwards by up to `reach` voxels."""
    if rng.random() < 0.5:
        return box
    low, high = rng.integers(0, np.add(reach, 1), (2, 3))
    return Box(tuple(np.subtract(box.start, low)), tuple(np.add(box.stop, high)))
