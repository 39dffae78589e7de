"""The synthetic CTs: anatomy in patient coordinates, the same at every spacing, and a data set for nnU-Net."""

import argparse
import json
import multiprocessing
import subprocess
import sys

import numpy as np
import pytest
import SimpleITK as sitk
from scipy import ndimage

from nnunet_oar.cli import phantom as command
from nnunet_oar.datasets import phantom_thorax
from nnunet_oar.datasets.phantom import REGIONS, Phantom, make_phantom, write_dataset
from nnunet_oar.datasets.phantom_shapes import Canvas, Deformation, Grid, SmoothField, on_grid

LABELS = phantom_thorax.LABELS
COARSE_MM = (8.0, 8.0, 8.0)
CASES = (0, 1, 4)  # without and with contrast agent


@pytest.fixture(scope="module")
def phantoms() -> list[Phantom]:
    return [make_phantom("thorax", seed=0, case=case, spacing_mm=(4, 4, 4)) for case in CASES]


def centroid_mm(phantom: Phantom, mask: np.ndarray) -> np.ndarray:
    """(x, y, z) in LPS of the centre of mass of a mask."""
    return np.argwhere(mask).mean(0)[::-1] * phantom.spacing_mm[::-1] + phantom.origin_xyz_mm


def volume_ml(phantom: Phantom, organ: str) -> float:
    return (phantom.labels == LABELS[organ]).sum() * np.prod(phantom.spacing_mm) / 1000


def test_a_case_depends_on_seed_and_number_only():
    first, again = (make_phantom("thorax", 3, 5, COARSE_MM) for _ in range(2))
    assert first.image_hu.tobytes() == again.image_hu.tobytes()
    assert first.labels.tobytes() == again.labels.tobytes()
    assert first.origin_xyz_mm == again.origin_xyz_mm
    swapped = make_phantom("thorax", 5, 3, COARSE_MM)
    assert swapped.image_hu.tobytes() != first.image_hu.tobytes() and swapped.origin_xyz_mm != first.origin_xyz_mm


