"""What the plan must know of a data set, from the preprocessed cases (stock plans) or from the raw files (our planner)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from nnunet_oar.annotations import Annotations, organ_labels
from nnunet_oar.axes import anatomical_axes
from nnunet_oar.body_regions import region_names
from nnunet_oar.fit import CaseFacts, DatasetFacts
from nnunet_oar.instances import find_instances
from nnunet_oar.plan import InstancePlan
from nnunet_oar.roi import Box


def intensity_facts(
    schemes: Sequence[str], foreground: Mapping[str, Mapping[str, float]]
) -> tuple[tuple[float, float] | None, tuple[float, float] | None]:
    """(window in HU, (slope, intercept) from HU to the preprocessed data); None where the normalisation has lost the HU.

    schemes: nnU-Net's normalisation schemes, one per channel; foreground: the fingerprint's intensity properties. The window is
    what nnU-Net's CTNormalization clips to: on stock plans the data cannot hold more.
    """
    if len(schemes) != 1 or schemes[0] not in ("NoNormalization", "CTNormalization"):
        return None, None
    statistics = foreground["0"]
    low, high = float(statistics["percentile_00_5"]), float(statistics["percentile_99_5"])
    window = (low, high) if math.isfinite(low) and math.isfinite(high) and low < high else None
    if schemes[0] == "NoNormalization":
        return window, (1.0, 0.0)
    std = max(float(statistics["std"]), 1e-8)  # as CTNormalization
    return window, (1 / std, -float(statistics["mean"]) / std)


def facts_from_preprocessed(
    dataset, plans_manager, configuration_manager, dataset_json: Mapping, needs_instances: bool = False
) -> DatasetFacts:
    """From nnU-Net's dataset object over ALL cases of a configuration: headers, .pkl files and label maps; images are not read.

    Organ boxes come from nnU-Net's sampled foreground voxels (all of an organ up to 10,000 voxels, else at least 10,000 or 1%), so
    they can be a voxel or two short: good enough for the size of a grid.
    """
    labels, annotations = organ_labels(dataset_json), Annotations.from_dataset_json(dataset_json)
    cases, properties = [], []
    for name in dataset.identifiers:
        data, seg, _, case_properties = dataset.load_case(name)
        seg, organs, annotated = np.asarray(seg[0]), {}, annotations.labels(name)
        voxel_ml = float(np.prod(configuration_manager.spacing)) / 1000
        volumes = {label: float(np.count_nonzero(seg == label)) * voxel_ml for label in annotated}
        for label in annotated:
            voxels = np.asarray(case_properties.get("class_locations", {}).get(label, []))
            if len(voxels):
                voxels = voxels[:, -3:]
                organs[label] = Box(tuple(voxels.min(0)), tuple(voxels.max(0) + 1))
        instances = []
        if needs_instances:
            mask = np.isin(seg, sorted(annotated))
            instances = find_instances(mask, InstancePlan.max_instances, voxel_mm=configuration_manager.spacing)
        volumes = {label: volume for label, volume in volumes.items() if volume > 0}
        cases.append(CaseFacts(tuple(data.shape[1:]), organs, len(annotated) == len(labels), instances, volumes))
        properties.append(
            {key: case_properties[key] for key in ("sitk_stuff", "nibabel_stuff") if key in case_properties}
        )
    window, from_hu = intensity_facts(
        configuration_manager.normalization_schemes, plans_manager.foreground_intensity_properties_per_channel
    )
    return DatasetFacts(
        spacing_mm=tuple(float(value) for value in configuration_manager.spacing),
        cases=cases,
        labels=labels,
        axes=anatomical_axes(properties, plans_manager.transpose_forward),
        window=window,
        intensity_from_hu=from_hu,
        regions=region_names(dataset_json),
    )
