"""`nnunet_oar convert`: usage, what it prints, and that it writes everything or nothing."""

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from published import SHAPE, SLICES_FIRST, everything, geometry, read, write_ct, write_mask, write_volume

from nnunet_oar import cli
from nnunet_oar.cli.convert import DATASETS
from nnunet_oar.environment import FOLDERS


@pytest.fixture
def kits(tmp_path):
    folder = tmp_path / "kits"
    for number in range(3):
        case = folder / f"case_{number:05d}"
        write_ct(case / "imaging.nii.gz")
        write_mask(case / "segmentation.nii.gz", 0)
    write_ct(folder / "case_00210" / "imaging.nii.gz")
    return folder


def convert(*arguments) -> int:
    return cli.main(["convert", *map(str, arguments), "--disable_progress_bar"])


def refusal(capsys, *arguments) -> str:
    """The one line of a refused conversion."""
    assert convert(*arguments) == 1
    printed = capsys.readouterr()
    assert printed.err.count("\n") == 1 and printed.err.startswith("nnunet_oar convert: ") and not printed.out
    return printed.err


@pytest.mark.parametrize("dataset", DATASETS)
def test_every_data_set_has_help(dataset, capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.main(["convert", dataset, "--help"])
    printed = capsys.readouterr().out
    assert stopped.value.code == 0 and f"usage: nnunet_oar convert {dataset}" in printed
    assert ("--organs" in printed) == (dataset in ("visceral", "totalsegmentator", "rtstruct"))


def test_help_lists_the_data_sets(capsys):
    with pytest.raises(SystemExit):
        cli.main(["convert", "--help"])
    printed = capsys.readouterr().out
    assert all(dataset in printed for dataset in DATASETS)


def test_what_was_made_and_what_comes_next(folders, kits, capsys):
    assert convert("kits19", kits, "-d", 40) == 0
    target = folders / "nnUNet_raw" / "Dataset040_KiTS19"
    assert capsys.readouterr().out.splitlines() == [
        f"3 training cases and 1 test case, 2 organs (kidney, tumor) in {target}",
        "next: nnunet_oar prepare -d 40 -tr OARInstanceCascadeTrainer",
    ]
    assert sorted(os.listdir(target)) == ["dataset.json", "imagesTr", "imagesTs", "labelsTr"]


def test_masks_tell_of_overlaps_and_of_partial_annotation(folders, tmp_path, capsys):
    for subject, organs in {"s0000": ["liver", "spleen"], "s0001": ["liver"]}.items():
        write_ct(tmp_path / "ts" / subject / "ct.nii.gz")
        for organ in organs:
            write_mask(tmp_path / "ts" / subject / "segmentations" / f"{organ}.nii.gz", 0)
    assert (
        convert("totalsegmentator", tmp_path / "ts", "-d", 7, "--name", "TwoOrgans", "--organs", "liver", "spleen") == 0
    )
    voxels = SHAPE[1] * SHAPE[2]
    assert capsys.readouterr().out.splitlines() == [
        f"in several organs at once: {voxels} voxels in 1 case; the smallest organ has them",
        "not every case annotates every organ; nnunet_oar annotations -d 7 shows which",
        f"2 training cases, 2 organs (liver, spleen) in {folders / 'nnUNet_raw' / 'Dataset007_TwoOrgans'}",
        "next: nnunet_oar prepare -d 7",
    ]


def test_the_host_reads_what_was_written(folders, kits):
    """nnU-Net's own integrity check, with its default reader."""
    from nnunetv2.experiment_planning.verify_dataset_integrity import verify_dataset_integrity

    assert convert("kits19", kits, "-d", 40) == 0
    verify_dataset_integrity(str(folders / "nnUNet_raw" / "Dataset040_KiTS19"), 1)


@pytest.mark.parametrize("variable", FOLDERS)
def test_a_number_that_is_taken_is_refused(folders, kits, capsys, variable):
    (folders / variable / "Dataset040_Other").mkdir()
    assert f"taken by {folders / variable / 'Dataset040_Other'}" in refusal(capsys, "kits19", kits, "-d", 40)


@pytest.mark.parametrize(
    "options, words",
    [
        (["-d", 0], "1 to 999, got 0"),
        (["-d", 1000], "1 to 999, got 1000"),
        (["-d", 40, "--name", "../KiTS"], "'../KiTS'"),
    ],
)
def test_impossible_numbers_and_names_are_refused(folders, kits, capsys, options, words):
    assert words in refusal(capsys, "kits19", kits, *options)


def test_without_the_raw_folder_its_variable_is_named(folders, kits, capsys, monkeypatch):
    monkeypatch.delenv("nnUNet_raw")
    assert "nnUNet_raw" in refusal(capsys, "kits19", kits, "-d", 40)


def other_shape(case):
    write_mask(case / "segmentation.nii.gz", shape=(4, 4, 4))
    return "case_00002/imaging.nii.gz and ", "case_00002/segmentation.nii.gz must have one shape"


def other_affine(case):
    write_mask(case / "segmentation.nii.gz", affine=SLICES_FIRST)
    return "case_00002/imaging.nii.gz and ", "case_00002/segmentation.nii.gz must lie on one grid"


def other_value(case):
    write_mask(case / "segmentation.nii.gz", 0, value=3)
    return "case_00002/segmentation.nii.gz holds the value 3, expected 0 (background), 1 (kidney), 2 (tumor)", ""


def broken_labels(case):
    (case / "segmentation.nii.gz").write_text("not found")
    return "case_00002/segmentation.nii.gz cannot be read", ""


def broken_image(case):
    path = write_volume(case / "imaging.nii.gz", np.random.default_rng(0).integers(0, 99, SHAPE, np.int16))
    path.write_bytes(path.read_bytes()[:-30])
    return "case_00002/imaging.nii.gz cannot be read", ""


@pytest.mark.parametrize("spoil", [other_shape, other_affine, other_value, broken_labels, broken_image])
def test_a_failure_names_the_file_and_leaves_nothing(folders, kits, capsys, spoil):
    words = spoil(kits / "case_00002")
    before = everything(folders)
    error = refusal(capsys, "kits19", kits, "-d", 40)
    assert all(word in error for word in words)
    assert everything(folders) == before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interruption_leaves_nothing(folders, tmp_path, number):
    random = np.random.default_rng(0).integers(-1000, 1000, (256, 256, 160), np.int16)  # seconds to compress and read
    source = tmp_path / "kits"
    for case in range(6):
        folder = source / f"case_{case:05d}"
        if case == 0:
            write_volume(folder / "imaging.nii.gz", random)
        else:
            folder.mkdir()
            os.link(source / "case_00000" / "imaging.nii.gz", folder / "imaging.nii.gz")
        write_mask(folder / "segmentation.nii.gz", 0, shape=random.shape)
    # Ctrl-C is ignored in what a shell starts in the background, perhaps these tests
    code = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
    code += "from nnunet_oar import cli; raise SystemExit(cli.main())"
    command = [sys.executable, "-c", code, "convert", "kits19", source, "-d", "40"]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    raw = folders / "nnUNet_raw"
    for _ in range(600):
        if any(raw.rglob("*_0000.nii.gz")):
            break
        time.sleep(0.05)
    assert process.poll() is None and everything(raw)
    process.send_signal(number)
    assert process.wait(timeout=60) != 0
    assert not everything(raw)


def test_one_grid_in_different_words_is_one_grid(folders, tmp_path):
    """The CT has an sform only, its labels a qform only; the written labels follow the CT."""
    case = tmp_path / "kits" / "case_00000"
    write_ct(case / "imaging.nii.gz", affine=SLICES_FIRST, sform=2, qform=None)
    labels = np.arange(np.prod(SHAPE), dtype=np.uint16).reshape(SHAPE) % 3
    write_volume(case / "segmentation.nii.gz", labels, SLICES_FIRST, sform=None, qform=1)
    assert convert("kits19", tmp_path / "kits", "-d", 1) == 0
    written = folders / "nnUNet_raw" / "Dataset001_KiTS19" / "labelsTr" / "case_00000.nii.gz"
    np.testing.assert_array_equal(read(written), labels)
    assert geometry(written) == geometry(case / "imaging.nii.gz")
