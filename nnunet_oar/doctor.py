"""Is this installation ready? Small checks of what people most often get wrong, each with the remedy.

torch and nnU-Net are imported inside the checks only: a broken one is a finding, not a crash of the doctor.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import io
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from nnunet_oar.environment import EXT_TRAINER, FOLDERS, plugin_folder

NNUNET_RANGE = ">=2.8,<2.9"
PLUGIN_MODULE = "oar_trainers"
ENV_REMEDY = 'eval "$(nnunet_oar env)"'

# What nnU-Net starts where the variable is not set; the second is capped by the number of cores.
DEFAULT_PROCESSES = {"nnUNet_def_n_proc": 8, "nnUNet_n_proc_DA": 12}
FEW_CORES = 4


@dataclass(frozen=True)
class Finding:
    """One line of the report. A remedy to something that is ok is advice: nothing fails without it."""

    ok: bool
    text: str
    remedy: str = ""

    def __str__(self) -> str:
        if self.ok:
            return f"tip  {self.text}: {self.remedy}" if self.remedy else f"ok   {self.text}"
        return f"FIX  {self.text}: {self.remedy}"


def examine(environment: Mapping[str, str]) -> Iterator[Finding]:
    """All checks, in the order in which one sets things up; each finding as soon as it is known (imports take seconds).

    environment: the process's own; nnU-Net's look-up of trainers reads os.environ whatever is given here.
    """
    yield check_nnunet()
    yield check_torch()
    for name in FOLDERS:
        yield check_folder(name, environment)
    plugin = check_plugin(environment)
    yield plugin
    yield from check_devices()
    yield from check_processes(environment, usable_cores())
    if plugin.ok:  # else every trainer would be missing, for the reason just given
        yield from check_trainers()


def check_nnunet(version_of: Callable[[str], str] = importlib.metadata.version) -> Finding:
    install = f'pip install "nnunetv2{NNUNET_RANGE}"'
    try:
        version = version_of("nnunetv2")
    except importlib.metadata.PackageNotFoundError:
        return Finding(False, "nnunetv2 is not installed", install)
    if version.split(".")[:2] != ["2", "8"]:
        return Finding(False, f"nnunetv2 {version}, but nnU-Net renames what trainers use in minor releases", install)
    return Finding(True, f"nnunetv2 {version}")


def check_torch(load: Callable[[str], object] = importlib.import_module) -> Finding:
    """torch, and a torchvision built for it: nnU-Net's networks import torchvision."""
    try:
        torch = load("torch")
    except (ImportError, OSError, RuntimeError) as error:
        return Finding(False, f"torch cannot be imported ({_first_line(error)})", "install it as on pytorch.org")
    try:
        torchvision = load("torchvision")
        # The import alone succeeds where torchvision could not load its compiled operators.
        torchvision.ops.nms(torch.tensor([[0.0, 0.0, 1.0, 1.0]]), torch.tensor([1.0]), 0.5)
    except (ImportError, OSError, RuntimeError, AttributeError) as error:
        return Finding(
            False,
            f"torchvision does not work with torch {torch.__version__} ({_first_line(error)})",
            "install a matching pair in one command and from one index, as on pytorch.org: "
            "pip install --upgrade torch torchvision",
        )
    return Finding(True, f"torch {torch.__version__} and torchvision {torchvision.__version__}")


def check_folder(name: str, environment: Mapping[str, str]) -> Finding:
    """One of nnU-Net's three folders: set, there, readable; writable as well unless it is nnUNet_raw."""
    value = environment.get(name)
    if not value:
        return Finding(False, f"{name} is not set", f"export {name}=/a/folder/of/yours, in your shell's profile")
    if not Path(value).is_dir():
        hint = f"mkdir -p {value!r}, or correct the variable"
        if value.startswith("~"):
            hint = "write $HOME for ~, which the shell does not replace inside quotes"
        return Finding(False, f"{name} is {value!r}, which is not a folder", hint)
    if not os.access(value, os.R_OK | os.X_OK):
        return Finding(False, f"{name} is {value!r}, which you may not read", "change its permissions")
    if not os.access(value, os.W_OK):
        text = f"{name} is {value!r}, which you may not write to"
        if name == "nnUNet_raw":  # shared raw data are often read-only, and neither planning nor training minds
            return Finding(True, text, "enough unless you want to add data sets there")
        return Finding(False, text, "change its permissions or name another folder")
    return Finding(True, f"{name} = {value}")


