"""What the doctor says of each thing that can be wrong, and that it says nothing bad of what is right."""

import os
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from types import SimpleNamespace

import pytest

from nnunet_oar import doctor
from nnunet_oar.cli import main
from nnunet_oar.doctor import Finding
from nnunet_oar.environment import EXT_TRAINER, FOLDERS, plugin_folder
from nnunet_oar.plugin import oar_trainers


def test_lines_say_what_to_do():
    assert str(Finding(True, "fine")) == "ok   fine"
    assert str(Finding(False, "broken", "mend it")) == "FIX  broken: mend it"
    assert str(Finding(True, "slow", "do less")) == "tip  slow: do less"


@pytest.mark.parametrize(
    "version, ok", [("2.8", True), ("2.8.1", True), ("2.7.9", False), ("2.9.0", False), ("2.80", False)]
)
def test_nnunet_version(version, ok):
    finding = doctor.check_nnunet(lambda package: version)
    assert finding.ok == ok
    assert version in finding.text


def test_nnunet_missing():
    def version_of(package):
        raise PackageNotFoundError(package)

    finding = doctor.check_nnunet(version_of)
    assert not finding.ok and "pip install" in finding.remedy


def test_range_is_the_one_that_is_installed():
    setup = Path(__file__).parent.parent / "setup.py"
    assert f'"nnunetv2{doctor.NNUNET_RANGE}"' in setup.read_text()


def loader(torchvision):
    """Imports the real torch, and `torchvision`: a module or what its import raises."""
    import torch

    def load(name):
        if name == "torch":
            return torch
        if isinstance(torchvision, Exception):
            raise torchvision
        return torchvision

    return load


def torchvision_whose_nms(result):
    def nms(boxes, scores, threshold):
        if isinstance(result, Exception):
            raise result
        return result

    return SimpleNamespace(__version__="0.1", ops=SimpleNamespace(nms=nms))


def test_a_pair_that_fits():
    assert doctor.check_torch(loader(torchvision_whose_nms(0))).ok


@pytest.mark.parametrize(
    "torchvision",
    [
        RuntimeError("operator torchvision::nms does not exist\nand a long explanation"),
        ModuleNotFoundError("No module named 'torchvision'"),
        OSError("undefined symbol"),
        torchvision_whose_nms(RuntimeError("Couldn't load custom C++ ops.")),
    ],
)
def test_a_pair_that_does_not_fit(torchvision):
    finding = doctor.check_torch(loader(torchvision))
    assert not finding.ok
    assert "matching pair" in finding.remedy
    assert "\n" not in str(finding)


def test_torch_missing():
    def load(name):
        raise ModuleNotFoundError(f"No module named {name!r}")

    finding = doctor.check_torch(load)
    assert not finding.ok and "No module named 'torch'" in finding.text


def test_folders(tmp_path):
    good = {name: str(tmp_path) for name in FOLDERS}
    assert all(doctor.check_folder(name, good).ok for name in FOLDERS)
    assert "is not set" in doctor.check_folder("nnUNet_raw", {}).text
    missing = doctor.check_folder("nnUNet_raw", {"nnUNet_raw": str(tmp_path / "missing")})
    assert not missing.ok and str(tmp_path / "missing") in missing.text
    assert "$HOME" in doctor.check_folder("nnUNet_raw", {"nnUNet_raw": "~/raw"}).remedy


def test_read_only_folders(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK)  # root may write anywhere
    environment = {name: str(tmp_path) for name in FOLDERS}
    raw, preprocessed, results = (doctor.check_folder(name, environment) for name in FOLDERS)
    assert raw.ok and raw.remedy  # enough for planning and training
    assert not preprocessed.ok and not results.ok


def test_plugin_folder(tmp_path):
    assert doctor.check_plugin({EXT_TRAINER: f"/elsewhere{os.pathsep}{plugin_folder()}/"}).ok
    for environment in ({}, {EXT_TRAINER: "/elsewhere"}):
        finding = doctor.check_plugin(environment)
        assert not finding.ok and finding.remedy == 'eval "$(nnunet_oar env)"'
    incomplete = doctor.check_plugin({EXT_TRAINER: str(tmp_path)}, folder=tmp_path)
    assert not incomplete.ok and "reinstall" in incomplete.remedy


