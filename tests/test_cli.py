"""Usage, help and errors of the command, for every sub-command alike."""

import json
import re
import sys

import nnunetv2.paths
import pytest

from nnunet_oar import cli
from nnunet_oar.cli.prepare import first_fold
from nnunet_oar.version import __version__


def exit_status(*arguments: str) -> int:
    with pytest.raises(SystemExit) as stopped:
        cli.main(list(arguments))
    return stopped.value.code


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_every_command_has_help(command, capsys):
    assert exit_status(command, "--help") == 0
    assert f"usage: nnunet_oar {command}" in capsys.readouterr().out


def test_help_lists_every_command(capsys):
    assert exit_status("--help") == 0
    printed = capsys.readouterr().out
    assert all(re.search(rf"\n    {command}\s", printed) for command in cli.COMMANDS)


def test_version(capsys):
    assert exit_status("--version") == 0
    assert capsys.readouterr().out.strip() == f"nnunet_oar {__version__}"


def test_a_typo_lists_the_choices(capsys):
    assert exit_status("perpare") == 2
    printed = capsys.readouterr().err
    assert "perpare" in printed
    assert all(command in printed for command in cli.COMMANDS)


@pytest.mark.parametrize("arguments", [[], ["plan"], ["phantom", "--cases", "two"], ["env", "--no-such-option"]])
def test_wrong_usage(arguments, capsys):
    assert exit_status(*arguments) == 2
    assert capsys.readouterr().err.startswith("usage: nnunet_oar")


def assert_one_line_of_error(capsys, command: str, *words: str) -> None:
    printed = capsys.readouterr()
    assert printed.err.count("\n") == 1 and printed.err.startswith(f"nnunet_oar {command}: ")
    assert all(word in printed.err for word in words)
    assert "Traceback" not in printed.out + printed.err


@pytest.mark.parametrize("command", ["plan", "prepare"])
def test_a_missing_folder_is_one_line(command, capsys, monkeypatch):
    monkeypatch.delenv("nnUNet_raw", raising=False)
    assert cli.main([command, "-d", "55"]) == 1
    assert_one_line_of_error(capsys, command, "nnUNet_raw")


@pytest.mark.parametrize("command", ["plan", "prepare"])
def test_an_impossible_number_is_one_line(command, capsys, monkeypatch, tmp_path):
    for name in ("nnUNet_raw", "nnUNet_preprocessed"):
        monkeypatch.setenv(name, str(tmp_path))
    assert cli.main([command, "-d", "55", "--epochs", "-3"]) == 1
    assert_one_line_of_error(capsys, command, "--epochs", "-3")


@pytest.mark.parametrize("command", ["plan", "prepare"])
@pytest.mark.parametrize(
    "content, options, words",
    [
        ("{,}", (), "Dataset007_Toy/dataset.json cannot be read: "),
        ("[]", (), "Dataset007_Toy/dataset.json must hold an object"),
        (None, (), "Dataset007_Toy/dataset.json cannot be read: "),
        (
            "{}",
            ("-overwrite_target_spacing", "0", "1", "1"),
            "-overwrite_target_spacing must be mm above 0, got 0.0 1.0 1.0",
        ),
        ("{}", ("-overwrite_target_spacing", "nan", "1", "1"), "-overwrite_target_spacing must be mm above 0"),
        ("{}", ("-d", "8"), "holds no Dataset008_*"),
    ],
)
def test_what_cannot_be_planned_is_one_line(command, content, options, words, capsys, monkeypatch, tmp_path):
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        monkeypatch.setenv(name, str(tmp_path))
    (tmp_path / "Dataset007_Toy").mkdir()
    if content is not None:
        (tmp_path / "Dataset007_Toy" / "dataset.json").write_text(content)
    assert cli.main([command, "-d", "7", *options]) == 1
    assert_one_line_of_error(capsys, command, words)


@pytest.mark.parametrize("name", ["../x", "a/b", "", "."])
def test_plans_have_a_name_and_no_path(name, capsys, monkeypatch, tmp_path):
    for folder in ("nnUNet_raw", "nnUNet_preprocessed"):
        monkeypatch.setenv(folder, str(tmp_path))
    assert cli.main(["plan", "-d", "55", "-overwrite_plans_name", name]) == 1
    assert_one_line_of_error(capsys, "plan", "must be a name and no path", repr(name))


@pytest.mark.parametrize("cases, splits, fold", [(4, False, "all"), (5, False, "0"), (1, True, "0")])
def test_prepare_names_a_fold_that_nnunet_can_train(cases, splits, fold, monkeypatch, tmp_path):
    """With fewer than five cases its own splits are none."""
    folder = tmp_path / "Dataset055_Toy"
    for part in ("imagesTr", "labelsTr"):
        (folder / part).mkdir(parents=True)
    (folder / "dataset.json").write_text(json.dumps({"file_ending": ".nrrd", "numTraining": cases}))
    for number in range(cases):
        (folder / "imagesTr" / f"case{number}_0000.nrrd").touch()
        (folder / "labelsTr" / f"case{number}.nrrd").touch()
    if splits:
        (folder / "splits_final.json").write_text("[]")
    for name in ("nnUNet_raw", "nnUNet_preprocessed"):
        monkeypatch.setattr(nnunetv2.paths, name, str(tmp_path))
    assert first_fold("Dataset055_Toy") == fold


def test_a_folder_with_files_is_one_line(capsys, tmp_path):
    (tmp_path / "keep.txt").touch()
    assert cli.main(["phantom", "-o", str(tmp_path), "--cases", "1"]) == 1
    assert_one_line_of_error(capsys, "phantom", str(tmp_path))
    assert (tmp_path / "keep.txt").exists()


def test_success_is_status_zero_and_arguments_come_from_the_shell(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["nnunet_oar", "env"])
    assert cli.main() == 0
    assert capsys.readouterr().out.startswith("export nnUNet_extTrainer=")


def test_our_own_mistakes_are_not_hidden(monkeypatch):
    def broken(args):
        raise KeyError("a programming error")

    monkeypatch.setattr("nnunet_oar.cli.env.run", broken)
    with pytest.raises(KeyError):
        cli.main(["env"])
