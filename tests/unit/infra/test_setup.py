"""infra/setup/check.py reports missing programs."""

import runpy
import sys
from pathlib import Path
from typing import Any

import pytest

_SOURCE = Path(__file__).resolve().parents[3] / "infra" / "setup" / "check.py"


@pytest.fixture
def check(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Run main() with an empty PATH and nothing beside the interpreter."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    return runpy.run_path(str(_SOURCE))["main"]


def test_missing_compiler_is_named(check: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert check() == 1
    assert "apt-get install g++" in capsys.readouterr().err


def test_missing_ninja_is_named(check: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    compiler = tmp_path / "c++"
    compiler.touch(mode=0o755)
    assert check() == 1
    assert "apt-get install ninja-build" in capsys.readouterr().err
