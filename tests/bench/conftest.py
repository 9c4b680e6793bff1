"""What the benches share: a folder that may outlive a run."""

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def bench_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a bench makes its input: ``LOOKALIKE_BENCH_FOLDER``, so that the next run finds it, or a temporary one."""
    folder = os.environ.get("LOOKALIKE_BENCH_FOLDER")
    return Path(folder) if folder else tmp_path_factory.mktemp("bench")
