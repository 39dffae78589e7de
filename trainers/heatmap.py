"""Heat-map cascade of VISCERAL: Navarro et al., A unified 3D framework for organs at risk localization and segmentation for
radiation therapy planning."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from nnunet_oar.trainers.base import OARTrainer
from nnunet_oar.trainers.stages import RateSchedule, StageOptimizers
from torch import Tensor, nn
from tqdm import tqdm

from nnunet_oar.annotations import organ_labels
from nnunet_oar.data.heatmap_loader import HeatmapCache, HeatmapLoader
from nnunet_oar.fit import Budget, DatasetFacts
from nnunet_oar.fit_heatmap import fit_heatmap_cascade
from nnunet_oar.heatmaps import gaussian_heatmaps
from nnunet_oar.losses import DiceCELoss, HeatmapL2Loss
from nnunet_oar.networks.heatmap_cascade import HeatmapCascadeNetwork
from nnunet_oar.pairs import refuse_contradicted_pairs
from nnunet_oar.plan import HeatmapPlan
from nnunet_oar.roi import Box

# Share of the training organs that measured margins are to hold, and per axis, so that all three hold it
HELD = 0.99
HELD_PER_AXIS = 1 - (1 - HELD) / 3


class OARHeatmapCascadeTrainer(OARTrainer):
    """The localiser and a network per organ, trained side by side: each iteration updates the localiser and a few organs.

    Crops come from the truth, moved at random, so no network depends on another: each has its own optimiser.
    """

    plan_class, loader_class = HeatmapPlan, HeatmapLoader

    @classmethod
    def fit_plan(cls, facts: DatasetFacts, recipe: str, budget: Budget) -> HeatmapPlan:
        return fit_heatmap_cascade(facts, recipe, budget)

    @classmethod
    def make_network(cls, in_channels: int, plan: HeatmapPlan, canvas: tuple[int, ...]) -> HeatmapCascadeNetwork:
        return HeatmapCascadeNetwork(in_channels, plan, canvas)

    @staticmethod
    def build_network_architecture(
        plans_manager, configuration_manager, num_input_channels: int, num_output_channels: int,
        enable_deep_supervision: bool = False,
    ) -> nn.Module:  # fmt: skip
        return OARHeatmapCascadeTrainer.network_from_plans(
            configuration_manager, num_input_channels, num_output_channels
        )

    def prepare_data(self, dataset) -> None:
        self.cache = HeatmapCache(dataset, self.plan, list(organ_labels(self.dataset_json).values()))
        self.cache.build(dataset.identifiers)

    def learn_from_cases(self, cases: Sequence[str]) -> None:
        # -pretrained_weights may have brought those of another data set
        self.network.reset_buffers()
        organs = {case: self.annotated_organs(case, self.cache.read(case).organs) for case in cases}
        sizes: dict[int, list] = {}
        for of_case in organs.values():
            for label, box in of_case.items():
                sizes.setdefault(label, []).append(box.shape)
        for label, of_organ in sizes.items():
            mean = np.mean(of_organ, axis=0) * self.plan.spacing_mm
            self.network.organ_size_mm[label - 1] = torch.from_numpy(mean)
        self.tell_missing(sizes)
        refuse_contradicted_pairs(self.plan, organs)

    def make_loader(self, dataset, cases: Sequence[str], **options) -> HeatmapLoader:
        return super().make_loader(dataset, cases, size_mm=self.network.organ_size_mm.cpu().numpy(), **options)

    def configure_optimizers(self) -> tuple[StageOptimizers, RateSchedule]:
        """Adam with a decaying rate for each network (section III, "Optimization"; how it decays is not given)."""
        plan = self.plan
        self.initial_lr, self.weight_decay = plan.localizer_learning_rate, 0.0
        stages = {}
        for name, module in self.network.stages.items():
            rate = plan.localizer_learning_rate if name == "coarse" else plan.organ_learning_rate
            stages[name] = module, torch.optim.Adam(module.parameters(), rate)
        optimizer = StageOptimizers(stages, plan.gradient_clip, self.device)
        return optimizer, RateSchedule(optimizer, plan)

    def _build_loss(self) -> nn.Module:
        return nn.ModuleDict({"coarse": HeatmapL2Loss(self.plan.heat_weight), "fine": DiceCELoss()})

    def train_step(self, batch: dict) -> dict:
        heat = self.network({"coarse": batch["coarse"].to(self.device, non_blocking=True)})["coarse"]
        loss = self._heat_loss(heat, batch)
        self.optimizer.update("coarse", loss)
        total = loss.item()
        for label, image, mask in batch["crops"][0]:
            _, loss = self._organ(label, image, mask)
            self.optimizer.update(label, loss)
            total += loss.item() / len(batch["crops"][0])
        return {"loss": np.float64(total)}

    def _heat_loss(self, heat: Tensor, batch: dict) -> Tensor:
        centres, spacing_mm = batch["centres"][0].to(self.device), self.plan.localizer_step_mm(batch["image_shape"][0])
        target = gaussian_heatmaps(centres, heat.shape[2:], spacing_mm, self.plan.sigma2_mm2)
        return self.loss["coarse"](heat, target[None], batch["annotated"].to(self.device))

    def _organ(self, label: int, image: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of one crop and their loss."""
        logits = self.network({label: image[None].to(self.device, non_blocking=True)})[label]
        return logits, self.loss["fine"](logits, mask[None].to(self.device, non_blocking=True))

    def validation_step(self, batch: dict) -> dict:
        """Pseudo Dice of the organs' networks on the boxes of the truth; errors of the localiser's centres, organs in its boxes."""
        heat = self.network({"coarse": batch["coarse"].to(self.device)})["coarse"]
        loss = self._heat_loss(heat, batch).item()
        counts = {
            key: np.zeros(len(self.plan.organs), dtype=np.int64) for key in ("tp_hard", "fp_hard", "fn_hard", "samples")
        }
        for label, image, mask in batch["crops"][0]:
            logits, of_organ = self._organ(label, image, mask)
            loss += of_organ.item() / len(batch["crops"][0])
            found, there = logits[0].cpu() > 0, mask > 0
            counts["tp_hard"][label - 1] += int((found & there).sum())
            counts["fp_hard"][label - 1] += int((found & ~there).sum())
            counts["fn_hard"][label - 1] += int((there & ~found).sum())
            counts["samples"][label - 1] += 1
        errors, inside = self._localised(heat, batch["image_shape"][0], batch["organs"][0])
        return {"loss": np.float64(loss), **counts, "centre_error_mm": errors, "organs_in_box": inside}

    def _localised(
        self, heat: Tensor, shape: tuple[int, ...], organs: dict[int, Box]
    ) -> tuple[dict[int, float], dict[int, bool]]:
        """Of each organ in the case: distance of its centre from the localiser's in mm (infinite: not found), and whether it lies
        wholly in the box that prediction would crop."""
        centres = self.network.centres(heat, shape)
        errors, inside = {}, {}
        for label, box in organs.items():
            centre = centres[label - 1]
            errors[label], inside[label] = np.inf, False
            if centre is not None:
                errors[label] = self._error_mm(centre, box)
                inside[label] = self.network.organ_box(label - 1, centre, shape).contains(box)
        return errors, inside

    def _error_mm(self, centre: Sequence[float], box: Box) -> float:
        return float(np.linalg.norm(np.subtract(centre, box.centre) * self.plan.spacing_mm))

    def on_validation_epoch_end(self, val_outputs: list[dict]) -> None:
        errors = [error for output in val_outputs for error in output["centre_error_mm"].values()]
        inside = [held for output in val_outputs for held in output["organs_in_box"].values()]
        found = [error for error in errors if np.isfinite(error)]
        super().on_validation_epoch_end(val_outputs)
        self.print_to_log_file(
            f"Localiser: {len(found)} of {len(errors)} organs found, "
            + (f"mean error of their centres {np.mean(found):.1f} mm, " if found else "")
            + f"box recall {sum(inside) / max(1, len(inside)):.4f}; the pseudo dice is that of the organs' networks in boxes of "
            "the truth"
        )

    def on_train_end(self) -> None:
        self.measure_margins()
        super().on_train_end()

    def measure_margins(self) -> None:
        """Errors of the localiser's centres on the training cases, and the margins that would hold 99% of the organs it finds."""
        network, plan = self.network, self.plan
        # not kept: nnU-Net writes what a trainer holds into debug.json, and names may identify patients
        cases = self.get_tr_and_val_datasets()[0].identifiers
        labels = range(1, len(plan.organs) + 1)
        # of each organ: cases that hold it, and of those in which it is found the error and the margin that it needs
        present = dict.fromkeys(labels, 0)
        errors, missing = ({label: [] for label in labels} for _ in range(2))
        network.eval()
        with torch.inference_mode():
            for name in tqdm(cases, "measuring the localiser's margins"):
                case = self.cache.read(name)
                coarse = torch.from_numpy(case.image).float()[None].to(self.device)
                centres = network.localise(coarse, case.shape)
                for label, box in self.annotated_organs(name, case.organs).items():
                    present[label] += 1
                    centre = centres[label - 1]
                    if centre is None:
                        continue
                    errors[label].append(self._error_mm(centre, box))
                    reach = np.maximum(np.subtract(centre, box.start), np.subtract(box.stop, centre)) * plan.spacing_mm
                    missing[label].append(reach - network.organ_size_mm[label - 1].cpu().numpy() / 2)
        lines = []
        for label, organ in enumerate(plan.organs, start=1):
            if not missing[label]:
                if present[label]:
                    lines.append(f"{organ}: found in 0 of {present[label]}; it will be absent from all results")
                continue
            error = float(np.mean(errors[label]))
            needed = np.quantile(missing[label], HELD_PER_AXIS, axis=0, method="higher")
            # on patients that it has not seen the localiser is less sure
            needed = needed + plan.localizer_spacing_mm
            shown = plan.margin_range_mm(organ, network.organ_size_mm[label - 1].tolist())
            network.centre_error_mm[label - 1] = error
            if plan.measured_margin:
                network.margin_mm[label - 1] = torch.from_numpy(np.clip(needed, *shown))
            used = network.margin_mm[label - 1].double().cpu().numpy()
            held = sum((more <= used + 1e-3).all() for more in missing[label]) / present[label]
            limits = " to ".join(str(limit.round(1).tolist()) for limit in shown)
            lines.append(
                f"{organ}: found in {len(errors[label])} of the {present[label]} cases that hold it, its centre {error:.1f} mm off "
                f"on average; needed {needed.round(1).tolist()}, used {used.round(1).tolist()} of {limits}: {held:.1%} of the "
                f"{present[label]} lie wholly in their box"
                + ("" if held >= HELD else f", fewer than {HELD:.0%}: train longer, or check what the cases show of it")
            )
        self.print_to_log_file(
            f"The localiser on the training cases, and margins in mm along the axes of the preprocessed data: planned "
            f"{np.multiply(plan.margin_vox, plan.spacing_mm).round(1).tolist()}, needed to hold {HELD:.0%}, and used, which stays "
            "within what crops of training showed:\n" + "\n".join(lines)
        )
