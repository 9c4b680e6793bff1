"""The events of a request: an append-only log in its place, one object for each.

S3 cannot append to an object. So event 7 is ``events/00000007.json``, written by a conditional put: of two writers that
want a number one gets it, and the other takes the next. A reader joins them in the order of their numbers. An event's
id follows from what it says, so that one that a restarted job, or a second writer, appends again is the same event,
which readers and receivers of webhooks count once.
"""

import logging
import re
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from pydantic import Field

from lookalike.config import fingerprint
from lookalike.documents import parse_record, render_json
from lookalike.errors import BusyError, ConflictError, InputError
from lookalike.redaction import redacted
from lookalike.storage import Store

log = logging.getLogger(__name__)

EVENTS = "events"
State = Literal[
    "accepted", "checked", "queued", "started", "step", "samples", "evaluated",
    "promoted", "refused", "failed", "cancelled", "expired", "erased",
]  # fmt: skip
FINAL: tuple[State, ...] = ("promoted", "refused", "failed", "cancelled", "expired", "erased")
"""States after which nothing follows, unless the request is started again."""

_NUMBERED = re.compile(r"(\d{8})\.json")
_MOST_EVENTS = 10_000  # of one request; a training run adds about thirty
_MOST_BYTES = 64 << 10
_TRIES = 100


@dataclass(frozen=True)
class Event:
    """One event."""

    id: Annotated[str, Field(pattern=r"^evt_[0-9a-f]{32}$")]
    """Identity: the same for a repetition."""
    state: State
    time: Annotated[str, Field(max_length=40)]
    """When it was first recorded, ISO 8601 in UTC."""
    data: dict[str, Any] = field(default_factory=dict)
    """What the state says: counts, a step and its total, the verdict, the reason of a failure."""


@dataclass
class EventLog:
    """The events in one place. Any number of processes may append."""

    place: Store
    request: str
    """Fingerprint of the request, which goes into the ids."""
    _ids: set[str] = field(default_factory=set)
    _last: int = 0

    def append(self, state: State, data: Mapping[str, Any] | None = None, *, of: str = "") -> Event:
        """Record that the request has reached ``state``; the same state of the same ``of`` is recorded once.

        Args:
            state: the state.
            data: plain JSON values; secrets in texts are hidden.
            of: what tells two events of one state apart, such as the number of a step, or of an attempt.
        """
        identity = f"evt_{fingerprint([self.request, state, of])[:32]}"
        event = Event(identity, state, datetime.now(UTC).isoformat(timespec="milliseconds"), redacted(dict(data or {})))
        store = self.place.child(EVENTS)
        for _ in range(_TRIES):
            self._read_new(store)
            if identity in self._ids:
                return event
            if self._last >= _MOST_EVENTS:
                raise InputError("the request has too many events", value=store.uri, fix="start another request")
            try:
                store.create(f"{self._last + 1:08d}.json", render_json(asdict(event)))
            except ConflictError:  # another writer was first
                continue
            self._ids.add(identity)
            self._last += 1
            return event
        raise BusyError("other processes append events at the same time", value=store.uri, fix="run it again")

    def _read_new(self, store: Store) -> None:
        """Take note of events that were appended since the last call."""
        for number in _numbers(store):
            if number > self._last:
                event = _read(store, number)
                self._last = number
                if event is not None:
                    self._ids.add(event.id)


def read_events(place: Store) -> list[tuple[int, Event]]:
    """Return the events of a request with their numbers, in order, each id once.

    An object that is damaged is named in a warning and left out.
    """
    store, seen = place.child(EVENTS), set()
    events = []
    for number in _numbers(store):
        event = _read(store, number)
        if event is not None and event.id not in seen:
            seen.add(event.id)
            events.append((number, event))
    return events


def read_event(place: Store, number: int) -> Event | None:
    """Return one event; None if it is damaged."""
    return _read(place.child(EVENTS), number)


def event_numbers(place: Store) -> list[int]:
    """Return the numbers of all events, which only grow."""
    return _numbers(place.child(EVENTS))


def age_s(event: Event) -> float:
    """Return the seconds since the event was recorded."""
    return time.time() - datetime.fromisoformat(event.time).timestamp()


def _numbers(store: Store) -> list[int]:
    matches = (_NUMBERED.fullmatch(info.key) for info in store.list() if info.size <= _MOST_BYTES)
    return [int(match[1]) for match in matches if match is not None][:_MOST_EVENTS]


def _read(store: Store, number: int) -> Event | None:
    key = f"{number:08d}.json"
    try:
        event = parse_record(Event, store.read(key), store.uri_of(key))
        datetime.fromisoformat(event.time)
    except (InputError, ValueError) as error:
        log.warning("an event is left out: %s", error)
        return None
    return event
