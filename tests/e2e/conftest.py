"""The demo on its smallest profile, once for the session: from a checkout whose library was edited, on a local stack.

Jobs go to the stack's Ray head by ``ray job submit``, data to its S3 server, runs and models to its MLflow server.
"""

import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.conftest import REPO, LocalStack, job_environment

VERSION = "9.9.9"
METRICS = "metrics-of-the-checkout.jsonl"
CUSTOMER, SUBJECT = "acme", "duck_0400000"
_SUBMIT = ("job", "submit", "--working-dir", ".", "--runtime-env", "infra/ray/runtime-env.yaml")
_NOT_COPIED = shutil.ignore_patterns(".git", ".venv", ".demo*", ".local", "__pycache__", ".*_cache", "tests")


@dataclass(frozen=True)
class Checkout:
    """A copy of the repository, whose jobs are submitted to the cluster of ``environment``."""

    folder: Path
    environment: dict[str, str]

    def submit(self, *entrypoint: str, options: tuple[str, ...] = ()) -> str:
        """``ray job submit`` from this checkout; returns what it printed."""
        return self.ray(*_SUBMIT, *options, "--", *entrypoint)

    def ray(self, *arguments: str) -> str:
        """A command of Ray from this checkout; returns what it printed."""
        command = [str(Path(sys.executable).with_name("ray")), *arguments]
        done = subprocess.run(
            command, cwd=self.folder, env=job_environment(self.environment), capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
        return done.stdout


@dataclass(frozen=True)
class Demo:
    """A demo that ran."""

    folder: Path
    """Logs and timings."""
    data: str
    """URI of its results."""
    printed: str
    """What it said."""


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
def demo(checkout: Checkout, local_stack: LocalStack, tmp_path_factory: pytest.TempPathFactory) -> Demo:
    """The whole demo, from photos to a customer's images."""
    out = tmp_path_factory.mktemp("demo") / "tiny"
    command = [sys.executable, "infra/demo/demo.py", "--profile", "tiny"]
    done = subprocess.run(
        [*command, "--stack", str(local_stack.folder), "--out", str(out)],
        cwd=checkout.folder,
        env=job_environment({}),
        capture_output=True,
        text=True,
        timeout=1200,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
    return Demo(out, "s3://lookalike/tiny", done.stdout)


@pytest.fixture(autouse=True)
def clients(ray_cluster: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The test itself reaches the stack's S3 and MLflow."""
    for name, value in ray_cluster.items():
        if not name.startswith("RAY_"):
            monkeypatch.setenv(name, value)


def _edit(path: Path, pattern: str, replacement: str) -> None:
    text, count = re.subn(pattern, replacement, path.read_text())
    assert count == 1, f"{path} has {count} of {pattern}"
    path.write_text(text)
