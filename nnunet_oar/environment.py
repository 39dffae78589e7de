"""nnU-Net's environment variables, checked before anything is done."""

from __future__ import annotations

import os
from pathlib import Path

FOLDERS = ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")
EXT_TRAINER = "nnUNet_extTrainer"


def plugin_folder() -> Path:
    """The folder that nnUNet_extTrainer must name."""
    return Path(__file__).resolve().parent / "plugin"


def require_folders(*names: str) -> None:
    """Raise ValueError, naming the variable, unless each is set to an existing folder."""
    for name in names:
        value = os.environ.get(name)
        if not value:
            raise ValueError(
                f"the environment variable {name} is not set; nnU-Net needs it to find its data (nnunet_oar doctor)"
            )
        if not Path(value).is_dir():
            raise ValueError(f"{name} is {value!r}, which is not a folder; create it or correct the variable")


def dataset_folder(variable: str, given: str, holding: str, hint: str) -> Path:
    """The folder of a data set, by number or name, in the folder that a variable of FOLDERS names.

    holding: what must lie in it, such as a file; empty: nothing. Raises ValueError, with the hint, for none, and for several.
    """
    require_folders(variable)
    root = Path(os.environ[variable])
    pattern = f"Dataset{int(given):03d}_*" if given.isdigit() else given or "DATASET"
    found = sorted(path for path in root.glob(pattern) if path.is_dir() and (path / holding).exists())
    if not found:
        raise ValueError(f"{root} holds no {'/'.join(filter(None, (pattern, holding)))}; {hint}")
    if len(found) > 1:
        raise ValueError(f"{given} could be {' or '.join(path.name for path in found)}; give the whole name with -d")
    return found[0]


def ext_trainer_with_plugin(current: str | None) -> str:
    """Value of nnUNet_extTrainer that keeps what is there and adds our folder once."""
    paths = [path for path in (current or "").split(os.pathsep) if path.strip()]
    ours = str(plugin_folder())
    return os.pathsep.join(paths if ours in paths else [*paths, ours])
