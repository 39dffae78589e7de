"""Loading a model folder: what is loaded, and that everything else is refused in one sentence, before anything in it runs."""

import json
import os
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from toy_model import ORGANS, SMALL, make_model

from nnunet_oar.inference.image import Image
from nnunet_oar.inference.model import NETWORKS, load_model
from nnunet_oar.inference.predictor import OARPredictor
from nnunet_oar.plan import SECTION, AttentionPlan, CascadePlan, HeatmapPlan, InstancePlan, SharedEncoderPlan

CHECKPOINT = "checkpoint_final.pth"
PLANS = {
    "cascade": CascadePlan(**SMALL),
    "instances": InstancePlan(
        organs=("kidney", "tumour"), spacing_mm=(3.0, 2.0, 2.0), coarse_shape=(16, 16, 16), fine_shape=(16, 16, 16),
        coarse_features=2, fine_features=2, coarse_strides=((2, 2, 2),) * 2, fine_strides=((2, 2, 2),) * 2,
        margin_vox=(2, 2, 2), min_box_vox=(8, 8, 8), hu_window=None, array_orientation="SAR",
    ),
    "heatmaps": HeatmapPlan(
        organs=("liver", "spleen"), spacing_mm=(3.0, 2.0, 2.0), localizer_features=2, organ_features=2,
        localizer_strides=((2, 2, 2),), margin_vox=(3, 3, 3), array_orientation="SAR",
        organ_step_vox={"liver": (1.0, 1.0, 1.0), "spleen": (1.0, 1.0, 1.0)},
        organ_strides={"liver": ((2, 2, 2),), "spleen": ((2, 2, 2),)},
    ),
    "shared encoder": SharedEncoderPlan(
        organs=("liver", "spleen"), spacing_mm=(3.0, 2.0, 2.0), grid_spacing_mm=(3.0, 2.0, 2.0), features=2,
        flip_axes=(), array_orientation="SAR",
    ),
    "attention": AttentionPlan(
        organs=("liver", "spleen"), slice_shape=(32, 48), stages=3, features=4, regions=("head", "chest"),
        array_orientation="SAR",
    ),
}  # fmt: skip


