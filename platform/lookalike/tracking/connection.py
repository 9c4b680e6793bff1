"""Connect to MLflow: one client per call, no global state, and errors that name the server."""

import logging
import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote, urlsplit

from lookalike.errors import ConfigError, InputError, LookalikeError
from lookalike.tracking.failures import translate

# MLflow reads these at each request. Three tries of 7 s, 4 s apart: a dead server is reported after 30 s, not 248 s.
_DEFAULTS = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "7",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}
_SQLITE = "sqlite:///"
_LOCK_S = 5.0  # wait for a locked database before MLflow opens it, which would retry for minutes


def connect(uri: str) -> Any:
    """Return an ``MlflowClient`` for the server or database at ``uri`` (tracking and registry), without a request.

    User and password of a server go into MLflow's own environment variables: in the URI they would appear in errors of
    MLflow, requests and Ray.

    Raises:
        ConfigError: the URI is not one of MLflow, or the driver of its database is not installed.
        InputError: the database file cannot be opened, or belongs to another program.
        UnreachableError: another process has locked the database file.
    """
    for name, value in _DEFAULTS.items():
        os.environ.setdefault(name, value)
    if uri.startswith(("jsonl:", "none:")):
        raise ConfigError(
            "the registry needs MLflow", value=uri, fix="set --tracking to an MLflow server or sqlite:///FILE"
        )
    with mlflow_errors(uri):
        if uri.startswith(_SQLITE):
            _check_sqlite(uri)
        elif not uri.startswith("http"):
            _check_driver(uri)
        from mlflow import MlflowClient

        parts = urlsplit(uri)
        if uri.startswith("http") and parts.username and parts.password:
            user, password = unquote(parts.username), unquote(parts.password)
            os.environ.update(MLFLOW_TRACKING_USERNAME=user, MLFLOW_TRACKING_PASSWORD=password)
            uri = parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
        # MLflow logs each database error with its traceback before it raises it.
        logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)
        return MlflowClient(tracking_uri=uri, registry_uri=uri)


@contextmanager
def mlflow_errors(uri: str) -> Iterator[None]:
    """Translate exceptions of MLflow and its libraries, see :func:`~lookalike.tracking.failures.translate`."""
    try:
        yield
    except LookalikeError:
        raise
    except Exception as error:  # SQLAlchemy, Alembic, sqlite3, requests and the file system have no common class
        raise translate(error, uri) from error


def is_missing(error: Exception) -> bool:
    """Return whether an MLflow exception says that something does not exist."""
    return getattr(error, "error_code", None) == "RESOURCE_DOES_NOT_EXIST"


def is_taken(error: Exception) -> bool:
    """Return whether an MLflow exception says that something exists already."""
    return getattr(error, "error_code", None) == "RESOURCE_ALREADY_EXISTS"


def is_denied(error: Exception) -> bool:
    """Whether an MLflow exception says that the user lacks a permission: its server answers HTTP 403 in plain text."""
    return getattr(error, "error_code", None) == "PERMISSION_DENIED" or "failed with error code 403" in str(error)


def _check_sqlite(uri: str) -> None:
    """Open the file once, since MLflow would retry a permanent failure ten times, for minutes."""
    path = Path(uri.removeprefix(_SQLITE).partition("?")[0])
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_dir():
        raise InputError(
            "the path of MLflow's database is a folder", value=uri, fix=f"name a file, such as {uri}/mlflow.db"
        )
    with closing(sqlite3.connect(f"file:{quote(str(path))}?mode=rwc", timeout=_LOCK_S, uri=True)) as database:
        tables = {name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    if tables and "alembic_version" not in tables:
        raise InputError("the database belongs to another program than MLflow", value=uri, fix="name another file")


def _check_driver(uri: str) -> None:
    from sqlalchemy.engine import make_url

    make_url(uri).get_dialect().import_dbapi()
