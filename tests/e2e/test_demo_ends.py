"""A demo that does not reach its end: what it says, and that nothing of it runs on."""

import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil

from tests.conftest import REPO, job_environment

DEMO = [sys.executable, str(REPO / "infra" / "demo" / "demo.py"), "--profile", "tiny"]


def test_an_interrupted_demo_stops_its_cluster(tmp_path: Path) -> None:
    demo = subprocess.Popen(
        [*DEMO, "--out", str(tmp_path / "out")],
        env=job_environment({}),
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    log = tmp_path / "out" / "logs" / "01-ingest.log"
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not (log.exists() and "Tailing logs" in log.read_text()):
        time.sleep(0.5)
    demo.send_signal(signal.SIGTERM)
    assert demo.wait(timeout=90) == 130
    assert _processes_of(tmp_path) == []


def test_a_failing_step_is_named_with_its_error(tmp_path: Path) -> None:
    for name in ("cup", "hat", "mug"):
        (tmp_path / "photos" / name).mkdir(parents=True)
    (tmp_path / "photos" / "cup" / "00.jpg").write_bytes(b"no image")
    done = subprocess.run(
        [*DEMO, "--photos", str(tmp_path / "photos"), "--out", str(tmp_path / "out")],
        env=job_environment({}),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 1
    assert "jobs/ingest.py" in done.stderr
    assert re.search(r"error: .*", done.stderr)
    assert _processes_of(tmp_path) == []


def test_a_stack_that_is_not_there_is_named(tmp_path: Path) -> None:
    command = [*DEMO, "--stack", str(tmp_path / "none"), "--out", str(tmp_path / "out")]
    done = subprocess.run(command, env=job_environment({}), capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "has no stack" in done.stderr
    assert "infra/local/stack.py up" in done.stderr


def _processes_of(folder: Path) -> list[str]:
    """Processes whose command line or working directory lies in ``folder``."""
    found = []
    for process in psutil.process_iter(["cmdline", "cwd"]):
        text = " ".join([*(process.info["cmdline"] or []), process.info["cwd"] or ""])
        if str(folder) in text and process.pid != psutil.Process().pid:
            found.append(text)
    return found
