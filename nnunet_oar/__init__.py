"""Organs at risk in CT: a plug-in to nnU-Net v2."""

from pathlib import Path

from nnunet_oar.version import __version__

__all__ = ["__version__"]

# In the repository trainers/ and planners/ lie beside this folder and only the installation puts them inside it.
# `python -m pytest` puts the repository first on sys.path and would find this package without the two.
_root = Path(__file__).resolve().parent.parent
if not (Path(__file__).resolve().parent / "trainers").is_dir() and (_root / "trainers" / "base.py").is_file():
    __path__.append(str(_root))
