"""What plans say about preprocessing, compared."""

import copy

import numpy as np
import pytest

from nnunet_oar.preprocessed import OF_INTENSITIES, differences, require_spacing

PLANS = {
    "transpose_forward": [0, 1, 2],
    "image_reader_writer": "SimpleITKIO",
    "foreground_intensity_properties_per_channel": {"0": dict.fromkeys(OF_INTENSITIES, 100.0)},
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
    now["foreground_intensity_properties_per_channel"]["0"]["mean"] *= 1.00001
    assert differences(before, now, "3d_fullres") == []
    now["foreground_intensity_properties_per_channel"]["0"]["mean"] *= 1.1
    assert differences(before, now, "3d_fullres") == ["foreground_intensity_properties_per_channel"]


def test_what_a_configuration_inherits():
    own = {"configurations": PLANS["configurations"] | {"mine": {"inherits_from": "3d_fullres"}}}
    coarse = copy.deepcopy(own)
    coarse["configurations"]["3d_fullres"]["spacing"] = [5.0, 5.0, 5.0]
    assert differences(PLANS | own, PLANS | coarse, "mine") == ["spacing"]


class Cases:
    """As nnU-Net's dataset: cases of 6x10x20 voxels of 3x2x1 mm in the file, whose axes are turned before preprocessing."""

    def __init__(self, shape):
        self.identifiers, self.shape, self.looked_at = [f"c{index}" for index in range(7)], shape, []

    def load_case(self, name):
        self.looked_at.append(name)
        properties = {"spacing": [3.0, 2.0, 1.0], "shape_after_cropping_and_before_resampling": (20, 10, 6)}
        return np.zeros((1, *self.shape)), None, None, properties


def test_cases_are_looked_at_along_the_axes_that_they_have_after_turning():
    cases = Cases((10, 20, 6))
    require_spacing(cases, (2.0, 1.0, 3.0), (2, 1, 0), "")
    assert len(cases.looked_at) == 3
    with pytest.raises(
        RuntimeError, match=r"c0 was preprocessed by other plans: it has \(10, 20, 6\) .*\(20, 10, 6\); help"
    ):
        require_spacing(cases, (1.0, 2.0, 3.0), (2, 1, 0), "help")