def check_plugin(environment: Mapping[str, str], folder: Path | None = None) -> Finding:
    """nnUNet_extTrainer names `folder`, by default that of this installation."""
    folder = folder or plugin_folder()
    if not (folder / f"{PLUGIN_MODULE}.py").is_file():
        return Finding(False, f"{folder / PLUGIN_MODULE}.py is missing from the installation", "reinstall nnunet_oar")
    value = environment.get(EXT_TRAINER, "")
    paths = [Path(path).resolve() for path in value.split(os.pathsep) if path.strip()]
    if folder.resolve() not in paths:
        what = f"is {value!r}, without {folder}" if value else "is not set"
        return Finding(False, f"{EXT_TRAINER} {what}", ENV_REMEDY)
    return Finding(True, f"{EXT_TRAINER} names {folder}")


def check_devices() -> list[Finding]:
    try:
        import torch

        from nnunet_oar.networks.precision import cpu_has_bfloat16
    except (ImportError, OSError, RuntimeError):
        return []  # check_torch has said so
    precision = "computes in bfloat16" if cpu_has_bfloat16() else "no bfloat16, computes in float32"
    findings = [Finding(True, f"CPU: {usable_cores()} cores, {precision}")]
    for index in range(torch.cuda.device_count()):
        device = torch.cuda.get_device_properties(index)
        findings.append(Finding(True, f"cuda:{index}: {device.name}, {device.total_memory / 2**30:.0f} GiB"))
    if torch.backends.mps.is_available():
        findings.append(Finding(True, "mps: Apple GPU"))
    if len(findings) == 1:
        if shutil.which("nvidia-smi"):
            build = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "built without CUDA"
            remedy = "install the build that pytorch.org names for the driver that nvidia-smi shows"
            findings.append(Finding(True, f"torch {torch.__version__}, {build}, sees no GPU", remedy))
        else:
            findings.append(Finding(True, "no GPU: give nnU-Net's commands -device cpu"))
    return findings


def check_processes(environment: Mapping[str, str], cores: int) -> list[Finding]:
    """Numbers of worker processes against `cores`; each worker imports torch, about 1 GB of memory."""
    return [_check_processes(name, environment.get(name), cores) for name in DEFAULT_PROCESSES]


def _check_processes(name: str, value: str | None, cores: int) -> Finding:
    augmentation = name == "nnUNet_n_proc_DA"
    # Augmentation runs beside the training itself, preprocessing and export run alone.
    limit = max(1, cores - 1) if augmentation and cores <= FEW_CORES else cores
    remedy = f"export {name}={min(limit, DEFAULT_PROCESSES[name])}"
    try:
        number = DEFAULT_PROCESSES[name] if value is None else int(value)
    except ValueError:
        number = -1
    if number < 0 or number == 0 and not augmentation:
        return Finding(False, f"{name} is {value!r}, not a number of processes", remedy)
    if number == 0:
        return Finding(True, f"{name} is 0, on which nnU-Net's planning fails", "unset it, or set it for training only")
    if augmentation:
        number = min(number, max(cores, os.cpu_count() or 1))  # as nnU-Net does, with all cores of the machine
    setting = f"{name} is not set, nnU-Net takes {number}" if value is None else f"{name} is {value}"
    if number > limit:
        share = "beside the training, " if augmentation else ""
        return Finding(True, f"{setting}: too many {share}on {cores} cores", remedy)
    return Finding(True, f"{setting}, on {cores} cores")


def check_trainers(look_up: Callable[[str], type] | None = None) -> list[Finding]:
    """nnU-Net finds every trainer of the plug-in by name, and what it finds is our class, not a second copy of it.

    look_up: name -> class; by default nnU-Net's own, which reads nnUNet_extTrainer from os.environ.
    """
    try:
        if look_up is None:
            from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name as look_up
        plugin = importlib.import_module(f"nnunet_oar.plugin.{PLUGIN_MODULE}")
    except Exception as error:  # whatever importing a whole framework can raise
        text = f"the trainers cannot be imported ({type(error).__name__}: {_first_line(error)})"
        return [Finding(False, text, "mend what is named above, or reinstall nnunet_oar")]
    return [_check_trainer(name, getattr(plugin, name), look_up) for name in plugin.__all__]


def _check_trainer(name: str, ours: type, look_up: Callable[[str], type]) -> Finding:
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # the look-up tells every module that it opens
            found = look_up(name)
    except Exception as error:  # it imports every trainer file in nnUNet_extTrainer, also other people's
        text = f"nnU-Net does not find {name} ({type(error).__name__}: {_first_line(error)})"
        return Finding(False, text, f"{ENV_REMEDY}, or correct the other folders in {EXT_TRAINER}")
    if found is not ours:
        text = f"nnU-Net finds another class called {name}, from {found.__module__}"
        return Finding(False, text, f"let {EXT_TRAINER} name {plugin_folder()} and no other folder with this class")
    return Finding(True, f"nnU-Net finds {name}")


def usable_cores() -> int:
    """Those this process may run on, where the system tells: a container often has fewer than the machine."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