class Trap:
    """What makes a folder when it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.fixture
def model(tmp_path):
    return make_model(tmp_path)


def stored(model: Path, fold=0) -> dict:
    return torch.load(model / f"fold_{fold}" / CHECKPOINT, weights_only=False)


def store(model: Path, changes: dict, fold=0) -> Path:
    path = model / f"fold_{fold}" / CHECKPOINT
    torch.save(stored(model, fold) | changes, path)
    return path


def edit(path: Path, change) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def refusal(*arguments, **options) -> str:
    with pytest.raises(ValueError) as refused:
        load_model(*arguments, **options)
    text = str(refused.value)
    assert text and "\n" not in text
    return text


def test_one_fold(model):
    loaded = load_model(model)
    assert loaded.folds == ("0",) and len(loaded.networks) == 1 and loaded.epochs == [1]
    assert loaded.plan == PLANS["cascade"] and loaded.plan.organs == ORGANS
    assert loaded.channels == 1 and loaded.reader == "SimpleITKIOWithReorient"
    network = loaded.networks[0]
    assert not network.training and not any(weight.requires_grad for weight in network.parameters())
    for name, weight in stored(model)["network_weights"].items():
        assert torch.equal(network.state_dict()[name], weight), name


def test_no_fold_at_all_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no fold is named"):
        load_model(make_model(tmp_path), [])


def test_two_folds_each_with_its_weights_and_its_hash(tmp_path):
    model = make_model(tmp_path, folds=2)
    loaded = load_model(str(model))
    assert loaded.folds == ("0", "1") and len(set(loaded.hashes.values())) == 2
    for fold, network in zip(loaded.folds, loaded.networks, strict=True):
        weights = stored(model, fold)["network_weights"]
        assert all(torch.equal(network.state_dict()[name], weights[name]) for name in weights)


@pytest.mark.parametrize(
    ("wanted", "folds"), [([1], ("1",)), (["1", "0"], ("1", "0")), (["all"], ("all",)), (None, ("0", "1"))]
)
def test_folds_are_those_asked_for_and_all_is_taken_only_alone(tmp_path, wanted, folds):
    model = make_model(tmp_path, folds=2)
    shutil.copytree(model / "fold_0", model / "fold_all")
    assert load_model(model, wanted).folds == folds


def test_fold_all_is_taken_where_there_is_no_other(model):
    (model / "fold_0").rename(model / "fold_all")
    assert load_model(model).folds == ("all",)


def test_another_checkpoint_is_named(model):
    (model / "fold_0" / CHECKPOINT).rename(model / "fold_0" / "checkpoint_best.pth")
    assert load_model(model, checkpoint_name="checkpoint_best.pth").checkpoint_name == "checkpoint_best.pth"
    error = refusal(model)
    assert (
        str(model) in error and f"fold_X/{CHECKPOINT}" in error and "-chk" in error and "checkpoint_best.pth" in error
    )


@pytest.mark.parametrize("name", PLANS)
def test_every_network_loads_and_predicts(name, tmp_path):
    plan = PLANS[name]
    model = make_model(tmp_path, plan)
    if name == "shared encoder":
        store(model, {"network_weights": stored(model)["network_weights"] | {"decoders_trained": torch.tensor(True)}})
    predictor = OARPredictor(model, "cpu", folds=0)
    assert type(predictor.model.networks[0]) is NETWORKS[type(plan)] and predictor.plan == plan
    array = np.random.default_rng(0).integers(-1000, 1000, (1, 20, 33, 37), np.int16)
    labels = predictor.run(Image(array, (3.0, 2.0, 2.0), "SPL")).labels
    assert labels.shape == array.shape[1:] and labels.max() <= len(plan.organs)


# --- what is refused ---


def test_a_missing_folder(tmp_path):
    assert refusal(tmp_path / "nothing") == f"the model folder {tmp_path / 'nothing'} does not exist"


@pytest.mark.parametrize("name", ["plans.json", "dataset.json"])
def test_without_its_descriptions_it_is_no_model_folder(model, name):
    (model / name).unlink()
    error = refusal(model)
    assert str(model) in error and name in error and "TRAINER__PLANS__CONFIGURATION" in error


@pytest.mark.parametrize("name", ["plans.json", "dataset.json"])
@pytest.mark.parametrize(
    "content",
    [b"", b'{"labels": ', b"\xff\xfe\x00", b"[]", b"{}"],
    ids=["empty", "cut", "no text", "list", "nothing in it"],
)
def test_broken_descriptions(model, name, content):
    (model / name).write_bytes(content)
    error = refusal(model)
    assert str(model) in error and name in error


def test_no_checkpoint(model):
    (model / "fold_0" / CHECKPOINT).unlink()
    error = refusal(model)
    assert str(model) in error and "train first" in error


def test_an_unknown_fold(model):
    error = refusal(model, ["0", "7"])
    assert str(model) in error and "of the folds 0, not of 7" in error


def test_a_stock_model(model):
    edit(model / "plans.json", lambda plans: plans["configurations"]["3d_fullres"].pop(SECTION))
    store(model, {"trainer_name": "nnUNetTrainer"})
    error = refusal(model)
    assert str(model) in error and "nnUNetTrainer" in error and "use nnUNetv2_predict" in error


def test_plans_without_the_checkpoints_configuration(model):
    edit(model / "plans.json", lambda plans: plans["configurations"].update(other={}))
    store(model, {"init_args": {"configuration": "2d"}})
    error = refusal(model)
    assert "plans.json" in error and "'2d'" in error and "3d_fullres, other" in error


def test_a_configuration_that_inherits(model):
    """As in the plans of a configuration that a user derived from ours."""
    edit(model / "plans.json", lambda plans: plans["configurations"].update(mine={"inherits_from": "3d_fullres"}))
    store(model, {"init_args": {"configuration": "mine"}})
    assert load_model(model).plan == PLANS["cascade"]


def test_a_section_with_a_mistake_names_the_key(model):
    def misspell(plans):
        section = plans["configurations"]["3d_fullres"][SECTION]
        section["margin_voxels"] = section.pop("margin_vox")

    edit(model / "plans.json", misspell)
    assert "unknown key 'margin_voxels'" in refusal(model)


def test_organs_that_differ_between_plans_and_description(model):
    edit(model / "dataset.json", lambda dataset: dataset["labels"].update(heart=2, kidney_left=1))
    error = refusal(model)
    assert str(model) in error and "heart, kidney_left" in error and "kidney_left, heart" in error


def test_a_checkpoint_of_another_architecture(model, tmp_path):
    other = make_model(tmp_path / "other", PLANS["heatmaps"])
    shutil.copy(other / "fold_0" / CHECKPOINT, model / "fold_0" / CHECKPOINT)
    error = refusal(model)
    assert str(model / "fold_0" / CHECKPOINT) in error and "does not fit plans.json" in error and "replaced?" in error


def test_a_checkpoint_of_another_size(model):
    edit(model / "plans.json", lambda plans: plans["configurations"]["3d_fullres"][SECTION].update(fine_features=4))
    error = refusal(model)
    assert str(model / "fold_0" / CHECKPOINT) in error and "does not fit plans.json" in error


@pytest.mark.parametrize("trust", [False, True])
@pytest.mark.parametrize(
    "content",
    [
        b"this is no checkpoint\n", b"hello", b"", b"\x00" * 64, b"PK\x03\x04 and no more", b"<html>",
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0",
    ],
    ids=["text", "a word", "empty", "zeros", "cut zip", "web page", "git-lfs pointer"],
)  # fmt: skip
def test_what_is_no_checkpoint(model, content, trust):
    """Nor is --trust-checkpoint recommended, which would not help."""
    path = model / "fold_0" / CHECKPOINT
    path.write_bytes(content)
    error = refusal(model, trust_checkpoint=trust)
    assert str(path) in error and "is no checkpoint or is damaged" in error and "trust" not in error


@pytest.mark.parametrize("trust", [False, True])
@pytest.mark.parametrize("share", [0.001, 0.3, 0.7, 0.999])
def test_a_truncated_checkpoint(model, share, trust):
    path = model / "fold_0" / CHECKPOINT
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    error = refusal(model, trust_checkpoint=trust)
    assert str(path) in error and "is no checkpoint or is damaged" in error


@pytest.mark.parametrize("content", [[1, 2], {"network_weights": {}}, {"state_dict": {}}], ids=str)
def test_what_nnunet_did_not_write(model, content):
    path = model / "fold_0" / CHECKPOINT
    torch.save(content, path)
    error = refusal(model)
    assert str(path) in error and "no checkpoint that nnU-Net wrote" in error


def test_weights_that_are_none(model):
    path = store(model, {"network_weights": [1, 2, 3]})
    assert str(path) in refusal(model)


# --- what a checkpoint may bring along ---


def test_an_arbitrary_object_is_not_made_unless_trusted(model, tmp_path):
    trap = tmp_path / "made while loading"
    path = store(model, {"logging": Trap(trap)})
    error = refusal(model)
    assert not trap.exists()
    assert str(path) in error and "was not loaded" in error and "--trust-checkpoint" in error
    assert load_model(model, trust_checkpoint=True).folds == ("0",)
    assert trap.is_dir()


def test_a_trap_in_the_second_fold_is_found_too(tmp_path):
    model = make_model(tmp_path, folds=2)
    path = store(model, {"logging": Trap(tmp_path / "trap")}, fold=1)
    assert str(path) in refusal(model) and not (tmp_path / "trap").exists()
    assert load_model(model, ["0"]).folds == ("0",)


def numpy_numbers() -> dict:
    """What nnU-Net's logger leaves in a checkpoint, and what a trainer might: scalars and dtypes, no arrays."""
    return {
        "_best_ema": np.float64(0.5),
        "logging": {
            "mean_fg_dice": [np.float64(0.25), np.float64("nan")],
            "dice_per_class_or_region": [[np.float64(0.5), np.float32(0.5)]],
            "train_losses": [np.float32(-0.5)],
            "counts": [np.int64(3), np.int32(3), np.bool_(True)],
            "types": [np.dtype(name) for name in ("float64", "float32", "int64", "int32", "bool")],
        },
    }


def test_numpys_numbers_load_without_trust(model):
    path = store(model, numpy_numbers())
    assert b"numpy" in path.read_bytes()
    assert load_model(model).folds == ("0",)


@pytest.mark.parametrize("module", ["numpy.core.multiarray", "numpy._core.multiarray"])
def test_numpys_numbers_load_whichever_numpy_wrote_them(model, module):
    """NumPy 1 keeps `scalar` in another module than NumPy 2: a model may be older or younger than what predicts with it."""
    path = store(model, numpy_numbers())
    own = type(np.float64(0)).__reduce__(np.float64(0))[0].__module__
    written, renamed = path.with_suffix(".old"), 0
    path.rename(written)
    with zipfile.ZipFile(written) as source, zipfile.ZipFile(path, "w") as target:
        for name in source.namelist():
            content = source.read(name)
            if name.endswith("/data.pkl"):
                renamed = content.count(f"c{own}\nscalar\n".encode())
                content = content.replace(f"c{own}\nscalar\n".encode(), f"c{module}\nscalar\n".encode())
            target.writestr(name, content)
    written.unlink()
    assert renamed
    assert load_model(model).folds == ("0",)
