"""Tracker calls of a run that are not delivered yet: in memory, and as JSON lines that survive the process."""

import base64
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, get_args

from lookalike.documents import render_lines
from lookalike.redaction import redacted
from lookalike.scratch import scratch
from lookalike.tracking.base import Tracker
from lookalike.tracking.files import is_below

PENDING = "tracking-pending.jsonl"
Kind = Literal["config", "metrics", "artifact", "tags", "finish"]


@dataclass(frozen=True)
class Event:
    """One call of a tracker's method."""

    kind: Kind
    values: dict[str, Any] = field(default_factory=dict)
    """The configuration, metrics or tags."""
    step: int = 0
    """Step of the metrics."""
    time_ms: int | None = None
    """Time of the metrics, in ms since 1970."""
    name: str = ""
    """Name of an artifact, with its folder; or the final status of the run."""
    data: bytes = b""
    """Bytes of an artifact."""

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
    """Render one line of JSON for each event."""
    return render_lines(
        {**asdict(event), "values": redacted(event.values), "data": base64.b64encode(event.data).decode()}
        for event in events
    )


def _is_valid(event: Event) -> bool:
    """Whether :func:`encode` can have written this; others with access to the run's store may have edited it."""
    kinds = event.kind in get_args(Kind) and isinstance(event.values, dict) and isinstance(event.name, str)
    times = (event.step, 0 if event.time_ms is None else event.time_ms)
    if not kinds or not all(isinstance(time, int) and abs(time) < 1 << 53 for time in times):
        return False
    if event.kind == "metrics":
        return all(isinstance(value, int | float) for value in event.values.values())
    return event.kind != "artifact" or is_below(event.name)


def decode(data: bytes) -> list[Event]:
    """Parse what :func:`encode` wrote; damaged lines are left out."""
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
