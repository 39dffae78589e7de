"""A trained model folder, loaded without constructing a trainer and without running what a checkpoint might bring along."""

from __future__ import annotations

import json
import pickle
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nnunet_oar.annotations import organ_labels
from nnunet_oar.files import sha256_of
from nnunet_oar.networks.attention_anatomy import AttentionAnatomyNet
from nnunet_oar.networks.cascade import CascadeNetwork
from nnunet_oar.networks.heatmap_cascade import HeatmapCascadeNetwork
from nnunet_oar.networks.instance_cascade import InstanceCascadeNetwork
from nnunet_oar.networks.shared_encoder import SharedEncoderNet
from nnunet_oar.networks.volume import VolumeNetwork
from nnunet_oar.plan import (
    SECTION,
    AttentionPlan,
    CascadePlan,
    HeatmapPlan,
    InstancePlan,
    OARPlan,
    SharedEncoderPlan,
)
from nnunet_oar.preprocessed import inherited

NETWORKS: dict[type[OARPlan], type[VolumeNetwork]] = {
    CascadePlan: CascadeNetwork,
    InstancePlan: InstanceCascadeNetwork,
    HeatmapPlan: HeatmapCascadeNetwork,
    SharedEncoderPlan: SharedEncoderNet,
    AttentionPlan: AttentionAnatomyNet,
}
NEEDED = {
    "plans.json": ("configurations", "image_reader_writer", "transpose_forward"),
    "dataset.json": ("labels",),
}
# What nnU-Net writes into a checkpoint besides tensors and plain Python: NumPy's numbers, and the folder names of its log
_SCALAR = np.float64(0).__reduce__()[0]
_NUMPY_TYPES = [
    # NumPy 1 and 2 keep it in different modules, and a model may be older or younger than what predicts with it
    (_SCALAR, "numpy.core.multiarray.scalar"),
    (_SCALAR, "numpy._core.multiarray.scalar"),
    np.dtype,
    *(type(np.dtype(kind)) for kind in ("float64", "float32", "int64", "int32", "bool")),
]


@dataclass
class Model:
    """One network per fold, and what its plans and dataset.json say. Immutable by convention; shared by all predictions.

    hashes: fold -> SHA-256 of the checkpoint that was loaded.
    """

    folder: Path
    folds: tuple[str, ...]
    checkpoint_name: str
    plans: dict
    configuration: dict
    dataset_json: dict
    plan: OARPlan
    networks: list[VolumeNetwork]
    hashes: dict[str, str]
    epochs: list[int] = field(default_factory=list)

    @property
    def channels(self) -> int:
        return len(self.dataset_json.get("channel_names", self.dataset_json.get("modality", {0: "CT"})))

    @property
    def reader(self) -> str:
        """nnU-Net's class that read the training images."""
        return self.plans["image_reader_writer"]


