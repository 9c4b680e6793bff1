"""Runs in MLflow."""

import logging
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import quote

from lookalike.errors import LookalikeError, UnreachableError
from lookalike.tracking.connection import connect, is_taken, mlflow_errors
from lookalike.tracking.tracker import status_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

log = logging.getLogger(__name__)

_PARAMS_PER_BATCH, _METRICS_PER_BATCH = 100, 1000  # MLflow's limits
_RETRY_S = 60.0


class MlflowTracker:
    """One MLflow run. A server that goes away in the middle costs no training: figures wait, and are sent later."""

    def __init__(self, uri: str, experiment: str, *, run_name: str | None = None, run_id: str | None = None) -> None:
        self._uri, self._client = uri, connect(uri)
        self._waiting: list[Any] = []
        self._retry_at = 0.0
        with mlflow_errors(uri):
            if run_id is None:
                run = self._client.create_run(_experiment_id(self._client, uri, experiment), run_name=run_name)
                run_id = run.info.run_id
            else:
                self._client.get_run(run_id)
                self._client.update_run(run_id, status="RUNNING")
        self._run_id = str(run_id)

    @property
    def run_id(self) -> str:
        return self._run_id

    def log_config(self, config: Mapping[str, Any]) -> None:
        from mlflow.entities import Param

        params = [Param(name, str(value)) for name, value in flatten(config).items()]
        with mlflow_errors(self._uri):
            for first in range(0, len(params), _PARAMS_PER_BATCH):
                self._client.log_batch(self._run_id, params=params[first : first + _PARAMS_PER_BATCH])
            self._client.log_dict(self._run_id, dict(config), "config.json")

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        self._waiting += [Metric(name, float(value), now, step) for name, value in metrics.items()]
        if time.monotonic() < self._retry_at:
            return
        try:
            self._send()
        except UnreachableError as error:
            self._retry_at = time.monotonic() + _RETRY_S
            log.warning("%s; %d figures wait, next try in %.0f s", error, len(self._waiting), _RETRY_S)

    def log_artifact(self, path: Path, folder: str = "") -> None:
        with mlflow_errors(self._uri):
            self._client.log_artifact(self._run_id, str(path), folder or None)

    def log_figure(self, figure: "Figure", name: str) -> None:
        with mlflow_errors(self._uri):
            self._client.log_figure(self._run_id, figure, name)

    def set_tags(self, tags: Mapping[str, str]) -> None:
        with mlflow_errors(self._uri):
            for name, value in tags.items():
                self._client.set_tag(self._run_id, name, value)

    def finish(self, status: str = "FINISHED") -> None:
        self._send()
        with mlflow_errors(self._uri):
            self._client.set_terminated(self._run_id, status)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.finish(status_of(kind))
        except LookalikeError as problem:
            if error is None:
                raise
            log.warning("the run could not be marked as ended: %s", problem)  # the first error is the one to show

    def _send(self) -> None:
        with mlflow_errors(self._uri):
            while self._waiting:
                batch = self._waiting[:_METRICS_PER_BATCH]
                self._client.log_batch(self._run_id, metrics=batch)
                del self._waiting[: len(batch)]


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Leaves of a nested configuration by dotted name; lists count as ``stages.0.steps``."""
    leaves: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, list):
            value = {str(index): item for index, item in enumerate(value)} or "[]"
        if isinstance(value, Mapping):
            leaves |= flatten(value, f"{prefix}{key}.")
        else:
            leaves[f"{prefix}{key}"] = value
    return leaves


def _experiment_id(client: Any, uri: str, name: str) -> str:
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(name)
    if found is None:
        try:
            return str(client.create_experiment(name, artifact_location=_artifact_location(uri, name)))
        except MlflowException as error:
            if not is_taken(error):  # else another process was faster
                raise
            found = client.get_experiment_by_name(name)
    return str(found.experiment_id)


def _artifact_location(uri: str, experiment: str) -> str | None:
    """A server decides for itself; without one, artifacts lie beside the database, never in the working directory."""
    if not uri.startswith("sqlite:///"):
        return None
    database = Path(uri.removeprefix("sqlite:///"))
    return (database.parent / "mlflow-artifacts" / quote(experiment, safe="")).as_uri()
