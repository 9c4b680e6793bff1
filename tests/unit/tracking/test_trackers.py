import json
from pathlib import Path

import pytest

from lookalike.errors import ConfigError, InputError
from lookalike.tracking import open_resilient, open_tracker, tracking_uri
from lookalike.tracking.files import EVENTS, JsonLinesTracker
from lookalike.tracking.mlflow_tracker import flatten


def _events(tracker: JsonLinesTracker) -> list[dict]:
    return [json.loads(line) for line in (tracker.folder / EVENTS).read_text().splitlines()]


def test_tracking_uri_has_no_default(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mlruns").mkdir()  # MLflow would use this folder as its store
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(ConfigError, match="MLFLOW_TRACKING_URI"):
        tracking_uri(None)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://host:1")
    assert tracking_uri(None) == "http://host:1"
    assert tracking_uri("sqlite:////absolute/m.db") == "sqlite:////absolute/m.db"
    for unknown in ("mlruns", "file:///x", "/x", "ftp://x"):
        with pytest.raises(ConfigError, match="unknown scheme"):
            tracking_uri(unknown)


def test_relative_paths_become_absolute(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert tracking_uri("sqlite:///m.db") == f"sqlite:///{tmp_path}/m.db"
    assert tracking_uri("jsonl:runs") == f"jsonl:{tmp_path}/runs"


def test_json_lines_record_every_call(tmp_path: Path) -> None:
    figure_file = tmp_path / "note.txt"
    figure_file.write_text("note")
    with open_tracker(f"jsonl:{tmp_path}", "toys", run_name="one") as tracker:
        assert isinstance(tracker, JsonLinesTracker)
        tracker.log_config({"lr": 1e-3, "stages": [1, 2]})
        tracker.log_metrics({"loss": 0.5}, step=3)
        tracker.log_artifact(figure_file, "notes")
        tracker.set_tags({"bundle": "x"})
    events = _events(tracker)
    assert [event.get("status") for event in events if "status" in event] == ["RUNNING", "FINISHED"]
    assert {"config": {"lr": 1e-3, "stages": [1, 2]}}.items() <= events[1].items()
    assert {"step": 3, "metrics": {"loss": 0.5}}.items() <= events[2].items()
    assert (tracker.folder / "artifacts" / "notes" / "note.txt").read_text() == "note"


def test_run_can_be_opened_again(tmp_path: Path) -> None:
    first = open_tracker(f"jsonl:{tmp_path}", "toys")
    first.log_metrics({"loss": 1.0}, step=0)
    first.finish()
    with open_tracker(f"jsonl:{tmp_path}", "toys", run_id=first.run_id) as second:
        second.log_metrics({"loss": 0.5}, step=1)
    assert isinstance(second, JsonLinesTracker)
    assert [event["step"] for event in _events(second) if "step" in event] == [0, 1]
    with pytest.raises(InputError, match="the run does not exist"):
        open_tracker(f"jsonl:{tmp_path}", "toys", run_id="unknown")


@pytest.mark.parametrize(("error", "status"), [(ValueError, "FAILED"), (KeyboardInterrupt, "KILLED")])
def test_status_says_how_a_run_ended(tmp_path: Path, error: type[BaseException], status: str) -> None:
    with pytest.raises(error), open_tracker(f"jsonl:{tmp_path}", "toys") as tracker:
        raise error
    assert isinstance(tracker, JsonLinesTracker)
    assert _events(tracker)[-1]["status"] == status


def test_error_of_the_block_is_raised_if_the_run_cannot_be_ended(tmp_path: Path) -> None:
    tracker = open_tracker(f"jsonl:{tmp_path}/runs", "toys")
    (tmp_path / "runs").rename(tmp_path / "moved")
    with pytest.raises(ValueError, match="the error of the block"), tracker:
        raise ValueError("the error of the block")


def test_other_ranks_record_nothing(tmp_path: Path) -> None:
    with open_resilient(f"jsonl:{tmp_path}", "toys", enabled=False) as tracker:
        tracker.log_metrics({"loss": 1.0}, step=0)
    assert tracker.run_id == ""
    with open_tracker("none:", "toys") as tracker:
        tracker.log_metrics({"loss": 1.0}, step=0)
    assert tracker.run_id == ""
    assert list(tmp_path.iterdir()) == []


def test_configuration_becomes_parameters() -> None:
    config = {"lr": 0.1, "stages": [{"steps": 1}, {"steps": 2}], "empty": [], "none": None, "deep": {"er": {"x": 1}}}
    assert flatten(config) == {
        "lr": 0.1,
        "stages.0.steps": 1,
        "stages.1.steps": 2,
        "empty": "[]",
        "none": None,
        "deep.er.x": 1,
    }
