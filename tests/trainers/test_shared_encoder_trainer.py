"""OARSharedEncoderTrainer in this process: where its decoders look, what partial annotation leaves out, phases."""

import json

import numpy as np
import pytest
import torch
from nnunet_oar.trainers.shared_encoder import OARSharedEncoderTrainer, _moved_sides

from nnunet_oar.plan import SECTION
from nnunet_oar.roi import Box

SHAPE = (16, 32, 32)
LIVER, SPLEEN = Box((2, 4, 6), (10, 20, 22)), Box((8, 22, 24), (14, 30, 30))


@pytest.fixture
def trainer(shared, monkeypatch, tmp_path) -> OARSharedEncoderTrainer:
    """All organs are drawn and their boxes stay where they are."""
    return make(shared.entered(monkeypatch, tmp_path), organs_per_iteration=None, jitter_vox=[0, 0, 0], grow_attempts=0)


def make(workspace, **section) -> OARSharedEncoderTrainer:
    plans = json.loads((workspace.preprocessed / "nnUNetOARPlans.json").read_text()) | {"continue_training": False}
    phases = [{"start": 0, "fine": False}, {"start": 1}, {"start": 2, "boxes": "coarse"}]
    plans["configurations"]["3d_fullres"][SECTION] |= {
        "epochs": 3,
        "phases": phases,
        "iterations_per_epoch": 2,
    } | section
    dataset_json = json.loads((workspace.preprocessed / "dataset.json").read_text())
    made = OARSharedEncoderTrainer(plans, "3d_fullres", 0, dataset_json, torch.device("cpu"))
    made.initialize()
    made.num_iterations_per_epoch = 2
    return made


def parts(annotated=(True,) * 5) -> dict:
    torch.manual_seed(0)
    target = torch.zeros(1, 1, *SHAPE, dtype=torch.int16)
    target[(0, 0, *LIVER.slices)], target[(0, 0, *SPLEEN.slices)] = 1, 2
    return {
        "image": torch.randn(1, 1, *SHAPE),
        "target": target,
        "annotated": torch.tensor([annotated]),
    }


def batch(trainer, annotated=(True,) * 5) -> dict:
    values, step = parts(annotated), trainer.plan.coarse_stride
    values["coarse_target"] = values["target"][..., :: step[0], :: step[1], :: step[2]]
    return values


def boxes(trainer, source, annotated=(True,) * 5, rng=None, found=()):
    values = batch(trainer, annotated)
    probability = torch.zeros(1, 6, *values["coarse_target"].shape[2:])
    for label, box in found:
        scaled = box.rescaled(SHAPE, probability.shape[2:])
        probability[(0, label, *scaled.slices)] = 1
    seen = trainer.network.find_organs(probability, SHAPE) if source == "coarse" else {}
    truth = trainer._true_boxes(values["target"], values["annotated"])
    return trainer._drawn_boxes(truth, seen, values["annotated"], SHAPE, rng or np.random.default_rng(0))


def test_the_decoders_look_at_the_truth_or_where_the_coarse_branch_finds_the_organ(trainer):
    network = trainer.network
    truth = boxes(trainer, "truth")
    assert truth == {1: network.fine_box(LIVER, SHAPE), 2: network.fine_box(SPLEEN, SHAPE)}
    elsewhere = Box((0, 0, 0), (4, 8, 8))
    found = boxes(trainer, "coarse", found=[(1, elsewhere), (3, SPLEEN)])
    # found elsewhere, found where it is not, and not found: the truth
    assert found[1] == network.fine_box(elsewhere, SHAPE) and found[2] == network.fine_box(SPLEEN, SHAPE)
    assert set(found) == {1, 2, 3}


def test_of_an_organ_that_is_found_everywhere_a_part_is_looked_at(shared, monkeypatch, tmp_path):
    """Memory is planned for boxes about organs, and a coarse branch may be lost at first."""
    workspace, everywhere = shared.entered(monkeypatch, tmp_path), Box.full(SHAPE)
    still = {"organs_per_iteration": None, "grow_attempts": 0}
    trainer = make(workspace, organ_extent_vox={"liver": [[2, 4, 4], [4, 8, 8]]}, jitter_vox=[0, 1, 2], **still)
    plan = trainer.plan
    most = np.ceil(np.multiply((4, 8, 8), plan.spacing_mm) / plan.grid_spacing_mm) + (0, 2, 4)
    assert (most < SHAPE).all()
    parts = {trainer._affordable(1, everywhere, np.random.default_rng(seed)) for seed in range(20)}
    assert all(part.shape == tuple(most) and everywhere.contains(part) for part in parts) and len(parts) > 5
    # whole in each direction in which it is small enough
    assert trainer._affordable(1, Box((2, 4, 6), (4, 20, 22)), np.random.default_rng(0)).shape[0] == 2
    box = boxes(trainer, "coarse", found=[(1, everywhere)])[1]
    assert box.volume <= np.prod(most + 2 * np.array(plan.margin_vox) + 2 * (np.array(plan.total_stride) - 1))
    # nothing is known of the organ's size
    assert trainer._affordable(2, everywhere, np.random.default_rng(0)) == everywhere


