"""A tracker that writes each run into a folder: ``events.jsonl`` (JSON lines) and ``artifacts/``."""

import shutil
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

from lookalike.documents import render_lines
from lookalike.errors import InputError
from lookalike.redaction import redacted
from lookalike.tracking.base import Tracker

EVENTS = "events.jsonl"


class JsonLinesTracker(Tracker):
    """A run as JSON lines, for machines without MLflow. Each event has ``time`` (seconds since 1970) and one of the
    keys ``status``, ``config``, ``metrics`` (with ``step``), ``tags``, ``artifact``."""

    def __init__(self, root: Path, experiment: str, *, run_name: str | None = None, run_id: str | None = None) -> None:
        self.run_id = run_id or uuid.uuid4().hex
        self.folder = root / _segment(experiment) / _segment(self.run_id)
        if run_id is not None and not (self.folder / EVENTS).exists():
            raise InputError(
                "the run does not exist", value=str(self.folder), fix="check the run id and the tracking URI"
            )
        with _file_errors(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
        self._write(status="RUNNING", **({"name": run_name} if run_name else {}))

    def log_config(self, config: Mapping[str, Any]) -> None:
        self._write(config=dict(config))

    def log_metrics(self, metrics: Mapping[str, float], step: int, time_ms: int | None = None) -> None:
        at = {} if time_ms is None else {"time": time_ms / 1000}
        self._write(step=step, metrics=dict(metrics), **at)

    def log_artifact(self, path: Path, folder: str = "") -> None:
        name = f"{folder}/{path.name}" if folder else path.name
        if not is_below(name):
            fix = "use a relative name in UTF-8, without '..' and with parts of at most 255 bytes"
            raise InputError("the name of the artifact is not a file name below its run", value=name, fix=fix)
        target = self.folder / "artifacts" / name
        with _file_errors(self.folder):
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
        self._write(artifact=f"artifacts/{name}")

    def set_tags(self, tags: Mapping[str, str]) -> None:
        self._write(tags=dict(tags))

    def finish(self, status: str = "FINISHED") -> None:
        self._write(status=status)

    def _write(self, **event: Any) -> None:
        line = render_lines([{"time": time.time(), **redacted(event)}])
        with _file_errors(self.folder), (self.folder / EVENTS).open("ab") as file:
            file.write(line)


def is_below(name: str) -> bool:
    """Return whether ``name`` can name a file below a folder, such as ``samples/step-1.png``, on any file system."""
    try:
        parts = name.encode().split(b"/")
    except UnicodeEncodeError:  # half of a surrogate pair, which JSON can hold and no file name can
        return False
    return all(part not in (b"", b".", b"..") and b"\0" not in part and len(part) <= 255 for part in parts)


def _segment(name: str) -> str:
    """``name`` escaped to one segment of a path."""
    return name.replace(".", "%2E") if name in (".", "..") else quote(name, safe=" ")


@contextmanager
def _file_errors(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise InputError(
            f"the tracker cannot write: {error.strerror or error}",
            value=str(folder),
            fix="check the permissions and the free space there, or name another --tracking",
        ) from error
