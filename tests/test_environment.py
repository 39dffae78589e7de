"""The shell line of `nnunet_oar env` and the check of nnU-Net's folders."""

import os
import subprocess

import pytest

from nnunet_oar.cli import env
from nnunet_oar.environment import EXT_TRAINER, ext_trainer_with_plugin, plugin_folder, require_folders

OURS = str(plugin_folder())


def printed_line(capsys) -> str:
    env.run(None)
    return capsys.readouterr().out


def value_after_eval(line: str) -> str:
    """What a program sees that is started by a shell in which `line` was evaluated."""
    script = 'eval "$LINE" && printenv ' + EXT_TRAINER
    done = subprocess.run(
        ["bash", "-c", script], env={**os.environ, "LINE": line}, capture_output=True, text=True, check=True
    )
    return done.stdout.removesuffix("\n")


def test_plugin_folder_holds_one_module():
    assert [path.name for path in plugin_folder().glob("*.py") if path.name != "__init__.py"] == ["oar_trainers.py"]


@pytest.mark.parametrize("empty", [None, "", os.pathsep, " "])
def test_alone_where_nothing_is_set(empty):
    assert ext_trainer_with_plugin(empty) == OURS


def test_paths_that_are_there_stay_first():
    assert ext_trainer_with_plugin("/a:/b") == f"/a:/b:{OURS}"


def test_a_second_time_changes_nothing():
    once = ext_trainer_with_plugin("/a:/b")
    assert ext_trainer_with_plugin(once) == once
    assert ext_trainer_with_plugin(f"{OURS}:/a") == f"{OURS}:/a"


@pytest.mark.parametrize("folder", ["/my trainers", "/it's $HOME", '/"quoted"', "/`id`"])
def test_a_shell_keeps_any_path_as_it_is(folder, monkeypatch, capsys):
    monkeypatch.setenv(EXT_TRAINER, folder)
    assert value_after_eval(printed_line(capsys)) == f"{folder}:{OURS}"


def test_line_without_earlier_value(monkeypatch, capsys):
    monkeypatch.delenv(EXT_TRAINER, raising=False)
    line = printed_line(capsys)
    assert line.count("\n") == 1
    assert value_after_eval(line) == OURS


def test_require_folders_accepts_folders(monkeypatch, tmp_path):
    monkeypatch.setenv("nnUNet_raw", str(tmp_path))
    require_folders("nnUNet_raw")


@pytest.mark.parametrize("value", [None, ""])
def test_require_folders_names_a_variable_that_is_not_set(value, monkeypatch):
    if value is None:
        monkeypatch.delenv("nnUNet_raw", raising=False)
    else:
        monkeypatch.setenv("nnUNet_raw", value)
    with pytest.raises(ValueError, match="nnUNet_raw is not set"):
        require_folders("nnUNet_raw")


def test_require_folders_names_variable_and_path_of_what_is_no_folder(monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    for name in ("file", "missing"):
        monkeypatch.setenv("nnUNet_results", str(tmp_path / name))
        with pytest.raises(ValueError, match=f"nnUNet_results is '{tmp_path / name}', which is not a folder"):
            require_folders("nnUNet_results")
