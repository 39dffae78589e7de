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


def ext_trainer_with_plugin(current: str | None) -> str:
    """Value of nnUNet_extTrainer that keeps what is there and adds our folder once."""
    paths = [path for path in (current or "").split(os.pathsep) if path.strip()]
    ours = str(plugin_folder())
    return os.pathsep.join(paths if ours in paths else [*paths, ours])
