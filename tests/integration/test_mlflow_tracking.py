"""Runs in a real MLflow: on sqlite, on a server, and on a server that does not answer."""

import json
import logging
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lookalike.errors import InputError, UnreachableError
from lookalike.registry import resolve
from lookalike.storage import open_store
from lookalike.tracking import open_resilient, open_tracker
from lookalike.tracking.connection import connect


@pytest.fixture(params=["sqlite", "server"])
def uri(request: pytest.FixtureRequest) -> str:
    return str(request.getfixturevalue("mlflow_database" if request.param == "sqlite" else "mlflow_server"))


def test_a_run_keeps_its_configuration_metrics_and_files(uri: str, tmp_path: Path) -> None:
    (tmp_path / "report.txt").write_text("report")
    config = {"lr": 1e-3, "stages": [{"steps": step} for step in range(120)]}  # more than one batch of parameters
    with open_tracker(uri, "toys", run_name="one") as tracker:
        tracker.log_config(config)
        for step in range(3):
            tracker.log_metrics({"train/loss": 1.0 / (step + 1), "train/lr": 0.1}, step=step)
        tracker.log_artifact(tmp_path / "report.txt", "reports")
        tracker.set_tags({"bundle_uri": "file:///bundle"})
    client = connect(uri)
    run = client.get_run(tracker.run_id)
    assert (run.info.status, run.info.run_name) == ("FINISHED", "one")
    assert (run.data.params["lr"], run.data.params["stages.119.steps"]) == ("0.001", "119")
    assert run.data.tags["bundle_uri"] == "file:///bundle"
    history = [(m.step, m.value) for m in client.get_metric_history(tracker.run_id, "train/loss")]
    assert history == [(0, 1.0), (1, 0.5), (2, 1 / 3)]
    files = {file.path for file in client.list_artifacts(tracker.run_id)}
    assert files == {"config.json", "reports"}
    saved = Path(client.download_artifacts(tracker.run_id, "config.json", str(tmp_path)))
    assert json.loads(saved.read_text()) == config


def test_a_run_can_be_continued_by_another_process(uri: str) -> None:
    tracker = open_tracker(uri, "toys")
    tracker.log_metrics({"loss": 1.0}, step=0)
    with pytest.raises(RuntimeError), tracker:
        raise RuntimeError
    client = connect(uri)
    assert client.get_run(tracker.run_id).info.status == "FAILED"
    with open_tracker(uri, "toys", run_id=tracker.run_id) as again:
        assert client.get_run(again.run_id).info.status == "RUNNING"
        again.log_metrics({"loss": 0.5}, step=1)
    assert again.run_id == tracker.run_id
    assert client.get_run(tracker.run_id).info.status == "FINISHED"
    assert len(client.get_metric_history(tracker.run_id, "loss")) == 2


def test_an_unknown_run_or_model_is_named(uri: str) -> None:
    with pytest.raises(InputError, match="0123456789abcdef"):
        open_tracker(uri, "toys", run_id="0123456789abcdef" * 2)
    with pytest.raises(InputError, match="nobody has no champion"):
        resolve("models:/nobody@champion", uri)
    with pytest.raises(InputError, match="nobody"):
        resolve("models:/nobody/1", uri)
    with pytest.raises(InputError, match="has no alias 'other'"):
        resolve("models:/nobody@other", uri)


def test_artifacts_lie_beside_the_database(
    mlflow_database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    with open_tracker(mlflow_database, "elsewhere") as tracker:
        tracker.log_config({"a": 1})
    folder = Path(mlflow_database.removeprefix("sqlite:///")).parent
    assert len(list((folder / "mlflow-artifacts" / "elsewhere").rglob("config.json"))) == 1
    assert list((tmp_path / "cwd").iterdir()) == []  # no ./mlruns


def _closed_port() -> int:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        return int(closed.getsockname()[1])


def test_a_server_that_is_down_is_named_within_30_s() -> None:
    uri = f"http://127.0.0.1:{_closed_port()}"
    for call in (lambda: open_tracker(uri, "toys"), lambda: resolve("models:/mini@champion", uri)):
        started = time.monotonic()
        with pytest.raises(UnreachableError, match=f"MLflow does not answer.*{uri}"):
            call()
        assert time.monotonic() - started < 30


def test_a_server_that_keeps_silent_is_named_within_30_s() -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        uri = f"http://127.0.0.1:{silent.getsockname()[1]}"
        started = time.monotonic()
        with pytest.raises(UnreachableError, match=f"MLflow does not answer.*{uri}"):
            open_tracker(uri, "toys")
        assert time.monotonic() - started < 30


def test_a_server_that_goes_away_costs_no_training(
    mlflow_server: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("lookalike.tracking.resilient._FIRST_WAIT_S", 0.05)
    monkeypatch.setattr("lookalike.tracking.resilient._PATIENCE_S", 2.0)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    run_id = open_tracker(mlflow_server, "toys").run_id
    away, spool = f"http://127.0.0.1:{_closed_port()}", open_store(str(tmp_path))
    with caplog.at_level(logging.WARNING), open_resilient(away, "toys", run_id=run_id, spool=spool) as tracker:
        for step, loss in enumerate((1.0, 0.5)):
            tracker.log_metrics({"loss": loss}, step=step)
    assert caplog.text.count("the tracker is unreachable") == 1
    assert f"saved in {spool.uri}/tracking-pending.jsonl" in caplog.text
    with open_resilient(mlflow_server, "toys", run_id=run_id, spool=spool) as tracker:
        tracker.log_metrics({"loss": 0.25}, step=2)
    client = connect(mlflow_server)
    assert [m.value for m in client.get_metric_history(run_id, "loss")] == [1.0, 0.5, 0.25]
    assert client.get_run(run_id).info.status == "FINISHED"
    assert list(spool.list()) == []


def test_the_first_error_is_the_one_to_show(caplog: pytest.LogCaptureFixture, mlflow_server: str) -> None:
    tracker = open_tracker(mlflow_server, "toys")
    tracker._client = connect(f"http://127.0.0.1:{_closed_port()}")
    with pytest.raises(ValueError, match="first"), tracker:
        raise ValueError("first")
    assert "could not be marked as ended" in caplog.text


def test_several_processes_may_make_a_new_database_at_once(tmp_path: Path) -> None:
    uri, go = f"sqlite:///{tmp_path}/new/mlflow.db", tmp_path / "go"
    code = (
        "import pathlib, sys, time, mlflow; from lookalike.tracking.connection import connect\n"
        "print('ready', flush=True)\n"
        "while not pathlib.Path(sys.argv[2]).exists(): time.sleep(0.01)\n"
        "print(len(connect(sys.argv[1]).search_experiments()))"
    )
    argv = [sys.executable, "-c", code, uri, str(go)]
    processes = [subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    go.touch()
    assert [process.communicate(timeout=120)[0] for process in processes] == ["1\n"] * 3