def test_a_training_step_looks_where_the_plans_of_its_epoch_say(trainer):
    """The coarse branch, given by hand, finds the liver elsewhere: only the last phase goes there."""
    network, values = trainer.network, batch(trainer)
    elsewhere, looked = Box((0, 0, 0), (4, 8, 8)), []
    decode, forward = network.decode, network.forward_batch
    network.decode = lambda features, label, box: looked.append((label, box)) or decode(features, label, box)

    def finding(of_batch):
        out = forward(of_batch)
        given = torch.zeros_like(out["coarse"])
        given[(0, 1, *elsewhere.rescaled(SHAPE, given.shape[2:]).slices)] = 1
        return out | {"coarse": out["coarse"] * 0.01 + given * 0.9}

    network.forward_batch = finding
    seen = {}
    for epoch in range(3):
        trainer.current_epoch = epoch
        trainer.on_train_epoch_start()
        looked.clear()
        trainer.train_step(values)
        seen[epoch] = dict(looked)
    truth = {1: network.fine_box(LIVER, SHAPE), 2: network.fine_box(SPLEEN, SHAPE)}
    assert seen == {0: {}, 1: truth, 2: truth | {1: network.fine_box(elsewhere, SHAPE)}}


def test_what_is_not_annotated_is_never_looked_at(trainer):
    annotated = (False, True, False, True, True)
    assert set(boxes(trainer, "truth", annotated)) == {2}
    assert set(boxes(trainer, "coarse", annotated, found=[(1, LIVER), (3, LIVER), (4, SPLEEN)])) == {2, 4}
    assert boxes(trainer, "truth", (False,) * 5, np.random.default_rng(0)) == {}


def test_boxes_in_training_are_moved_and_as_many_as_the_plans_say(shared, monkeypatch, tmp_path):
    trainer = make(shared.entered(monkeypatch, tmp_path), organs_per_iteration=1, jitter_vox=[2, 4, 4], grow_attempts=0)
    drawn = [boxes(trainer, "truth", rng=np.random.default_rng(seed)) for seed in range(20)]
    assert all(len(of_draw) == 1 for of_draw in drawn) and {label for of_draw in drawn for label in of_draw} == {1, 2}
    assert len({str(of_draw) for of_draw in drawn}) > 4
    for of_draw in drawn:
        for box in of_draw.values():
            assert Box.full(SHAPE).contains(box) and trainer.network.snapped(box, SHAPE) == box


def test_moved_sides_always_leave_some_of_the_box():
    rng, box = np.random.default_rng(0), Box((5, 9, 9), (6, 11, 12))
    for _ in range(200):
        moved = _moved_sides(box, (1, 4, 4), rng)
        assert all(a < d and c < b for a, b, c, d in zip(moved.start, moved.stop, box.start, box.stop, strict=True))
        assert np.abs(np.subtract(moved.start, box.start)).max() <= 4


def test_where_prediction_grows_boxes_half_of_those_in_training_are_larger(shared, monkeypatch, tmp_path):
    trainer = make(
        shared.entered(monkeypatch, tmp_path), organs_per_iteration=None, jitter_vox=[0, 0, 0], grow_attempts=2
    )
    step = trainer.plan.total_stride
    tight = {1: trainer.network.fine_box(LIVER, SHAPE), 2: trainer.network.fine_box(SPLEEN, SHAPE)}
    larger, sizes = 0, set()
    for seed in range(60):
        for source in ("truth", "coarse"):
            drawn = boxes(trainer, source, rng=np.random.default_rng(seed), found=[(1, LIVER)])
            for label, box in tight.items():
                wanted = trainer.network.snapped(box.grow(step).within(SHAPE), SHAPE)
                assert drawn[label].contains(box) and wanted.contains(drawn[label])
            larger += drawn[2] != tight[2]
            sizes.add(drawn[2])
    # a box that snaps to the same deepest voxels, or lies at the border, is not larger
    assert 12 < larger < 84 and len(sizes) > 3


def test_organs_that_a_sample_leaves_out_and_its_background_have_no_gradient(trainer):
    values = batch(trainer, (True, False, True, True, True))
    out, loss, target, annotated = trainer._coarse(values)
    out["coarse"].retain_grad()
    loss.backward()
    gradient = out["coarse"].grad[0].abs().flatten(1).sum(1)
    assert gradient[0] == 0 and gradient[2] == 0 and (gradient[[1, 3, 4, 5]] > 0).all()
    # with everything annotated the background is learnt, too
    out, loss, _, _ = trainer._coarse(batch(trainer))
    out["coarse"].retain_grad()
    loss.backward()
    assert (out["coarse"].grad[0].abs().flatten(1).sum(1) > 0).all()


