"""OARAttentionTrainer in this process: phases, resuming between them, body regions."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from nnunet_oar.trainers.attention import OARAttentionTrainer

from nnunet_oar.annotations import Annotations
from nnunet_oar.body_regions import NO_REGION
from nnunet_oar.plan import SECTION, AttentionPlan, Phase

PHASES = [
    {"start": 0, "learning_rate": 1e-3, "dice": 0.0, "focal": 0.0, "region": 1.0},
    {"start": 1, "learning_rate": 2e-3},
    {"start": 2, "learning_rate": 1e-3, "focal": 0.0},
    {"start": 3, "learning_rate": 1e-4, "focal": 0.0, "region": 0.0, "elastic": True},
]


@pytest.fixture
def inside(attention, monkeypatch, tmp_path):
    return attention.entered(monkeypatch, tmp_path)


def make_trainer(workspace, **section) -> OARAttentionTrainer:
    plans = json.loads((workspace.preprocessed / "nnUNetOARPlans.json").read_text()) | {"continue_training": False}
    plans["configurations"]["3d_fullres"][SECTION] |= {
        "batch_size": 2,
        "epochs": 4,
        "iterations_per_epoch": 2,
        "phases": PHASES,
    } | section
    dataset_json = json.loads((workspace.preprocessed / "dataset.json").read_text())
    return OARAttentionTrainer(plans, "3d_fullres", 0, dataset_json, torch.device("cpu"))


def train(trainer, epochs: range):
    """What nnU-Net's run_training does for the weights."""
    if not trainer.was_initialized:
        trainer.initialize()
    trainer.current_epoch = epochs.start
    batches, _ = trainer.get_dataloaders()
    for epoch in epochs:
        trainer.current_epoch = epoch
        trainer.network.train()
        trainer.on_train_epoch_start()
        for _ in range(trainer.num_iterations_per_epoch):
            trainer.train_step(next(batches))
    trainer.current_epoch = epochs.stop
    return {name: value.clone() for name, value in trainer.network.state_dict().items()}


def test_a_training_that_is_resumed_between_phases_equals_one_that_was_not(inside, tmp_path):
    whole = train(make_trainer(inside), range(4))
    first = make_trainer(inside)
    train(first, range(2))
    first.logger.log("ema_fg_dice", 0.5, 0)
    first.save_checkpoint(str(tmp_path / "checkpoint.pth"))
    second = make_trainer(inside)
    second.load_checkpoint(str(tmp_path / "checkpoint.pth"))
    resumed = train(second, range(2, 4))
    assert all(torch.allclose(whole[name], resumed[name], atol=1e-6) for name in whole)


def test_the_first_phase_trains_the_region_branch_and_not_the_decoder(inside):
    trainer = make_trainer(inside)
    trainer.initialize()
    before = {name: value.clone() for name, value in trainer.network.state_dict().items()}
    after = train(trainer, range(1))
    changed = {
        name.split(".")[1]
        for name in before
        if not torch.equal(before[name], after[name]) and ".encoder.encoder" not in name
    }
    assert "encoder" in changed and "branch" in changed
    decoder = [
        name
        for name in before
        if name.startswith("network.decoder.") and not name.startswith("network.decoder.encoder.")
    ]
    assert decoder and all(torch.equal(before[name], after[name]) for name in decoder)
    attention = "network.branch.seg_layers.attention.weight"
    assert torch.equal(before[attention], after[attention])


def test_the_rate_is_the_phases(inside):
    trainer = make_trainer(inside)
    trainer.initialize()
    rates = []
    for epoch in range(4):
        trainer.lr_scheduler.step(epoch)
        rates.append(trainer.optimizer.param_groups[0]["lr"])
    assert rates == [1e-3, 2e-3, 1e-3, 1e-4]


