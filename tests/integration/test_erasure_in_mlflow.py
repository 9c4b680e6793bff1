"""Erasure in a real MLflow: every row, artifact and soft-deleted entry of a customer goes, and nothing of others."""

import re
from pathlib import Path
from typing import Any

import pytest

from lookalike.errors import InputError
from lookalike.registry import erasure_sql
from lookalike.registry.erasure import TrackedErasure
from lookalike.tracking import open_tracker
from lookalike.tracking.connection import connect

ACME = re.compile(r"(?<![a-z0-9_-])acme--|/customers/acme(?![a-z0-9_-])")
MUG = re.compile(r"(?<![a-z0-9_-])acme--mug(?![a-z0-9_-])|/customers/acme/mug(?![a-z0-9_-])")


def _fill(uri: str, customer: str, subject: str) -> str:
    """A run with parameters, metrics, tags and an artifact, a trace, and a model with a version and its alias."""
    name = f"{customer}--{subject}"
    with open_tracker(uri, customer, run_name=subject) as tracker:
        tracker.log_config({"owner": name, "run": f"s3://store/customers/{customer}/{subject}/run"})
        tracker.log_metrics({"loss": 0.5}, 1)
        tracker.set_tags({"bundle_uri": f"s3://store/customers/{customer}/{subject}/run/bundle"})
    client: Any = connect(uri)
    client.create_registered_model(name, tags={"promotion_log": f"s3://store/customers/{customer}/{subject}/log"})
    client.create_model_version(
        name, "bundle://sha256/00", tags={"bundle_uri": f"s3://s/customers/{customer}/{subject}"}
    )
    client.set_registered_model_alias(name, "champion", "1")
    return str(tracker.run_id)


def _bytes_below(folder: Path) -> bytes:
    return b"".join(file.name.encode() + file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file())


def test_nothing_of_the_customer_is_left_and_everything_of_others(
    mlflow_database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_ENABLE_ASYNC_TRACE_LOGGING", "false")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_database)  # traces go to the one of the process
    runs = [_fill(mlflow_database, "acme", "mug"), _fill(mlflow_database, "acme", "cup")]
    other = _fill(mlflow_database, "acme2", "mug")
    client = connect(mlflow_database)
    client.delete_run(runs[0])  # a soft-deleted one
    client.delete_run(other)
    client.delete_model_version("acme--cup", "1")
    span = client.start_trace("look", experiment_id=client.get_run(runs[1]).info.experiment_id)
    client.end_trace(span.trace_id)
    model = client.create_logged_model(client.get_run(runs[1]).info.experiment_id, source_run_id=runs[1])
    client.delete_logged_model(model.model_id)

    erasure = TrackedErasure(mlflow_database, "acme")
    found = erasure.find()
    assert found.models == ["acme--cup", "acme--mug"]
    assert set(found.runs) == set(runs)
    assert (found.traces, found.logged_models) == (1, [model.model_id])
    erasure.erase(found)
    assert erasure.left(found, ["acme--", "customers/acme"], ACME) == []
    erasure.erase(found)  # again

    kept = client.get_run(other)
    assert kept.info.lifecycle_stage == "deleted"
    assert kept.data.params["owner"] == "acme2--mug"
    assert client.get_model_version_by_alias("acme2--mug", "champion").version in (1, "1")
    stored = _bytes_below(Path(mlflow_database.removeprefix("sqlite:///")).parent)
    for text in ("customers/acme/", "acme--", *runs, "acme/"):
        assert text.encode() not in stored, text
    assert b"acme2--mug" in stored


def test_subject_goes_and_the_customers_other_subjects_stay(mlflow_database: str) -> None:
    mug, mug2 = _fill(mlflow_database, "acme", "mug"), _fill(mlflow_database, "acme", "mug2")
    erasure = TrackedErasure(mlflow_database, "acme", "mug")
    found = erasure.find([mug2])  # a record that names another subject's run
    assert (found.models, found.runs, found.experiments) == (["acme--mug"], [mug], [])
    erasure.erase(found)
    assert erasure.left(found, ["acme--mug", "customers/acme/mug"], MUG) == []
    client = connect(mlflow_database)
    assert client.get_run(mug2).data.metrics == {"loss": 0.5}
    assert client.get_registered_model("acme--mug2").aliases == {"champion": 1}


def test_rows_that_are_left_are_named(mlflow_database: str) -> None:
    _fill(mlflow_database, "acme", "mug")
    client = connect(mlflow_database)
    client.create_registered_model("mine", tags={"copied_from": "models:/acme--mug/1"})
    erasure = TrackedErasure(mlflow_database, "acme")
    found = erasure.find()
    assert "1 models in MLflow" in erasure.left(found, ["acme--"], ACME)
    erasure.erase(found)
    assert erasure.left(found, ["acme--"], ACME) == ["rows in MLflow's table registered_model_tags, column value"]


def test_run_of_another_customer_in_the_experiment_is_an_error(mlflow_database: str) -> None:
    with open_tracker(mlflow_database, "acme") as tracker:
        tracker.log_config({"owner": "evil--mug"})
    with pytest.raises(InputError, match="of evil--mug is in the experiment of acme"):
        TrackedErasure(mlflow_database, "acme").find()


def test_server_keeps_deleted_runs_until_its_operator_collects_them(mlflow_server: str) -> None:
    run = _fill(mlflow_server, "acme", "mug")
    erasure = TrackedErasure(mlflow_server, "acme")
    found = erasure.find()
    erasure.erase(found)
    left = erasure.left(found, ["acme--"], ACME)
    assert "1 runs in MLflow" in left
    (step,) = erasure.steps(found)
    assert f"--run-ids {run}" in step
    assert connect(mlflow_server).get_run(run).info.lifecycle_stage == "deleted"


class Killed(BaseException):
    """Ends the erasure as a kill does."""


@pytest.mark.parametrize(
    ("owner", "step"),
    [
        ("client", "delete_registered_model"),
        ("client", "delete_run"),
        ("client", "delete_experiment"),
        ("store", "_hard_delete_run"),
        ("store", "_hard_delete_experiment"),
        ("module", "compact"),
    ],
)
@pytest.mark.parametrize("when", ["before", "after"])
def test_killed_at_each_step_a_second_call_completes(
    mlflow_database: str, owner: str, step: str, when: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for subject in ("mug", "cup"):
        _fill(mlflow_database, "acme", subject)
    erasure = TrackedErasure(mlflow_database, "acme")
    found = erasure.find()
    target = {"client": erasure._client, "store": erasure._client._tracking_client.store, "module": erasure_sql}[owner]
    do = getattr(target, step)

    def killed(*arguments: Any, **named: Any) -> None:
        if when == "after":
            do(*arguments, **named)
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(target, step, killed)
        with pytest.raises(Killed):
            erasure.erase(found)
    again = TrackedErasure(mlflow_database, "acme")
    again.erase(found)
    assert again.left(found, ["acme--", "customers/acme"], ACME) == []
    stored = _bytes_below(Path(mlflow_database.removeprefix("sqlite:///")).parent)
    assert b"acme" not in stored
