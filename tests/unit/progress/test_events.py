"""The log of a request's events: appended by any number of writers, joined by a reader, each event once."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from lookalike.progress.events import EventLog, event_numbers, read_events
from lookalike.storage import open_store


def test_an_event_is_recorded_once_also_by_a_job_that_was_started_again(tmp_path: Path) -> None:
    place = open_store(str(tmp_path))
    log = EventLog(place, "request")
    log.append("accepted")
    log.append("step", {"step": 3, "steps": 9, "eta_s": 1.5}, of="3")
    again = EventLog(place, "request")
    for step in ("3", "6"):
        again.append("step", {"step": int(step)}, of=step)
    again.append("accepted")
    assert [(number, event.state) for number, event in read_events(place)] == [
        (1, "accepted"),
        (2, "step"),
        (3, "step"),
    ]
    assert read_events(place)[1][1].data == {"step": 3, "steps": 9, "eta_s": 1.5}
    assert EventLog(place, "other").append("accepted").id not in {event.id for _, event in read_events(place)[:3]}


def _append(place: str) -> None:
    store = open_store(place)
    for log, writer in ((EventLog(store, "request"), name) for name in "ab"):
        for step in range(10):
            log.append("step", {"step": step}, of=f"{step}")
            log.append("step", {"step": step}, of=f"{writer}{step}")


def test_writers_at_once_lose_and_double_nothing(tmp_path: Path) -> None:
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(_append, [str(tmp_path)] * 4))
    place = open_store(str(tmp_path))
    events = read_events(place)
    assert len(events) == len({event.id for _, event in events}) == 30
    assert event_numbers(place) == list(range(1, 31))


def test_damaged_event_is_left_out_and_secrets_are_hidden(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    place = open_store(str(tmp_path))
    reason = "cannot reach http://mia:secret9@host/x"  # pragma: allowlist secret
    EventLog(place, "request").append("failed", {"reason": reason})
    place.write("events/00000002.json", b'{"id": "x"}')
    place.write("events/notes.txt", b"")
    EventLog(place, "request").append("accepted")
    assert [(number, event.state) for number, event in read_events(place)] == [(1, "failed"), (3, "accepted")]
    assert "secret9" not in place.read("events/00000001.json").decode()
    assert "00000002.json" in caplog.text
