"""How well the first stage of a trained model finds what the second one needs, on CTs that it was not trained on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

from nnunet_oar.data.instance_loader import instances_of_labels
from nnunet_oar.networks.heatmap_cascade import HeatmapCascadeNetwork
from nnunet_oar.networks.instance_cascade import InstanceCascadeNetwork
from nnunet_oar.networks.shared_encoder import SharedEncoderNet
from nnunet_oar.networks.volume import LoadedVolume
from nnunet_oar.roi import Box


def score_localiser(model: Path, images: Path, labels: Path) -> dict[str, dict[str, list[float]]]:
    """Of each organ (or "instance") over the cases that hold it: "inside", 1 where it lies wholly in a box that is segmented, else
    0, and with heat maps "error_mm", the distance of its centre (infinite: not found)."""
    predictor = nnUNetPredictor(device=torch.device("cpu"))
    predictor.initialize_from_trained_model_folder(str(model), (0,), "checkpoint_final.pth")
    network, configuration = predictor.network.eval(), predictor.configuration_manager
    network.load_state_dict(predictor.list_of_parameters[0])
    preprocessor = configuration.preprocessor_class(verbose=False)
    scores: dict[str, dict[str, list[float]]] = {}
    for label_file in sorted(labels.glob("*.nii.gz")):
        image_file = images / label_file.name.replace(".nii.gz", "_0000.nii.gz")
        data, seg, _ = preprocessor.run_case(
            [str(image_file)], str(label_file), predictor.plans_manager, configuration, predictor.dataset_json
        )
        image = torch.as_tensor(np.asarray(data))
        truth = np.asarray(seg)[0]
        with torch.inference_mode():
            for name, found in _score(network, image, truth).items():
                for key, value in found.items():
                    scores.setdefault(name, {}).setdefault(key, []).append(value)
    return scores


def _score(network, data: torch.Tensor, truth: np.ndarray) -> dict[str, dict[str, float]]:
    """data: (C, Z, Y, X), preprocessed."""
    plan, shape = network.plan, tuple(data.shape[1:])
    volume = LoadedVolume(data, plan.data_window)
    organs = {organ: Box.from_mask(truth == label) for label, organ in enumerate(plan.organs, start=1)}
    organs = {organ: box for organ, box in organs.items() if box is not None}
    if isinstance(network, HeatmapCascadeNetwork):
        centres = network.localise(volume.sample(Box.full(shape), plan.localizer_shape(shape)), shape)
        scores = {}
        for index, (organ, centre) in enumerate(zip(plan.organs, centres, strict=True)):
            if organ not in organs:
                continue
            scores[organ] = {"inside": 0.0, "error_mm": np.inf}
            if centre is not None:
                error = np.subtract(centre, organs[organ].centre) * plan.spacing_mm
                inside = network.organ_box(index, centre, shape).contains(organs[organ])
                scores[organ] = {"inside": float(inside), "error_mm": float(np.linalg.norm(error))}
        return scores
    if isinstance(network, SharedEncoderNet):
        # boxes before they grow, as those of the others are
        network.plan = replace(plan, grow_attempts=0)
        network(data[None])
        boxes = network.reports[0].boxes
        return {
            organ: {"inside": float(organ in boxes and boxes[organ].contains(box))} for organ, box in organs.items()
        }
    found = network.localise(network.zoomed(volume), shape)
    if isinstance(network, InstanceCascadeNetwork):
        boxes = [plan.fine_box(box, shape) for box in found]
        instances = instances_of_labels(truth, plan.instance_labels, plan)
        inside = [any(box.contains(instance) for box in boxes) for instance in instances]
        return {"instance": {"inside": float(np.mean(inside))}} if inside else {}
    box = None if found is None else plan.fine_box(found, shape)
    return {organ: {"inside": float(box is not None and box.contains(of))} for organ, of in organs.items()}
