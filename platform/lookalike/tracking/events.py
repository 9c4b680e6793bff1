"""Tracker calls of a run that are not delivered yet: in memory, and as JSON lines that survive the process."""

import base64
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import Annotated, Any, Literal

from pydantic import Base64Bytes, Field

from lookalike.documents import parse_record, render_lines
from lookalike.errors import InputError
from lookalike.redaction import redacted
from lookalike.scratch import scratch
from lookalike.tracking.base import Tracker
from lookalike.tracking.files import is_below

PENDING = "tracking-pending.jsonl"
Kind = Literal["config", "metrics", "artifact", "tags", "finish"]
_Number = Annotated[int, Field(gt=-(1 << 53), lt=1 << 53)]  # JSON readers other than Python's lose larger ones


@dataclass(frozen=True)
class Event:
    """One call of a tracker's method."""

    kind: Kind
    values: dict[str, Any] = field(default_factory=dict)
    """The configuration, metrics or tags."""
    step: _Number = 0
    """Step of the metrics."""
    time_ms: _Number | None = None
    """Time of the metrics, in ms since 1970."""
    name: str = ""
    """Name of an artifact, with its folder; or the final status of the run."""
    data: Base64Bytes = b""
    """Bytes of an artifact; in base64 in the JSON line."""

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


def decode(data: bytes) -> list[Event]:
    """Parse what :func:`encode` wrote. Lines that it cannot have written are left out: a process was killed while it
    wrote them, or others with access to the run's store edited them."""
    events = []
    for line in data.splitlines():
        with suppress(InputError):
            event = parse_record(Event, line, PENDING)
            numbers = all(isinstance(value, int | float) for value in event.values.values())
            if (event.kind != "metrics" or numbers) and (event.kind != "artifact" or is_below(event.name)):
                events.append(event)
    return events
