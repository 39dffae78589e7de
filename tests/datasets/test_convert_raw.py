"""dataset.json of converted cases: which organs each of them annotates."""

from pathlib import Path

from nnunet_oar.annotations import Annotations
from nnunet_oar.datasets.convert.layout import Case
from nnunet_oar.datasets.convert.raw import annotation_sources

ORGANS = ("liver", "spleen")


def masks(name: str, *organs: str) -> Case:
    return Case(name, Path("ct.nii.gz"), masks={organ: Path(f"{organ}.nii.gz") for organ in organs})


def test_a_source_holds_its_cases_and_no_others_whatever_their_names():
    """Names are no patterns: each of these would match the next one, too, and case_[1] not itself."""
    cases = [
        masks("case_[1]", "liver"),
        masks("case_*", "liver", "spleen"),
        masks("case_?", "spleen"),
        masks("case_1", "spleen"),
    ]
    sources = annotation_sources(cases, ORGANS)
    assert [source["labels"] for source in sources.values()] == [["liver", "spleen"], ["spleen"], ["liver"]]
    labels = {"background": 0, "liver": 1, "spleen": 2}
    annotations = Annotations.from_dataset_json({"labels": labels, "annotations": sources})
    for case in cases:
        assert annotations.labels(case.name) == {labels[organ] for organ in case.masks}


def test_complete_cases_need_no_sources():
    assert annotation_sources([masks("a", *ORGANS), Case("b", Path("ct.nii.gz"), Path("labels.nii.gz"))], ORGANS) == {}


def test_a_label_map_annotates_every_organ():
    cases = [Case("b", Path("ct.nii.gz"), Path("labels.nii.gz")), masks("a", "spleen")]
    assert annotation_sources(cases, ORGANS) == {
        "group_1": {"cases": ["b"], "labels": ["liver", "spleen"]},
        "group_2": {"cases": ["a"], "labels": ["spleen"]},
    }
