import os
import shutil
import sys
from pathlib import Path

import pytest

from lookalike.training.deepspeed_setup import prefer_own_ninja


def test_ninja_of_the_environment_is_preferred_to_the_systems(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It compiled DeepSpeed's operator again that set-up had compiled."""
    own, system = tmp_path / "venv", tmp_path / "system"
    for folder in (own, system):
        folder.mkdir()
        (folder / "ninja").touch(0o755)
    monkeypatch.setattr(sys, "executable", str(own / "python"))
    monkeypatch.setenv("PATH", str(system))
    for _ in range(2):
        prefer_own_ninja()
        assert shutil.which("ninja") == str(own / "ninja")
    assert os.environ["PATH"] == f"{own}{os.pathsep}{system}"
