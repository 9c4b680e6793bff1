"""The files and environment that are submitted with a job."""

import zipfile
from pathlib import Path

import yaml
from ray._private.ray_constants import get_runtime_env_default_excludes
from ray._private.runtime_env.packaging import create_package

from lookalike.training.loop_config import SafetyConfig
from pipelines.entry import OPT_OUT

_REPO = Path(__file__).resolve().parents[3]
_RUNTIME_ENV = yaml.safe_load((_REPO / "infra" / "ray" / "runtime-env.yaml").read_text())


def test_library_is_uploaded_with_the_job() -> None:
    assert _RUNTIME_ENV["py_modules"] == ["platform/lookalike"]


def test_stopped_job_gets_sigterm_and_time_for_a_checkpoint() -> None:
    variables = _RUNTIME_ENV["env_vars"]
    assert variables["RAY_JOB_STOP_SIGNAL"] == "SIGTERM"
    assert float(variables["RAY_JOB_STOP_WAIT_TIME_S"]) > SafetyConfig().grace_s


def test_telemetry_is_off_in_submitted_jobs() -> None:
    # the use of Ray itself is reported by the cluster's head, by its own environment
    assert {**_RUNTIME_ENV["env_vars"], "RAY_USAGE_STATS_ENABLED": "0"}.items() >= OPT_OUT.items()


def test_standard_library_platform_is_not_shadowed() -> None:
    assert not (_REPO / "platform" / "__init__.py").exists()  # with it a submitted job is PENDING for ever


def test_jobs_run_in_a_plain_interpreter() -> None:
    assert "py_executable" not in _RUNTIME_ENV
    said = [_REPO / "Makefile", _REPO / "README.md", *_REPO.glob("jobs/*.*"), *_REPO.glob("infra/*/*.*")]
    assert not [path for path in said if "uv run" in path.read_text()]


def test_uploaded_folder_is_small(tmp_path: Path) -> None:
    package = tmp_path / "package.zip"
    excludes = [*get_runtime_env_default_excludes(), *_RUNTIME_ENV["excludes"]]
    create_package(str(_REPO), package, include_gitignore=True, excludes=excludes)
    names = zipfile.ZipFile(package).namelist()
    assert {"jobs", "pipelines", "platform", "infra"} <= {Path(name).parts[0] for name in names}
    assert not {".venv", ".git", ".demo", ".local", "tests"} & {Path(name).parts[0] for name in names}
    assert package.stat().st_size < 64 * 2**20  # Ray refuses 512 MiB
