"""Whether preprocessed cases, and models that learnt from them, are of these plans: nnU-Net goes by the folder's name alone."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from nnunetv2.preprocessing.resampling.default_resampling import compute_new_shape

# what decides how a case looks after preprocessing: of the plans, of a configuration
OF_PLANS = ("transpose_forward", "image_reader_writer")
OF_CONFIGURATION = (
    "spacing", "normalization_schemes", "use_mask_for_norm", "resampling_fn_data", "resampling_fn_data_kwargs",
    "resampling_fn_seg", "resampling_fn_seg_kwargs", "preprocessor_name",
)  # fmt: skip
INTENSITIES = "foreground_intensity_properties_per_channel"
OF_INTENSITIES = ("mean", "std", "percentile_00_5", "percentile_99_5")
# cases that are looked at: what was preprocessed by other plans was so as a whole
LOOKED_AT = 3


def differences(before: Mapping, now: Mapping, configuration: str) -> list[str]:
    """The names of what plans say otherwise about preprocessing than they did; before, now: the plans' JSON, which both have the
    configuration."""
    of_before, of_now = (inherited(plans["configurations"], configuration) for plans in (before, now))
    found = [key for key in OF_PLANS if before.get(key) != now.get(key)]
    found += [key for key in OF_CONFIGURATION if of_before.get(key) != of_now.get(key)]
    normalised = "CTNormalization" in of_now.get("normalization_schemes", ())
    if normalised and not _alike(before[INTENSITIES], now[INTENSITIES]):
        found.append(INTENSITIES)
    return found


def inherited(configurations: Mapping, name: str) -> dict:
    """A configuration with what it inherits, as nnU-Net resolves it. Raises ValueError where there is none of the name."""
    if name not in configurations:
        raise ValueError(f"plans.json holds no configuration {name!r}, but {', '.join(configurations)}")
    own = configurations[name]
    return (inherited(configurations, own["inherits_from"]) if "inherits_from" in own else {}) | own


def _alike(before: Mapping, now: Mapping) -> bool:
    """Whether CTNormalization does the same by both; sums over a data set depend on the machine in their last digits."""
    return before.keys() == now.keys() and all(
        math.isclose(before[channel][key], now[channel][key], rel_tol=1e-3, abs_tol=1e-3)
        for channel in now
        for key in OF_INTENSITIES
    )


def require_spacing(dataset, spacing_mm: Sequence[float], transpose_forward: Sequence[int], remedy: str) -> None:
    """Raise RuntimeError where nnU-Net's dataset object holds cases of another spacing than the plans'.

    remedy: what to do, for the sentence.
    """
    names = list(dataset.identifiers)
    for name in names[:: max(1, math.ceil(len(names) / LOOKED_AT))]:
        data, _, _, properties = dataset.load_case(name)
        shape, spacing = properties.get("shape_after_cropping_and_before_resampling"), properties.get("spacing")
        if shape is None or spacing is None:
            continue
        spacing = [spacing[axis] for axis in transpose_forward]
        expected = tuple(int(size) for size in compute_new_shape(shape, spacing, spacing_mm))
        found = tuple(data.shape[1:])
        if expected != found:
            raise RuntimeError(
                f"{name} was preprocessed by other plans: it has {found} voxels and at the spacing of these, "
                f"{' x '.join(f'{value:.4g}' for value in spacing_mm)} mm, it would have {expected}; {remedy}"
            )
