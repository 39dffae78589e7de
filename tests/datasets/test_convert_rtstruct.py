"""Clinical patients, CT series and structure set, into nnU-Net's raw format."""

import json
import os
import shutil
from copy import deepcopy
from pathlib import Path

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from ct_series import POSITIONS, Geometry, write_series

from nnunet_oar import cli
from nnunet_oar.dicom.rtstruct import About, write_rtstruct
from nnunet_oar.dicom.series import read_series

REAL = Path(os.environ.get("OAR_REAL_DATA", ""))
ROIS = {1: "Heart", 2: "Lt Lung", 3: "LUNG RT", 4: "PTV 60Gy"}


def patient(folder: Path, position="head first, supine", rois=ROIS, **options) -> np.ndarray:
    """A CT and three organs; returns their labels on the slices, in the order of the depths."""
    right, down = POSITIONS[position]
    geometry = Geometry((24, 30), (2.0, 2.0), np.arange(10) * 3.0, right, down, **options)
    rng = np.random.default_rng(0)
    write_series(folder / "CT", rng.integers(-1000, 1000, (10, 24, 30)), geometry)
    labels = np.zeros((10, 24, 30), np.uint8)
    labels[2:6, 10:14, 12:16], labels[1:8, 3:20, 2:9], labels[1:8, 3:20, 20:28], labels[3, 20:23, 12:14] = 1, 2, 3, 4
    series = read_series(folder / "CT", resample=True)
    colours = dict.fromkeys(range(1, 5), (1, 2, 3))
    (folder / "RS").mkdir()
    write_rtstruct(folder / "RS" / "rs.dcm", series, labels, rois, colours, About("a", "b", "c"))
    return labels


def convert(*options) -> int:
    return cli.main(["convert", "rtstruct", *map(str, options), "--disable_progress_bar"])


def test_an_archive(folders, capsys):
    source = folders / "archive"
    expected = {name: patient(source / name, position) for name, position in zip("ab", POSITIONS, strict=False)}
    patient(source / "c d", rois={1: "Heart", 4: "CTV"})
    patient(source / "tilted", tilt=0.3)
    write_series(source / "no contours", np.zeros((3, 8, 8)), Geometry((8, 8), depths=np.arange(3) * 3.0))
    patient(source / "two sets")
    shutil.copy(source / "two sets" / "RS" / "rs.dcm", source / "two sets" / "old.dcm")
    patient(source / "twice", rois={1: "Heart", 2: "Lt Lung", 3: "Lung_L"})
    assert convert(source, "-d", 60) == 0
    printed = capsys.readouterr().out
    raw = folders / "nnUNet_raw" / "Dataset060_Clinical"
    description = json.loads((raw / "dataset.json").read_text())
    assert description["labels"] == {"background": 0, "Heart": 1, "Lung_L": 2, "Lung_R": 3}
    assert sorted(path.name for path in (raw / "labelsTr").iterdir()) == [
        f"{name}.nii.gz" for name in ("a", "b", "c_d", "twice")
    ]
    sources = {
        case: set(source["labels"]) for source in description["annotations"].values() for case in source["cases"]
    }
    assert sources == {
        "a": {"Heart", "Lung_L", "Lung_R"},
        "b": {"Heart", "Lung_L", "Lung_R"},
        "c_d": {"Heart"},
        "twice": {"Heart"},
    }
    for name, labels in expected.items():
        image = sitk.ReadImage(str(raw / "imagesTr" / f"{name}_0000.nii.gz"))
        written = sitk.ReadImage(str(raw / "labelsTr" / f"{name}.nii.gz"))
        assert np.array_equal(sitk.GetArrayFromImage(written), np.where(labels == 4, 0, labels))
        assert np.allclose(written.GetOrigin(), image.GetOrigin()) and written.GetDirection() == image.GetDirection()
    for text in (
        "tilted: left out, ", "slices are shifted against each other by a tilt",
        "no contours: left out, no structure set", "two sets: left out, 2 structure sets",
        "twice: Lung_L not annotated, as 'Lt Lung' and 'Lung_L' both stand for it",
        "names that stand for no known organ: 'PTV 60Gy' (2 patients), 'CTV' (1 patient)",
        "not every case annotates every organ", "4 training cases, 3 organs",
    ):  # fmt: skip
        assert text in printed, printed


def test_organs_and_names_of_ones_own(folders, capsys):
    patient(folders / "archive" / "a")
    names = folders / "names.json"
    names.write_text(json.dumps({"PTV": ["ptv 60 gy"]}))
    assert convert(folders / "archive", "-d", 60, "--organs", "PTV", "Lung_R", "--names", names) == 0
    description = json.loads((folders / "nnUNet_raw" / "Dataset060_Clinical" / "dataset.json").read_text())
    assert description["labels"] == {"background": 0, "PTV": 1, "Lung_R": 2} and "annotations" not in description
    assert convert(folders / "archive", "-d", 61, "--organs", "Lungs") == 1
    assert "no organ is called 'Lungs'" in capsys.readouterr().err
    assert convert(folders / "archive", "-d", 61, "--organs", "Brain") == 1
    assert "no patient has Brain" in capsys.readouterr().err


