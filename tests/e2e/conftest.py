"""The demo's first half, once for the session: submitted from a copy of the repository whose library was edited."""

import re
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.conftest import REPO, job_environment

VERSION = "9.9.9"
METRICS = "metrics-of-the-copy.jsonl"
ROOT = "s3://lookalike/e2e"
_SUBMIT = ("job", "submit", "--working-dir", ".", "--runtime-env", "infra/ray/runtime-env.yaml", "--")
_NOT_COPIED = shutil.ignore_patterns(".git", ".venv", ".demo*", ".local", "__pycache__", ".*_cache", "tests")


@dataclass
class Checkout:
    """A copy of the repository, and the cluster that its jobs are submitted to."""

    folder: Path
    environment: dict[str, str]
    logs: dict[str, str] = field(default_factory=dict)

    def submit(self, *entrypoint: str, timeout_s: float = 900) -> str:
        """``ray job submit`` from this checkout; returns what the job printed."""
        ray = Path(sys.executable).with_name("ray")
        log = self.folder.parent / "submit.log"
        with log.open("w") as file:
            done = subprocess.run(
                [str(ray), *_SUBMIT, *entrypoint],
                cwd=self.folder,
                env=job_environment(self.environment),
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                timeout=timeout_s,
            )
        lines = [line for line in log.read_text().splitlines() if "object store" not in line]  # no progress bars
        assert done.returncode == 0, "\n".join(lines)[-8000:]
        return "\n".join(lines)


@pytest.fixture(scope="session")
def checkout(ray_cluster: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    """A checkout whose library differs from the installed one."""
    folder = tmp_path_factory.mktemp("checkout") / "repo"
    shutil.copytree(REPO, folder, ignore=_NOT_COPIED)
    library = folder / "platform" / "lookalike"
    _edit(library / "__init__.py", r'__version__ = ".*"', f'__version__ = "{VERSION}"')
    _edit(library / "training" / "history.py", r'METRICS = ".*"', f'METRICS = "{METRICS}"')
    return Checkout(folder, ray_cluster)


@pytest.fixture(scope="session")
def submitted(checkout: Checkout) -> Checkout:
    """The checkout after its ingest, curate and train ran on the cluster, with data below ``ROOT``."""
    jobs = {
        "ingest": ["--config", "jobs/configs/ingest-tiny.yaml", "--raw", f"{ROOT}/raw"],
        "curate": ["--raw", f"{ROOT}/raw", "--dataset", f"{ROOT}/dataset"],
        "train": ["--config", "jobs/configs/train-tiny.yaml", "--dataset", f"{ROOT}/dataset", "--run", f"{ROOT}/run"],
    }
    for name, arguments in jobs.items():
        checkout.logs[name] = checkout.submit("python", f"jobs/{name}.py", *arguments)
    return checkout


@pytest.fixture
def cluster_environment(ray_cluster: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The test itself reaches the cluster's S3 and MLflow."""
    for name, value in ray_cluster.items():
        if not name.startswith("RAY_"):
            monkeypatch.setenv(name, value)
    return ray_cluster


def _edit(path: Path, pattern: str, replacement: str) -> None:
    text, count = re.subn(pattern, replacement, path.read_text())
    assert count == 1, f"{path} has {count} of {pattern}"
    path.write_text(text)
