"""The trainer inside nnU-Net, in this process: how it is found, what it refuses, and that its stages are independent."""

import copy
import inspect
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from nnunet_oar.trainers.base import refuse_unsupported
from nnunet_oar.trainers.cascade import OARCascadeTrainer
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

from nnunet_oar.annotations import Annotations, Source
from nnunet_oar.environment import plugin_folder
from nnunet_oar.plan import SECTION


@pytest.fixture
def inside(prepared, monkeypatch, tmp_path):
    return prepared.entered(monkeypatch, tmp_path)


def documents(workspace) -> tuple[dict, dict]:
    plans = json.loads((workspace.preprocessed / "nnUNetOARPlans.json").read_text()) | {"continue_training": False}
    return plans, json.loads((workspace.preprocessed / "dataset.json").read_text())


def make_trainer(workspace, **section) -> OARCascadeTrainer:
    plans, dataset_json = documents(workspace)
    plans["configurations"]["3d_fullres"][SECTION] |= section
    return OARCascadeTrainer(plans, "3d_fullres", 0, dataset_json, torch.device("cpu"))


def test_nnunet_finds_it_through_the_plugin_folder(monkeypatch, capsys):
    monkeypatch.setenv("nnUNet_extTrainer", str(plugin_folder()))
    assert recursive_find_trainer_class_by_name("OARCascadeTrainer") is OARCascadeTrainer


def test_the_host_still_has_the_names_we_rely_on():
    ours = inspect.signature(OARCascadeTrainer.__init__).parameters
    assert list(ours) == list(inspect.signature(nnUNetTrainer.__init__).parameters)
    assert "plans_manager" in inspect.signature(OARCascadeTrainer.build_network_architecture).parameters
    for name in ("on_train_start", "get_dataloaders", "_do_i_compile", "set_deep_supervision_enabled", "save_checkpoint",
                 "load_checkpoint", "plot_network_architecture", "get_tr_and_val_datasets", "configure_optimizers"):  # fmt: skip
        assert callable(getattr(nnUNetTrainer, name))


def test_both_stages_at_once_equal_one_after_the_other(inside):
    """Four updates side by side against four of the localiser and then four of the segmenter, with dropout, clipping, decay."""

    def trained(order):
        torch.manual_seed(7)
        trainer = make_trainer(inside, dropout=0.3, gradient_clip=0.5)
        trainer.initialize()
        trainer.network.load_state_dict(start)
        train, _ = trainer.get_dataloaders()
        batches = [next(train) for _ in range(4)]
        trainer.on_train_epoch_start()
        order(trainer, batches)
        return trainer.network.state_dict()

    def together(trainer, batches):
        for batch in batches:
            trainer.train_step(batch)

    def in_turn(trainer, batches):
        for stage in ("coarse", "fine"):
            trainer._iteration = 0
            for batch in batches:
                trainer.train_stage(stage, batch)
                trainer._iteration += 1

    first = make_trainer(inside)
    first.initialize()
    start = copy.deepcopy(first.network.state_dict())
    a, b = trained(together), trained(in_turn)
    assert all(torch.equal(a[key], b[key]) for key in a)
    assert not all(torch.equal(a[key], start[key]) for key in a)


def test_a_perfect_localiser_has_recall_one_and_size_one(inside):
    trainer = make_trainer(inside)
    trainer.initialize()
    _, val = trainer.get_dataloaders()
    batch = next(val)
    organs, shape = batch["organs"][0], batch["image_shape"][0]
    union = None
    for organ in organs.values():
        union = organ if union is None else union.union(organ)
    trainer.network.localise = lambda coarse, image_shape: union
    assert trainer.score_boxes(batch["coarse"][:1], shape, list(organs.values())) == (len(organs), 1.0)
    trainer.network.localise = lambda coarse, image_shape: None
    assert trainer.score_boxes(batch["coarse"][:1], shape, list(organs.values())) == (0, None)


