import json
import pickle

import numpy as np
import pytest

from nnunet_oar.inference.postprocessing import drop_small_components, write_pickle


def test_each_label_loses_its_own_specks():
    segmentation = np.zeros((6, 40, 40), np.uint8)
    segmentation[0:4, 0:10, 0:10] = 1  # 400 voxels
    segmentation[5, 30, 30:49] = 1  # 10 of them: dropped
    segmentation[5, 20, 0:3] = 2  # the only component of its label: kept
    before = segmentation.copy()
    result = drop_small_components(segmentation, [1, 2])
    assert result.dtype == np.uint8 and (segmentation == before).all()
    assert (result == 1).sum() == 400 and (result == 2).sum() == 3


def test_the_pickle_is_what_nnunet_runs(tmp_path):
    (tmp_path / "dataset.json").write_text(json.dumps({"labels": {"background": 0, "a": 1, "b": 2}}))
    write_pickle(tmp_path, tmp_path / "pp.pkl", 0.1)
    functions, arguments = pickle.loads((tmp_path / "pp.pkl").read_bytes())
    assert functions == [drop_small_components] and arguments == [{"labels": [1, 2], "fraction": 0.1}]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dataset.json", "pp.pkl"]


def test_what_is_wrong_is_said(tmp_path):
    with pytest.raises(ValueError, match="dataset.json does not exist"):
        write_pickle(tmp_path, tmp_path / "pp.pkl", 0.05)
    with pytest.raises(ValueError, match="fraction must lie"):
        write_pickle(tmp_path, tmp_path / "pp.pkl", 5)