def test_without_recalibration_what_is_left_out_is_background(shared, monkeypatch, tmp_path):
    trainer = make(shared.entered(monkeypatch, tmp_path), recalibration=False)
    out, loss, target, annotated = trainer._coarse(batch(trainer, (True, False, True, True, True)))
    assert not (target == 2).any() and (target == 1).any() and annotated.all()


@pytest.mark.parametrize("each_map", [False, True])
def test_a_map_that_has_died_learns_again_where_each_has_a_loss(shared, monkeypatch, tmp_path, each_map):
    """The mean of a dead sigmoid and two others has no gradient for it, and two of three may never pass the threshold."""
    trainer = make(shared.entered(monkeypatch, tmp_path), each_map=each_map)
    dead = trainer.network.coarse_head.seg_layers[1]
    with torch.no_grad():
        dead.bias[1:] = -60.0
    _, loss, _, _ = trainer._coarse(batch(trainer))
    loss.backward()
    # of the two organs that the sample holds
    gradient = dead.bias.grad[1:3].abs()
    assert (gradient > 1e-5).all() if each_map else (gradient < 1e-8).all()


def test_the_phases_decide_what_is_trained(trainer, capsys):
    def changed(epoch):
        trainer.current_epoch = epoch
        before = {name: value.clone() for name, value in trainer.network.state_dict().items()}
        trainer.on_train_epoch_start()
        trainer.train_step(batch(trainer))
        return {
            name.split(".")[0] for name, value in trainer.network.state_dict().items()
            if not torch.equal(value, before[name])
        }  # fmt: skip

    assert changed(0) == {"encoder", "coarse_head"} and not trainer.network.decoders_trained
    trainer._best_ema = 0.9
    assert changed(1) == {"encoder", "coarse_head", "decoders", "decoders_trained"}
    # what scored best before the decoders were trained is no longer the best checkpoint
    assert trainer._best_ema is None
    # nor does what the running mean was made of
    trainer.logger.log("mean_fg_dice", 0.9, 0)
    counts = {"tp_hard": np.ones(5), "fp_hard": np.ones(5), "fn_hard": np.ones(5), "samples": np.ones(5)}
    trainer.on_validation_epoch_end([{"loss": 1.0, **counts, "organs_in_box": 1, "organs": 2}])
    assert trainer.logger.get_value("ema_fg_dice", step=None) == [0.9, 0.5]
    assert "logging issue" not in capsys.readouterr().out
    # boxes of the truth are easier than those that the coarse branch finds
    trainer._best_ema = 0.5
    assert changed(2) == {"encoder", "coarse_head", "decoders"} and trainer._best_ema is None


def test_validation_scores_the_coarse_branch_first_and_the_decoders_later(trainer):
    values = batch(trainer)
    with torch.no_grad():
        early = trainer.validation_step(dict(values))
        trainer.network.decoders_trained.fill_(True)
        late = trainer.validation_step(dict(values))
    for output in (early, late):
        assert output["organs"] == 2 and 0 <= output["organs_in_box"] <= 2 and output["samples"].tolist() == [1] * 5
        assert (output["tp_hard"] + output["fn_hard"])[:2].tolist() == [LIVER.volume, SPLEEN.volume]
    assert late["loss"] > early["loss"]


@torch.no_grad()
def test_in_boxes_of_the_coarse_branch_an_organ_that_it_does_not_find_is_missed(trainer):
    values, network = batch(trainer), trainer.network
    network.decoders_trained.fill_(True)
    network.decode = lambda features, label, box: torch.full((1, 1, *box.shape), 4.0)
    network.find_organs = lambda coarse, shape: {1: LIVER, 3: SPLEEN}
    trainer.current_epoch = 1
    truth = trainer.validation_step(dict(values))
    trainer.current_epoch = 2
    found = trainer.validation_step(dict(values))
    assert truth["fn_hard"][:2].tolist() == [0, 0] and truth["fp_hard"][2] == 0
    assert found["fn_hard"][:2].tolist() == [0, SPLEEN.volume] and found["fp_hard"][2] > 0
    values["annotated"] = torch.tensor([(True, True, False, True, True)])
    assert trainer.validation_step(dict(values))["fp_hard"][2] == 0


def test_an_order_of_sides_that_a_training_case_contradicts_is_refused(shared, monkeypatch, tmp_path):
    workspace = shared.entered(monkeypatch, tmp_path)

    def learn(**section):
        made = make(workspace, **section)
        made.prepare_data(made.dataset_class(made.preprocessed_dataset_folder))
        made.learn_from_cases(made.get_tr_and_val_datasets()[0].identifiers)
        return made

    (pair,) = learn().plan.low_high_pairs
    with pytest.raises(ValueError, match=r"low_high_pairs has \[\d, \d\], but in training case \S+ kidney_\w+ lies"):
        learn(low_high_pairs=[list(pair[::-1])])
    with pytest.raises(ValueError, match="training mirrors axis 2 .* not in swap_on_flip"):
        learn(low_high_pairs=[[1, 2]])
