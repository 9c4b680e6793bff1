"""A tracker that never raises during a run: events are queued while the tracker is unreachable, and sent later.

A thread sends them, so that no training step waits for a locked database or a server that does not answer. Events that
are left at the end of the process are written to the run's store, and the next process of the run sends them first.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from lookalike.errors import LookalikeError, UnreachableError
from lookalike.storage import Store
from lookalike.tracking.base import NullTracker, Tracker
from lookalike.tracking.events import PENDING, Event, decode, encode
from lookalike.tracking.tracker import open_tracker, tracking_uri

log = logging.getLogger(__name__)

_FIRST_WAIT_S, _LONGEST_WAIT_S = 1.0, 60.0  # between two attempts while the tracker is unreachable
_PATIENCE_S = 25.0  # wait for the next delivery at the end of a run; sqlite waits 20 s for a lock
_MAX_EVENTS = 50_000  # in memory; the oldest are dropped first, and the run's metrics.jsonl keeps them
_MAX_BYTES = 64 << 20  # of artifacts in memory


def open_resilient(
    uri: str | None,
    experiment: str,
    *,
    run_name: str | None = None,
    run_id: str | None = None,
    enabled: bool = True,
    spool: Store | None = None,
) -> Tracker:
    """Open a tracker as :func:`~lookalike.tracking.tracker.open_tracker` does, whose methods never raise.

    Starting a run raises what ``open_tracker`` raises, so that a wrong address is noticed before the work begins.
    Continuing one (``run_id``) never raises. ``spool`` is the run's store: undelivered events of an earlier process are
    read from it, and those of this process are written to it.
    """
    address = tracking_uri(uri)
    if not enabled or address.startswith("none:") or run_id == "":
        return NullTracker()
    opened = open_tracker(address, experiment, run_name=run_name) if run_id is None else None
    chosen = opened.run_id if opened is not None else str(run_id)
    return ResilientTracker(lambda: open_tracker(address, experiment, run_id=chosen), chosen, spool, opened)


class ResilientTracker(Tracker):
    """Sends events from its own thread to the tracker that ``open_run`` opens."""

    def __init__(
        self, open_run: Callable[[], Tracker], run_id: str, spool: Store | None = None, opened: Tracker | None = None
    ) -> None:
        self._open_run, self.run_id, self._spool, self._tracker = open_run, run_id, spool, opened
        self._changed = threading.Condition()
        self._events: deque[Event] = deque(_pending(spool))
        self._restored = bool(self._events)
        self._refused: list[Event] = []  # artifacts that the tracker refused while it answered
        self._bytes = sum(len(event.data) for event in self._events)
        self._dropped = 0
        self._away: Exception | None = None
        self._warned: set[str] = set()
        self._closing = False
        self._given_up = threading.Event()
        self._progress = time.monotonic()
        self._thread: threading.Thread | None = None

    def log_config(self, config: Mapping[str, Any]) -> None:
        self._add(Event("config", dict(config)))

    def log_metrics(self, metrics: Mapping[str, float], step: int, time_ms: int | None = None) -> None:
        now = int(time.time() * 1000) if time_ms is None else time_ms
        self._add(Event("metrics", dict(metrics), step, now))

    def log_artifact(self, path: Path, folder: str = "") -> None:
        try:
            self._add(Event("artifact", name=f"{folder}/{path.name}" if folder else path.name, data=path.read_bytes()))
        except OSError as error:
            self._warn("artifact", "the file %s is not recorded: %s", path.name, error)

    def set_tags(self, tags: Mapping[str, str]) -> None:
        self._add(Event("tags", dict(tags)))

    def finish(self, status: str = "FINISHED") -> None:
        """Deliver the queued events and end the run; after 25 s without progress, save the rest to the spool."""
        with self._changed:
            self._events.extend(self._refused)
            self._refused.clear()
        self._add(Event("finish", name=status))
        with self._changed:
            self._closing = True
            self._progress = time.monotonic()
            self._changed.notify_all()
            while self._events and time.monotonic() - self._progress < self._patience_s():
                self._changed.wait(0.2)
            self._given_up.set()
            self._changed.notify_all()
        self._end()

    def _add(self, event: Event) -> None:
        with self._changed:
            if self._given_up.is_set():
                return
            if event.data and self._bytes + len(event.data) > _MAX_BYTES:
                self._dropped += 1
                return
            self._bytes += len(event.data)
            self._events.append(event)
            if len(self._events) > _MAX_EVENTS:
                del self._events[1]  # the first one may be in delivery
                self._dropped += 1
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="tracker", daemon=True)
                self._thread.start()
            self._changed.notify_all()

    def _run(self) -> None:
        wait_s = _FIRST_WAIT_S
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._events or self._given_up.is_set())
                if self._given_up.is_set():
                    return
                event = self._events[0]
            problem = self._deliver(event)
            with self._changed:
                if self._given_up.is_set():
                    return
                if problem is None:
                    if self._away is not None:
                        log.warning("the tracker answers again; %d queued events are sent", len(self._events))
                    self._away, wait_s = None, _FIRST_WAIT_S
                    self._events.popleft()
                    self._bytes -= len(event.data)
                    self._progress = time.monotonic()
                    self._changed.notify_all()
                    continue
                if self._away is None and not self._restored:  # else the process before has logged a warning
                    log.warning("the tracker is unreachable: %s. The run continues, and its events are queued", problem)
                self._away, self._tracker = problem, None
            self._save()
            self._given_up.wait(wait_s)
            wait_s = _FIRST_WAIT_S if self._closing else min(_LONGEST_WAIT_S, 2 * wait_s)

    def _patience_s(self) -> float:
        """Seconds to wait for a delivery; fewer if the tracker answered with an error, which waiting does not fix."""
        gone = self._away is not None and not isinstance(self._away, UnreachableError)
        return min(_PATIENCE_S, 2.0) if gone else _PATIENCE_S

    def _deliver(self, event: Event) -> Exception | None:
        """Send one event; return the error if the tracker is unreachable. A refused event is dropped with a warning."""
        try:
            if self._tracker is None:
                self._tracker = self._open_run()
            event.send(self._tracker)
            return None
        except UnreachableError as error:
            return error
        except Exception as error:  # trackers and their libraries raise many classes, and none may end the run
            if not self._answers():
                return error
            if event.kind == "artifact" and not self._closing:
                self._refused.append(event)
            self._warn(event.kind, "the tracker refused %s: %s. The run continues", event.kind, error)
            return None

    def _answers(self) -> bool:
        """Whether the run can be opened, so that the error was about the event."""
        try:
            self._tracker = self._open_run()
        except Exception:
            return False
        return True

    def _warn(self, kind: str, message: str, *values: object) -> None:
        """Log a warning, once for each ``kind``."""
        if kind not in self._warned:
            log.warning(message, *values)
        self._warned.add(kind)

    def _end(self) -> None:
        if self._dropped:
            log.warning("%d events did not fit into the queue, and are missing in the tracker", self._dropped)
        if self._events:
            self._save()
            fate = "they are lost"
            if self._spool is not None:
                fate = f"they are saved in {self._spool.uri}/{PENDING}"
                fate += " and will be sent when the same command runs again"
            reason = self._away or "it did not answer in time"
            log.warning("%d events were not delivered to the tracker (%s); %s", len(self._events), reason, fate)
        elif self._spool is not None:
            try:
                self._spool.delete(PENDING)
            except LookalikeError as error:
                log.warning("%s", error)

    def _save(self) -> None:
        """Write the queued events to the spool, so that they survive a kill of this process."""
        if self._spool is None:
            return
        with self._changed:
            events = list(self._events)
        try:
            self._spool.write(PENDING, encode(events))
        except LookalikeError as error:
            self._warn("spool", "undelivered tracker events cannot be saved in the run's store: %s", error)


def _pending(spool: Store | None) -> list[Event]:
    """Undelivered events of an earlier process, except its final status."""
    try:
        if spool is None or not spool.exists(PENDING):
            return []
        return [event for event in decode(spool.read(PENDING)) if event.kind != "finish"]
    except LookalikeError as error:
        log.warning("undelivered tracker events of an earlier process cannot be read: %s", error)
        return []
