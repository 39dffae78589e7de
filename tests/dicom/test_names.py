"""Names of clinical archives."""

import json

import pytest

from nnunet_oar.dicom.names import SIDED, SINGLE, Names, key, read_aliases


@pytest.mark.parametrize(
    "name, organ",
    [
        ("Parotid_L", "Parotid_L"), ("LEFT PAROTID", "Parotid_L"), ("parotid lt", "Parotid_L"), ("Parotid (R)", "Parotid_R"),
        ("ParotidL", "Parotid_L"), ("Lt. Parotid Gland", "Parotid_L"), ("parotis re", "Parotid_R"), ("Lt Lung", "Lung_L"),
        ("Spinal-Cord", "SpinalCord"), ("spinalcord", "SpinalCord"), ("CORD", "SpinalCord"), ("Oesophagus", "Esophagus"),
        ("Femoral Head R", "Femur_Head_R"), ("Glnd_Submand_R", "Glnd_Submand_R"), ("r kidney", "Kidney_R"),
        # neither is what it resembles
        ("SpinalCord_PRV", None), ("Parotid_L_opt", None), ("Parotid", None), ("Lungs", None), ("Lung L+R", None),
        ("~Lung_L", None), ("Lung~_L", None), ("Rectum(?)", None), ("SpinalCord+", None), ("Liver-", None), ("_Heart", None),
        ("zHeart", None), ("Medulla", None), ("Heart_L", None), ("PTV 60", None), ("", None), ("L", None), ("Parotid_LR", None),
    ],
)  # fmt: skip
def test_names(name, organ):
    assert Names().organ(name) == organ


def test_no_name_stands_for_two_organs():
    seen = {}
    for organ, names in {**SINGLE, **SIDED}.items():
        for name in (organ, *names):
            assert seen.setdefault(key(name), organ) == organ
    assert all(Names().organ(organ) == organ for organ in SINGLE)
    assert all(Names().organ(f"{organ}_{side}") == f"{organ}_{side}" for organ in SIDED for side in "LR")


def test_the_users_names_win(tmp_path):
    (tmp_path / "names.json").write_text(json.dumps({"MyCord": ["cord"], "Lad": ["LAD artery"], "Lungs": []}))
    names = Names(read_aliases(tmp_path / "names.json"))
    assert [names.organ(name) for name in ("CORD", "Spinal Cord", "lad-artery", "lungs")] == [
        "MyCord",
        "SpinalCord",
        "Lad",
        "Lungs",
    ]
    assert names.ordered(["Lad", "Heart", "Brain"]) == ["Brain", "Heart", "Lad"]


@pytest.mark.parametrize("text", ["[]", '{"A": "b"}', '{"A": [1]}', "{", '{"A": ["x"], "B": ["X"]}'])
def test_nonsense_is_refused(text, tmp_path):
    (tmp_path / "names.json").write_text(text)
    with pytest.raises(ValueError):
        Names(read_aliases(tmp_path / "names.json"))
