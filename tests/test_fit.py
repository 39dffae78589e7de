"""What is fitted to a data set: canvas, grids, strides, and when mirroring is allowed."""

import dataclasses
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nnunet_oar import fit
from nnunet_oar.axes import AnatomicalAxes
from nnunet_oar.fit import (
    Budget,
    CaseFacts,
    DatasetFacts,
    fit_canvas,
    fit_cascade,
    fit_grid,
    fit_strides,
    flip_rules,
)
from nnunet_oar.plan import CascadePlan
from nnunet_oar.roi import Box
from nnunet_oar.sides import describe_sides, side_pairs

CANONICAL = AnatomicalAxes(left_right=2, anterior_posterior=1, inferior_superior=0, sides_agree=True)


def facts(**changes) -> DatasetFacts:
    cases = [
        CaseFacts((100, 200, 210), {1: Box((20, 50, 60), (60, 120, 160)), 2: Box((10, 90, 90), (80, 140, 120))}),
        CaseFacts((140, 190, 200), {1: Box((40, 50, 60), (90, 110, 150))}),
        CaseFacts((90, 180, 200), {}),
    ]
    base = DatasetFacts((3.0, 1.0, 1.0), cases, {"heart": 1, "esophagus": 2}, CANONICAL, (-150.0, 250.0), (1.0, 0.0))
    return replace(base, **changes)


def test_organs_that_no_complete_case_lacks_are_known():
    first, second, empty = facts().cases
    assert fit_cascade(facts(), "fitted", Budget()).always_present == ()
    assert fit_cascade(facts(cases=[first, second]), "fitted", Budget()).always_present == ("heart",)
    # what a case does not annotate it may hold
    partial = replace(second, organs={}, complete=False)
    assert fit_cascade(facts(cases=[first, partial]), "paper", Budget()).always_present == ("heart", "esophagus")
    assert fit_cascade(facts(cases=[replace(first, complete=False)]), "fitted", Budget()).always_present == ()


def test_the_canvas_holds_the_largest_case_with_headroom_along_the_body():
    assert fit_canvas(facts()) == (math.floor(142 * 1.25), 202, 212)


def test_the_body_axis_follows_the_patient_not_the_array():
    axes = AnatomicalAxes(left_right=0, anterior_posterior=1, inferior_superior=2, sides_agree=True)
    assert fit_canvas(facts(axes=axes)) == (142, 202, math.floor(212 * 1.25))
    # where it is not known, it may be any
    assert fit_canvas(facts(axes=None)) == tuple(math.floor(size * 1.25) for size in (142, 202, 212))


def test_a_canvas_that_does_not_fit_in_memory_is_cut(monkeypatch):
    monkeypatch.setattr(fit, "CANVAS_MEMORY_BYTES", 18 * 3 * 50 * 202 * 212)
    assert fit_canvas(facts()) == (50, 202, 212)


def test_the_paper_recipe_is_the_paper():
    plan = fit_cascade(facts(), "paper", Budget(memory_gb=1))
    paper = CascadePlan()
    fitted = {"organs", "test_time", "left_right_axis", "postprocessing", "array_orientation"}
    fitted |= {"organ_extent_vox", "organ_volume_ml", "organ_free_mm", "always_present", "organ_mean_hu"}
    for field in dataclasses.fields(CascadePlan):
        if field.name not in fitted:
            assert getattr(plan, field.name) == getattr(paper, field.name), field.name
    assert plan.organs == ("heart", "esophagus") and plan.test_time == {"esophagus": ("boxes",)}


def test_the_budget_overrules_both_recipes():
    for recipe in ("paper", "fitted"):
        plan = fit_cascade(facts(), recipe, Budget(epochs=7, iterations=3))
        assert (plan.epochs, plan.iterations_per_epoch) == (7, 3)


def test_the_rate_of_the_paper_is_the_paper_s_and_the_fitted_one_falls_over_the_training_however_long():
    plans = {recipe: fit_cascade(facts(), recipe, Budget(epochs=30)) for recipe in ("paper", "fitted")}
    assert (plans["paper"].lr_decay, plans["fitted"].lr_decay) == (0.985, None)


