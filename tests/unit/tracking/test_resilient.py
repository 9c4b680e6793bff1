"""An unreachable or broken tracker ends no run, is reported once, and gets the queued events later."""

import json
import logging
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from lookalike.errors import LookalikeError
from lookalike.storage import open_store
from lookalike.tracking import Tracker, open_resilient, open_tracker
from lookalike.tracking.connection import connect
from lookalike.tracking.events import PENDING, Event, decode, encode
from lookalike.tracking.files import EVENTS


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lookalike.tracking.resilient._FIRST_WAIT_S", 0.05)
    monkeypatch.setattr("lookalike.tracking.resilient._PATIENCE_S", 1.0)


def _use_everything(tracker: Tracker, tmp_path: Path) -> None:
    (tmp_path / "note.txt").write_text("note")
    tracker.log_config({"lr": 0.1, "long": "x" * 20_000, "ключ": "ä"})
    tracker.log_metrics({"loss": float("nan"), "train/größe %": float("inf")}, 0)
    tracker.log_metrics({"loss": 0.5}, 1)
    tracker.log_artifact(tmp_path / "note.txt", "notes")
    tracker.log_artifact(tmp_path / "is-not-there")
    tracker.set_tags({"store": "файл:///größe", "long": "x" * 20_000})


def _lines(folder: Path) -> list[dict]:
    return [json.loads(line) for file in folder.rglob(EVENTS) for line in file.read_text().splitlines()]


def test_events_arrive_in_order(tmp_path: Path) -> None:
    with open_resilient(f"jsonl:{tmp_path}/runs", "toys") as tracker:
        _use_everything(tracker, tmp_path)
    events = _lines(tmp_path / "runs")
    assert [event["step"] for event in events if "metrics" in event] == [0, 1]
    assert [event["artifact"] for event in events if "artifact" in event] == ["artifacts/notes/note.txt"]
    assert events[-1]["status"] == "FINISHED"


