"""A password in an address stands in nothing that a job writes, registers or prints."""

import io
import logging
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from jobs.promote import main, main_rollback
from lookalike import config as configs
from lookalike.storage import open_store
from lookalike.storage.claim import claim
from lookalike.tracking import open_resilient, open_tracker
from lookalike.tracking.connection import connect
from lookalike.training.config import TrainConfig
from pipelines.entry import run_subcommand
from pipelines.train.tracked import tracking_run
from tests.integration.test_promotion import bundle, scored

SECRET = "s3cr3tPW-of-mia"  # pragma: allowlist secret


def test_nothing_that_is_written_holds_the_password(
    mlflow_server: str,
    mlflow_user: Callable[[str, str], None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    root = tmp_path / "store"
    mlflow_user("mia", SECRET)
    uri = mlflow_server.replace("://", f"://mia:{SECRET}@")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    output = io.StringIO()
    handler = logging.StreamHandler(output)
    logging.getLogger().addHandler(handler)

    config = TrainConfig(dataset="/data", run=str(root / "run"), tracking=uri, experiment="secrets")
    claim(open_store(config.run), configs.to_dict(config))
    run_id = tracking_run(config, open_store(config.run), {"version": 1, "from": uri})["tracking_run"]
    spool = open_store(str(root / "spool"))
    away = uri.replace("127.0.0.1", "127.0.0.2").rpartition(":")[0] + ":9"
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setattr("lookalike.tracking.resilient._PATIENCE_S", 0.5)
    with open_resilient(away, "secrets", run_id=run_id, spool=spool) as tracker:
        tracker.log_config({"endpoint": uri})
        tracker.set_tags({"endpoint": uri})
    with open_resilient(uri, "secrets", run_id=run_id, spool=spool):
        pass
    with open_tracker(f"jsonl:{root}/runs", "secrets") as plain:
        plain.log_config({"endpoint": uri})
        plain.set_tags({"endpoint": uri})

    scored(str(root), "scores", bundle(str(root), "one"))
    for arguments in (
        ["run", "--model", "secrets", "--scores", f"{root}/scores", "--out", f"{root}/promotion", "--tracking", uri],
        ["run", "--model", "secrets", "--scores", f"{root}/scores", "--out", f"{root}/other", "--tracking", away],
        ["run", "--model", "secrets", "--scores", f"{root}/scores", "--out", f"{root}/other", "--trackings", uri],
        ["rollback", "--model", "secrets", "--out", f"{root}/back", "--reason", "grey"],
        ["run", "--model", "secrets", "--scores", f"{root}/scores", "--out", f"{root}/other", "--tracking", f"x{uri}"],
    ):
        monkeypatch.setattr(sys, "argv", ["promote.py", *arguments])
        with suppress(SystemExit):
            run_subcommand({"run": main, "rollback": main_rollback}, main.__doc__)
    logging.getLogger("lookalike").warning("seen: %s", uri)
    logging.getLogger().removeHandler(handler)

    client = connect(uri)
    run = client.get_run(run_id)
    assert run.data.params["endpoint"] == mlflow_server.replace("://", "://***@")
    model = client.get_registered_model("secrets")
    registered = [model.tags, *(version.tags for version in client.search_model_versions("name='secrets'"))]
    assert SECRET not in f"{run.data.params} {run.data.tags} {registered}"
    printed = capsys.readouterr()
    assert SECRET not in printed.out + printed.err + output.getvalue()
    assert "seen: http://***@" in output.getvalue()
    written = [file for file in root.rglob("*") if file.is_file()]
    assert len(written) > 8
    assert [file for file in written if SECRET.encode() in file.read_bytes()] == []


def test_another_password_is_still_the_same_run(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    config = {"endpoint": "http://mia:one@host", "seed": 1}  # pragma: allowlist secret
    assert claim(store, config) == claim(store, {**config, "endpoint": "http://mia:two@host"})
