"""Planning: canonical axes whatever the file's, bad data sets in one sentence, nothing of others touched."""

import json
import shutil

import numpy as np
import pytest
import SimpleITK as sitk
from nnunet_oar.planners import find_planner
from nnunet_oar.planners.cascade import OARCascadePlanner
from nnunetv2.imageio.nibabel_reader_writer import NibabelIOWithReorient


@pytest.fixture
def copied(prepared, tmp_path, monkeypatch):
    """Raw data and fingerprint of the phantoms, to be spoilt; nnU-Net's variables point there."""
    raw, preprocessed = tmp_path / "raw", tmp_path / "preprocessed"
    shutil.copytree(prepared.raw, raw / prepared.raw.name)
    (preprocessed / prepared.raw.name).mkdir(parents=True)
    shutil.copy(prepared.preprocessed / "dataset_fingerprint.json", preprocessed / prepared.raw.name)
    monkeypatch.setenv("nnUNet_raw", str(raw))
    monkeypatch.setenv("nnUNet_preprocessed", str(preprocessed))
    return raw / prepared.raw.name, preprocessed / prepared.raw.name


def planner(**options) -> OARCascadePlanner:
    return OARCascadePlanner(55, 0.06, disable_progress_bar=True, **options)


def test_how_the_files_are_stored_does_not_change_the_plan(copied):
    """One case sagittal and one coronal: canvas, spacing and boxes are those of the axial files."""
    raw, _ = copied
    plain = planner().plan_experiment()["configurations"]["3d_fullres"]
    for index, code in ((0, "PSL"), (1, "LSA")):
        for kind in ("imagesTr", "labelsTr"):
            path = sorted((raw / kind).iterdir())[index]
            sitk.WriteImage(sitk.DICOMOrient(sitk.ReadImage(str(path)), code), str(path))
    turned = planner().plan_experiment()["configurations"]["3d_fullres"]
    for key in ("patch_size", "spacing", "median_image_size_in_voxels", "oar"):
        assert turned[key] == plain[key], key


def test_how_bright_organs_are_is_in_the_plans(copied):
    raw, _ = copied
    labels = json.loads((raw / "dataset.json").read_text())["labels"]
    means = {organ: [] for organ in labels if organ != "background"}
    for index, path in enumerate(sorted((raw / "labelsTr").iterdir())):
        file = raw / "imagesTr" / path.name.replace(".nii.gz", "_0000.nii.gz")
        image, seg = (sitk.GetArrayFromImage(sitk.ReadImage(str(of))) for of in (file, path))
        for organ in means:
            means[organ].append(image[seg == labels[organ]].mean())
        if not index:  # a voxel that is no number does not make the mean one
            spoilt = image.astype(np.float32)
            spoilt[tuple(np.argwhere(seg == labels["heart"])[0])] = np.nan
            written = sitk.GetImageFromArray(spoilt)
            written.CopyInformation(sitk.ReadImage(str(file)))
            sitk.WriteImage(written, str(file))
    section = planner().plan_experiment()["configurations"]["3d_fullres"]["oar"]
    for organ, values in means.items():
        np.testing.assert_allclose(section["organ_mean_hu"][organ], (min(values), max(values)), atol=0.2)
    assert section["always_present"] == list(means)


def test_the_paper_recipe_goes_into_the_plans(copied):
    section = planner(recipe="paper", epochs=3).plan_experiment()["configurations"]["3d_fullres"]["oar"]
    assert section["fine_shape"] == [128, 128, 128] and section["recipe"] == "paper" and section["epochs"] == 3


def test_the_shared_encoders_paper_recipe_works_at_the_papers_spacing(copied):
    def planned(**options):
        made = find_planner("OARSharedEncoderTrainer")(55, 0.5, disable_progress_bar=True, **options).plan_experiment()
        configuration = made["configurations"]["3d_fullres"]
        return list(configuration["spacing"]), configuration["oar"]

    spacing, section = planned(recipe="paper")
    assert spacing == [3, 1, 1] == section["spacing_mm"] == section["grid_spacing_mm"] and section["features"] == 32
    spacing, section = planned(recipe="paper", overwrite_target_spacing=(4.0, 2.0, 2.0))
    assert spacing == [4, 2, 2] == section["spacing_mm"] and section["grid_spacing_mm"] == [3, 1, 1]
    spacing, section = planned()
    assert spacing != [3, 1, 1] and section["spacing_mm"] == spacing


def test_headers_that_simpleitk_refuses_are_read_with_nibabel(copied):
    import nibabel

    raw, _ = copied
    path = sorted((raw / "imagesTr").iterdir())[0]
    image = nibabel.load(path)
    sheared = image.affine.copy()
    sheared[0, 1] += 1.0
    nibabel.save(nibabel.Nifti1Image(np.asarray(image.dataobj), sheared), path)
    under_test = planner()
    assert under_test.determine_reader_writer() is NibabelIOWithReorient


def test_plans_of_others_are_not_overwritten(copied):
    _, preprocessed = copied
    (preprocessed / "mine.json").write_text(json.dumps({"configurations": {"3d_fullres": {}}}))
    with pytest.raises(ValueError, match="mine.json was not made by nnunet_oar"):
        planner(plans_name="mine")


def test_a_changed_dataset_json_that_other_plans_rely_on(copied):
    raw, preprocessed = copied
    (preprocessed / "nnUNetPlans.json").write_text("{}")
    (preprocessed / "dataset.json").write_text("{}")
    with pytest.raises(ValueError, match="has changed since nnUNetPlans.json was made"):
        planner().plan_experiment()
    assert not (preprocessed / "nnUNetOARPlans.json").exists()
    assert (preprocessed / "dataset.json").read_text() == "{}"


def test_a_fingerprint_of_other_cases(copied):
    raw, _ = copied
    name = sorted((raw / "labelsTr").iterdir())[0].name
    (raw / "labelsTr" / name).unlink()
    (raw / "imagesTr" / name.replace(".nii.gz", "_0000.nii.gz")).unlink()
    with pytest.raises(ValueError, match="the fingerprint was made of 5 cases, the data set has 4"):
        planner()


def test_label_maps_that_are_all_empty(copied):
    raw, _ = copied
    for path in (raw / "labelsTr").iterdir():
        image = sitk.ReadImage(str(path))
        sitk.WriteImage(image * 0, str(path))
    with pytest.raises(ValueError, match="no training case holds a voxel of an organ"):
        planner().plan_experiment()


def test_one_empty_label_map_is_fine(copied):
    raw, _ = copied
    path = sorted((raw / "labelsTr").iterdir())[0]
    sitk.WriteImage(sitk.ReadImage(str(path)) * 0, str(path))
    assert planner().plan_experiment()["configurations"]["3d_fullres"]["oar"]["organs"]


def test_regions_are_refused_before_anything_is_written(copied):
    raw, preprocessed = copied
    description = json.loads((raw / "dataset.json").read_text())
    description |= {"labels": {"background": 0, "all": [1, 2], "heart": 2}, "regions_class_order": [1, 2]}
    (raw / "dataset.json").write_text(json.dumps(description))
    with pytest.raises(NotImplementedError, match="regions"):
        planner().plan_experiment()
    assert [path.name for path in preprocessed.iterdir()] == ["dataset_fingerprint.json"]


def test_a_trainer_that_does_not_exist():
    with pytest.raises(
        ValueError, match="-tr must be one of OARCascadeTrainer, .*OARAttentionTrainer, got 'OARCascade'"
    ):
        find_planner("OARCascade")