def test_an_online_validation_without_any_organ_does_not_fail(inside):
    trainer = make_trainer(inside)
    trainer.initialize()
    _, val = trainer.get_dataloaders()
    batch = next(val)
    batch["organs"], batch["fine_target"] = [{} for _ in batch["organs"]], torch.zeros_like(batch["fine_target"])
    with torch.no_grad():
        trainer.network.segmenter.forward = lambda image: torch.stack([image[:, 0] * 0 + 9, *[image[:, 0] * 0] * 4], 1)
        trainer.on_epoch_start()
        trainer.logger.log("ema_fg_dice", 0.625, 0)
        for _ in range(2):
            output = trainer.validation_step(batch)
            assert output["organs"] == 0 and not output["fp_hard"].any()
            trainer.current_epoch += 1
            trainer.on_epoch_start()
            trainer.logger.log("train_losses", 1.0, trainer.current_epoch)
            trainer.on_validation_epoch_end([output])
            assert trainer.logger.get_value("ema_fg_dice", step=-1) == pytest.approx(0.625)


def test_organs_that_no_sample_annotates_are_not_scored(inside):
    trainer = make_trainer(inside)
    trainer.initialize()
    counts = np.array([10, 10, 10, 0])
    output = {"loss": np.float32(1), "organs_in_box": 0, "organs": 0, "box_excess": [], "tp_hard": counts,
              "fp_hard": counts * 0, "fn_hard": np.array([0, 20, 0, 0]), "samples": np.array([1, 2, 1, 0])}  # fmt: skip
    trainer.annotations = Annotations(trainer.annotations.organs, (Source("a", ("*",), frozenset({"heart"})),))
    trainer.on_validation_epoch_end([output])
    assert trainer.logger.get_value("mean_fg_dice", step=-1) == pytest.approx((1 + 0.5 + 1) / 3)
    log = next(Path(trainer.output_folder).glob("training_log_*.txt")).read_text()
    assert "Samples that the pseudo dice is of: esophagus 1, heart 2, trachea 1, aorta 0" in log


def test_recalibration_can_be_switched_off(inside):
    """Then an organ that is not annotated is background, as for stock nnU-Net."""
    literal, fitted = make_trainer(inside, unannotated_may_rise=True), make_trainer(inside)
    plain = make_trainer(inside, recalibration=False)
    target = torch.randint(0, 5, (2, 1, 4, 4, 4))
    annotated = torch.tensor([[True] * 4, [False, True, True, False]])
    found = []
    for each in (literal, fitted, plain):
        each.initialize()
        logits = torch.zeros(2, 5, 4, 4, 4, requires_grad=True)
        each.partial_loss(logits, target, annotated).backward()
        found.append(logits.grad)
    # as equation (4) has it, background and unannotated organs are one: nothing tells them apart
    ratio = found[0][1, 0] / found[0][1, 1]
    torch.testing.assert_close(ratio, torch.ones_like(ratio), atol=1e-4, rtol=1e-4)
    # in the fitted recipe what would raise the unannotated ones is cut off
    missing = found[1][1, [1, 4]]
    torch.testing.assert_close(missing, found[0][1, [1, 4]].clamp_min(0))
    assert (found[0][1, [1, 4]] < 0).any() and torch.equal(found[1][1, [0, 2, 3]], found[0][1, [0, 2, 3]])
    assert (found[2][1, 1] > 0).all() and not torch.allclose(found[2][1, 0], found[2][1, 1])


def test_a_case_without_a_source_is_named_before_training(inside):
    plans, dataset_json = documents(inside)
    dataset_json["annotations"] = {"a": {"cases": ["phantom_thorax_00[0-3]"], "labels": ["heart"]}}
    trainer = OARCascadeTrainer(plans, "3d_fullres", 0, dataset_json, torch.device("cpu"))
    with pytest.raises(ValueError, match="case phantom_thorax_004 belongs to no source"):
        trainer.initialize()
    dataset_json["annotations"] = {"a": {"cases": ["*"], "labels": ["lung"]}}
    with pytest.raises(ValueError, match="source 'a' annotates 'lung'"):
        OARCascadeTrainer(plans, "3d_fullres", 0, dataset_json, torch.device("cpu"))


