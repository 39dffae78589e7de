"""Body regions of slices: given in dataset.json, whatever way the file is stored, or derived from the organs."""

import numpy as np
import pytest

from nnunet_oar.body_regions import NO_REGION, BodyRegions, derive_regions, nearest_region

ENTRY = {"names": ["head", "chest"], "cases": {"a": [[0, 3, "chest"], [4, 10, "head"]]}}


def regions(**changes) -> BodyRegions | None:
    return BodyRegions.from_dataset_json({"body_regions": ENTRY | changes})


def properties(direction, before=10, box=(0, 10)) -> dict:
    """Of a case read as (z, y, x); direction: +1 where z grows towards the head."""
    return {
        "sitk_stuff": {"direction": (1, 0, 0, 0, 1, 0, 0, 0, direction)},
        "shape_before_cropping": (before, 5, 5),
        "bbox_used_for_cropping": [list(box), [0, 5], [0, 5]],
    }


def test_without_the_key_there_are_none():
    assert BodyRegions.from_dataset_json({}) is None


def test_slices_are_counted_from_the_feet():
    assert regions().of_slices("a", 10).tolist() == [1, 1, 1, NO_REGION, 0, 0, 0, 0, 0, 0]
    assert regions().of_slices("another case", 3).tolist() == [NO_REGION] * 3


def test_files_stored_head_first_give_the_same_anatomy():
    upright = regions().of_preprocessed("a", properties(1), 10, 0, (0, 1, 2))
    assert upright.tolist() == [1, 1, 1, -1, 0, 0, 0, 0, 0, 0]
    stored_head_first = regions().of_preprocessed("a", properties(-1), 10, 0, (0, 1, 2))
    assert stored_head_first.tolist() == upright.tolist()[::-1]


def test_resampling_and_cropping_keep_the_place():
    twice = regions().of_preprocessed("a", properties(1), 20, 0, (0, 1, 2))
    assert twice.tolist() == np.repeat([1, 1, 1, -1, 0, 0, 0, 0, 0, 0], 2).tolist()
    cut = regions().of_preprocessed("a", properties(1, box=(2, 8)), 6, 0, (0, 1, 2))
    assert cut.tolist() == [1, -1, 0, 0, 0, 0]
    cut_head_first = regions().of_preprocessed("a", properties(-1, box=(2, 8)), 6, 0, (0, 1, 2))
    assert cut_head_first.tolist() == [0, 0, 0, 0, -1, 1]


def test_transposed_plans_know_their_body_axis():
    swapped = properties(1) | {"shape_before_cropping": (5, 10, 5), "bbox_used_for_cropping": [[0, 5], [0, 10], [0, 5]]}
    assert regions().of_preprocessed("a", swapped, 10, 1, (1, 0, 2)).tolist() == [1, 1, 1, -1, 0, 0, 0, 0, 0, 0]
    assert (regions().of_preprocessed("a", swapped, 5, 0, (1, 0, 2)) == NO_REGION).all()
    assert (regions().of_preprocessed("a", {}, 5, 0, (0, 1, 2)) == NO_REGION).all()


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"names": "head"}, "names must be a list"),
        ({"cases": []}, "must be {"),
        ({"cases": {"a": [[0, 3, "leg"]]}}, "a names 'leg', which is none of head, chest"),
        ({"cases": {"a": [[3, 3, "head"]]}}, "a must have a list of"),
        ({"cases": {"a": [[0, 5, "head"], [4, 8, "chest"]]}}, "in order, got \\[4, 8, 'chest'\\]"),
        ({"cases": {"a": "head"}}, "a must have a list of"),
    ],
)
def test_nonsense_is_one_sentence(changes, sentence):
    with pytest.raises(ValueError, match=sentence):
        regions(**changes)


def test_a_range_beyond_the_ct_is_named():
    with pytest.raises(ValueError, match="a has 8 slices, but a range ends at 10"):
        regions().of_slices("a", 8)


def test_derived_regions_are_the_commonest_sets_of_organs():
    slices = [frozenset()] * 3 + [frozenset({1})] * 5 + [frozenset({2, 1})] * 5 + [frozenset({i}) for i in range(3, 9)]
    assert derive_regions(slices) == ((1,), (1, 2), (), (3,), (4,))


def test_a_slice_takes_the_region_whose_organs_differ_least():
    sets = ((1,), (1, 2), ())
    holds = np.array([[1, 1, 0, 0, 1], [0, 1, 0, 0, 1], [0, 0, 0, 1, 1]], dtype=bool)
    assert nearest_region(holds, sets).tolist() == [0, 1, 2, 2, 1]
