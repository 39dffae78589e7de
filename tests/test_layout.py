"""The package is whole however it is found, and imports point one way."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def test_the_repository_itself_holds_trainers_and_planners(tmp_path):
    """`python -m pytest` puts the root first on sys.path and finds ./nnunet_oar, beside which the two folders lie."""
    code = "import nnunet_oar.trainers.cascade, nnunet_oar.planners.cascade; print(nnunet_oar.__file__)"
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    assert Path(result.stdout.strip()) == ROOT / "nnunet_oar" / "__init__.py"


def imported(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively: nnU-Net may load a folder's files as top-level modules"
            names.add(node.module)
    return names


def sources(*folders: str) -> list[Path]:
    return [path for folder in folders for path in (ROOT / folder).rglob("*.py")]


def test_no_relative_imports():
    for path in sources("nnunet_oar", "trainers", "planners"):
        imported(path)


@pytest.mark.parametrize("folder", ["networks", "losses", "data", "evaluation", "datasets", "dicom"])
def test_the_library_does_not_need_the_host(folder):
    """nnU-Net renames things in minor releases: little may break."""
    for path in sources(f"nnunet_oar/{folder}"):
        names = imported(path)
        assert not any(name.split(".")[0] == "nnunetv2" for name in names), path
        assert not any(
            name.startswith(("nnunet_oar.trainers", "nnunet_oar.planners", "nnunet_oar.cli")) for name in names
        ), path


LEAVES = (
    "roi", "components", "annotations", "body_regions", "sides", "slabs", "files", "plan.checks", "plan.base", "plan.two_stage",
    "plan.heatmap", "plan.attention", "plan.shared_encoder", "axes", "intensity",
    "instances", "heatmaps", "body", "padding",
)  # fmt: skip


@pytest.mark.parametrize("module", LEAVES)
def test_the_leaves_know_leaves_only(module):
    leaves = {f"nnunet_oar.{name}" for name in LEAVES}
    ours = {
        name
        for name in imported(ROOT / "nnunet_oar" / f"{module.replace('.', '/')}.py")
        if name.startswith("nnunet_oar")
    }
    assert ours <= leaves


def test_every_package_is_installed():
    """setup.py lists what find_packages finds: a folder without __init__.py would be left out of `pip install .`"""
    folders = {path.parent for path in sources("nnunet_oar")}
    assert all((folder / "__init__.py").is_file() for folder in folders)
