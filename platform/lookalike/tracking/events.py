"""Events of a run that wait for the tracker: in memory, or as JSON lines that outlive the process."""

import base64
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, Protocol, get_args

from lookalike.documents import render_lines
from lookalike.redaction import redacted
from lookalike.scratch import scratch
from lookalike.tracking.base import Tracker
from lookalike.tracking.files import is_below

PENDING = "tracking-pending.jsonl"
Kind = Literal["config", "metrics", "artifact", "tags", "finish"]


class Spool(Protocol):
    """A prefix of a store for events that a process could not deliver."""

    @property
    def uri(self) -> str:
        """Its address, for messages."""

    def exists(self, key: str) -> bool:
        """Whether ``key`` is there."""

    def read(self, key: str) -> bytes:
        """The whole object."""

    def write(self, key: str, data: bytes) -> None:
        """Write the object whole."""

    def delete(self, key: str) -> None:
        """Remove ``key``."""


@dataclass(frozen=True)
class Event:
    """One call of a tracker."""

    kind: Kind
    values: dict[str, Any] = field(default_factory=dict)
    """Configuration, metrics or tags."""
    step: int = 0
    """Of metrics."""
    time_ms: int | None = None
    """When, in ms since 1970."""
    name: str = ""
    """Of an artifact with its folder; or the status that a run ends with."""
    data: bytes = b""
    """Of an artifact."""

    def send(self, tracker: Tracker) -> None:
        """Make the call. Raises what the tracker raises."""
        if self.kind == "config":
            tracker.log_config(self.values)
        elif self.kind == "metrics":
            tracker.log_metrics(self.values, self.step, self.time_ms)
        elif self.kind == "tags":
            tracker.set_tags(self.values)
        elif self.kind == "finish":
            tracker.finish(self.name)
        else:
            folder, _, file = self.name.rpartition("/")
            with scratch("artifact") as parent:
                path = parent / file
                path.write_bytes(self.data)
                tracker.log_artifact(path, folder)


def encode(events: Sequence[Event]) -> bytes:
    """A line of JSON for each event."""
    return render_lines(
        {**asdict(event), "values": redacted(event.values), "data": base64.b64encode(event.data).decode()}
        for event in events
    )


def _is_valid(event: Event) -> bool:
    """Whether a process can have recorded this: whoever may write the run's store may have written it instead."""
    kinds = event.kind in get_args(Kind) and isinstance(event.values, dict) and isinstance(event.name, str)
    times = (event.step, 0 if event.time_ms is None else event.time_ms)
    if not kinds or not all(isinstance(time, int) and abs(time) < 1 << 53 for time in times):
        return False
    if event.kind == "metrics":
        return all(isinstance(value, int | float) for value in event.values.values())
    return event.kind != "artifact" or is_below(event.name)


def decode(data: bytes) -> list[Event]:
    """What :func:`encode` wrote; a line that is damaged is left out."""
    events = []
    for line in data.decode(errors="replace").splitlines():
        try:
            record = json.loads(line)
            event = Event(**{**record, "data": base64.b64decode(record["data"])})
            if _is_valid(event):
                events.append(event)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            continue
    return events