def test_names_and_values_are_adapted_to_mlflows_limits(mlflow_database: str, tmp_path: Path) -> None:
    with open_resilient(mlflow_database, "größe/../x") as tracker:
        _use_everything(tracker, tmp_path)
    client = connect(mlflow_database)
    run = client.get_run(tracker.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.metrics["loss"] == 0.5
    assert run.data.metrics["train/gr__e _"] > 1e300
    assert run.data.params["lr"] == "0.1"
    assert {file.path for file in client.list_artifacts(tracker.run_id)} == {"config.json", "notes"}


def _moved(uri: str, run_id: str) -> Iterator[None]:
    folder = Path(uri.partition(":")[2].lstrip("/"))
    folder = Path("/") / (folder if uri.startswith("jsonl:") else folder.parent)
    moved = folder.with_name("moved")
    folder.rename(moved)
    folder.write_text("a file where the folder was")
    yield
    folder.unlink()
    moved.rename(folder)


def _deleted(uri: str, run_id: str) -> Iterator[None]:
    connect(uri).delete_run(run_id)
    yield
    connect(uri).restore_run(run_id)


def _experiment_deleted(uri: str, run_id: str) -> Iterator[None]:
    client = connect(uri)
    experiment = client.get_run(run_id).info.experiment_id
    client.delete_experiment(experiment)
    yield
    client.restore_experiment(experiment)


def _emptied(uri: str, run_id: str) -> Iterator[None]:
    file = Path(uri.removeprefix("sqlite:///"))
    data = file.read_bytes()
    file.write_bytes(b"this is not a database" * 100)
    yield
    file.write_bytes(data)


@pytest.mark.parametrize("disturb", [_moved, _deleted, _experiment_deleted, _emptied])
def test_run_continues_without_its_tracker_and_delivers_events_later(
    disturb, mlflow_database: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    spool = open_store(str(tmp_path / "spool"))
    run_id = open_tracker(mlflow_database, "toys").run_id
    away = disturb(mlflow_database, run_id)
    next(away)
    with (
        caplog.at_level(logging.WARNING),
        open_resilient(mlflow_database, "toys", run_id=run_id, spool=spool) as tracker,
    ):
        for step in range(3):
            tracker.log_metrics({"loss": float(step)}, step)
    assert caplog.text.count("the tracker is unreachable") == 1
    assert "sent when the same command runs again" in caplog.text
    assert [event.step for event in decode(spool.read(PENDING)) if event.kind == "metrics"] == [0, 1, 2]
    next(away, None)
    with open_resilient(mlflow_database, "toys", run_id=run_id, spool=spool):
        pass
    history = connect(mlflow_database).get_metric_history(run_id, "loss")
    assert [(metric.step, metric.value) for metric in history] == [(0, 0.0), (1, 1.0), (2, 2.0)]
    assert not spool.exists(PENDING)


def test_json_lines_on_an_unreachable_disk_are_delivered_later(tmp_path: Path) -> None:
    spool = open_store(str(tmp_path / "spool"))
    uri = f"jsonl:{tmp_path}/runs"
    run_id = open_tracker(uri, "toys").run_id
    away = _moved(uri, run_id)
    next(away)
    with open_resilient(uri, "toys", run_id=run_id, spool=spool) as tracker:
        tracker.log_metrics({"loss": 1.0}, 7)
    next(away, None)
    with open_resilient(uri, "toys", run_id=run_id, spool=spool):
        pass
    assert [event["step"] for event in _lines(tmp_path / "runs") if "metrics" in event] == [7]


def test_locked_database_does_not_delay_steps(mlflow_database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lookalike.tracking.resilient._PATIENCE_S", 30.0)
    monkeypatch.setattr("lookalike.tracking.connection._LOCK_S", 0.1)
    run_id = open_tracker(mlflow_database, "toys").run_id
    other = sqlite3.connect(mlflow_database.removeprefix("sqlite:///"), isolation_level=None, check_same_thread=False)
    other.execute("BEGIN EXCLUSIVE")
    unlock = threading.Timer(0.5, lambda: other.execute("COMMIT"))
    unlock.start()
    with open_resilient(mlflow_database, "toys", run_id=run_id) as tracker:
        tracker.log_metrics({"loss": 1.0}, 0)
        assert unlock.is_alive()  # the step continued while the database was locked
    unlock.join()
    other.close()
    assert [metric.value for metric in connect(mlflow_database).get_metric_history(run_id, "loss")] == [1.0]


def test_starting_a_run_with_a_wrong_address_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for uri in ("http://127.0.0.1:9/nothing", f"jsonl:{tmp_path}/file/runs", f"sqlite:///{tmp_path}/file/m.db"):
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
            with pytest.raises(LookalikeError):
                open_resilient(uri, "toys")


def test_queue_of_events_is_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("lookalike.tracking.resilient._MAX_EVENTS", 10)
    monkeypatch.setattr("lookalike.tracking.resilient._MAX_BYTES", 10)
    (tmp_path / "runs").write_text("a file")
    (tmp_path / "large").write_bytes(bytes(11))
    spool = open_store(str(tmp_path / "spool"))
    with open_resilient(f"jsonl:{tmp_path}/runs", "toys", run_id="a", spool=spool) as tracker:
        tracker.log_artifact(tmp_path / "large")
        for step in range(50):
            tracker.log_metrics({"loss": 1.0}, step)
    events = decode(spool.read(PENDING))
    assert len(events) == 10
    assert events[-2].step == 49
    assert "did not fit into the queue" in caplog.text


def test_events_are_written_and_read_back(tmp_path: Path) -> None:
    events = [
        Event("metrics", {"loss": float("nan")}, 3, 5),
        Event("artifact", name="a/b.png", data=bytes(range(256))),
        Event("tags", {"uri": "http://***@host"}),
    ]
    data = encode([*events, Event("tags", {"uri": "http://a:secret1@host"})])
    assert b"secret1" not in data
    assert str(decode(data[:-1] + b"\n{half a line")[:3]) == str(events)
