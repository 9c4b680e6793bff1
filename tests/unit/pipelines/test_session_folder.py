"""Where a private Ray cluster keeps its files."""

import tempfile
from pathlib import Path

import pytest

from pipelines.private_ray import session_folder


@pytest.mark.parametrize("length", [10, 60])
def test_ray_has_a_private_folder_however_long_tmpdir_is(
    length: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deep = tmp_path / ("x" * length)
    deep.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(deep))
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    with session_folder() as folder:
        assert folder is not None
        assert Path(folder).stat().st_mode & 0o077 == 0
        assert len(f"{folder}/session_2026-01-01_00-00-00_000000_0000000/sockets/plasma_store") <= 107
        (Path(folder) / "file").touch()
    assert not Path(folder).exists()
