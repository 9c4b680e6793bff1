"""infra/local/processes.py stops only processes that it started."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import psutil
import pytest

_SOURCE = Path(__file__).resolve().parents[3] / "infra" / "local" / "processes.py"


@pytest.fixture(scope="module")
def processes() -> ModuleType:
    spec = importlib.util.spec_from_file_location("local_processes", _SOURCE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def stranger(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """An unrelated process with the name of a service, in its own session."""
    weed = tmp_path / "weed"
    shutil.copy(shutil.which("sleep") or "/bin/sleep", weed)
    process = subprocess.Popen([str(weed), "600"], start_new_session=True)
    yield process
    process.kill()
    process.wait()


def _start(processes: ModuleType, folder: Path, script: str) -> psutil.Process:
    processes.start("service", ["sh", "-c", script], os.environ, folder)
    process = processes.find("service", folder)
    assert process is not None
    return process


def _wait_for_children(process: psutil.Process, count: int) -> list[psutil.Process]:
    for _ in range(100):
        if len(children := process.children(recursive=True)) == count:
            return children
        time.sleep(0.05)
    raise AssertionError(f"{process} has {children}")


def test_service_and_its_children_are_stopped(
    processes: ModuleType, tmp_path: Path, stranger: subprocess.Popen[bytes]
) -> None:
    leader = _start(processes, tmp_path, "echo started; setsid sleep 600 & sleep 600 & wait")
    children = _wait_for_children(leader, 2)  # one of them in another session
    assert processes.stop("service", tmp_path) == 3
    psutil.wait_procs([leader, *children], timeout=5)
    assert not any(process.is_running() and process.status() != psutil.STATUS_ZOMBIE for process in children)
    assert processes.find("service", tmp_path) is None
    assert stranger.poll() is None
    assert processes.log_path("service", tmp_path).read_text() == "started\n"


def test_children_of_a_dead_service_are_stopped(processes: ModuleType, tmp_path: Path) -> None:
    leader = _start(processes, tmp_path, "sleep 600 & wait")
    (child,) = _wait_for_children(leader, 1)
    leader.kill()
    os.waitpid(leader.pid, 0)
    assert processes.find("service", tmp_path) is None
    assert child.is_running()
    assert processes.stop("service", tmp_path) == 1
    psutil.wait_procs([child], timeout=5)
    assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE


def test_process_that_ignores_sigterm_is_killed(processes: ModuleType, tmp_path: Path) -> None:
    leader = _start(processes, tmp_path, "trap '' TERM; while true; do sleep 0.1; done")
    time.sleep(0.3)
    processes.stop("service", tmp_path, patience_s=1.0)
    assert not leader.is_running() or leader.status() == psutil.STATUS_ZOMBIE


def test_reused_pid_is_not_stopped(processes: ModuleType, tmp_path: Path, stranger: subprocess.Popen[bytes]) -> None:
    record = {"pid": stranger.pid, "started": psutil.Process(stranger.pid).create_time() - 60}
    (tmp_path / "pids").mkdir()
    (tmp_path / "pids" / "service.json").write_text(json.dumps(record))
    assert processes.find("service", tmp_path) is None
    assert processes.stop("service", tmp_path) == 0
    time.sleep(0.2)
    assert stranger.poll() is None


def test_stopping_an_unknown_service_does_nothing(processes: ModuleType, tmp_path: Path) -> None:
    assert processes.find("service", tmp_path) is None
    assert processes.stop("service", tmp_path) == 0


def test_pid_file_identifies_one_process(processes: ModuleType, tmp_path: Path) -> None:
    process = _start(processes, tmp_path, f"exec {sys.executable} -c 'import time; time.sleep(600)'")
    other = tmp_path / "other"
    other.mkdir()
    assert processes.stop("service", other) == 0
    assert process.is_running()
    assert processes.stop("service", tmp_path) == 1