def load_model(
    folder: Path | str,
    folds: Sequence[int | str] | None = None,
    checkpoint_name: str = "checkpoint_final.pth",
    trust_checkpoint: bool = False,
) -> Model:
    """folds: None for all that are trained; fold `all` only where there is no other. trust_checkpoint: load a pickle that holds
    more than weights and numbers, which may run whatever its maker wanted.

    Raises ValueError, naming file and remedy, for what is no model of ours.
    """
    folder = Path(folder)
    plans, dataset_json = (_json(folder, name) for name in ("plans.json", "dataset.json"))
    chosen = _folds(folder, folds, checkpoint_name)
    hashes = {fold: sha256_of(folder / f"fold_{fold}" / checkpoint_name) for fold in chosen}
    stored = [_checkpoint(folder / f"fold_{fold}" / checkpoint_name, trust_checkpoint) for fold in chosen]
    name = stored[0]["init_args"]["configuration"]
    configuration = inherited(plans["configurations"], name)
    if SECTION not in configuration:
        raise ValueError(
            f"{folder} is a model of {stored[0]['trainer_name']}, its plans hold no section {SECTION!r}: it is none of our "
            f"trainers'; use nnUNetv2_predict"
        )
    section = configuration[SECTION]
    trainer = OARPlan.trainer_of(section)
    plan_class = next(of for of in NETWORKS if of.trainer == trainer)
    plan = plan_class.from_section(section)
    if plan.organs != tuple(organ_labels(dataset_json)):
        raise ValueError(
            f"{folder}: plans.json has the organs {', '.join(plan.organs)}, dataset.json {', '.join(organ_labels(dataset_json))}"
        )
    model = Model(folder, chosen, checkpoint_name, plans, configuration, dataset_json, plan, [], hashes)
    for fold, checkpoint in zip(chosen, stored, strict=True):
        network = NETWORKS[plan_class](model.channels, plan, tuple(configuration["patch_size"])).eval()
        try:
            network.load_state_dict(checkpoint["network_weights"])
        except RuntimeError as error:
            raise ValueError(
                f"{folder}/fold_{fold}/{checkpoint_name} does not fit plans.json beside it "
                f"({str(error).splitlines()[-1].strip()}); was one of them replaced?"
            ) from None
        model.networks.append(network.requires_grad_(False))
        model.epochs.append(int(checkpoint["current_epoch"]))
    return model


def _json(folder: Path, name: str) -> Any:
    if not folder.is_dir():
        raise ValueError(f"the model folder {folder} does not exist")
    path = folder / name
    if not path.is_file():
        raise ValueError(
            f"{folder} holds no {name}: name the folder TRAINER__PLANS__CONFIGURATION that nnUNetv2_train made, which holds fold_X"
        )
    try:
        content = json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is no valid JSON: {error}") from None
    missing = [key for key in NEEDED[name] if not isinstance(content, dict) or key not in content]
    if missing:
        raise ValueError(f"{path} lacks {', '.join(missing)}: it is not what nnUNetv2_train wrote")
    return content


def _folds(folder: Path, folds: Sequence[int | str] | None, checkpoint_name: str) -> tuple[str, ...]:
    there = sorted(path.parent.name.removeprefix("fold_") for path in folder.glob(f"fold_*/{checkpoint_name}"))
    if not there:
        raise ValueError(
            f"{folder} holds no fold_X/{checkpoint_name}: train first, or name another checkpoint with -chk, such as "
            f"checkpoint_best.pth or checkpoint_latest.pth"
        )
    if folds is None:
        return tuple(fold for fold in there if fold != "all") or tuple(there)
    if not folds:
        raise ValueError("no fold is named; name one at least, or none for all that are trained")
    missing = [str(fold) for fold in folds if str(fold) not in there]
    if missing:
        raise ValueError(
            f"{folder} holds {checkpoint_name} of the folds {', '.join(there)}, not of {', '.join(missing)}"
        )
    return tuple(str(fold) for fold in folds)


def _checkpoint(path: Path, trust: bool) -> dict:
    try:
        with torch.serialization.safe_globals(_NUMPY_TYPES):
            stored = torch.load(path, map_location="cpu", weights_only=not trust)
    except pickle.UnpicklingError as error:
        # a file that is no pickle at all is refused by its first bytes: to trust it would not help
        if "GLOBAL" in str(error) or "Unsupported class" in str(error):
            raise ValueError(
                f"{path} holds more than weights and numbers and was not loaded, as loading it could run any program; use "
                f"--trust-checkpoint if you trust whoever made it"
            ) from None
        raise ValueError(f"{path} is no checkpoint or is damaged") from None
    except Exception as error:
        # torch raises whatever the damaged bytes lead it to
        raise ValueError(f"{path} is no checkpoint or is damaged ({type(error).__name__})") from None
    needed = {"network_weights", "init_args", "trainer_name", "current_epoch"}
    if (
        not isinstance(stored, dict)
        or not needed <= set(stored)
        or not isinstance(stored["network_weights"], dict)
        or "configuration" not in stored["init_args"]
    ):
        raise ValueError(f"{path} is no checkpoint that nnU-Net wrote")
    return stored
