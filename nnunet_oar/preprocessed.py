"""Whether preprocessed cases, and models that learnt from them, are of these plans: nnU-Net goes by the folder's name alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from nnunetv2.preprocessing.resampling.default_resampling import compute_new_shape

# what decides how a case looks after preprocessing: of the plans, of a configuration
OF_PLANS = ("transpose_forward", "image_reader_writer")
OF_CONFIGURATION = (
    "spacing", "normalization_schemes", "use_mask_for_norm", "resampling_fn_data", "resampling_fn_data_kwargs",
    "resampling_fn_seg", "resampling_fn_seg_kwargs", "preprocessor_name",
)  # fmt: skip
INTENSITIES = "foreground_intensity_properties_per_channel"
# cases that are looked at: what was preprocessed by other plans was so as a whole
LOOKED_AT = 3


def differences(before: Mapping, now: Mapping, configuration: str) -> list[str]:
    """The names of what plans say otherwise about preprocessing than they did; before, now: the plans' JSON."""
    of_before, of_now = (plans["configurations"].get(configuration, {}) for plans in (before, now))
    found = [key for key in OF_PLANS if before.get(key) != now.get(key)]
    found += [key for key in OF_CONFIGURATION if of_before.get(key) != of_now.get(key)]
    if "CTNormalization" in of_now.get("normalization_schemes", ()) and before.get(INTENSITIES) != now.get(INTENSITIES):
        found.append(INTENSITIES)
    return found


def require_spacing(dataset, spacing_mm: Sequence[float], transpose_forward: Sequence[int], remedy: str) -> None:
    """Raise RuntimeError where nnU-Net's dataset object holds cases of another spacing than the plans'.

    remedy: what to do, for the sentence.
    """
    names = list(dataset.identifiers)
    for name in names[:: max(1, len(names) // LOOKED_AT)]:
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
