import json
import pickle

import numpy as np
import pytest

from nnunet_oar.inference.postprocessing import bridge_slices, drop_small_components, postprocess, write_pickle
from nnunet_oar.roi import Box


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


def tube(gaps=(), shape=(40, 20, 20)):
    """A tube that wanders to the side, without the slices in gaps."""
    mask = np.zeros(shape, bool)
    for z in range(3, 26):
        mask[z, 8:13, 2 + z // 3 : 8 + z // 3] = True
    whole = mask.copy()
    mask[list(gaps)] = False
    return mask, whole


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_gaps_are_bridged_by_shape_and_stray_slices_dropped(axis):
    mask, whole = tube((7, 8, 15))
    mask[36, 3, 3] = True
    spacing = np.roll((3.0, 1.0, 1.0), axis).tolist()
    found = np.moveaxis(bridge_slices(np.moveaxis(mask, 0, axis), axis, spacing), axis, 0)
    dice = 2 * (found & whole).sum() / (found.sum() + whole.sum())
    before = 2 * (mask & whole).sum() / (mask.sum() + whole.sum())
    assert dice > 0.98 > 0.95 > before and not found[36].any()
    # what is there stays, beside what was stray
    mask[36] = False
    assert (found >= mask).all()


def test_a_gap_that_is_too_long_is_an_end():
    mask, _ = tube(range(10, 20))
    assert bridge_slices(mask, 0, (3.0, 1.0, 1.0))[:10].any() and not bridge_slices(mask, 0, (3.0, 1.0, 1.0))[10:].any()
    empty = np.zeros((3, 4, 5), bool)
    assert not bridge_slices(empty, 0, (1, 1, 1)).any()


def test_each_organ_gets_its_own_steps_and_takes_nobodys_voxels():
    mask, whole = tube((12, 13))
    labels = mask.astype(np.uint8)
    labels[12, 10, 8] = 2  # another organ in the gap
    labels[0, :3, :3], labels[29, 19, 19], labels[5, 0, 0] = 2, 2, 1
    boxes = {1: Box((0, 0, 0), (40, 20, 20)), 2: Box((0, 0, 0), (40, 20, 20))}
    steps = {1: ("bridge_slices", "drop_small"), 2: ("keep_largest",)}
    kept = labels.copy()
    assert postprocess(kept, boxes, {}, 0, (3.0, 1.0, 1.0)) == {} and np.array_equal(kept, labels)
    changes = postprocess(labels, boxes, steps, 0, (3.0, 1.0, 1.0))
    assert labels[5, 0, 0] == 0 and labels[29, 19, 19] == 0 and (labels[0, :3, :3] == 2).all()
    assert changes[2] == {"added": 0, "removed": 2, "components_removed": 2}
    # the gap was closed around organ 2, which then lost its voxel there
    assert (labels[12:14] == 1).sum() >= 0.9 * whole[12:14].sum() - 1 and changes[1]["added"] > 40