def test_an_epoch_without_a_number_has_as_many_samples_as_there_are_slices(inside):
    trainer = make_trainer(inside, iterations_per_epoch=None, val_iterations=None, batch_size=16)
    trainer.initialize()
    trainer.get_dataloaders()
    training, _ = trainer.do_split()
    slices = sum(trainer.cache.read(name).slices for name in training)
    assert trainer.num_iterations_per_epoch == -(-slices // 16)


def test_slices_carry_the_region_that_dataset_json_gives(inside):
    trainer = make_trainer(inside)
    trainer.initialize()
    dataset, _ = trainer.get_tr_and_val_datasets()
    trainer.prepare_data(dataset)
    found_regions = trainer.body_regions(dataset, dataset.identifiers)
    raw = json.loads((inside.raw / "dataset.json").read_text())["body_regions"]
    for name, found in found_regions.items():
        ranges = raw["cases"][name]
        expected = np.concatenate([[raw["names"].index(region)] * (end - first) for first, end, region in ranges])
        # resampling may change the number of slices, not their order
        assert list(dict.fromkeys(found.tolist())) == list(dict.fromkeys(expected.tolist()))
        assert len(found) == trainer.cache.read(name).slices and (found != NO_REGION).all()


def test_without_regions_gamma_is_nothing_and_the_log_says_so(inside):
    trainer = make_trainer(inside, regions=[], phases=[PHASES[1] | {"start": 0, "region": 0.0}])
    train(trainer, range(1))
    log = next(Path(trainer.output_folder).glob("training_log_*.txt")).read_text()
    assert "The plans use no body regions" in log and "gamma = 0" in log
    _, val = trainer.get_dataloaders()
    batch = next(val)
    assert (batch["region"] == NO_REGION).all()
    with torch.no_grad():
        output = trainer.validation_step(batch)
    assert output["regions"] == 0 and np.isfinite(output["loss"])


def test_recalibration_can_be_switched_off(inside):
    gradients = []
    for recalibration in (True, False):
        trainer = make_trainer(inside, recalibration=recalibration, phases=[{"start": 0, "learning_rate": 1e-3}])
        trainer.initialize()
        train_batches, _ = trainer.get_dataloaders()
        batch = next(train_batches)
        assert not batch["annotated"].all()
        loss, logits, _ = trainer._loss_of(batch)
        (gradient,) = torch.autograd.grad(loss, logits)
        gradients.append(gradient)
    sample, organ = (int(index) for index in (~batch["annotated"]).nonzero()[0])
    # background and an unannotated organ are pushed alike, in proportion to their probabilities
    probability = logits.softmax(1)[sample]
    ratio = gradients[0][sample, organ + 1] * probability[0] - gradients[0][sample, 0] * probability[organ + 1]
    assert ratio.abs().max() < 1e-6 * max(1.0, float(gradients[0].abs().max()) * 10)
    assert not torch.allclose(gradients[0][sample, organ + 1], gradients[1][sample, organ + 1])


def test_phases_are_read_from_the_plans(inside):
    trainer = make_trainer(inside)
    trainer.initialize()
    assert trainer.plan.phase(3) == Phase(3, 1e-4, 1.0, 0.0, 0.0, elastic=True)


@pytest.mark.parametrize(
    ("section", "sentence"),
    [
        (
            {"regions": ["head", "chest"]},
            "know the body regions head, chest, but dataset.json has head, upper chest, chest",
        ),
        ({"regions": ["a", "b"], "region_organs": [[1], [2]]}, "the sources in dataset.json annotate different organs"),
    ],
)
def test_plans_that_dataset_json_has_outgrown_are_refused(inside, section, sentence):
    with pytest.raises(RuntimeError, match=f"{sentence}.*nnunet_oar plan -d Dataset056_PhantomThreeSources .* again"):
        make_trainer(inside, **section).initialize()


def test_plans_with_regions_and_a_dataset_json_without(inside, monkeypatch):
    monkeypatch.setattr(OARAttentionTrainer, "preprocessed_dataset_json", lambda self: {})
    with pytest.raises(RuntimeError, match="dataset.json has no key body_regions"):
        make_trainer(inside).initialize()


def test_derived_regions_where_all_cases_annotate_everything(inside):
    """Each slice has the region whose organs differ least from its own."""
    trainer = make_trainer(inside, regions=["a", "b"], region_organs=[[1, 2, 3], [13, 14]])
    trainer.annotations = Annotations(trainer.annotations.organs)
    train(trainer, range(1))
    dataset, _ = trainer.get_tr_and_val_datasets()
    regions = trainer.body_regions(dataset, dataset.identifiers)
    by_source = {name.split("_")[0]: set(found.tolist()) for name, found in regions.items()}
    assert 0 in by_source["headneck"] and by_source["abdomen"] >= {1} and all(v <= {0, 1} for v in by_source.values())


def test_slices_along_another_axis_train_and_predict(inside):
    """As on stock plans, which transpose: the network must not care which array axis the slices lie across."""
    trainer = make_trainer(inside, slice_axis=1, slice_shape=[64, 64], stages=3, regions=[], flip_axes=[2])
    train(trainer, range(2))
    trainer.network.eval()
    with torch.no_grad():
        assert trainer.network(torch.randn(1, 1, 7, 9, 8)).shape == (1, 18, 7, 9, 8)


def test_stock_plans_get_their_section_from_the_data(inside, monkeypatch):
    """Without a section in the plans: phases, slices and regions are what the planner would have written."""
    monkeypatch.setattr(OARAttentionTrainer, "_planned", lambda self, configuration: None)
    trainer = make_trainer(inside)
    trainer.initialize()
    plans = json.loads((inside.preprocessed / "nnUNetOARPlans.json").read_text())
    planned = AttentionPlan.from_section(plans["configurations"]["3d_fullres"][SECTION])
    assert trainer.plan.regions == planned.regions and trainer.plan.slice_axis == planned.slice_axis == 0
    assert trainer.plan.slice_shape == planned.slice_shape and trainer.plan.epochs == 100
