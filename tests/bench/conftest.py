"""Fixtures of the benches."""

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def bench_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder for the input of a bench: ``LOOKALIKE_BENCH_FOLDER``, which the next run reuses, or a temporary one."""
    folder = os.environ.get("LOOKALIKE_BENCH_FOLDER")
    return Path(folder) if folder else tmp_path_factory.mktemp("bench")