def test_the_first_weights_are_those_of_seed_and_fold(inside):
    first, again, other = make_trainer(inside), make_trainer(inside), make_trainer(inside, seed=1)
    for trainer in (first, again, other):
        trainer.initialize()
    weights = [trainer.network.segmenter.context[0].entry.weight for trainer in (first, again, other)]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])


def test_the_section_reaches_the_live_configuration_and_the_saved_plans(inside):
    """get_configuration is cached on a deep copy, so writing into the plans alone would not do."""
    trainer = make_trainer(inside)
    trainer.initialize()
    live = trainer.configuration_manager.configuration
    saved = trainer.plans_manager.plans["configurations"]["3d_fullres"]
    assert live[SECTION] == saved[SECTION] and live["patch_size"] == saved["patch_size"]
    assert trainer.network.canvas == tuple(live["patch_size"])
    assert trainer.inference_allowed_mirroring_axes is None and trainer.num_epochs == 1


def test_one_pass_over_the_cases_is_the_default_epoch(inside):
    trainer = make_trainer(inside, iterations_per_epoch=None, batch_size=3)
    trainer.initialize()
    trainer.get_dataloaders()
    assert trainer.num_iterations_per_epoch == 2  # four training cases of five


def test_another_organ_list_than_the_plans_is_refused(inside):
    plans, dataset_json = documents(inside)
    dataset_json["labels"] = {"background": 0, "heart": 1}
    trainer = OARCascadeTrainer(plans, "3d_fullres", 0, dataset_json, torch.device("cpu"))
    with pytest.raises(RuntimeError, match="made for the organs esophagus.*dataset.json now has heart"):
        trainer.initialize()


def test_a_section_edited_into_nonsense_is_one_sentence(inside):
    with pytest.raises(ValueError, match="section 'oar': coarse_shape is \\[0\\]"):
        make_trainer(inside, coarse_shape=[0]).initialize()


def test_a_fold_without_cases_is_one_sentence(inside, monkeypatch):
    trainer = make_trainer(inside)
    trainer.initialize()
    monkeypatch.setattr(trainer, "do_split", lambda: ([], ["phantom_thorax_000"]))
    with pytest.raises(RuntimeError, match="fold 0 has 0 training and 1 validation cases"):
        trainer.get_dataloaders()


def test_a_model_folder_whose_plans_lost_the_section(inside):
    plans, dataset_json = documents(inside)
    trainer = OARCascadeTrainer(plans, "3d_fullres", 0, dataset_json, torch.device("cpu"))
    configuration = copy.deepcopy(trainer.configuration_manager)
    del configuration.configuration[SECTION]
    with pytest.raises(ValueError, match="hold no section 'oar'"):
        OARCascadeTrainer.build_network_architecture(trainer.plans_manager, configuration, 1, 5, False)


CONFIGURATIONS = {
    "3d_fullres": {"patch_size": [8, 8, 8], "architecture": {}},
    "2d": {"patch_size": [8, 8], "architecture": {}},
    "3d_cascade_fullres": {"inherits_from": "3d_fullres", "previous_stage": "3d_lowres"},
}
ORGANS = {"background": 0, "heart": 1, "aorta": 2}