def test_the_fitted_grid_is_never_finer_than_half_the_data():
    plan = fit_cascade(facts(), "fitted", Budget(memory_gb=1000))
    organs = [Box((10, 50, 60), (80, 140, 160)), Box((40, 50, 60), (90, 110, 150))]
    boxes = [box.grow(plan.margin_vox).shape for box in organs]
    assert (np.array(plan.fine_shape) <= 2 * np.max(boxes, axis=0) + 8).all()  # rounded to multiples of 8
    # a smaller patient's box is enlarged until its voxels are half those of the data
    assert plan.min_box_vox == tuple(math.ceil(size / 2) for size in plan.fine_shape)


def test_less_memory_gives_smaller_grids():
    small, large = (fit_cascade(facts(), "fitted", Budget(memory_gb=gb)) for gb in (0.3, 3))
    assert np.prod(small.fine_shape) * small.fine_features < np.prod(large.fine_shape) * large.fine_features / 3
    assert np.prod(small.coarse_shape) < np.prod(large.coarse_shape)


def test_the_window_is_narrowed_by_the_data_only():
    assert fit_cascade(facts(), "fitted", Budget()).hu_window == (-150, 250)
    assert fit_cascade(facts(window=(-1000, 2000)), "fitted", Budget()).hu_window == fit.FITTED_WINDOW_HU
    assert fit_cascade(facts(window=None), "fitted", Budget()).hu_window is None
    # lungs alone: the soft tissue window would leave nothing
    assert fit_cascade(facts(window=(-950, -500)), "fitted", Budget()).hu_window == (-950, -500)


def test_extents_are_least_and_greatest_per_organ():
    extents = fit_cascade(facts(), "fitted", Budget()).organ_extent_vox
    assert extents == {"heart": ((40, 60, 90), (50, 70, 100)), "esophagus": ((70, 50, 30), (70, 50, 30))}


@given(
    size=st.tuples(*[st.floats(20, 800)] * 3), finest=st.tuples(*[st.floats(0.3, 6)] * 3), voxels=st.floats(2e4, 3e6)
)
def test_grids_fit_their_budget(size, finest, voxels):
    shape = fit_grid(np.array(size), np.array(finest), voxels)
    assert all(n % 8 == 0 and n >= 16 for n in shape)
    spacing = np.array(size) / shape
    for axis in range(3):
        # not finer than allowed, but for the rounding to 8 and the least size of 16
        assert spacing[axis] >= finest[axis] * 0.65 or shape[axis] == 16
    grown = [n for n in shape if n > 16]
    if len(grown) == 3:
        assert np.prod(shape) <= voxels * 1.35**3


def test_an_isotropic_grid_where_the_data_allows_it():
    shape = fit_grid(np.array([256.0, 128.0, 512.0]), np.array([1.0, 1.0, 1.0]), 64 * 32 * 128)
    assert shape == (64, 32, 128)


def test_strides_stop_at_small_and_coarse_axes():
    assert fit_strides((128, 128, 128), (1, 1, 1)) == ((2, 2, 2),) * 4
    # 16 slices of 5 mm: halved only once the others have caught up, and only while 8 remain
    assert fit_strides((16, 128, 128), (5, 1, 1)) == ((1, 2, 2), (1, 2, 2), (2, 2, 2), (2, 2, 2))
    # always as many levels, so that the weights fit other grids
    assert fit_strides((8, 8, 8), (1, 1, 1)) == ((2, 2, 2), (1, 1, 1), (1, 1, 1), (1, 1, 1))


