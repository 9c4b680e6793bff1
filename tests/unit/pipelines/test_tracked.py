"""A training run and its run in the tracker: started once, continued, replaced if deleted; it ends no training."""

import json
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from lookalike.errors import LookalikeError
from lookalike.storage import Store, open_store
from lookalike.tracking import open_tracker
from lookalike.tracking.connection import connect
from lookalike.training.config import TrainConfig
from lookalike.training.history import METRICS
from pipelines.train.tracked import RECORD, record_result, tracking_run


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lookalike.tracking.resilient._PATIENCE_S", 1.0)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    made = open_store(str(tmp_path / "lauf-größe"))
    lines = [{"step": step, "stage": "both", "loss": 1.0 / (step + 1)} for step in range(3)]
    lines.append({"step": 2, "stage": "both", "validation": {"loss_right": 0.5}})
    made.write(METRICS, "".join(json.dumps(line) + "\n" for line in [*lines, "damaged"]).encode())
    return made


@pytest.fixture
def config(store: Store, mlflow_database: str) -> TrainConfig:
    return TrainConfig(dataset="/data", run=store.uri, tracking=mlflow_database)


def _nothing(config: TrainConfig, run_id: str) -> TrainConfig:
    return config


def _run_deleted(config: TrainConfig, run_id: str) -> TrainConfig:
    connect(str(config.tracking)).delete_run(run_id)
    return config


def _experiment_deleted(config: TrainConfig, run_id: str) -> TrainConfig:
    client = connect(str(config.tracking))
    client.delete_experiment(client.get_run(run_id).info.experiment_id)
    return config


def _another_tracker(config: TrainConfig, run_id: str) -> TrainConfig:
    return replace(config, tracking=f"jsonl:{Path(str(config.tracking).removeprefix('sqlite:///')).parent}/runs")


def _ended(config: TrainConfig, run_id: str) -> TrainConfig:
    connect(str(config.tracking)).set_terminated(run_id, "KILLED")
    return config


@pytest.mark.parametrize(
    ("changed", "continued"),
    [(_nothing, True), (_ended, True), (_run_deleted, False), (_experiment_deleted, False), (_another_tracker, False)],
)
def test_resumed_training_run_keeps_its_tracker_run(
    changed: Callable[[TrainConfig, str], TrainConfig],
    continued: bool,
    config: TrainConfig,
    store: Store,
    caplog: pytest.LogCaptureFixture,
) -> None:
    first = tracking_run(config, store, {"version": 1})
    config = changed(config, first["tracking_run"])
    with caplog.at_level(logging.WARNING):
        second = tracking_run(config, store, {"version": 1})
    assert second["submitted"] == first["submitted"]
    assert (second["tracking_run"] == first["tracking_run"]) is continued
    assert caplog.text.count("the training run continues as its run") == (not continued)
    assert tracking_run(config, store, {"version": 1}) == second
    if not continued and str(config.tracking).startswith("sqlite"):  # the new run has the metrics so far
        client = connect(str(config.tracking))
        history = client.get_metric_history(second["tracking_run"], "train/loss")
        assert [(metric.step, metric.value) for metric in history] == [(0, 1.0), (1, 0.5), (2, 1 / 3)]
        assert client.get_run(second["tracking_run"]).data.metrics["validation/loss_right"] == 0.5


@pytest.mark.parametrize("uri", ["http://127.0.0.1:9", "none:"])
def test_training_run_resumes_while_its_tracker_is_unreachable(uri: str, config: TrainConfig, store: Store) -> None:
    first = tracking_run(config, store, {})
    assert tracking_run(replace(config, tracking=uri), store, {}) == first
    record_result(replace(config, tracking=uri), store, first["tracking_run"], {"bundle_uri": "file:///b"})
    record_result(config, store, first["tracking_run"], {})
    if uri != "none:":
        assert connect(str(config.tracking)).get_run(first["tracking_run"]).data.tags["bundle_uri"] == "file:///b"


def test_a_first_start_with_a_wrong_address_is_an_error(config: TrainConfig, store: Store) -> None:
    with pytest.raises(LookalikeError, match="does not answer"):
        tracking_run(replace(config, tracking="http://127.0.0.1:9"), store, {})
    assert not store.exists(RECORD)


@pytest.mark.parametrize("damage", [b"", b"[]", b'{"tracking_run": 1}', b"\xff"])
def test_a_damaged_record_gives_a_new_run(damage: bytes, config: TrainConfig, store: Store) -> None:
    store.write(RECORD, damage)
    made = tracking_run(config, store, {})
    assert open_tracker(config.tracking, "lookalike", run_id=made["tracking_run"]).run_id == made["tracking_run"]
