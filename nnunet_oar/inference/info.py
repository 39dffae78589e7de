"""A model folder in words."""

from __future__ import annotations

import json

from nnunet_oar.inference.model import Model
from nnunet_oar.plan.base import plain

# what a user asks of a model; the whole section is in its plans.json
GRIDS = (
    "coarse_shape", "fine_shape", "localizer_spacing_mm", "organ_step_vox", "grid_spacing_mm", "slices", "slice_shape",
    "features", "coarse_features", "fine_features", "localizer_features", "organ_features",
)  # fmt: skip
GUARDS = (
    "grow_attempts",
    "fallback_whole",
    "separate",
    "measured_margin",
    "margin_vox",
    "floor",
    "test_time",
    "low_high_pairs",
)


def describe(model: Model) -> str:
    plan, data = model.plan, model.dataset_json
    lines = [
        f"{plan.trainer}, recipe {plan.recipe}, {model.plans.get('dataset_name')}, plans {model.plans.get('plans_name')}",
        f"folds         {', '.join(f'{fold} ({epochs} epochs)' for fold, epochs in zip(model.folds, model.epochs, strict=True))}",
        f"trained on    {data.get('numTraining', 'an unknown number of')} training cases, less those that a fold holds back",
        f"spacing       {_numbers(model.configuration['spacing'])} mm, axes grow towards {plan.array_orientation or 'unknown'}",
        f"channels      {', '.join(map(str, data.get('channel_names', {}).values()))}; read with {model.reader}",
        f"versions      {_versions(model)}",
        f"weights       {sum(p.numel() for p in model.networks[0].parameters()) / 1e6:.1f} million",
        *_fields("grids", plan, GRIDS),
        *_fields("guards", plan, GUARDS),
        f"beyond organs {_free(plan.organ_free_mm, plan.array_orientation)}",
        "label  organ, volume and extent in training, what is done after prediction",
    ]
    # heat maps: what measuring chose
    margins = getattr(model.networks[0], "margin_mm", None)
    for label, organ in enumerate(plan.organs, start=1):
        facts = []
        if organ in plan.organ_volume_ml:
            facts.append("{:.3g} to {:.3g} ml".format(*plan.organ_volume_ml[organ]))
        if organ in plan.organ_extent_vox:
            low, high = (
                [size * mm for size, mm in zip(extent, model.configuration["spacing"], strict=True)]
                for extent in plan.organ_extent_vox[organ]
            )
            facts.append(f"{_numbers(low, 0)} to {_numbers(high, 0)} mm")
        if margins is not None:
            facts.append(f"box {_numbers(margins[label - 1].tolist(), 0)} mm beyond the mean size")
        facts += plan.postprocessing.get(organ, ())
        lines.append(f"{label:5d}  {organ}: {', '.join(facts) or 'not recorded'}")
    return "\n".join(lines)


def _fields(title: str, plan, names) -> list[str]:
    known = [f"{name} {json.dumps(plain(getattr(plan, name)))}" for name in names if hasattr(plan, name)]
    return [f"{title if not index else '':13s} {text}" for index, text in enumerate(known)]


def _numbers(values, digits: int = 2) -> str:
    return " x ".join(f"{value:.{digits}f}" for value in values)


def _versions(model: Model) -> str:
    found = {"nnunet_oar": model.plans.get("nnunet_oar_version", "not recorded")}
    debug = model.folder / f"fold_{model.folds[0]}" / "debug.json"
    if debug.is_file():
        found["torch"] = json.loads(debug.read_text()).get("torch_version", "not recorded")
    return ", ".join(f"{name} {version}" for name, version in found.items())


def _free(free_mm, letters: str | None) -> str:
    if free_mm is None or letters is None:
        return "not recorded"
    below, above = free_mm if "S" in letters else free_mm[::-1]
    return f"up to {below:.0f} mm of CT below the lowest and {above:.0f} mm above the highest organ in training"