@pytest.mark.parametrize(
    ("names", "pairs", "single"),
    [
        (("heart", "aorta"), [], []),
        (("Parotid_R", "Parotid_L", "Mandible"), [(2, 1)], []),
        (("kidney_left", "kidney_right"), [(1, 2)], []),
        (("left lung", "right lung", "liver"), [(1, 2)], []),
        (("Eye-L", "brainstem"), [], ["Eye-L"]),
        (("Larynx", "alveolar", "Sinus"), [], []),
        (("LensL", "LensR", "kidneyLeft", "kidneyRight"), [(1, 2), (3, 4)], []),
        (("Lens_Lt", "Lens_Rt", "A_Sin"), [(1, 2)], ["A_Sin"]),
        (
            ("lung_upper_lobe_left", "lung_upper_lobe_right", "lung_middle_lobe_right"),
            [(1, 2)],
            ["lung_middle_lobe_right"],
        ),
        (("Niere_re", "Niere_li", "rein_gauche", "rein_droit"), [(2, 1), (3, 4)], []),
        (("Lunge links", "Lunge rechts", "parotis sinister", "parotis dexter"), [(1, 2), (3, 4)], []),
        # a guess, by which nothing is exchanged
        (("leftlung", "rightlung", "Heart"), [], ["leftlung", "rightlung"]),
        (("PAROTIDR", "PAROTIDL", "Lens_L", "Lens_R"), [(3, 4)], ["PAROTIDR", "PAROTIDL"]),
        (("lung upperleft", "lung upperright", "LV", "RV"), [], ["lung upperleft", "lung upperright", "LV", "RV"]),
        # two ways to say it beside each other
        (("Parotid_L", "Parotid_R", "parotid_left", "parotid_right"), [(1, 2), (3, 4)], []),
        (("Lung_L", "Lung_right"), [], ["Lung_L", "Lung_right"]),
        (("liver", "rectum", "larynx", "trachea"), [], []),
        (("leftlung", "heart"), [], []),
    ],
)
def test_sides_are_words_of_the_name(names, pairs, single):
    assert side_pairs({name: label for label, name in enumerate(names, start=1)}) == (pairs, single)


PAIRED, ONE_SIDED, NONE = {"Parotid_L": 1, "Parotid_R": 2}, {"Parotid_L": 1, "Cord": 2}, {"Heart": 1}


def test_mirroring_needs_a_pair_and_a_known_axis():
    assert flip_rules(NONE, CANONICAL, (0, 1, 2)) == ((0, 1, 2), ())
    assert flip_rules(NONE, None, (0, 1, 2)) == ((0, 1, 2), ())
    assert flip_rules(PAIRED, CANONICAL, (0, 1, 2)) == ((0, 1, 2), ((1, 2),))
    assert flip_rules(ONE_SIDED, CANONICAL, (0, 1, 2)) == ((0, 1), ())
    assert flip_rules(ONE_SIDED, None, (0, 1, 2)) == ((), ())
    assert flip_rules(PAIRED, None, (0, 1, 2)) == ((), ())


def test_what_was_understood_of_the_names_is_said():
    text = describe_sides(("Parotid_L", "Mandible", "Parotid_R", "Eye_L"))
    assert text.endswith("pairs: Parotid_L / Parotid_R; for one-sided without a counterpart that is understood: Eye_L")
    assert describe_sides(("heart",)).count("none") == 2


def test_a_data_set_without_any_organ():
    with pytest.raises(ValueError, match="no training case holds a voxel of heart, esophagus"):
        fit_cascade(facts(cases=[CaseFacts((9, 9, 9), {})]), "fitted", Budget())


def test_the_fitted_recipe_mirrors_pairs_only():
    assert fit_cascade(facts(), "fitted", Budget()).flip_axes == ()
    paired = fit_cascade(facts(labels=PAIRED), "fitted", Budget())
    assert paired.flip_axes == (2,) and paired.swap_on_flip == ((1, 2),) and paired.left_right_axis == 2


def test_the_box_of_a_case_that_leaves_organs_out_is_not_measured():
    """At prediction the box is that of all organs: only complete cases tell its size, and else it may be the whole image."""
    small, large = {1: Box((40, 80, 80), (50, 100, 100))}, {1: Box((10, 30, 30), (90, 170, 170))}
    shape = (100, 200, 200)

    def fine_shape(*cases):
        return fit_cascade(facts(cases=list(cases)), "fitted", Budget(memory_gb=1)).fine_shape

    complete = CaseFacts(shape, large)
    assert fine_shape(complete, *[CaseFacts(shape, small, complete=False)] * 9) == fine_shape(complete)
    whole = CaseFacts(shape, {1: Box.full(shape)})
    assert fine_shape(*[CaseFacts(shape, small, complete=False)] * 3) == fine_shape(whole)


def test_crops_reach_further_only_where_cases_are_incomplete():
    organs = {1: Box((40, 80, 80), (50, 100, 100))}
    for complete, reach in (((True, True), 0.0), ((True, False), 1.0), ((False, False), 0.5)):
        cases = [CaseFacts((100, 200, 200), organs, of_case) for of_case in complete]
        assert fit_cascade(facts(cases=cases), "fitted", Budget()).reach_unannotated == reach
        assert fit_cascade(facts(cases=cases), "paper", Budget()).reach_unannotated == 0
