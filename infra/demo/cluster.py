"""Run jobs on a Ray head as a user submits them, and measure their memory."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import IO

import psutil

_STACK = Path(__file__).resolve().parents[1] / "local" / "stack.py"
_ANSI = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
_WORKER = re.compile(r"^\((\S+ )?pid=\d+[^)]*\)\s*")
_OUR_LOG = re.compile(r"^\d\d:\d\d:\d\d ([A-Z]+ \S+: )?")
_LOG = re.compile(r"^\[?(\d{4}[-/]\d\d[-/]\d\d |\d\d:\d\d:\d\d )")
_OF_SUBMIT = re.compile(r"^\S+ \S+\s+[A-Z]+ (cli|sdk|dashboard_sdk|job_manager)\.py:")
_ERROR = re.compile(r"^(\(\S+ pid=.*?\) )?(error: |[\w.]*(Error|Exception): )")
_TAIL_BEGINS = "Tailing logs until the job exits"
_SUBMIT_OUTPUT = re.compile(
    r"^(-+|Job 'raysubmit_.*|Tailing logs .*|Running entrypoint for job .*)$"
)  # lines of `ray job submit` itself
# the code of `ray job` without the import of Ray Serve, which takes two seconds per job
_RAY_JOB = "from ray.dashboard.modules.job.cli import job_cli_group; job_cli_group(prog_name='ray job')"
_SAMPLE_EVERY_S = 5.0  # reading the PSS of sixty processes takes 0.1 s
_HEARTBEAT_S = 30.0  # between lines of progress if the output is not a terminal


class JobFailedError(Exception):
    """A job ended with an error; the message holds the errors in its log."""


class Cluster:
    """A Ray head for jobs, as a context manager; infra/local/stack.py starts and stops it.

    If it is not ``owned``, it must be running already, and keeps running.
    """

    def __init__(self, state: Path, repo: Path, owned: bool = True) -> None:
        self._state, self._repo, self._owned = state.absolute(), repo, owned
        self._environment: dict[str, str] = {}

    def __enter__(self) -> "Cluster":
        if self._owned:
            print("starting Ray", flush=True)
            try:
                self._stack("up", "--services", "ray")
            except BaseException:
                self._stack("down")
                raise
        named = exports(self._state)
        self._environment = os.environ | {name: named[name] for name in named if name.startswith("RAY_")}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._owned:
            self._stack("down")

    def run(self, command: list[str], log: Path, label: str) -> tuple[str, float]:
        """Run ``command`` as a job; return the last line that it printed and the cluster's peak memory in GiB."""
        submit = ["ray", "job", "submit", "--working-dir", ".", "--runtime-env", "infra/ray/runtime-env.yaml", "--"]
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("w") as file, MemoryWatch(self._head()) as memory:
            file.write(f"$ {shlex.join([*submit, *command])}\n")
            child = subprocess.Popen(
                [sys.executable, "-c", _RAY_JOB, *submit[2:], *command],
                cwd=self._repo,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
            )
            try:
                last = _follow(child.stdout, file, Progress(label)) if child.stdout else ""
            finally:
                if child.poll() is None:
                    child.terminate()
                code = child.wait()
        if code:
            raise JobFailedError(f"error: {shlex.join(command)}\nended with code {code}; from {log}:\n{_reason(log)}")
        return last, memory.peak_bytes / 2**30

    def _head(self) -> psutil.Process:
        return psutil.Process(json.loads((self._state / "pids" / "ray.json").read_text())["pid"])

    def _stack(self, *arguments: str) -> None:
        command = [sys.executable, str(_STACK), *arguments, "--state", str(self._state)]
        done = subprocess.run(
            command, capture_output=True, text=True, start_new_session=True
        )  # this process handles Ctrl-C
        if done.returncode:
            raise JobFailedError(done.stdout + done.stderr)


def exports(state: Path) -> dict[str, str]:
    """Return the variables that the env file of a stack exports."""
    words = shlex.split((state / "env").read_text())
    return dict(word.split("=", 1) for word in words if word != "export")


class Progress:
    """Show the newest line of a job's log: on one line of a terminal, or every 30 s as a new line."""

    def __init__(self, label: str) -> None:
        self._label, self._started = label, time.monotonic()
        self._terminal = sys.stdout.isatty()
        self._shown = self._started

    def show(self, line: str) -> None:
        """Show ``line`` unless another was shown just before."""
        now = time.monotonic()
        if now - self._shown < (0.1 if self._terminal else _HEARTBEAT_S):
            return
        self._shown = now
        text = f"{self._label:18}{now - self._started:6.0f} s  {line}"
        if self._terminal:
            print("\r\x1b[2K" + text[: shutil.get_terminal_size().columns - 1], end="", flush=True)
        else:
            print(f"  {text[:160]}", flush=True)

    def close(self) -> None:
        """Clear the line of the terminal."""
        if self._terminal:
            print("\r\x1b[2K", end="", flush=True)


class MemoryWatch:
    """Samples the memory of a process and all of its descendants; shared pages are counted once (PSS)."""

    def __init__(self, root: psutil.Process, every_s: float = _SAMPLE_EVERY_S) -> None:
        self._root, self._every_s, self._done = root, every_s, threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self.peak_bytes = 0

    def __enter__(self) -> "MemoryWatch":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._done.wait(self._every_s):
            self.peak_bytes = max(self.peak_bytes, sum(_memory_bytes(process) for process in self._tree()))

    def _tree(self) -> Iterator[psutil.Process]:
        try:
            yield self._root
            yield from self._root.children(recursive=True)
        except psutil.NoSuchProcess:
            return


def _memory_bytes(process: psutil.Process) -> int:
    try:
        memory = process.memory_full_info()
        return int(getattr(memory, "pss", memory.rss))
    except psutil.Error:
        return 0


def _reason(log: Path) -> str:
    """The last errors in the log of a failed job, or else the end of the log."""
    lines = [line for line in log.read_text().splitlines() if not _OF_SUBMIT.match(line) and "%|" not in line]
    errors = list(dict.fromkeys(line for line in lines if _ERROR.search(line)))
    return "\n".join(f"  {line[:500]}" for line in errors[-6:] or lines[-25:])


def _follow(output: IO[str], log: IO[str], progress: Progress) -> str:
    """Copy the output of a submission to ``log``; return the last line of the job itself."""
    last, inside = "", False
    for raw in output:
        line = _ANSI.sub("", raw).rstrip()
        if line:
            log.write(f"{line}\n")
            log.flush()
        inside = inside or _TAIL_BEGINS in line
        if not inside or not line.strip() or _OF_SUBMIT.match(line) or _SUBMIT_OUTPUT.match(line):
            continue
        said = _WORKER.sub("", line).strip()
        bar = "%|" in said
        if said == line.strip() and not bar and not _LOG.match(line):
            last = said
        if _OUR_LOG.match(said) or (bar and said == line.strip()):
            progress.show(_OUR_LOG.sub("", said))
    progress.close()
    return last
