"""Metrics against brute force and two libraries, on anisotropic voxels."""

import time

import numpy as np
import pytest
import surface_distance
import torch
from scipy import ndimage
from scipy.spatial import cKDTree

from nnunet_oar.evaluation.metrics import METRICS, added_path, pairs, scores

SPACINGS = [(3.0, 1.0, 1.0), (2.5, 0.7, 1.1), (1.0, 1.0, 4.0)]


def random_pair(seed, shape=(14, 18, 16)):
    """Two organs that overlap, smooth, sometimes in two parts and at the border."""
    rng = np.random.default_rng(seed)
    field = ndimage.gaussian_filter(rng.normal(size=shape), 2)
    other = field + 0.4 * ndimage.gaussian_filter(rng.normal(size=shape), 2)
    threshold = np.quantile(field, 0.85)
    return other > threshold, field > threshold


@pytest.mark.parametrize("seed", range(50))
def test_cut_out_organs_score_as_whole_volumes_do(seed):
    prediction, reference = random_pair(seed)
    spacing = SPACINGS[seed % 3]
    (pair,) = pairs(prediction * np.uint8(3), reference * np.uint8(3), [3])
    found = scores(pair.prediction, pair.reference, spacing)
    whole = [np.pad(mask, 3) for mask in (prediction, reference)]
    distances = surface_distance.compute_surface_distances(whole[1], whole[0], spacing)
    assert found["dice"] == pytest.approx(surface_distance.compute_dice_coefficient(*whole), abs=1e-6)
    assert found["surface_dice"] == pytest.approx(
        surface_distance.compute_surface_dice_at_tolerance(distances, 2.0), abs=1e-6
    )
    assert found["hd95_mm"] == pytest.approx(surface_distance.compute_robust_hausdorff(distances, 95), abs=1e-3)
    assert found["hd_mm"] == pytest.approx(surface_distance.compute_robust_hausdorff(distances, 100), abs=1e-3)
    to_prediction, to_reference = surface_distance.compute_average_surface_distance(distances)
    areas = [distances[f"surfel_areas_{of}"].sum() for of in ("gt", "pred")]
    assert found["msd_mm"] == pytest.approx(np.average([to_prediction, to_reference], weights=areas), abs=1e-6)
    voxel = np.prod(spacing) / 1000
    assert found["volume_ml"] == pytest.approx(prediction.sum() * voxel, abs=1e-6)
    assert found["volume_difference_ml"] == pytest.approx((prediction.sum() - reference.sum()) * voxel, abs=1e-6)


def corners(mask, spacing):
    """Places, in mm, where a voxel of the mask meets one that is not: the corners that both have."""
    padded = np.pad(mask, 1)
    count = sum(
        padded[a : a + mask.shape[0] + 1, b : b + mask.shape[1] + 1, c : c + mask.shape[2] + 1].astype(int)
        for a in (0, 1) for b in (0, 1) for c in (0, 1)
    )  # fmt: skip
    return np.argwhere((count > 0) & (count < 8)) * np.array(spacing)


@pytest.mark.parametrize("seed", range(6))
def test_hausdorff_by_brute_force(seed):
    prediction, reference = random_pair(seed)
    spacing = SPACINGS[seed % 3]
    a, b = corners(prediction, spacing), corners(reference, spacing)
    expected = max(cKDTree(b).query(a)[0].max(), cKDTree(a).query(b)[0].max())
    assert scores(prediction, reference, spacing)["hd_mm"] == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize("seed", range(6))
def test_surface_dice_as_monai(seed):
    monai = pytest.importorskip("monai.metrics")
    prediction, reference = (np.pad(mask, 2) for mask in random_pair(seed))
    spacing = SPACINGS[seed % 3]
    one_hot = [torch.from_numpy(np.stack((~mask, mask))[None].astype(np.float32)) for mask in (prediction, reference)]
    theirs = monai.compute_surface_dice(
        *one_hot, class_thresholds=[2.0], spacing=spacing, use_subvoxels=True, include_background=False
    )
    assert scores(prediction, reference, spacing, 2.0)["surface_dice"] == pytest.approx(float(theirs), abs=1e-4)


def test_a_stray_voxel_costs_no_more_than_its_surface():
    """Far away, it makes the box as large as the CT."""
    reference = np.zeros((200, 300, 300), bool)
    reference[90:110, 140:160, 140:160] = True
    prediction = reference.copy()
    prediction[0, 0, 0] = prediction[-1, -1, -1] = True
    start = time.perf_counter()
    found = scores(prediction, reference, (2.5, 1.0, 1.0))
    assert found["hd_mm"] > 200 and time.perf_counter() - start < 5


def test_by_hand():
    """A cube of 4 voxels a side and the same one moved by one voxel of 2 mm along the second axis."""
    reference = np.zeros((8, 10, 8), bool)
    reference[2:6, 2:6, 2:6] = True
    found = scores(np.roll(reference, 1, axis=1), reference, (5.0, 2.0, 1.0), tolerance_mm=1.0)
    assert found["dice"] == pytest.approx(48 / 64) and found["hd_mm"] == pytest.approx(2.0)
    assert (
        found["volume_difference_ml"] == 0 and found["volume_ml"] == pytest.approx(0.64) and found["state"] == "found"
    )
    # the outline of 4 x 4 pixels has 12; of these the moved one has the four at its two sides, in all but one row
    assert found["added_path_mm"] == pytest.approx(4 * (4 + 2) * 1.5)


def test_added_path_counts_outlines_of_slices_only():
    reference = np.zeros((5, 7, 7), bool)
    reference[1:4, 1:6, 1:6] = True
    inner = np.zeros_like(reference)
    inner[1:4, 2:5, 2:5] = True
    assert added_path(reference, reference, (3, 1, 1)) == 0
    assert added_path(inner, reference, (3, 1, 1)) == 3 * 16
    assert added_path(np.zeros_like(reference), reference, (3, 1, 1), 0) == 3 * 16
    # across another axis the slices are 3 x 5 pixels of 3 x 1 mm
    assert added_path(np.zeros_like(reference), reference, (3, 1, 1), 1) == 5 * 12 * 2


@pytest.mark.parametrize(
    "there, state, expected",
    [
        ((False, False), "absent", dict.fromkeys(METRICS)),
        (
            (False, True),
            "missed",
            {"dice": 0, "surface_dice": 0, "hd95_mm": None, "msd_mm": None, "volume_difference_ml": -0.001},
        ),
        (
            (True, False),
            "invented",
            {"dice": 0, "surface_dice": 0, "hd_mm": None, "added_path_mm": 0, "volume_difference_ml": 0.001},
        ),
    ],
)
def test_absent_organs(there, state, expected):
    masks = [np.zeros((3, 3, 3), np.uint8) for _ in there]
    for mask, wanted in zip(masks, there, strict=True):
        mask[1, 1, 1] = wanted
    (pair,) = pairs(*masks, [1])
    found = scores(pair.prediction, pair.reference, (1, 1, 1))
    assert found["state"] == state and {name: found[name] for name in expected} == expected


def test_shapes_must_agree():
    with pytest.raises(ValueError, match="one shape"):
        list(pairs(np.zeros((2, 2, 2)), np.zeros((2, 2, 3)), [1]))
