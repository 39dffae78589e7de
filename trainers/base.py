"""What every OAR trainer shares: how it meets nnU-Net. The papers are in the sub-classes.

Checkpoints store the class name and nnU-Net finds it again by that name: never give one another meaning.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.distributed
from batchgenerators.dataloading.multi_threaded_augmenter import MultiThreadedAugmenter
from batchgenerators.dataloading.single_threaded_augmenter import SingleThreadedAugmenter
from nnunet_oar.trainers.validation import dice_of_counts, rescore_summary
from nnunetv2.paths import nnUNet_preprocessed, nnUNet_raw
from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.dataset_name_id_conversion import convert_dataset_name_to_id
from nnunetv2.utilities.default_n_proc_DA import get_allowed_n_proc_DA
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from torch import Tensor, nn

from nnunet_oar.annotations import Annotations, organ_labels, refuse_changed_dataset_json
from nnunet_oar.data.case_cache import CaseCache
from nnunet_oar.data.sample_loader import SampleLoader
from nnunet_oar.facts import facts_from_preprocessed
from nnunet_oar.files import written_whole
from nnunet_oar.fit import Budget, DatasetFacts, fit_canvas
from nnunet_oar.losses.labels import unannotated_to_background
from nnunet_oar.losses.recalibration import never_raised
from nnunet_oar.plan import SECTION, OARPlan
from nnunet_oar.preprocessed import differences, require_spacing
from nnunet_oar.roi import Box
from nnunet_oar.sides import describe_sides, side_pairs
from nnunet_oar.version import __version__

# nnU-Net's words for the result of the final validation
MEAN_DICE = "Mean Validation Dice: "


class OARTrainer(nnUNetTrainer):
    """nnUNetTrainer whose hyper-parameters come from the section "oar" of the plans and whose network is the whole pipeline.

    A sub-class names its `plan_class` and `loader_class` and implements `fit_plan`, `make_network`, `prepare_data`, which makes
    the `cache` that its loader reads, `configure_optimizers`, `train_step` and `validation_step`; docs/adding-a-trainer.md
    shows one.
    """

    plan_class: type[OARPlan]
    loader_class: type[SampleLoader]
    # whether fit_plan reads CaseFacts.instances
    needs_instances = False
    _holding_back_mean = False
    cache: CaseCache

    def __init__(
        self, plans: dict, configuration: str, fold: int, dataset_json: dict, device: torch.device = torch.device("cuda")  # noqa: B008
    ):  # fmt: skip
        refuse_unsupported(type(self).__name__, plans, configuration, dataset_json)
        # before what names the cases is removed; nnU-Net writes str() of each attribute into debug.json, which shows no patterns
        self.annotations = Annotations.from_dataset_json(dataset_json)
        # Case names may identify patients: nnU-Net writes dataset_json into every checkpoint and into debug.json.
        super().__init__(plans, configuration, fold, without_case_names(dataset_json), device)
        self.enable_deep_supervision = False
        # nnU-Net would mirror the whole volume eight times, and left and right organs must not be mirrored
        self.inference_allowed_mirroring_axes = None
        self.save_every = 1
        self.plan: OARPlan | None = None
        self._restoring = False

    # --- what a sub-class gives ---

    @classmethod
    def fit_plan(cls, facts: DatasetFacts, recipe: str, budget: Budget) -> OARPlan:
        """The section for a data set; the planner and, on stock plans, the trainer call it."""
        raise NotImplementedError

    @classmethod
    def make_network(cls, in_channels: int, plan: OARPlan, canvas: tuple[int, ...]) -> nn.Module:
        raise NotImplementedError

    def make_loader(self, dataset, cases: Sequence[str], *, training: bool, start: int, workers: int, **own):
        """Iterator over batches with `set_thread_id`; batch n must be a function of (seed, fold, n) alone. own: what a sub-class'
        loader needs besides."""
        return self.loader_class(
            dataset,
            cases,
            self.cache,
            self.plan,
            self.annotations,
            fold=self.fold,
            training=training,
            start=start,
            workers=workers,
            **own,
        )

    def prepare_data(self, dataset) -> None:
        """Called once with the dataset of all cases before the loaders are made."""

    def learn_from_cases(self, cases: Sequence[str]) -> None:
        """Called once with the training cases of the fold, after prepare_data: what the network keeps of them in its buffers."""

    def annotated_organs(self, case: str, organs: Mapping[int, Box]) -> dict[int, Box]:
        """Of the organs that a case of that name holds, label -> box, those that it annotates."""
        annotated = self.annotations.labels(case)
        return {label: box for label, box in organs.items() if label in annotated}

    def tell_missing(self, held: Collection[int]) -> None:
        """Say which organs are none of the labels that training cases annotate and hold."""
        missing = [organ for label, organ in enumerate(self.plan.organs, start=1) if label not in held]
        if missing:
            self.print_to_log_file(f"No training case holds {', '.join(missing)}: they will be absent from all results")

    def refuse_outdated_plan(self) -> None:
        """Raise RuntimeError where dataset.json has changed so that `self.plan` no longer fits."""

    def iterations_of_one_pass(self, cases: Sequence[str]) -> int:
        """Batches that it takes to see every case (or slice) once; after prepare_data."""
        return -(-len(cases) // self.plan.batch_size)

    def preprocessed_dataset_json(self) -> dict:
        """dataset.json with the keys that name cases, which `self.dataset_json` lacks."""
        return json.loads((Path(self.preprocessed_dataset_folder_base) / "dataset.json").read_text())

    # --- the section ---

    def initialize(self) -> None:
        if not self.was_initialized:
            refuse_changed_dataset_json(nnUNet_raw, nnUNet_preprocessed, self.plans_manager.dataset_name)
            dataset = infer_dataset_class(self.preprocessed_dataset_folder)(self.preprocessed_dataset_folder)
            self.annotations.check(dataset.identifiers)
            self._refuse_other_preprocessing(dataset)
            section, canvas = self._choose_section(dataset)
            self.plan = self.plan_class.from_section(section)
            if self.plan.organs != tuple(organ_labels(self.dataset_json)):
                raise RuntimeError(
                    f"{self.plans_manager.dataset_name}: the plans were made for the organs {', '.join(self.plan.organs)}, "
                    f"dataset.json now has {', '.join(organ_labels(self.dataset_json))}; run nnunet_oar prepare again"
                )
            self.refuse_outdated_plan()
            self._refuse_other_folds(section, canvas)
            for configuration in (
                self.plans_manager.plans["configurations"][self.configuration_name],
                # get_configuration is cached on a deep copy: what is written into the plans does not reach it
                self.configuration_manager.configuration,
            ):
                configuration[SECTION] = section
                configuration["patch_size"] = list(canvas)
                configuration["batch_size"] = self.plan.batch_size
            self.plans_manager.plans["nnunet_oar_version"] = __version__
            self.num_epochs = self.plan.epochs
            self.print_to_log_file(describe_sides(self.plan.organs))
            # torch seeds itself differently in each process: the first weights must be those of (seed, fold), too
            torch.manual_seed(self.seed_of("weights"))
        super().initialize()

    def seed_of(self, *what: int | str) -> int:
        """A seed for torch from (seed in the plans, fold, what): everything random is a closed form of these."""
        key = json.dumps([self.plan.seed, str(self.fold), *what])
        return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") >> 1

    def _refuse_other_preprocessing(self, dataset) -> None:
        """The cases must be those of the plans, and the plans those that the model, or another fold of it, was begun with."""
        plans, name = self.plans_manager, self.configuration_name
        number, plans_name = convert_dataset_name_to_id(plans.dataset_name), plans.plans_name
        require_spacing(
            dataset,
            self.configuration_manager.spacing,
            plans.transpose_forward,
            f"run nnUNetv2_preprocess -d {number} -plans_name {plans_name} -c {name}",
        )
        begun = self._trained_folds() + ([f"fold_{self.fold}"] if self._restoring else [])
        saved = self._saved_plans() if begun else None
        changed = differences(saved, plans.plans, name) if saved is not None else []
        if changed:
            folder = self.output_folder_base
            raise RuntimeError(
                f"{folder}/plans.json, with which {', '.join(begun)} began, says otherwise how cases are preprocessed than "
                f"{plans_name} does today ({', '.join(changed)}); plan and preprocess as then, or move {folder} away"
            )

    def _choose_section(self, dataset) -> tuple[dict, Sequence[int]]:
        planned = self._planned(self.configuration_manager.configuration)
        saved = self._saved()
        if self._restoring and saved is not None:
            if planned is not None and planned != saved:
                self.print_to_log_file(
                    "The plans have changed since this training began: the section saved beside the checkpoint is used.\n"
                    f"  plans: {planned}\n  saved: {saved}"
                )
            return saved
        if planned is not None:
            return planned
        return self._fitted(dataset)

    def _planned(self, configuration: Mapping) -> tuple[dict, Sequence[int]] | None:
        section = configuration.get(SECTION)
        # stock plans, or planned for another of our trainers
        if section is None or OARPlan.trainer_of(section) != self.plan_class.trainer:
            return None
        return dict(section), list(configuration["patch_size"])

    def _saved(self) -> tuple[dict, Sequence[int]] | None:
        plans = self._saved_plans()
        return None if plans is None else self._planned(plans["configurations"].get(self.configuration_name, {}))

    def _saved_plans(self) -> dict | None:
        """What the folds of this model began with; None before the first one."""
        path = Path(self.output_folder_base) / "plans.json"
        if not path.is_file():
            return None
        for _ in range(10):
            try:
                return json.loads(path.read_text())
            except json.JSONDecodeError:
                time.sleep(0.2)  # nnU-Net rewrites it in place: another fold may just be starting
        raise RuntimeError(f"{path} is no valid JSON; restore it, or move {path.parent} away")

    def _trained_folds(self) -> list[str]:
        """The folders of other folds that hold a checkpoint."""
        return sorted(
            folder.name
            for folder in Path(self.output_folder_base).glob("fold_*")
            if folder.name != f"fold_{self.fold}" and any(folder.glob("checkpoint_*.pth"))
        )

    def _fitted(self, dataset) -> tuple[dict, Sequence[int]]:
        facts = facts_from_preprocessed(
            dataset,
            self.plans_manager,
            self.configuration_manager,
            self.preprocessed_dataset_json(),
            self.needs_instances,
        )
        plan = self.fit_plan(facts, "fitted", Budget())
        section, canvas = plan.to_section(), list(fit_canvas(facts))
        other = self.configuration_manager.configuration.get(SECTION)
        if other is not None:
            name = self.plan_class.trainer
            self.print_to_log_file(
                f"THE PLANS WERE MADE FOR {OARPlan.trainer_of(other)}: their memory target, epochs and iterations are not used, "
                f"{name} trains with its defaults for 8 GB. To choose them: nnunet_oar plan -d {self.plans_manager.dataset_name} "
                f"-tr {name} with the options that prepare had"
            )
        self.print_to_log_file(
            f"The plans hold no section {SECTION!r} for {self.plan_class.trainer}: fitted to the {len(facts.cases)} "
            f"preprocessed cases. canvas {canvas}, {section}"
        )
        if facts.axes is None:
            self.print_to_log_file("The cases' orientations differ or are unknown: left and right are never mirrored.")
        if facts.axes is not None and not facts.axes.sides_agree and side_pairs(facts.labels) != ([], []):
            raise RuntimeError(
                f"{self.plans_manager.dataset_name}: left is at the low end of the array in some cases and at the high end in "
                f"others, so that no network can tell left organs from right ones on these plans; use `nnunet_oar prepare -d "
                f"{self.plans_manager.dataset_name}`, which reorients the cases, and -p nnUNetOARPlans"
            )
        return section, canvas

    def _refuse_other_folds(self, section: dict, canvas: Sequence[int]) -> None:
        """plans.json is one file for all folds and rewritten by each: what other folds were trained with must not change."""
        saved = self._saved()
        if saved is None or saved == (section, list(canvas)):
            return
        trained = self._trained_folds()
        if trained:
            raise RuntimeError(
                f"{self.output_folder_base}/plans.json, with which {', '.join(trained)} was trained, holds another section "
                f"{SECTION!r} or canvas than this fold would get; move that folder away or restore the plans it was trained with"
            )

    @staticmethod
    def build_network_architecture(
        plans_manager: PlansManager,
        configuration_manager: ConfigurationManager,
        num_input_channels: int,
        num_output_channels: int,
        enable_deep_supervision: bool = False,
    ) -> nn.Module:
        """Sub-classes must repeat this static method: nnU-Net calls it without an instance."""
        raise NotImplementedError

    @classmethod
    def network_from_plans(
        cls, configuration_manager: ConfigurationManager, in_channels: int, classes: int
    ) -> nn.Module:
        """The network from the saved plans alone: neither preprocessed data nor a trainer is needed to predict."""
        configuration = configuration_manager.configuration
        if SECTION not in configuration:
            raise ValueError(
                f"the plans hold no section {SECTION!r}: a model folder of {cls.__name__} has one in its plans.json, written when "
                f"training begins"
            )
        plan = cls.plan_class.from_section(configuration[SECTION])
        if len(plan.organs) + 1 != classes:
            raise ValueError(
                f"plans, section {SECTION!r}: organs are {list(plan.organs)}, but dataset.json has {classes - 1}"
            )
        return cls.make_network(in_channels, plan, tuple(configuration["patch_size"]))

    # --- nnU-Net's hooks that mean something else here ---

    def set_deep_supervision_enabled(self, enabled: bool) -> None:
        """Nothing to switch: the papers sum their segmentation layers inside the network."""

    def plot_network_architecture(self) -> None:
        """nnU-Net's plot traces the network with a canvas of noise; there is nothing to see in it here."""

    def _do_i_compile(self) -> bool:
        return False  # the pipeline branches on what it finds

    def get_dataloaders(self):
        dataset_tr, dataset_val = self.get_tr_and_val_datasets()
        if not dataset_tr.identifiers or not dataset_val.identifiers:
            raise RuntimeError(
                f"fold {self.fold} has {len(dataset_tr.identifiers)} training and {len(dataset_val.identifiers)} validation cases; "
                f"both must be at least 1 (splits_final.json in {self.preprocessed_dataset_folder_base})"
            )
        self.prepare_data(self.dataset_class(self.preprocessed_dataset_folder))
        self.learn_from_cases(dataset_tr.identifiers)
        plan = self.plan
        self.num_iterations_per_epoch = plan.iterations_per_epoch or self.iterations_of_one_pass(dataset_tr.identifiers)
        self.num_val_iterations_per_epoch = plan.val_iterations or self.iterations_of_one_pass(dataset_val.identifiers)
        workers = get_allowed_n_proc_DA()
        start = self.current_epoch * self.num_iterations_per_epoch
        train = self._augmenter(dataset_tr, training=True, start=start, workers=workers)
        start = self.current_epoch * self.num_val_iterations_per_epoch
        val = self._augmenter(dataset_val, training=False, start=start, workers=min(1, workers))
        return train, val

    def _augmenter(self, dataset, *, training: bool, start: int, workers: int):
        loader = self.make_loader(dataset, dataset.identifiers, training=training, start=start, workers=max(1, workers))
        if workers == 0:
            return SingleThreadedAugmenter(loader, None)
        return MultiThreadedAugmenter(loader, None, workers, pin_memory=self.device.type == "cuda", wait_time=0.002)

    def partial_loss(self, logits: Tensor, target: Tensor, annotated: Tensor | None, *more) -> Tensor:
        """`self.loss` with re-calibration, or without it where the plans say so; more: its further arguments."""
        target, annotated = self.partial_target(target, annotated)
        return self.loss(self.partial_logits(logits, annotated), target, annotated, *more)

    def partial_logits(self, logits: Tensor, annotated: Tensor | None) -> Tensor:
        """The logits, of which those of organs that are not annotated are never raised by the gradient, where the plans say so."""
        return logits if self.plan.unannotated_may_rise else never_raised(logits, annotated)

    def partial_target(self, target: Tensor, annotated: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """The target and what of it is annotated: everything, where the plans say that what is not annotated is background."""
        if self.plan.recalibration:
            return target, annotated
        return unannotated_to_background(target, annotated), None

    def on_validation_epoch_end(self, val_outputs: list[dict]) -> None:
        """As nnU-Net's, of the outputs of `count_voxels` and "loss", and organs are scored on the samples that annotate them.

        Where that leaves nothing to score, nnU-Net's mean would be NaN and its running mean NaN for ever: it stays as it was.
        """
        dice = dice_of_counts(val_outputs)
        if np.isfinite(dice).any():
            mean = np.nanmean(dice)
        else:
            previous = self.logger.get_value("ema_fg_dice", step=None)
            mean = previous[-1] if previous else 0.0
            self.print_to_log_file("No organ to score in this epoch's validation: the running mean stays as it was")
        self.logger.log("mean_fg_dice", mean, self.current_epoch)
        self.logger.log("dice_per_class_or_region", list(dice), self.current_epoch)
        self.logger.log("val_losses", np.mean([output["loss"] for output in val_outputs]), self.current_epoch)
        if not self.annotations.complete:
            samples = np.sum([output["samples"] for output in val_outputs], axis=0)
            counts = ", ".join(f"{organ} {count}" for organ, count in zip(self.plan.organs, samples, strict=True))
            self.print_to_log_file(f"Samples that the pseudo dice is of: {counts}")

    def perform_actual_validation(self, save_probabilities: bool = False) -> None:
        """As nnU-Net's, with what the network has to say about a case in the training log, after the case's name, and with organs
        scored on the cases that annotate them."""
        handler = _ToTrainingLog(self)
        logging.getLogger("nnunet_oar").addHandler(handler)
        self._holding_back_mean = not self.annotations.complete
        try:
            super().perform_actual_validation(save_probabilities)
        finally:
            self._holding_back_mean = False
            logging.getLogger("nnunet_oar").removeHandler(handler)
        if not self.annotations.complete:
            summary = Path(self.output_folder) / "validation" / "summary.json"
            dice, cases = rescore_summary(summary, self.annotations, self.dataset_json["file_ending"])
            counts = ", ".join(f"{organ} {count}" for organ, count in cases.items())
            mean = dice.pop("foreground")
            for label, value in dice.items():
                self.logger.log_summary(f"final_val/class_{label}_dice", value)
            self.logger.log_summary("final_val/foreground_dice", mean)
            self.print_to_log_file(f"Organs are scored on the cases that annotate them: {counts}")
            self.print_to_log_file(MEAN_DICE, mean)

    def print_to_log_file(self, *args, **kwargs) -> None:
        if self._holding_back_mean and args[:1] == (MEAN_DICE,):
            return  # nnU-Net's mean takes what is not annotated for background
        super().print_to_log_file(*args, **kwargs)

    def save_checkpoint(self, filename: str) -> None:
        """As nnU-Net's, but a process that is killed meanwhile leaves the previous checkpoint whole."""
        if self.disable_checkpointing:
            super().save_checkpoint(filename)  # says that nothing is written
            return
        best = self._best_ema
        if Path(filename).name == "checkpoint_latest.pth":
            # nnU-Net looks only then whether the epoch was the best one: who continues from here must not take a worse one for it
            mean = self.logger.get_value("ema_fg_dice", step=-1)
            self._best_ema = mean if best is None or mean > best else best
        try:
            with written_whole(filename) as temporary:
                super().save_checkpoint(str(temporary))
        finally:
            self._best_ema = best

    def load_checkpoint(self, filename_or_checkpoint: dict | str) -> None:
        self._restoring = True
        super().load_checkpoint(filename_or_checkpoint)


class _ToTrainingLog(logging.Handler):
    def __init__(self, trainer: OARTrainer):
        super().__init__()
        self.trainer = trainer

    def emit(self, record: logging.LogRecord) -> None:
        self.trainer.print_to_log_file(record.getMessage(), also_print_to_console=False)


def refuse_unsupported(trainer: str, plans: Mapping, configuration: str, dataset_json: Mapping) -> None:
    """Raise NotImplementedError, before anything is written, for what no OAR trainer can do."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        raise NotImplementedError(
            f"{trainer} trains on one GPU: leave out -num_gpus and train folds in parallel instead, one per GPU "
            f"(CUDA_VISIBLE_DEVICES=0 nnUNetv2_train ... 0, CUDA_VISIBLE_DEVICES=1 nnUNetv2_train ... 1)"
        )
    manager = PlansManager(dict(plans))
    config = manager.get_configuration(configuration)
    if len(config.patch_size) != 3:
        raise NotImplementedError(f"{trainer} needs a 3D configuration, got {configuration!r}; use 3d_fullres")
    if config.previous_stage_name is not None:
        raise NotImplementedError(
            f"{trainer} is a cascade of its own and cannot continue {config.previous_stage_name!r}; use 3d_fullres instead of "
            f"{configuration!r}"
        )
    labels = manager.get_label_manager(dict(dataset_json))
    if labels.has_regions:
        raise NotImplementedError(f"{trainer} does not train on regions; give each organ one label in dataset.json")
    if labels.has_ignore_label:
        raise NotImplementedError(f"{trainer} does not support an ignore label; remove `ignore` from dataset.json")


# What training and prediction read; nnU-Net's `dataset` and older lists of files name the cases, and so does our `annotations`.
DATASET_KEYS = (
    "name", "description", "reference", "licence", "license", "channel_names", "modality", "labels", "regions_class_order",
    "numTraining", "file_ending", "overwrite_image_reader_writer",
)  # fmt: skip


def without_case_names(dataset_json: Mapping) -> dict:
    return {key: dataset_json[key] for key in DATASET_KEYS if key in dataset_json}
