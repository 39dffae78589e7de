"""Which organs each case annotates, and the errors for dataset.json files that do not say."""

import json

import numpy as np
import pytest

from nnunet_oar.annotations import Annotations, differences, organ_labels, refuse_changed_dataset_json

LABELS = {"background": 0, "liver": 3, "brainstem": 1, "parotid": 2}
SOURCES = {
    "han": {"cases": ["HAN_*"], "labels": ["brainstem", "parotid"]},
    "abdomen": {"cases": ["ABD_0?", "ABD_10"], "labels": ["liver"]},
}


def dataset_json(**changes) -> dict:
    return {"labels": LABELS, "annotations": SOURCES} | changes


def test_organs_in_the_order_of_the_labels():
    assert organ_labels(dataset_json()) == {"brainstem": 1, "parotid": 2, "liver": 3}


def test_cases_of_no_source_are_scored_on_everything():
    annotations = Annotations.from_dataset_json(dataset_json())
    assert annotations.scored("ABD_03").tolist() == [False, False, True] and annotations.scored("TEST_1").all()


def test_masks_follow_the_source():
    annotations = Annotations.from_dataset_json(dataset_json())
    assert annotations.annotated("HAN_7").tolist() == [True, True, False]
    assert annotations.annotated("ABD_10").tolist() == [False, False, True]
    assert annotations.labels("HAN_7") == {1, 2} and annotations.annotated("ABD_03").dtype == np.bool_
    assert not annotations.complete


def test_without_the_key_everything_is_annotated():
    annotations = Annotations.from_dataset_json({"labels": LABELS})
    assert annotations.annotated("anything").all() and annotations.complete and annotations.source("x") is None


def test_sources_that_annotate_everything_are_complete():
    everything = {"a": {"cases": ["*"], "labels": ["liver", "parotid", "brainstem"]}}
    assert Annotations.from_dataset_json(dataset_json(annotations=everything)).complete


@pytest.mark.parametrize(("case", "where"), [("LUNG_1", "no source"), ("han_1", "no source"), ("ABD_11", "no source")])
def test_a_case_without_a_source_is_named(case, where):
    annotations = Annotations.from_dataset_json(dataset_json())
    with pytest.raises(ValueError, match=f"case {case} belongs to {where}"):
        annotations.check(["HAN_1", case])


def test_a_case_of_two_sources_is_named():
    both = SOURCES | {"more": {"cases": ["*_1"], "labels": ["liver"]}}
    with pytest.raises(ValueError, match="case HAN_1 belongs to 'han' and 'more'"):
        Annotations.from_dataset_json(dataset_json(annotations=both)).annotated("HAN_1")


@pytest.mark.parametrize(
    ("entries", "sentence"),
    [
        ({}, "must be an object of sources"),
        ([], "must be an object of sources"),
        (
            {"a": {"cases": ["*"], "labels": ["lung"]}},
            "source 'a' annotates 'lung', which is none of the labels brainstem",
        ),
        ({"a": {"cases": ["*"]}}, "source 'a' must be"),
        ({"a": {"cases": "*", "labels": ["liver"]}}, "cases of source 'a' must be a list of names"),
        ({"a": {"cases": ["*"], "labels": [3]}}, "labels of source 'a' must be a list of names"),
        ({"a": {"cases": ["*"], "labels": []}}, "needs at least one"),
        ({"a": {"cases": ["*"], "labels": ["background"]}}, "annotates 'background'"),
    ],
)
def test_nonsense_is_one_sentence(entries, sentence):
    with pytest.raises(ValueError, match=sentence) as error:
        Annotations.from_dataset_json(dataset_json(annotations=entries))
    assert "\n" not in str(error.value)


def test_patterns_are_not_printed():
    """nnU-Net writes str() of what a trainer holds into debug.json, and patterns may be names."""
    assert "HAN_" not in str(Annotations.from_dataset_json(dataset_json()))


def write(folder, content):
    folder.mkdir(parents=True)
    (folder / "dataset.json").write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("changes", "keys", "remedy"),
    [
        ({"annotations": {}}, ["annotations"], "nnunet_oar annotations -d 7 --update"),
        ({"body_regions": {"names": []}}, ["body_regions"], "nnunet_oar annotations -d 7 --update"),
        ({"labels": {"background": 0}}, ["labels"], "prepare it again"),
    ],
)
def test_a_raw_dataset_json_that_has_changed_stops_training(tmp_path, changes, keys, remedy):
    write(tmp_path / "raw" / "Dataset007_X", dataset_json(**changes))
    write(tmp_path / "preprocessed" / "Dataset007_X", dataset_json())
    assert differences(dataset_json(**changes), dataset_json()) == keys
    with pytest.raises(RuntimeError, match=f"{keys[0]} differ.*{remedy}"):
        refuse_changed_dataset_json(str(tmp_path / "raw"), str(tmp_path / "preprocessed"), "Dataset007_X")


def test_other_keys_may_change_and_raw_data_may_be_gone(tmp_path):
    write(tmp_path / "raw" / "Dataset007_X", dataset_json(description="new"))
    write(tmp_path / "preprocessed" / "Dataset007_X", dataset_json())
    for raw in (str(tmp_path / "raw"), str(tmp_path / "elsewhere"), None):
        refuse_changed_dataset_json(raw, str(tmp_path / "preprocessed"), "Dataset007_X")
