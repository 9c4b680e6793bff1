"""A tracker that records runs in MLflow."""

import logging
import math
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

from lookalike.errors import InputError
from lookalike.redaction import redact, redacted
from lookalike.tracking.base import Tracker
from lookalike.tracking.connection import connect, is_taken, mlflow_errors

log = logging.getLogger(__name__)

_PARAMS_PER_BATCH, _METRICS_PER_BATCH = 100, 1000  # MLflow's limits
# Limits of the oldest servers in use; config.json holds the full values.
_PARAM_LENGTH, _TAG_LENGTH, _NAME_LENGTH = 500, 5000, 250
_NOT_IN_A_NAME = re.compile(r"[^\w\-. :/]", re.ASCII)


class MlflowTracker(Tracker):
    """One MLflow run. Every method raises if MLflow does not answer or refuses; ResilientTracker does not."""

    def __init__(self, uri: str, experiment: str, *, run_name: str | None = None, run_id: str | None = None) -> None:
        self._uri, self._client = uri, connect(uri)
        with mlflow_errors(uri):
            if run_id is None:
                run = self._client.create_run(_experiment_id(self._client, uri, experiment), run_name=run_name)
                run_id = run.info.run_id
            else:
                info = self._client.get_run(run_id).info
                if info.lifecycle_stage == "deleted":
                    raise InputError("the run was deleted in MLflow", value=run_id, fix="restore it in MLflow")
                actual = self._client.get_experiment(info.experiment_id).name
                # the record that named the run may have been edited
                if actual != experiment and not actual.startswith(f"{experiment} ("):
                    raise InputError(
                        f"the run belongs to the experiment {actual!r}, not to {experiment!r}",
                        value=run_id,
                        fix=f"name a run of {experiment!r}",
                    )
                self._client.update_run(run_id, status="RUNNING")
        self.run_id = str(run_id)

    def log_config(self, config: Mapping[str, Any]) -> None:
        from mlflow.entities import Param

        config = redacted(dict(config))
        params = [Param(_name(name), _cut(str(value), _PARAM_LENGTH)) for name, value in flatten(config).items()]
        with mlflow_errors(self._uri):
            for first in range(0, len(params), _PARAMS_PER_BATCH):
                self._client.log_batch(self.run_id, params=params[first : first + _PARAMS_PER_BATCH])
            self._client.log_dict(self.run_id, config, "config.json")

    def log_metrics(self, metrics: Mapping[str, float], step: int, time_ms: int | None = None) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000) if time_ms is None else time_ms
        points = [Metric(_name(name), _finite(float(value)), now, step) for name, value in metrics.items()]
        with mlflow_errors(self._uri):
            for first in range(0, len(points), _METRICS_PER_BATCH):
                self._client.log_batch(self.run_id, metrics=points[first : first + _METRICS_PER_BATCH])

    def log_artifact(self, path: Path, folder: str = "") -> None:
        with mlflow_errors(self._uri):
            self._client.log_artifact(self.run_id, str(path), folder or None)

    def set_tags(self, tags: Mapping[str, str]) -> None:
        with mlflow_errors(self._uri):
            for name, value in tags.items():
                self._client.set_tag(self.run_id, _name(name), _cut(redact(str(value)), _TAG_LENGTH))

    def finish(self, status: str = "FINISHED") -> None:
        with mlflow_errors(self._uri):
            self._client.set_terminated(self.run_id, status)


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return the leaves of a nested configuration by dotted name; list items become ``phases.0.steps``."""
    leaves: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, list):
            value = {str(index): item for index, item in enumerate(value)} or "[]"
        if isinstance(value, Mapping):
            leaves |= flatten(value, f"{prefix}{key}.")
        else:
            leaves[f"{prefix}{key}"] = value
    return leaves


def _name(name: str) -> str:
    """``name`` with the characters that MLflow refuses replaced by ``_``."""
    return _NOT_IN_A_NAME.sub("_", name)[:_NAME_LENGTH].strip("/.") or "_"


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else f"{text[: length - 1]}…"


def _finite(value: float) -> float:
    """``value`` with infinities replaced by the largest float, since MLflow's databases accept NaN only."""
    return math.copysign(1.7976931348623157e308, value) if math.isinf(value) else value


def _experiment_id(client: Any, uri: str, name: str) -> str:
    """Id of the experiment ``name``; of ``name (2)`` and so on if it was deleted, since MLflow keeps its name."""
    for number in range(1, 100):
        chosen = name if number == 1 else f"{name} ({number})"
        existing = client.get_experiment_by_name(chosen)
        if existing is None:
            try:
                return str(client.create_experiment(chosen, artifact_location=_artifact_location(uri, chosen)))
            except Exception as error:
                if not is_taken(error):  # else another process has just created it
                    raise
                existing = client.get_experiment_by_name(chosen)
        if existing.lifecycle_stage == "active":
            return str(existing.experiment_id)
        log.warning(
            "the experiment %r was deleted in MLflow, so another name is used; restore it in MLflow to use it again",
            chosen,
        )
    raise InputError("99 experiments of this name were deleted", value=name, fix="restore one of them in MLflow")


def _artifact_location(uri: str, experiment: str) -> str | None:
    """A folder beside a sqlite database, in place of MLflow's default, the working directory; None for a server."""
    if not uri.startswith("sqlite:///"):
        return None
    database = Path(uri.removeprefix("sqlite:///").partition("?")[0])
    return (database.parent / "mlflow-artifacts" / quote(experiment, safe="")).as_uri()
