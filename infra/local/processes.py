"""Start and stop processes by pid files with start times, so that no other process is stopped by mistake."""

import json
import os
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import psutil

_CLOCK_SLACK_S = 2.0  # psutil derives start times from the boot time, which clock corrections change slightly


def start(name: str, argv: Sequence[str], env: Mapping[str, str], folder: Path) -> None:
    """Start ``argv`` in a new session, with its output in ``folder/logs/NAME.log``, and write its pid file."""
    (folder / "logs").mkdir(parents=True, exist_ok=True)
    with log_path(name, folder).open("ab") as log:
        child = subprocess.Popen(
            argv, cwd=folder, env=dict(env), stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
        )
    pid_file = _pid_path(name, folder)
    pid_file.parent.mkdir(exist_ok=True)
    pid_file.write_text(json.dumps({"pid": child.pid, "started": psutil.Process(child.pid).create_time()}))


def find(name: str, folder: Path) -> psutil.Process | None:
    """Return the running process ``name`` of ``folder``; None if it has ended, also if its pid was reused."""
    record = _read(name, folder)
    if record is None:
        return None
    try:
        process = psutil.Process(record[0])
        return None if _is_reused(*record) or process.status() == psutil.STATUS_ZOMBIE else process
    except psutil.NoSuchProcess:
        return None


def stop(name: str, folder: Path, patience_s: float = 20.0) -> int:
    """Stop process ``name`` and its descendants: SIGTERM, then SIGKILL. Return the number of processes."""
    record, leader = _read(name, folder), find(name, folder)
    if record is None:
        return 0
    members = {leader, *leader.children(recursive=True)} if leader else set[psutil.Process]()
    if not _is_reused(*record):
        members |= _session(record[0])
    deadline = time.monotonic() + patience_s
    if leader:
        leader.terminate()
        psutil.wait_procs([leader], timeout=patience_s)  # it stops its own children first
    _, alive = psutil.wait_procs(members, timeout=1)
    _each(alive, "terminate")
    _, alive = psutil.wait_procs(alive, timeout=max(1.0, deadline - time.monotonic()))
    _each(alive, "kill")
    psutil.wait_procs(alive, timeout=5)
    _pid_path(name, folder).unlink(missing_ok=True)
    return len(members)


def log_path(name: str, folder: Path) -> Path:
    """Return the file with the output of process ``name``."""
    return folder / "logs" / f"{name}.log"


def _pid_path(name: str, folder: Path) -> Path:
    return folder / "pids" / f"{name}.json"


def _read(name: str, folder: Path) -> tuple[int, float] | None:
    try:
        record = json.loads(_pid_path(name, folder).read_text())
    except FileNotFoundError:
        return None
    return int(record["pid"]), float(record["started"])


def _is_reused(pid: int, started: float) -> bool:
    """Whether ``pid`` belongs to another process than the one that was started at ``started`` (seconds since 1970)."""
    try:
        return abs(psutil.Process(pid).create_time() - started) > _CLOCK_SLACK_S
    except psutil.NoSuchProcess:
        return False


def _session(leader: int) -> set[psutil.Process]:
    """Processes in the session of ``leader``, also if the leader itself has ended.

    The kernel does not reuse a pid that is the id of a session, so the session is ours unless ``leader`` was reused.
    """
    members = set()
    for process in psutil.process_iter():
        try:
            if process.pid != leader and os.getsid(process.pid) == leader:
                members.add(process)
        except (ProcessLookupError, PermissionError):
            continue
    return members


def _each(processes: Sequence[psutil.Process], method: Literal["terminate", "kill"]) -> None:
    for process in processes:
        try:
            getattr(process, method)()
        except psutil.NoSuchProcess:
            continue