def test_devices_name_the_cpu_and_are_never_an_error():
    findings = doctor.check_devices()
    assert findings[0].text.startswith("CPU: ")
    assert all(finding.ok for finding in findings)


def by_name(environment, cores):
    return dict(zip(doctor.DEFAULT_PROCESSES, doctor.check_processes(environment, cores), strict=True))


def test_defaults_swamp_a_small_machine():
    findings = by_name({}, cores=2)
    assert findings["nnUNet_def_n_proc"].remedy == "export nnUNet_def_n_proc=2"
    assert findings["nnUNet_n_proc_DA"].remedy == "export nnUNet_n_proc_DA=1"
    assert all(finding.ok for finding in findings.values())


@pytest.mark.parametrize("environment, cores", [({"nnUNet_def_n_proc": "2", "nnUNet_n_proc_DA": "1"}, 2), ({}, 4096)])
def test_nothing_to_say_about_numbers_that_fit(environment, cores):
    assert not any(finding.remedy for finding in doctor.check_processes(environment, cores))


def test_the_advice_is_followed_by_silence():
    for cores in (1, 2, 3, 5, 9):
        advice = [finding.remedy for finding in doctor.check_processes({}, cores) if finding.remedy]
        environment = dict(line.removeprefix("export ").split("=") for line in advice)
        assert not any(finding.remedy for finding in doctor.check_processes(environment, cores))


@pytest.mark.parametrize("value", ["many", "-1", ""])
def test_what_is_not_a_number_of_processes(value):
    findings = by_name({"nnUNet_def_n_proc": value, "nnUNet_n_proc_DA": value}, cores=64)
    assert not any(finding.ok for finding in findings.values())


def test_zero_processes():
    findings = by_name({"nnUNet_def_n_proc": "0", "nnUNet_n_proc_DA": "0"}, cores=64)
    assert not findings["nnUNet_def_n_proc"].ok
    assert findings["nnUNet_n_proc_DA"].ok and "training only" in findings["nnUNet_n_proc_DA"].remedy


def test_trainers_that_are_found(capsys):
    def look_up(name):
        print("Searching in many places")
        return getattr(oar_trainers, name)

    findings = doctor.check_trainers(look_up)
    assert [finding.text for finding in findings] == [f"nnU-Net finds {name}" for name in oar_trainers.__all__]
    assert all(finding.ok for finding in findings)
    assert capsys.readouterr().out == ""


def test_trainers_that_are_another_class():
    findings = doctor.check_trainers(lambda name: type(name, (), {}))
    assert not any(finding.ok for finding in findings)


@pytest.mark.parametrize("error", [RuntimeError("Could not find it.\nMore"), SyntaxError("in somebody's trainer")])
def test_trainers_that_are_not_found(error):
    def look_up(name):
        raise error

    findings = doctor.check_trainers(look_up)
    assert not any(finding.ok for finding in findings)
    assert all(type(error).__name__ in finding.text and "\n" not in str(finding) for finding in findings)


def test_nnunets_own_look_up(monkeypatch):
    monkeypatch.setenv(EXT_TRAINER, str(plugin_folder()))
    findings = doctor.check_trainers()
    assert [str(finding) for finding in findings if not finding.ok] == []
    assert len(findings) == len(oar_trainers.__all__) > 0


@pytest.mark.parametrize("fixed", [True, False])
def test_command(fixed, monkeypatch, capsys):
    found = [Finding(True, "one"), Finding(fixed, "two", "do it")]
    monkeypatch.setattr("nnunet_oar.cli.doctor.examine", lambda environment: iter(found))
    assert main(["doctor"]) == (0 if fixed else 1)
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == [str(finding) for finding in found]
    assert len(lines) == 3


def test_trainers_are_looked_up_only_where_they_can_be_found(monkeypatch):
    monkeypatch.setattr(doctor, "check_trainers", lambda: [Finding(True, "looked up")])
    assert "looked up" not in [finding.text for finding in doctor.examine({})]
    found = list(doctor.examine({EXT_TRAINER: str(plugin_folder())}))
    assert found[-1].text == "looked up"
