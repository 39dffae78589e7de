"""nnunet_oar predict on CT series: the same organs as through NIfTI, at the same place, in every format."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from ct_series import POSITIONS, Geometry, read_back, write_series
from toy_model import ORGANS, make_model

from nnunet_oar.cli import main

REAL = Path(os.environ.get("OAR_REAL_DATA", ""))


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return make_model(tmp_path_factory.mktemp("model"))


def predict(*options) -> int:
    return main(["predict", *map(str, options), "--disable_progress_bar", "-device", "cpu", "--disable_postprocessing"])


def ct(folder, seed=0, position="head first, supine", **options):
    right, down = POSITIONS[position]
    geometry = Geometry((12, 14), (2.0, 2.0), np.arange(9) * 3.0, right, down, **options)
    write_series(folder, np.random.default_rng(seed).integers(-1000, 1000, (9, 12, 14)), geometry)
    return geometry


def masks_of(path):
    array = sitk.GetArrayFromImage(sitk.ReadImage(str(path)))
    return {organ: array == label for label, organ in enumerate(ORGANS, start=1) if (array == label).any()}


@pytest.mark.parametrize("position", POSITIONS)
def test_rtstruct_and_nifti_agree(model, position, tmp_path):
    geometry = ct(tmp_path / "in", position=position)
    assert predict("-i", tmp_path / "in", "-o", tmp_path / "n", "-m", model) == 0
    assert predict("-i", tmp_path / "in", "-o", tmp_path / "r", "-m", model, "--format", "rtstruct") == 0
    found, truth = read_back(tmp_path / "r" / "in.dcm", geometry), masks_of(tmp_path / "n" / "in.nii.gz")
    assert truth and set(found) == set(truth)
    assert all(np.array_equal(found[organ] > 0, mask) for organ, mask in truth.items())
    # the NIfTI lies where the slices do
    image = sitk.ReadImage(str(tmp_path / "n" / "in.nii.gz"))
    assert np.allclose(image.GetOrigin(), geometry.origin(0), atol=1e-4)
    manifest = json.loads((tmp_path / "r" / "in.json").read_text())
    assert manifest["series"] and manifest["input"] == ["in"]


def test_a_folder_of_patients(model, tmp_path, capsys):
    for index, name in enumerate(("p 1", "p2")):
        ct(tmp_path / "in" / name / "deep", index)
    plans = Geometry((4, 4), depths=np.zeros(1))
    write_series(tmp_path / "in" / "plans", np.zeros((1, 4, 4)), plans, Modality="RTPLAN")
    ct(tmp_path / "in" / "scattered" / "a")
    ct(tmp_path / "in" / "scattered" / "b")
    assert predict("-i", tmp_path / "in", "-o", tmp_path / "out", "-m", model, "--format", "rtstruct", "--preview") == 1
    expected = {f"{case}.{ending}" for case in ("p 1", "p2") for ending in ("dcm", "json", "png")}
    assert {path.name for path in (tmp_path / "out").iterdir()} == expected | {"dataset.json", "plans.json"}
    errors = capsys.readouterr().err
    assert "scattered holds 2 CT series; predict --series UID chooses one" in errors
    assert "1 of 3 cases were not predicted" in errors


def test_patients_that_are_links(model, tmp_path):
    for index, name in enumerate(("anna", "bert")):
        ct(tmp_path / "store" / name / "CT", index)
        (tmp_path / "in").mkdir(exist_ok=True)
        (tmp_path / "in" / name).symlink_to(tmp_path / "store" / name / "CT")
    (tmp_path / "in" / "carl").mkdir()
    (tmp_path / "in" / "carl" / "ct").symlink_to(tmp_path / "store" / "anna" / "CT")
    assert predict("-i", tmp_path / "in", "-o", tmp_path / "out", "-m", model) == 1
    shutil.rmtree(tmp_path / "in" / "carl")
    assert predict("-i", tmp_path / "in", "-o", tmp_path / "out", "-m", model) == 0
    assert {path.name for path in (tmp_path / "out").glob("*.nii.gz")} == {"anna.nii.gz", "bert.nii.gz"}


def test_one_study_in_two_folders_is_no_two_patients(model, tmp_path, capsys):
    ct(tmp_path / "in" / "1")
    (tmp_path / "in" / "2").mkdir()
    for path in sorted((tmp_path / "in" / "1").iterdir())[4:]:
        path.rename(tmp_path / "in" / "2" / path.name)
    assert predict("-i", tmp_path / "in", "-o", tmp_path / "out", "-m", model) == 1
    assert "hold CTs of one study" in capsys.readouterr().err and not (tmp_path / "out").exists()
    uid = str(pydicom.dcmread(tmp_path / "in" / "1" / "slice0000.dcm").SeriesInstanceUID)
    assert predict("-i", tmp_path / "in", "-o", tmp_path / "out", "-m", model, "--series", uid) == 0
    assert sitk.ReadImage(str(tmp_path / "out" / "in.nii.gz")).GetSize()[2] == 9


def test_a_damaged_patient_does_not_end_the_batch(model, tmp_path, capsys):
    ct(tmp_path / "in" / "p1")
    ct(tmp_path / "in" / "p2", 1)
    (tmp_path / "in" / "p1" / "aaa.dcm").write_text("no DICOM")
    (tmp_path / "in" / "empty").mkdir()
    (tmp_path / "in" / "DICOMDIR").write_bytes(b"\0" * 128 + b"DICM")
    assert predict("-i", tmp_path / "in", "-o", tmp_path / "out", "-m", model) == 1
    errors = capsys.readouterr().err
    assert "aaa.dcm is damaged" in errors and "passed over, as no image lies in it" in errors and "empty" in errors
    assert [path.name for path in (tmp_path / "out").glob("*.nii.gz")] == ["p2.nii.gz"]


def test_formats_do_not_take_each_other_for_done(model, tmp_path):
    pytest.importorskip("highdicom")
    ct(tmp_path / "in")
    for form in ("rtstruct", "dicomseg", "nifti"):
        options = ("-o", tmp_path / "out", "-m", model, "--format", form, "--continue_prediction")
        assert predict("-i", tmp_path / "in", *options) == 0
    assert {path.name for path in (tmp_path / "out").glob("in.*")} == {"in.dcm", "in.seg.dcm", "in.nii.gz", "in.json"}


def test_results_of_other_options_do_not_stay_beside_the_manifest(model, tmp_path):
    ct(tmp_path / "in")
    command = ("-i", tmp_path / "in", "-o", tmp_path / "out", "-m", model, "-q")
    other = ("--organs", "heart")
    assert predict(*command) == 0
    first = (tmp_path / "out" / "in.nii.gz").read_bytes()
    assert predict(*command, *other, "--format", "rtstruct") == 0
    assert {path.name for path in (tmp_path / "out").glob("in.*")} == {"in.dcm", "in.json"}
    assert predict(*command, *other, "--continue_prediction") == 0
    assert (tmp_path / "out" / "in.nii.gz").read_bytes() != first
    assert {path.name for path in (tmp_path / "out").glob("in.*")} == {"in.dcm", "in.json", "in.nii.gz"}


def test_names_of_regions_are_options(model, tmp_path, capsys):
    ct(tmp_path / "in")
    (tmp_path / "names.json").write_text('{"heart": "Heart"}')
    command = ("-i", tmp_path / "in", "-o", tmp_path / "out", "-m", model, "-f", 0, "--format", "rtstruct")
    for options, again in (((), False), ((), True), (("--roi-names", tmp_path / "names.json"), False)):
        assert predict(*command, *options, "--continue_prediction") == 0
        assert ("1 of 1 cases are there already" in capsys.readouterr().out) == again


def test_other_formats_do_not_hide_names_of_regions(model, tmp_path, capsys):
    ct(tmp_path / "in")
    (tmp_path / "names.json").write_text('{"heart": "Herz"}')
    command = ("-i", tmp_path / "in", "-o", tmp_path / "out", "-m", model, "-f", 0, "--continue_prediction")
    named = ("--roi-names", tmp_path / "names.json")
    for form, options, again in (
        ("rtstruct", named, False), ("nifti", (), False), ("rtstruct", named, True), ("nifti", (), True),
        ("rtstruct", (), False), ("rtstruct", (), True), ("nifti", (), True),
    ):  # fmt: skip
        assert predict(*command, "--format", form, *options) == 0
        assert ("1 of 1 cases are there already" in capsys.readouterr().out) == again, (form, options)


def test_results_inside_the_folder_of_the_series_are_none_of_it(model, tmp_path, capsys):
    ct(tmp_path / "in")
    command = ("-i", tmp_path / "in", "-o", tmp_path / "in" / "out", "-m", model, "-f", 0, "--continue_prediction")
    assert predict(*command) == 0
    capsys.readouterr()
    assert predict(*command) == 0 and "1 of 1 cases are there already" in capsys.readouterr().out
    # another slice is another CT
    (tmp_path / "in" / "slice0008.dcm").unlink()
    assert predict(*command) == 0 and "of another CT" in capsys.readouterr().out


@pytest.mark.parametrize("form", ["rtstruct", "dicomseg"])
def test_sparse_and_odd_headers(model, form, tmp_path):
    """What archives leave out, or fill with what the standard does not allow."""
    pytest.importorskip("highdicom")

    def change(index, dataset):
        for keyword in (
            "PatientName",
            "PatientID",
            "PatientSex",
            "StudyTime",
            "AccessionNumber",
            "SliceThickness",
            "StudyID",
        ):
            del dataset[keyword]
        dataset["StudyDate"]._value = "anonymized"
        dataset.SpecificCharacterSet = ["", "ISO 2022 IR 87"]

    geometry = Geometry((12, 14), (2.0, 2.0), np.arange(9) * 3.0)
    write_series(tmp_path / "in", np.random.default_rng(0).integers(-1000, 1000, (9, 12, 14)), geometry, change)
    names = tmp_path / "names.json"
    names.write_text('{"heart": "Herz \u5fc3\u81d3"}')
    options = ("-i", tmp_path / "in", "-o", tmp_path / "out", "-m", model, "--format", form, "--roi-names", names)
    assert predict(*options) == 0
    dataset = pydicom.dcmread(next((tmp_path / "out").glob("*.dcm")))
    assert not dataset.StudyDate and dataset.PatientID == ""
    found = dataset.SegmentSequence if form == "dicomseg" else dataset.StructureSetROISequence
    assert "Herz \u5fc3\u81d3" in [str(item.get("SegmentLabel", "") or item.get("ROIName", "")) for item in found]


@pytest.mark.parametrize("kind, warned", [(None, False), ("HU", False), ("US", True)])
def test_values_that_are_not_called_hu(model, tmp_path, kind, warned):
    def change(index, dataset):
        # of one slice among others
        if kind is not None and index == 3:
            dataset.RescaleType = kind

    geometry = Geometry((12, 14), (2.0, 2.0), np.arange(9) * 3.0)
    write_series(tmp_path / "in", np.random.default_rng(0).integers(-1000, 1000, (9, 12, 14)), geometry, change)
    assert predict("-i", tmp_path / "in", "-o", tmp_path / "out", "-m", model, "-f", 0) == 0
    warnings = json.loads((tmp_path / "out" / "in.json").read_text())["warnings"]
    said = [text for text in warnings if "RescaleType" in text]
    assert len(said) == warned and all("call their values HU, US (RescaleType)" in text for text in said)


def test_one_of_several_series(model, tmp_path):
    ct(tmp_path / "in" / "a")
    ct(tmp_path / "in" / "b", 1)
    uid = str(pydicom.dcmread(tmp_path / "in" / "b" / "slice0000.dcm").SeriesInstanceUID)
    assert predict("-i", tmp_path / "in", "-o", tmp_path / "out", "-m", model, "--series", uid) == 0
    assert json.loads((tmp_path / "out" / "in.json").read_text())["series"] == uid


def test_tilted_slices_need_resample(model, tmp_path, capsys):
    geometry = ct(tmp_path / "in", tilt=0.3)
    options = ("-i", tmp_path / "in", "-o", tmp_path / "out", "-m", model, "--format", "rtstruct")
    assert predict(*options) == 1 and "--resample accepts that" in capsys.readouterr().err
    assert predict(*options, "--resample") == 0
    found = read_back(tmp_path / "out" / "in.dcm", geometry)
    assert any(mask.any() for mask in found.values())
    assert any("resampled" in text for text in json.loads((tmp_path / "out" / "in.json").read_text())["warnings"])


def test_names_of_regions(model, tmp_path, capsys):
    ct(tmp_path / "in")
    file = tmp_path / "names.json"
    options = ("-i", tmp_path / "in", "-o", tmp_path / "out", "-m", model, "--format", "rtstruct", "--roi-names", file)
    for text, problem in {
        '{"hart": "Heart"}': "no organ 'hart'",
        "[": "cannot be read",
        '{"heart": 1}': "must hold",
        '{"heart": "kidney_left"}': "two regions cannot have one name",
    }.items():
        file.write_text(text)
        assert predict(*options) == 1 and problem in capsys.readouterr().err
        assert not (tmp_path / "out").exists()
    file.write_text('{"heart": "Heart", "kidney_left": "Kidney_L"}')
    assert predict(*options) == 0
    dataset = pydicom.dcmread(tmp_path / "out" / "in.dcm")
    assert {str(roi.ROIName) for roi in dataset.StructureSetROISequence} <= {"Heart", "Kidney_L", "kidney_right"}
    assert dataset.StructureSetDescription.startswith("Automatic contours, not reviewed. nnunet_oar")


def test_segmentations(model, tmp_path):
    highdicom = pytest.importorskip("highdicom")
    geometry = ct(tmp_path / "in", position="feet first, prone")
    assert predict("-i", tmp_path / "in", "-o", tmp_path / "n", "-m", model) == 0
    assert predict("-i", tmp_path / "in", "-o", tmp_path / "s", "-m", model, "--format", "dicomseg") == 0
    segmentation = highdicom.seg.segread(tmp_path / "s" / "in.seg.dcm")
    uids = [str(pydicom.dcmread(path).SOPInstanceUID) for path in sorted((tmp_path / "in").iterdir())]
    truth = masks_of(tmp_path / "n" / "in.nii.gz")
    pixels = segmentation.get_pixels_by_source_instance(uids, assert_missing_frames_are_empty=True)
    names = [segmentation.get_segment_description(number).segment_label for number in segmentation.segment_numbers]
    assert set(names) == set(truth) and pixels.shape[:3] == (len(geometry.depths), *geometry.shape)
    assert all(np.array_equal(pixels[..., index] > 0, truth[organ]) for index, organ in enumerate(names))


@pytest.mark.parametrize(
    "options, problem",
    [
        (("--format", "rtstruct", "--save_probabilities"), "--save_probabilities is for results in nifti"),
        (("--save_probabilities",), "--save_probabilities needs images in files of their own"),
        (("--series", "1.2.3"), "has no CT series 1.2.3"),
    ],
)
def test_what_does_not_go_together(model, options, problem, tmp_path, capsys):
    ct(tmp_path / "in")
    assert predict("-i", tmp_path / "in", "-o", tmp_path / "out", "-m", model, *options) == 1
    assert problem in capsys.readouterr().err


@pytest.mark.parametrize("options", [("--format", "rtstruct"), ("--series", "1.2"), ("--resample",)])
def test_options_for_dicom_on_an_image(model, options, tmp_path, capsys):
    (tmp_path / "in").mkdir()
    sitk.WriteImage(sitk.Image(8, 8, 8, sitk.sitkInt16), str(tmp_path / "in" / "a.nii.gz"))
    assert predict("-i", tmp_path / "in", "-o", tmp_path / "out", "-m", model, *options) == 1
    assert "a.nii.gz" in capsys.readouterr().err and not list(tmp_path.glob("out/a*"))


def test_images_and_dicom_in_one_folder(model, tmp_path, capsys):
    ct(tmp_path / "in")
    sitk.WriteImage(sitk.Image(8, 8, 8, sitk.sitkInt16), str(tmp_path / "in" / "a.nii.gz"))
    assert predict("-i", tmp_path / "in", "-o", tmp_path / "out", "-m", model) == 1
    assert "keep one of the two there" in capsys.readouterr().err
    assert predict("-i", tmp_path / "in" / "slice0000.dcm", "-o", tmp_path / "out", "-m", model) == 1
    assert "is one slice; give the folder of the series" in capsys.readouterr().err


@pytest.mark.skipif(not (REAL / "dicom_ts_abd20").is_dir(), reason="OAR_REAL_DATA does not hold the series")
def test_real_series(model, tmp_path, capsys):
    source = tmp_path / "in"
    source.mkdir()
    thick = ("dicom_ts_abd20", "dicom_rtstruct_lung3", "dicom_rtstruct_lung4")
    for name in (*thick, "dicom_rtstruct_breast_1slice"):
        (source / name).symlink_to(REAL / name)
    # a model of volumes refuses the single slice, and the series without UIDs has nothing to refer to
    assert predict("-i", source, "-o", tmp_path / "n", "-m", model) == 1
    assert "one voxel thick" in capsys.readouterr().err
    assert {path.name for path in (tmp_path / "n").glob("*.nii.gz")} == {f"{name}.nii.gz" for name in thick}
    for name in thick:
        twin = sitk.ReadImage(str(tmp_path / "n" / f"{name}.nii.gz"))
        slices = [pydicom.dcmread(path) for path in (REAL / name).iterdir() if "RS" not in path.name]
        lowest = min(slices, key=lambda ds: ds.ImagePositionPatient[2])
        assert np.allclose(twin.GetOrigin(), [float(value) for value in lowest.ImagePositionPatient], atol=1e-3)
        assert twin.GetSize() == (lowest.Columns, lowest.Rows, len(slices))
    assert predict("-i", source, "-o", tmp_path / "r", "-m", model, "--format", "rtstruct") == 1
    errors = capsys.readouterr().err
    assert "the CT lacks StudyInstanceUID" in errors and "SOPInstanceUID, to which DICOM results must refer" in errors
    assert {path.name for path in (tmp_path / "r").glob("*.dcm")} == {f"{name}.dcm" for name in thick[1:]}
