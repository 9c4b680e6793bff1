"""Processes that this folder's owner started, and no others: pid files that hold the start time as well."""

import json
import os
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import psutil

_CLOCK_SLACK_S = 2.0  # psutil derives start times from the boot time, which clock corrections move a little


def start(name: str, argv: Sequence[str], env: Mapping[str, str], folder: Path) -> None:
    """Start ``argv`` in a session of its own, with its output in ``folder/logs/NAME.log``, and write its pid file."""
    (folder / "logs").mkdir(parents=True, exist_ok=True)
    with log_path(name, folder).open("ab") as log:
        child = subprocess.Popen(
            argv, cwd=folder, env=dict(env), stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
        )
    pid_file = _pid_path(name, folder)
    pid_file.parent.mkdir(exist_ok=True)
    pid_file.write_text(json.dumps({"pid": child.pid, "started": psutil.Process(child.pid).create_time()}))


def find(name: str, folder: Path) -> psutil.Process | None:
    """The running process ``name`` of ``folder``; None when it ended, also when its number is another's by now."""
    record = _read(name, folder)
    if record is None:
        return None
    try:
        process = psutil.Process(record[0])
        return None if _is_stranger(*record) or process.status() == psutil.STATUS_ZOMBIE else process
    except psutil.NoSuchProcess:
        return None


def stop(name: str, folder: Path, patience_s: float = 20.0) -> int:
    """End process ``name`` with what it started, politely first. Returns how many processes that were."""
    record, leader = _read(name, folder), find(name, folder)
    if record is None:
        return 0
    members = {leader, *leader.children(recursive=True)} if leader else set[psutil.Process]()
    if not _is_stranger(*record):
        members |= _session(record[0])
    deadline = time.monotonic() + patience_s
    if leader:
        leader.terminate()
        psutil.wait_procs([leader], timeout=patience_s)  # it ends its own children in its own order
    _, alive = psutil.wait_procs(members, timeout=1)
    _each(alive, "terminate")
    _, alive = psutil.wait_procs(alive, timeout=max(1.0, deadline - time.monotonic()))
    _each(alive, "kill")
    psutil.wait_procs(alive, timeout=5)
    _pid_path(name, folder).unlink(missing_ok=True)
    return len(members)


def log_path(name: str, folder: Path) -> Path:
    """Where process ``name`` writes what it prints."""
    return folder / "logs" / f"{name}.log"


def _pid_path(name: str, folder: Path) -> Path:
    return folder / "pids" / f"{name}.json"


def _read(name: str, folder: Path) -> tuple[int, float] | None:
    try:
        record = json.loads(_pid_path(name, folder).read_text())
    except FileNotFoundError:
        return None
    return int(record["pid"]), float(record["started"])


def _is_stranger(pid: int, started: float) -> bool:
    """Whether ``pid`` is by now another process than the one that we started at ``started`` (seconds since 1970)."""
    try:
        return abs(psutil.Process(pid).create_time() - started) > _CLOCK_SLACK_S
    except psutil.NoSuchProcess:
        return False


def _session(leader: int) -> set[psutil.Process]:
    """What still runs in the session that ``leader`` opened, also when the leader itself ended first.

    The kernel gives out no number that is still a session's id: where ``leader`` is free or ours, its session is ours.
    """
    found = set()
    for process in psutil.process_iter():
        try:
            if process.pid != leader and os.getsid(process.pid) == leader:
                found.add(process)
        except (ProcessLookupError, PermissionError):
            continue
    return found


def _each(processes: Sequence[psutil.Process], method: Literal["terminate", "kill"]) -> None:
    for process in processes:
        try:
            getattr(process, method)()
        except psutil.NoSuchProcess:
            continue