def test_contours_of_another_series_or_frame_are_refused(folders, capsys):
    for name in "abc":
        patient(folders / "archive" / name)
    shutil.copy(folders / "archive" / "b" / "RS" / "rs.dcm", folders / "archive" / "a" / "RS" / "rs.dcm")
    path = folders / "archive" / "c" / "RS" / "rs.dcm"
    dataset = pydicom.dcmread(path)
    dataset.StructureSetROISequence[0].ReferencedFrameOfReferenceUID = "1.2.3"
    dataset.save_as(path)
    assert convert(folders / "archive", "-d", 60) == 0
    printed = capsys.readouterr().out
    assert "a: left out, rs.dcm was drawn on a series that is not there" in printed
    assert "c: Heart not annotated: 'Heart' was drawn in another frame of reference than the CT's" in printed
    assert "2 training cases" in printed


def edited(path, change):
    dataset = pydicom.dcmread(path)
    change(dataset)
    dataset.save_as(path)


def give_one_number(dataset):
    dataset.StructureSetROISequence[1].ROINumber = dataset.StructureSetROISequence[0].ROINumber


def leave_an_empty_one(dataset):
    more = deepcopy(dataset.StructureSetROISequence[0])
    more.ROINumber = 99
    dataset.StructureSetROISequence.append(more)


def test_odd_structure_sets(folders, capsys):
    for name in ("fine", "numbers", "empty", "cut", "no sequence"):
        patient(folders / "archive" / name)
    path = "RS/rs.dcm"
    edited(folders / "archive" / "numbers" / path, give_one_number)
    edited(folders / "archive" / "empty" / path, leave_an_empty_one)
    edited(folders / "archive" / "no sequence" / path, lambda dataset: dataset.pop("StructureSetROISequence"))
    cut = folders / "archive" / "cut" / path
    cut.write_bytes(cut.read_bytes()[:3250])
    assert convert(folders / "archive", "-d", 60) == 0
    printed = capsys.readouterr().out
    assert "numbers: left out, " in printed and "gives several regions one number" in printed
    assert "cut: left out, " in printed and "no sequence: left out, " in printed and "names no region" in printed
    assert "empty" not in printed.replace("in several", "") and "2 training cases" in printed


@pytest.mark.parametrize("names", [("a b", "a_b"), ("x+y", "x y")])
def test_two_patients_of_one_name(names, folders, capsys):
    for name in names:
        patient(folders / "archive" / name)
    assert convert(folders / "archive", "-d", 60) == 1
    error = capsys.readouterr().err
    assert "would both be the case" in error and all(name in error for name in names)


def test_files_beside_the_patients_are_refused(folders, capsys):
    patient(folders / "archive" / "a")
    shutil.copy(folders / "archive" / "a" / "RS" / "rs.dcm", folders / "archive")
    assert convert(folders / "archive", "-d", 60) == 1
    assert "each patient needs a folder of its own" in capsys.readouterr().err


@pytest.mark.parametrize(
    "options, problem",
    [
        (("--organs", "heart"), "write 'Heart'"),
        (("--organs", "Heart", "Heart"), "may be named once"),
        (("--names", '{"background": ["heart"]}'), "cannot be the name of an organ"),
        (("--names", '{"": ["heart"]}'), "cannot be the name of an organ"),
    ],
)
def test_options_that_cannot_be_meant(options, problem, folders, capsys):
    patient(folders / "archive" / "a")
    if options[0] == "--names":
        (folders / "names.json").write_text(options[1])
        options = ("--names", folders / "names.json")
    assert convert(folders / "archive", "-d", 60, *options) == 1
    assert problem in capsys.readouterr().err and not list((folders / "nnUNet_raw").iterdir())


@pytest.mark.parametrize(
    "make", [lambda folder: None, lambda folder: folder.mkdir(), lambda folder: (folder / "x").mkdir(parents=True)]
)
def test_nothing_to_convert(make, folders, capsys):
    make(folders / "archive")
    assert convert(folders / "archive", "-d", 60) == 1
    assert "archive" in capsys.readouterr().err and not any((folders / "nnUNet_raw").iterdir())


@pytest.mark.skipif(not (REAL / "dicom_rtstruct_lung3").is_dir(), reason="OAR_REAL_DATA does not hold the series")
def test_real_patients(folders, capsys):
    (folders / "names.json").write_text('{"GTV": ["GTV-1"]}')
    (folders / "archive").mkdir()
    for name in ("dicom_rtstruct_lung3", "dicom_rtstruct_lung4", "dicom_rtstruct_breast_1slice"):
        shutil.copytree(REAL / name, folders / "archive" / name)
    assert convert(folders / "archive", "-d", 60, "--names", folders / "names.json") == 0
    printed = capsys.readouterr().out
    assert (
        "dicom_rtstruct_breast_1slice: Lung_L not annotated: 'Lt Lung' was drawn on 80 slices that the series lacks"
        in printed
    )
    assert "dicom_rtstruct_breast_1slice: left out, no usable region" in printed
    raw = folders / "nnUNet_raw" / "Dataset060_Clinical"
    for name, voxels in (("dicom_rtstruct_lung3", 4047), ("dicom_rtstruct_lung4", 43124)):
        assert (
            np.count_nonzero(sitk.GetArrayFromImage(sitk.ReadImage(str(raw / "labelsTr" / f"{name}.nii.gz")))) == voxels
        )