@pytest.mark.parametrize(
    ("configuration", "dataset_json", "sentence"),
    [
        ("2d", {"labels": ORGANS}, "needs a 3D configuration, got '2d'; use 3d_fullres"),
        ("3d_cascade_fullres", {"labels": ORGANS}, "cascade of its own and cannot continue '3d_lowres'"),
        (
            "3d_fullres",
            {"labels": {"background": 0, "all": [1, 2], "aorta": 2}, "regions_class_order": [1, 2]},
            "regions",
        ),
        ("3d_fullres", {"labels": ORGANS | {"ignore": 3}}, "ignore label"),
    ],
)
def test_what_is_not_supported_is_refused_in_one_sentence(configuration, dataset_json, sentence, tmp_path, monkeypatch):
    plans = {"configurations": CONFIGURATIONS, "label_manager": "LabelManager", "continue_training": False,
             "dataset_name": "Dataset001_X", "plans_name": "nnUNetPlans"}  # fmt: skip
    monkeypatch.setenv("nnUNet_results", str(tmp_path))
    with pytest.raises(NotImplementedError, match=sentence) as error:
        OARCascadeTrainer(plans, configuration, 0, dataset_json, torch.device("cpu"))
    assert "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())


def test_several_gpus_are_refused_with_the_alternative(monkeypatch):
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    plans = {"configurations": CONFIGURATIONS, "label_manager": "LabelManager"}
    with pytest.raises(NotImplementedError, match="leave out -num_gpus and train folds in parallel"):
        refuse_unsupported("OARCascadeTrainer", plans, "3d_fullres", {"labels": ORGANS})


def test_a_checkpoint_is_renamed_into_place(inside, tmp_path, monkeypatch):
    trainer = make_trainer(inside)
    trainer.initialize()
    target = tmp_path / "checkpoint_best.pth"
    trainer.save_checkpoint(str(target))
    good = target.read_bytes()

    def fails(checkpoint, file):
        with open(file, "wb") as stream:
            stream.write(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(torch, "save", fails)
    with pytest.raises(OSError):
        trainer.save_checkpoint(str(target))
    assert target.read_bytes() == good


def test_the_latest_checkpoint_knows_the_best_epoch(inside, tmp_path):
    """nnU-Net saves it before it compares: who continued from it took the next epoch for the best one, however bad."""
    trainer = make_trainer(inside)
    trainer.initialize()
    for epoch, (mean, best, saved) in enumerate(((0.5, None, 0.5), (0.9, 0.5, 0.54), (0.1, 0.54, 0.54))):
        trainer.logger.log("mean_fg_dice", mean, epoch)
        trainer._best_ema = best
        trainer.save_checkpoint(str(tmp_path / "checkpoint_latest.pth"))
        found = torch.load(tmp_path / "checkpoint_latest.pth", weights_only=False)["_best_ema"]
        assert found == pytest.approx(saved) and trainer._best_ema == best


def test_cases_that_other_plans_preprocessed_are_refused(inside):
    plans, dataset_json = documents(inside)
    spacing = plans["configurations"]["3d_fullres"]["spacing"]
    plans["configurations"]["3d_fullres"]["spacing"] = [value / 2 for value in spacing]
    trainer = OARCascadeTrainer(plans, "3d_fullres", 0, dataset_json, torch.device("cpu"))
    with pytest.raises(
        RuntimeError, match=r"was preprocessed by other plans.*run nnUNetv2_preprocess -d \d+ -plans_name"
    ):
        trainer.initialize()


@pytest.mark.parametrize("restoring", [True, False])
def test_a_model_keeps_the_preprocessing_that_it_began_with(inside, restoring):
    """A fold that is continued, or another one of it, after the data set was planned anew at another spacing."""
    plans, _ = documents(inside)
    plans["configurations"]["3d_fullres"]["spacing"] = [9.0, 9.0, 9.0]
    trainer = make_trainer(inside)
    other = Path(trainer.output_folder_base) / "fold_1"
    other.mkdir(parents=True)
    (other.parent / "plans.json").write_text(json.dumps(plans))
    trainer._restoring = restoring
    if not restoring:
        (other / "checkpoint_final.pth").touch()
    began = "fold_0" if restoring else "fold_1"
    with pytest.raises(RuntimeError, match=rf"plans.json, with which {began} began, says otherwise .*\(spacing\)"):
        trainer.initialize()
    assert json.loads((other.parent / "plans.json").read_text()) == plans
