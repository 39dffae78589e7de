"""What plans say about preprocessing, compared."""

import copy

import pytest

from nnunet_oar.preprocessed import differences

PLANS = {
    "transpose_forward": [0, 1, 2],
    "image_reader_writer": "SimpleITKIO",
    "foreground_intensity_properties_per_channel": {"0": {"mean": 1.0}},
    "configurations": {"3d_fullres": {"spacing": [3.0, 1.0, 1.0], "normalization_schemes": ["NoNormalization"]}},
}


def changed(path, value) -> dict:
    plans = copy.deepcopy(PLANS)
    of = plans
    for key in path[:-1]:
        of = of[key]
    of[path[-1]] = value
    return plans


CONFIGURATION = ("configurations", "3d_fullres")


@pytest.mark.parametrize(
    "path, value, names",
    [
        (("transpose_forward",), [2, 1, 0], ["transpose_forward"]),
        (("image_reader_writer",), "NibabelIO", ["image_reader_writer"]),
        ((*CONFIGURATION, "spacing"), [3.0, 1.0, 1.5], ["spacing"]),
        ((*CONFIGURATION, "resampling_fn_data"), "other", ["resampling_fn_data"]),
        # that of the network is none of the data's
        ((*CONFIGURATION, "patch_size"), [1, 2, 3], []),
        (("foreground_intensity_properties_per_channel",), {}, []),
    ],
)
def test_what_decides_how_a_case_looks(path, value, names):
    assert differences(PLANS, changed(path, value), "3d_fullres") == names


def test_intensities_matter_where_they_normalise():
    path = (*CONFIGURATION, "normalization_schemes")
    before, now = (changed(path, ["CTNormalization"]) for _ in range(2))
    assert differences(before, now, "3d_fullres") == []
    now["foreground_intensity_properties_per_channel"] = {"0": {"mean": 2.0}}
    assert differences(before, now, "3d_fullres") == ["foreground_intensity_properties_per_channel"]


def test_another_configuration_differs():
    assert "spacing" in differences({**PLANS, "configurations": {}}, PLANS, "3d_fullres")
