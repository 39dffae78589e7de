"""The anatomy from crown to pelvis, and the data sets that show parts of it."""

import argparse
import fnmatch
import json

import numpy as np
import pytest
import SimpleITK as sitk
from scipy import ndimage

from nnunet_oar.cli import phantom as command
from nnunet_oar.datasets.phantom import REGIONS, Phantom, make_phantom, write_dataset
from nnunet_oar.datasets.phantom_body import BODY_REGIONS
from nnunet_oar.datasets.phantom_kidneys import draw_kidneys
from nnunet_oar.datasets.phantom_organs import Organ
from nnunet_oar.datasets.phantom_shapes import Canvas, Deformation, Grid
from nnunet_oar.datasets.phantom_thorax import sample_patient

ORGANS = (
    *("brainstem", "eye_left", "eye_right", "parotid_left", "parotid_right", "mandible", "spinal_cord"),
    *("lung_left", "lung_right", "trachea", "heart", "esophagus"),
    *("liver", "spleen", "stomach", "kidney_left", "kidney_right"),
)
ANNOTATED = {
    "headneck": {"brainstem", "eye_left", "eye_right", "parotid_left", "parotid_right", "mandible", "spinal_cord"},
    "thorax": {"heart", "lung_left", "lung_right", "trachea", "esophagus", "spinal_cord"},
    "abdomen": {"liver", "spleen", "stomach", "kidney_left", "kidney_right"},
}
COARSE_MM = (6.0, 5.0, 5.0)
# ml, of adults: from the least to the most that delineations of CTs give, with room for coarse voxels.
VOLUMES_ML = {
    "brainstem": (15, 42),
    "eye_left": (4.5, 12),
    "eye_right": (4.5, 12),
    "parotid_left": (12, 50),
    "parotid_right": (12, 50),
    "mandible": (30, 95),
    "spinal_cord": (6, 45),
    "lung_left": (600, 3000),
    "lung_right": (800, 3500),
    "trachea": (15, 60),
    "heart": (400, 950),
    "esophagus": (15, 60),
    "liver": (700, 2300),
    "spleen": (70, 400),
    "stomach": (90, 900),
    "kidney_left": (80, 280),
    "kidney_right": (80, 280),
}
CASES = [(region, case) for region in ("headneck", "abdomen") for case in range(3)]


@pytest.fixture(scope="module")
def phantoms() -> dict[tuple[str, int], Phantom]:
    return {(region, case): make_phantom(region, seed=1, case=case, spacing_mm=COARSE_MM) for region, case in CASES}


@pytest.fixture(scope="module")
def kidneys() -> list[Phantom]:
    return [make_phantom("kidneys", seed=2, case=case, spacing_mm=(4, 3, 3)) for case in range(4)]


@pytest.fixture(scope="module")
def three_sources(tmp_path_factory):
    folder = tmp_path_factory.mktemp("raw") / "Dataset056_PhantomThreeSources"
    names = write_dataset(folder, "three-sources", 6, 3, seed=4, spacing_mm=COARSE_MM, disable_progress_bar=True)
    return folder, names, json.loads((folder / "dataset.json").read_text())


def volumes_ml(labels: np.ndarray, spacing_mm, values: dict[str, int]) -> dict[str, float]:
    return {organ: float((labels == value).sum() * np.prod(spacing_mm) / 1000) for organ, value in values.items()}


def centre_mm(phantom: Phantom, values: dict[str, int], organ: str) -> np.ndarray:
    """(x, y, z) in LPS."""
    voxel = np.argwhere(phantom.labels == values[organ]).mean(0)
    return voxel[::-1] * phantom.spacing_mm[::-1] + phantom.origin_xyz_mm


def read(folder, part: str, name: str) -> tuple[np.ndarray, sitk.Image]:
    image = sitk.ReadImage(str(folder / part / f"{name}.nii.gz"))
    return sitk.GetArrayFromImage(image), image


def shown_ml(folder, part: str, name: str) -> dict[str, float]:
    labels, image = read(folder, part, name)
    return volumes_ml(labels, image.GetSpacing(), {organ: i for i, organ in enumerate(ORGANS, start=1)})


def assert_continuous_in_bone(cord: np.ndarray, image_hu: np.ndarray) -> None:
    """In every slice between its ends, moving little from slice to slice, with bone beside and behind."""
    slices = np.flatnonzero(cord.any((1, 2)))
    assert np.array_equal(slices, np.arange(slices[0], slices[-1] + 1))
    centres = np.array([np.argwhere(cord[z]).mean(0) for z in slices]) * COARSE_MM[1:]
    assert np.linalg.norm(np.diff(centres, axis=0), axis=1).max() < 8
    around = ndimage.binary_dilation(cord, np.ones((1, 3, 3)), iterations=4) & ~cord
    bone = [(image_hu[z][around[z]] > 200).any() for z in slices]
    assert np.mean(bone) > 0.9


