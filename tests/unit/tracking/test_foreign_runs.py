"""A record that names another customer's run in the tracker: nothing is written there."""

import json
from pathlib import Path

import pytest

from lookalike.errors import InputError
from lookalike.storage import open_store
from lookalike.tracking import open_tracker
from lookalike.tracking.connection import connect
from lookalike.training.config import TrainConfig
from pipelines.train.tracked import RECORD, tracking_run


def test_run_of_another_experiment_is_not_continued(mlflow_database: str, tmp_path: Path) -> None:
    with open_tracker(mlflow_database, "evil") as theirs:
        theirs.set_tags({"whose": "evil"})
    before = connect(mlflow_database).get_run(theirs.run_id)
    with pytest.raises(InputError, match="belongs to the experiment 'evil', not to 'acme'"):
        open_tracker(mlflow_database, "acme", run_id=theirs.run_id)
    config = TrainConfig(dataset="/data", run=str(tmp_path), tracking=mlflow_database, experiment="acme")
    store = open_store(config.run)
    store.write(RECORD, json.dumps({"tracking_run": theirs.run_id, "submitted": 1.0}).encode())
    ours = tracking_run(config, store, {"version": 1})["tracking_run"]
    assert ours != theirs.run_id
    assert tracking_run(config, store, {"version": 1})["tracking_run"] == ours
    after = connect(mlflow_database).get_run(theirs.run_id)
    assert (after.info.status, after.data.tags, after.data.params) == (
        before.info.status,
        before.data.tags,
        before.data.params,
    )
