"""The door to MLflow: one client per call, no global state, errors that name the server."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lookalike.errors import ConfigError, InputError, LookalikeError, UnreachableError

# MLflow reads these at each request. Three tries of 7 s with 4 s between: a dead server is named within 30 s, not 248.
_DEFAULTS = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "7",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}
_GONE = ("RESOURCE_DOES_NOT_EXIST",)
_TAKEN = ("RESOURCE_ALREADY_EXISTS",)


def connect(uri: str) -> Any:
    """An ``MlflowClient`` of the server or database at ``uri`` (tracking and registry). Makes no request yet."""
    for name, value in _DEFAULTS.items():
        os.environ.setdefault(name, value)
    if uri.startswith(("jsonl:", "none:")):
        raise ConfigError("this needs MLflow", value=uri, fix="name an MLflow server or sqlite:///FILE as --tracking")
    if uri.startswith("sqlite:///"):
        Path(uri.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
    from mlflow import MlflowClient

    with mlflow_errors(uri):
        return MlflowClient(tracking_uri=uri, registry_uri=uri)


@contextmanager
def mlflow_errors(uri: str) -> Iterator[None]:
    """Turn MLflow's exceptions into ours: UnreachableError for a server that is down, InputError for what it lacks."""
    from mlflow.exceptions import MlflowException, RestException

    try:
        yield
    except MlflowException as error:
        if isinstance(error, RestException) or not uri.startswith("http"):
            if error.error_code in _GONE:
                raise InputError(f"MLflow: {error.message}", value=uri, fix="check the name") from error
            raise LookalikeError(f"MLflow refused: {error.message}", value=uri, fix="see its log") from error
        raise UnreachableError(
            "MLflow does not answer", value=uri, fix="check MLFLOW_TRACKING_URI and that the server runs"
        ) from error


def is_missing(error: Exception) -> bool:
    """Whether an MLflow exception says that something is not there."""
    return getattr(error, "error_code", None) in _GONE


def is_taken(error: Exception) -> bool:
    """Whether an MLflow exception says that something is there already."""
    return getattr(error, "error_code", None) in _TAKEN