@pytest.mark.parametrize("region", ["kidneys", "three-sources"])
def test_a_case_depends_on_seed_and_number_only(region):
    first, again, other = (make_phantom(region, seed, 2, (12, 12, 12)) for seed in (3, 3, 4))
    assert first.image_hu.tobytes() == again.image_hu.tobytes()
    assert first.labels.tobytes() == again.labels.tobytes()
    assert (first.origin_xyz_mm, first.body_regions) == (again.origin_xyz_mm, again.body_regions)
    assert first.image_hu.tobytes() != other.image_hu.tobytes()


@pytest.mark.parametrize(("region", "case"), [("headneck", 0), ("abdomen", 1), ("three-sources", 1)])
def test_another_spacing_shows_the_same_anatomy(region, case):
    """At three times the spacing, voxel i has its centre where voxel 3 i + 1 has it: the labels there are the same."""
    fine, coarse = (make_phantom(region, 6, case, (mm, mm, mm)) for mm in (5, 15))
    z, y, x = (slice(min(n, (m - 1) // 3)) for n, m in zip(coarse.labels.shape, fine.labels.shape, strict=True))
    sampled, drawn = fine.labels[1::3, 1::3, 1::3][z, y, x], coarse.labels[z, y, x]
    assert (sampled != drawn).sum() <= 4  # specks dropped at one spacing only


@pytest.mark.parametrize(("region", "case"), CASES)
def test_organs_have_human_size_and_one_piece(phantoms, region, case):
    phantom, values = phantoms[region, case], REGIONS[region].labels
    assert phantom.image_hu.dtype == np.int16 and phantom.labels.dtype == np.uint8
    assert set(values) == ANNOTATED[region] and list(values.values()) == list(range(1, len(values) + 1))
    for organ, volume in volumes_ml(phantom.labels, COARSE_MM, values).items():
        low, high = VOLUMES_ML[organ]
        assert low < volume < high, (organ, volume)
        assert ndimage.label(phantom.labels == values[organ], np.ones((3, 3, 3)))[1] == 1, organ
    edge = phantom.labels.copy()
    edge[1:-1] = 0
    assert set(np.unique(edge)) <= {0, values.get("spinal_cord", 0)}  # the field of view cuts off the cord only


def test_patients_differ(phantoms):
    for region in ("headneck", "abdomen"):
        sizes = [volumes_ml(phantoms[region, case].labels, COARSE_MM, REGIONS[region].labels) for case in range(3)]
        for organ in REGIONS[region].labels:
            volumes = [size[organ] for size in sizes]
            assert max(volumes) > 1.03 * min(volumes), organ


@pytest.mark.parametrize("case", range(3))
def test_head_and_neck_in_patient_coordinates(phantoms, case):
    """LPS: the patient's left is +x, the back +y, the head +z."""
    phantom, values = phantoms["headneck", case], REGIONS["headneck"].labels
    at = {organ: centre_mm(phantom, values, organ) for organ in values}
    middle = at["brainstem"][0]
    for pair in ("eye", "parotid"):
        assert at[f"{pair}_left"][0] > middle + 15 and at[f"{pair}_right"][0] < middle - 15
    assert at["eye_left"][1] < at["parotid_left"][1] < at["spinal_cord"][1]
    assert at["mandible"][1] < at["brainstem"][1]
    assert at["mandible"][2] < at["parotid_left"][2] < at["eye_left"][2]
    brainstem, cord = (np.flatnonzero((phantom.labels == values[o]).any((1, 2))) for o in ("brainstem", "spinal_cord"))
    assert abs(brainstem[0] - cord[-1]) <= 1  # one goes on where the other ends
    assert_continuous_in_bone(phantom.labels == values["spinal_cord"], phantom.image_hu)


@pytest.mark.parametrize("case", range(3))
def test_abdomen_in_patient_coordinates(phantoms, case):
    phantom, values = phantoms["abdomen", case], REGIONS["abdomen"].labels
    at = {organ: centre_mm(phantom, values, organ) for organ in values}
    assert at["spleen"][0] > at["stomach"][0] > at["liver"][0]
    assert at["kidney_left"][0] > at["kidney_right"][0] + 80
    assert at["stomach"][1] < at["spleen"][1] and at["liver"][1] < at["kidney_right"][1]
    assert at["kidney_right"][2] < at["liver"][2] and at["kidney_left"][2] < at["spleen"][2]


def test_organs_differ_little_from_what_lies_beside_them(phantoms):
    """Without contrast agent liver, spleen and muscle are within tens of HU, as are brainstem and brain."""
    for case in range(3):
        head, values = phantoms["headneck", case], REGIONS["headneck"].labels
        stem = head.labels == values["brainstem"]
        around = ndimage.binary_dilation(stem, iterations=3) & ~stem & (abs(head.image_hu - 30) < 60)
        assert abs(np.median(head.image_hu[stem]) - np.median(head.image_hu[around])) < 15
        abdomen, values = phantoms["abdomen", case], REGIONS["abdomen"].labels
        liver, spleen = (np.median(abdomen.image_hu[abdomen.labels == values[o]]) for o in ("liver", "spleen"))
        assert abs(liver - spleen) < 60


def test_kidney_tumours(kidneys):
    """As in KiTS19: 1 is kidney, 2 tumour; each tumour belongs to a kidney and is somewhat darker."""
    counts, piece = [], np.ones((3, 3, 3))
    for phantom in kidneys:
        assert set(np.unique(phantom.labels)) == {0, 1, 2}
        organ, tumour = phantom.labels == 1, phantom.labels == 2
        pieces, count = ndimage.label(tumour, piece)
        volumes = np.bincount(pieces.ravel())[1:] * np.prod(phantom.spacing_mm) / 1000
        assert count in (1, 2) and all(1 <= v <= 40 for v in volumes), volumes
        for i in range(1, count + 1):
            assert (ndimage.binary_dilation(pieces == i, piece) & organ).any()
        assert ndimage.label(organ | tumour, piece)[1] in (1, 2)  # kidneys
        assert 0 < np.median(phantom.image_hu[organ]) - np.median(phantom.image_hu[tumour]) < 130
        counts.append(volumes.sum())
    assert max(counts) > 1.5 * min(counts)


def test_some_patients_have_one_kidney():
    counts = []
    for seed in range(30):
        rng = np.random.default_rng(seed)
        grid = Grid(lower_mm=(-320, 0, -110), extent_mm=(180, 90, 220), spacing_mm=(10, 10, 10))
        canvas = Canvas(grid, Deformation(rng, scale=1.0, coarse_mm=0, fine_mm=0, tilt_degrees=0))
        draw_kidneys(canvas, sample_patient(rng), rng, tumours=True, single_share=0.2)
        left, right = (canvas.labels == organ for organ in (Organ.KIDNEY_LEFT, Organ.KIDNEY_RIGHT))
        assert (canvas.labels == Organ.KIDNEY_TUMOUR).any()
        counts.append(int(left.any()) + int(right.any()))
    assert set(counts) == {1, 2} and 1.6 < np.mean(counts) < 1.95


def test_three_sources_on_disk(three_sources):
    folder, names, description = three_sources
    assert names == [f"{('headneck', 'thorax', 'abdomen')[i % 3]}_{i:03d}" for i in range(9)]
    assert description["labels"] == {"background": 0} | {organ: i for i, organ in enumerate(ORGANS, start=1)}
    assert description["numTraining"] == 6
    written = {part.name: sorted(f.name for f in part.iterdir()) for part in folder.iterdir() if part.is_dir()}
    training, testing = ([f"{name}.nii.gz" for name in sorted(part)] for part in (names[:6], names[6:]))
    assert written == {
        "imagesTr": [f"{name}_0000.nii.gz" for name in sorted(names[:6])],
        "labelsTr": training,
        "labelsTr_full": training,
        "imagesTs": [f"{name}_0000.nii.gz" for name in sorted(names[6:])],
        "labelsTs": testing,
    }
    for name in names:
        _, image = read(folder, "imagesTr" if name in names[:6] else "imagesTs", f"{name}_0000")
        for part in ("labelsTr", "labelsTr_full") if name in names[:6] else ("labelsTs",):
            _, labels = read(folder, part, name)
            assert (labels.GetSize(), labels.GetSpacing()) == (image.GetSize(), image.GetSpacing())
            assert (labels.GetOrigin(), labels.GetDirection()) == (image.GetOrigin(), image.GetDirection())


def test_labels_for_training_hold_what_the_source_annotates(three_sources):
    folder, names, description = three_sources
    annotations = description["annotations"]
    assert {source: set(entry["labels"]) for source, entry in annotations.items()} == ANNOTATED
    for name in names[:6]:
        (source,) = (
            source
            for source, entry in annotations.items()
            if any(fnmatch.fnmatchcase(name, pattern) for pattern in entry["cases"])
        )
        given, full = (read(folder, part, name)[0] for part in ("labelsTr", "labelsTr_full"))
        known = [description["labels"][organ] for organ in annotations[source]["labels"]]
        np.testing.assert_array_equal(given, np.where(np.isin(full, known), full, 0))
        assert (given != full).any()  # every source shows organs that it does not annotate


def test_fields_of_view_overlap(three_sources):
    folder, names, _ = three_sources
    for name in names:
        shown = shown_ml(folder, "labelsTr_full" if name in names[:6] else "labelsTs", name)
        source = name.split("_")[0]
        assert shown["spinal_cord"] > 3
        for organ in ANNOTATED[source]:
            assert shown[organ] > VOLUMES_ML[organ][0] or organ == "spinal_cord", (name, organ)
        if source == "headneck":
            assert shown["lung_left"] > 20 and shown["lung_right"] > 20 and shown["trachea"] > 5
            assert shown["esophagus"] > 2 and not shown["liver"]
        elif source == "thorax":
            assert shown["liver"] > 300 and shown["spleen"] > 20 and shown["stomach"] > 20
            assert not shown["brainstem"] and not shown["eye_left"]
        else:
            assert shown["heart"] > 50 and shown["lung_left"] > 100 and shown["lung_right"] > 100
            assert not shown["mandible"] and not shown["brainstem"]


def test_chest_of_the_whole_body(three_sources):
    folder, names, description = three_sources
    values = description["labels"]
    for name in names[1::3]:
        images, part = ("imagesTr", "labelsTr_full") if name in names[:6] else ("imagesTs", "labelsTs")
        image_hu, labels = read(folder, images, f"{name}_0000")[0], read(folder, part, name)[0]
        for organ in ("lung_left", "lung_right"):
            assert -900 < np.median(image_hu[labels == values[organ]]) < -700
        x = {organ: np.argwhere(labels == values[organ])[:, 2].mean() for organ in ANNOTATED["thorax"]}
        assert x["lung_left"] > x["heart"] > x["lung_right"] and x["heart"] > x["spinal_cord"]
        assert_continuous_in_bone(labels == values["spinal_cord"], image_hu)


def test_body_regions_hold_every_slice(three_sources):
    folder, names, description = three_sources
    assert description["body_regions"]["names"] == list(BODY_REGIONS)
    assert BODY_REGIONS == ("head", "upper chest", "chest", "upper abdomen", "abdomen")
    assert sorted(description["body_regions"]["cases"]) == sorted(names[:6])
    expected = {
        "headneck": (["upper chest", "head"], ["chest", "upper chest", "head"]),
        "thorax": (["upper abdomen", "chest", "upper chest"], ["upper abdomen", "chest", "upper chest", "head"]),
        "abdomen": (["abdomen", "upper abdomen", "chest"],),
    }
    for name, ranges in description["body_regions"]["cases"].items():
        labels, _ = read(folder, "labelsTr_full", name)
        assert ranges[0][0] == 0 and ranges[-1][1] == len(labels)
        assert all(start < stop for start, stop, _ in ranges)
        assert all(below[1] == above[0] for below, above in zip(ranges[:-1], ranges[1:], strict=True))
        assert [region for *_, region in ranges] in expected[name.split("_")[0]]
        for start, stop, region in ranges:
            inner = labels[start + 2 : max(stop - 2, 0)]  # borders are level, people are not
            shown = {organ for organ in ORGANS if (inner == description["labels"][organ]).any()}
            if region == "head":
                assert not shown & {"lung_left", "lung_right", "heart"}
            elif region in ("upper chest", "chest"):
                assert not shown & {"brainstem", "mandible", "kidney_left", "kidney_right"}
            else:
                assert not shown & {"trachea", "brainstem"}


def test_single_sources_have_no_annotations(tmp_path):
    write_dataset(tmp_path / "new", "abdomen", 1, spacing_mm=(12, 12, 12), disable_progress_bar=True)
    description = json.loads((tmp_path / "new/dataset.json").read_text())
    assert not {"annotations", "body_regions"} & set(description)
    assert sorted(p.name for p in (tmp_path / "new").iterdir()) == ["dataset.json", "imagesTr", "labelsTr"]
    assert [p.name for p in (tmp_path / "new/labelsTr").iterdir()] == ["phantom_abdomen_000.nii.gz"]


def test_an_unknown_region_is_named_with_those_there_are(tmp_path):
    with pytest.raises(ValueError, match="one of thorax, headneck, abdomen, kidneys, three-sources, got 'headnek'"):
        write_dataset(tmp_path / "new", "headnek", 1)
    assert list(tmp_path.iterdir()) == []


def test_help_says_what_each_region_is(capsys):
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    with pytest.raises(SystemExit):
        parser.parse_args(["--help"])
    text = " ".join(capsys.readouterr().out.split())
    for name, region in REGIONS.items():
        assert f"{name}: {region.summary}" in text
    assert "three-sources deals them in turn to its sources headneck, thorax and abdomen" in text
