"""nnU-Net's folders for commands that run in this process."""

import pytest

from nnunet_oar.environment import FOLDERS


@pytest.fixture
def folders(tmp_path, monkeypatch):
    for name in FOLDERS:
        (tmp_path / name).mkdir()
        monkeypatch.setenv(name, str(tmp_path / name))
    return tmp_path
