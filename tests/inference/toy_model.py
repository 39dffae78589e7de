"""A model folder in nnU-Net's layout without training: small networks with random weights, or any that a test brings."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from nnunet_oar.inference.model import NETWORKS
from nnunet_oar.plan import SECTION, CascadePlan, OARPlan

ORGANS = ("heart", "kidney_left", "kidney_right")
SMALL = dict(
    organs=ORGANS, coarse_shape=(16, 16, 16), fine_shape=(16, 16, 16), coarse_features=2, fine_features=2,
    coarse_strides=((2, 2, 2),) * 2, fine_strides=((2, 2, 2),) * 2, margin_vox=(2, 2, 2), min_box_vox=(8, 8, 8),
    extra_box_vox=((16, 16, 16),), array_orientation="SAR", flip_axes=(),
)  # fmt: skip


def make_model(
    folder: Path,
    plan: OARPlan | None = None,
    folds: int = 1,
    *,
    channels: int = 1,
    spacing: tuple[float, float, float] = (3.0, 2.0, 2.0),
    **changes,
) -> Path:
    """changes: of what plans.json says besides, such as image_reader_writer, normalization_schemes."""
    plan = plan or CascadePlan(**SMALL)
    model = folder / f"{plan.trainer}__nnUNetOARPlans__3d_fullres"
    configuration = {
        "spacing": list(spacing),
        "patch_size": [64, 64, 64],
        "batch_size": 1,
        "normalization_schemes": changes.pop("normalization_schemes", ["NoNormalization"] * channels),
        "use_mask_for_norm": [False] * channels,
        SECTION: plan.to_section(),
    }
    plans = {
        "dataset_name": "Dataset055_Toy",
        "plans_name": "nnUNetOARPlans",
        "image_reader_writer": "SimpleITKIOWithReorient",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "foreground_intensity_properties_per_channel": {},
        "configurations": {"3d_fullres": configuration},
    } | changes
    dataset_json = {
        "channel_names": {str(channel): "CT" for channel in range(channels)},
        "labels": {"background": 0} | {organ: label for label, organ in enumerate(plan.organs, start=1)},
        "numTraining": 5,
        "file_ending": ".nii.gz",
    }
    model.mkdir(parents=True)
    (model / "plans.json").write_text(json.dumps(plans))
    (model / "dataset.json").write_text(json.dumps(dataset_json))
    for fold in range(folds):
        torch.manual_seed(fold)
        network = NETWORKS[type(plan)](channels, plan, None)
        weights = network.state_dict()
        for name, value in weights.items():
            # the localiser takes everything for the first organ: the box is the image
            if name.startswith("localizer.seg_layers.") and name.endswith("bias") and len(value) > 1:
                value[1] += 1000
        checkpoint = {
            "network_weights": weights,
            "trainer_name": plan.trainer,
            "init_args": {"configuration": "3d_fullres", "fold": fold},
            "current_epoch": 1,
            "inference_allowed_mirroring_axes": None,
        }
        (model / f"fold_{fold}").mkdir()
        torch.save(checkpoint, model / f"fold_{fold}" / "checkpoint_final.pth")
    return model