def test_another_spacing_shows_the_same_anatomy(phantoms):
    """At three times the spacing, voxel i has its centre where voxel 3 i + 1 has it: the labels there are the same."""
    fine, coarse = phantoms[0], make_phantom("thorax", 0, 0, (12, 12, 12))
    size = np.minimum(coarse.labels.shape, [(n - 1) // 3 for n in fine.labels.shape])
    z, y, x = (slice(n) for n in size)
    sampled, drawn = fine.labels[1::3, 1::3, 1::3][z, y, x], coarse.labels[z, y, x]
    assert (sampled != drawn).sum() <= 3  # a speck dropped at one spacing only
    assert coarse.origin_xyz_mm == pytest.approx(np.add(fine.origin_xyz_mm, 4))


@pytest.mark.parametrize("case", range(len(CASES)))
def test_types_and_ranges(phantoms, case):
    phantom = phantoms[case]
    assert phantom.image_hu.dtype == np.int16 and phantom.labels.dtype == np.uint8
    assert phantom.image_hu.shape == phantom.labels.shape
    assert phantom.image_hu.min() >= -1024 and phantom.image_hu.max() <= 1500
    assert phantom.image_hu.max() > 250  # bone
    assert set(np.unique(phantom.labels)) == {0, *LABELS.values()}


@pytest.mark.parametrize(
    ("organ", "low", "high"),
    [("esophagus", 20, 60), ("heart", 400, 900), ("trachea", 20, 60), ("aorta", 110, 270)],
)
def test_organs_have_human_size(phantoms, organ, low, high):
    volumes = [volume_ml(phantom, organ) for phantom in phantoms]
    assert all(low < v < high for v in volumes), volumes
    assert max(volumes) > 1.05 * min(volumes)  # people differ


def test_every_organ_is_one_piece(phantoms):
    others = [make_phantom("thorax", 0, case, spacing_mm) for case, spacing_mm in ((4, (5, 2.5, 3)), (11, (6, 6, 6)))]
    for phantom in (*phantoms, *others):
        organs = [phantom.labels == value for value in LABELS.values()]
        assert [ndimage.label(organ, np.ones((3, 3, 3)))[1] for organ in organs] == [1, 1, 1, 1]
        assert min(organ.sum() for organ in organs) >= 60  # voxels


def test_left_is_left(phantoms):
    """LPS: the patient's left is +x, the back +y, the head +z."""
    for phantom in phantoms:
        lower = np.zeros(phantom.labels.shape, bool)
        trachea = phantom.labels == LABELS["trachea"]
        lower[: np.flatnonzero(trachea.any((1, 2)))[0]] = True  # below the bronchi
        bone = ndimage.binary_opening(lower & (phantom.image_hu > 200), np.ones((1, 3, 3)))
        organs = phantom.labels > 0
        back = np.zeros_like(lower)
        back[:, int(np.argwhere(organs)[:, 1].mean()) :] = True
        spine = centroid_mm(phantom, bone & back)
        heart = centroid_mm(phantom, phantom.labels == LABELS["heart"])
        esophagus = centroid_mm(phantom, phantom.labels == LABELS["esophagus"])
        descending = phantom.labels == LABELS["aorta"]
        descending = centroid_mm(phantom, descending & lower & back)
        assert heart[0] > spine[0] + 5
        assert descending[0] > spine[0] + 5
        assert heart[1] < esophagus[1] < spine[1]
        assert heart[2] < centroid_mm(phantom, trachea)[2]


def test_the_esophagus_can_not_be_found_by_its_density(phantoms):
    for phantom in phantoms:
        esophagus = phantom.labels == LABELS["esophagus"]
        shell = ndimage.binary_dilation(esophagus, iterations=2) & (phantom.labels == 0)
        inside, around = (phantom.image_hu[mask] for mask in (esophagus, shell))
        inside, around = (hu[(hu > 0) & (hu < 110)] for hu in (inside, around))  # without air, lung, fat, bone
        assert around.size > 0.1 * shell.sum()
        assert abs(inside.mean() - around.mean()) < 15


def test_trachea_holds_air_and_blood_is_enhanced_in_some(phantoms):
    aorta_hu = [np.median(p.image_hu[p.labels == LABELS["aorta"]]) for p in phantoms]
    assert all(20 < hu < 250 for hu in aorta_hu) and max(aorta_hu) - min(aorta_hu) > 25
    for phantom in phantoms:
        assert np.percentile(phantom.image_hu[phantom.labels == LABELS["trachea"]], 20) < -700


def test_patient_lies_on_a_table_in_air(phantoms):
    for phantom in phantoms:
        front, back = phantom.image_hu[:, :2], phantom.image_hu[:, -12:]
        assert np.median(front) < -900  # air before the chest
        shell = np.median(back, axis=(0, 2))
        assert shell.max() > shell.min() + 40  # the top of the table: a denser line along x in every slice
        assert (phantom.image_hu[:, -3:] < 0).mean() > 0.9


def test_examinations_differ_as_in_a_clinic():
    grids = [phantom_thorax.sample_grid(np.random.default_rng(seed)) for seed in range(300)]
    spacing = np.array([grid.spacing_mm for grid in grids])
    assert spacing[:, 0].min() == 2 and spacing[:, 0].max() == 5
    assert 0.8 <= spacing[:, 1].min() < 0.9 and 1.3 < spacing[:, 1].max() <= 1.4
    np.testing.assert_array_equal(spacing[:, 1], spacing[:, 2])
    assert np.max([grid.shape for grid in grids], 0).tolist() <= [121, 410, 510]
    for grid in grids:  # from above the arch of the aorta to below the heart
        assert grid.lower_mm[0] <= -160 and grid.lower_mm[0] + grid.extent_mm[0] >= 52


def test_boxes_hold_what_is_drawn():
    """A shape painted in its box covers what it covers when painted in the whole volume: no box is too tight."""
    grid = Grid(lower_mm=(-60, -70, -80), extent_mm=(120, 140, 160), spacing_mm=(3, 2, 2.5))
    for seed in range(5):
        rng = np.random.default_rng(seed)
        canvas = Canvas(grid, Deformation(rng, scale=0.95, coarse_mm=4, fine_mm=0.9, tilt_degrees=4))
        centre, semi = rng.uniform(-30, 30, 3), rng.uniform(6, 30, 3)
        everything = (slice(None),) * 3
        _, distance = canvas.ellipsoid_distance(centre, semi, box=everything)
        canvas.ellipsoid(centre, semi, 50, label=1)
        np.testing.assert_array_equal(canvas.labels == 1, distance < 1)

        ends = rng.uniform(-30, 30, (2, 3))
        canvas.tube(ends, 7.0, 50, label=2)
        voxels = np.stack(canvas.coordinates(everything), -1) - ends[0]
        way = ends[1] - ends[0]
        along = np.clip(voxels @ way / (way @ way), 0, 1)
        distance_mm = np.linalg.norm(voxels - along[..., None] * way, axis=-1)
        assert (canvas.labels == 2)[distance_mm < 6.99].all() and not (canvas.labels == 2)[distance_mm > 7.01].any()


def test_interpolated_field_is_the_field():
    field = SmoothField(np.random.default_rng(0), pitch_mm=25, sd=1.0)
    z, y, x = np.arange(-40, 40, 7.0), np.arange(-30, 33, 1.3), np.arange(-61, 50, 0.9)
    interpolated = on_grid((field,), z, y, x)
    exact = field.on_grid(z, y, x)
    assert np.abs(interpolated - exact).max() < 0.05 and np.std(interpolated - exact) < 0.01
    assert 0.5 < np.std(field.on_grid(*[np.arange(-300.0, 300, 20)] * 3)) < 1.5


def test_written_data_set_reads_back(tmp_path):
    folder = tmp_path / "raw" / "Dataset055_PhantomThorax"
    names = write_dataset(folder, "thorax", 2, 1, seed=7, spacing_mm=(8, 7, 9), disable_progress_bar=True)
    assert names == ["phantom_thorax_000", "phantom_thorax_001", "phantom_thorax_002"]
    description = json.loads((folder / "dataset.json").read_text())
    assert description["channel_names"] == {"0": "CT"}
    assert description["labels"] == {"background": 0, "esophagus": 1, "heart": 2, "trachea": 3, "aorta": 4}
    assert description["numTraining"] == 2 and description["file_ending"] == ".nii.gz"
    assert "synthetic" in description["description"].lower()
    written = sorted(str(p.relative_to(folder)) for p in folder.rglob("*.nii.gz"))
    assert written == [
        "imagesTr/phantom_thorax_000_0000.nii.gz",
        "imagesTr/phantom_thorax_001_0000.nii.gz",
        "imagesTs/phantom_thorax_002_0000.nii.gz",
        "labelsTr/phantom_thorax_000.nii.gz",
        "labelsTr/phantom_thorax_001.nii.gz",
        "labelsTs/phantom_thorax_002.nii.gz",
    ]
    assert list(folder.parent.iterdir()) == [folder]  # no partial folder is left

    expected = make_phantom("thorax", 7, 2, (8, 7, 9))
    image = sitk.ReadImage(str(folder / "imagesTs/phantom_thorax_002_0000.nii.gz"))
    labels = sitk.ReadImage(str(folder / "labelsTs/phantom_thorax_002.nii.gz"))
    np.testing.assert_array_equal(sitk.GetArrayFromImage(image), expected.image_hu)
    np.testing.assert_array_equal(sitk.GetArrayFromImage(labels), expected.labels)
    assert image.GetPixelID() == sitk.sitkInt16 and labels.GetPixelID() == sitk.sitkUInt8
    for file in (image, labels):
        np.testing.assert_allclose(file.GetSpacing(), (9, 7, 8), rtol=1e-6)
        np.testing.assert_allclose(file.GetOrigin(), expected.origin_xyz_mm, atol=1e-3)
        np.testing.assert_allclose(file.GetDirection(), np.eye(3).ravel(), atol=1e-6)
    heart = np.argwhere(expected.labels == LABELS["heart"]).mean(0)[::-1]
    physical = image.TransformContinuousIndexToPhysicalPoint(heart.tolist())
    np.testing.assert_allclose(physical, centroid_mm(expected, expected.labels == LABELS["heart"]), atol=0.01)


@pytest.mark.parametrize("region", ["thorax", "three-sources"])
def test_processes_write_the_same_files(tmp_path, region):
    for name, processes in (("one", 1), ("two", 2)):
        write_dataset(tmp_path / name, region, 2, spacing_mm=(9, 9, 9), processes=processes, disable_progress_bar=True)
    files = [file for file in (tmp_path / "one").rglob("*") if file.is_file()]
    assert len(files) > 4
    for file in files:
        other = tmp_path / "two" / file.relative_to(tmp_path / "one")
        assert file.read_bytes() == other.read_bytes()
    assert not multiprocessing.active_children()


def test_an_existing_folder_is_refused_and_left_alone(tmp_path):
    folder = tmp_path / "Dataset055_Mine"
    folder.mkdir()
    (folder / "dataset.json").write_text("{}")
    with pytest.raises(ValueError, match="Dataset055_Mine exists and is not an empty folder"):
        write_dataset(folder, "thorax", 1, spacing_mm=COARSE_MM)
    assert [p.name for p in tmp_path.rglob("*")] == ["Dataset055_Mine", "dataset.json"]


def test_a_failure_leaves_nothing(tmp_path, monkeypatch):
    def full_disk(*args, **kwargs):
        raise OSError("no space left on device")

    monkeypatch.setattr(sitk, "WriteImage", full_disk)
    with pytest.raises(OSError, match="no space"):
        write_dataset(tmp_path / "new", "thorax", 1, spacing_mm=(12, 12, 12), disable_progress_bar=True)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"region": "knee"}, "region must be one of thorax.*got 'knee'"),
        ({"cases": 0}, "got 0, 0 and 1"),
        ({"seed": -1}, "seed must be 0 or more, got -1"),
        ({"spacing_mm": (8, 8)}, r"three numbers .* got \(8, 8\)"),
        ({"spacing_mm": (8, 8, 0)}, r"got \(8, 8, 0\)"),
    ],
)
def test_nonsense_is_refused_before_anything_is_written(tmp_path, arguments, message):
    with pytest.raises(ValueError, match=message):
        write_dataset(tmp_path / "new", **{"region": "thorax", "cases": 1, **arguments})
    assert list(tmp_path.iterdir()) == []


def parsed(*arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    return parser.parse_args(arguments)


def test_command_writes_a_case_of_natural_spacing(tmp_path, capsys):
    (tmp_path / "empty").mkdir()  # an empty folder is as good as none
    command.run(parsed("-o", str(tmp_path / "empty"), "--cases", "1", "--seed", "30", "--disable_progress_bar"))
    assert "1 synthetic CTs" in capsys.readouterr().out
    image = sitk.ReadImage(str(tmp_path / "empty/imagesTr/phantom_thorax_000_0000.nii.gz"))
    x_mm, y_mm, z_mm = image.GetSpacing()
    assert 0.8 <= x_mm == y_mm <= 1.4 and 2 <= z_mm <= 5


def test_command_help_and_wrong_region(capsys):
    with pytest.raises(SystemExit) as stopped:
        parsed("--help")
    assert stopped.value.code == 0 and "--spacing Z Y X" in capsys.readouterr().out
    with pytest.raises(SystemExit) as stopped:
        parsed("-o", "x", "--cases", "1", "--region", "knee")
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert "knee" in error and all(region in error for region in REGIONS)


def test_the_library_does_not_need_nnunet():
    code = "import sys, nnunet_oar.datasets.phantom; print({'torch', 'nnunetv2'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "set()"
