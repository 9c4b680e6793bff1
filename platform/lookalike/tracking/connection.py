"""The door to MLflow: one client per call, no global state, errors that name the server."""

import logging
import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

from lookalike.errors import ConfigError, InputError, LookalikeError
from lookalike.tracking.address import split_user
from lookalike.tracking.failures import translate

# MLflow reads these at each request. Three tries of 7 s with 4 s between: a dead server is named within 30 s, not 248.
_DEFAULTS = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "7",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}
_SQLITE = "sqlite:///"
_LOCK_S = 5.0  # how long a locked database is waited for before MLflow is asked, which itself would try for minutes
_GONE = ("RESOURCE_DOES_NOT_EXIST",)
_TAKEN = ("RESOURCE_ALREADY_EXISTS",)


def connect(uri: str) -> Any:
    """An ``MlflowClient`` of the server or database at ``uri`` (tracking and registry). Makes no request yet.

    User and password of a server go to MLflow's own variables: in its URI they would stand in what MLflow, requests and
    Ray write of an error.

    Raises:
        ConfigError: a URI without MLflow behind it, or of a database whose driver is not installed.
        InputError: a database file that cannot be opened, or is not MLflow's.
        UnreachableError: a database file that another process has locked.
    """
    for name, value in _DEFAULTS.items():
        os.environ.setdefault(name, value)
    if uri.startswith(("jsonl:", "none:")):
        raise ConfigError("this needs MLflow", value=uri, fix="name an MLflow server or sqlite:///FILE as --tracking")
    with mlflow_errors(uri):
        if uri.startswith(_SQLITE):
            _check_sqlite(uri)
        elif not uri.startswith("http"):
            _check_driver(uri)
        from mlflow import MlflowClient

        uri, user, password = split_user(uri)
        if user is not None and password is not None:
            os.environ.update(MLFLOW_TRACKING_USERNAME=user, MLFLOW_TRACKING_PASSWORD=password)
        # It logs each database error with its traceback, and raises it as well.
        logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)
        return MlflowClient(tracking_uri=uri, registry_uri=uri)


@contextmanager
def mlflow_errors(uri: str) -> Iterator[None]:
    """Turn whatever MLflow and the libraries below it raise into our errors, see :func:`failures.translate`."""
    try:
        yield
    except LookalikeError:
        raise
    except Exception as error:  # SQLAlchemy, Alembic, sqlite3, requests and the file system have no common class
        raise translate(error, uri) from error


def is_missing(error: Exception) -> bool:
    """Whether an MLflow exception says that something is not there."""
    return getattr(error, "error_code", None) in _GONE


def is_taken(error: Exception) -> bool:
    """Whether an MLflow exception says that something is there already."""
    return getattr(error, "error_code", None) in _TAKEN


def is_denied(error: Exception) -> bool:
    """Whether an MLflow exception says that the user lacks a permission: its server answers HTTP 403 in plain text."""
    return getattr(error, "error_code", None) == "PERMISSION_DENIED" or "failed with error code 403" in str(error)


def _check_sqlite(uri: str) -> None:
    """Open the file once: MLflow would try ten times, for minutes, what can never succeed."""
    path = Path(uri.removeprefix(_SQLITE).partition("?")[0])
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_dir():
        raise InputError("MLflow's database is a folder", value=uri, fix=f"name a file, such as {uri}/mlflow.db")
    with closing(sqlite3.connect(f"file:{quote(str(path))}?mode=rwc", timeout=_LOCK_S, uri=True)) as database:
        tables = {name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    if tables and "alembic_version" not in tables:
        raise InputError("the database is another program's, not MLflow's", value=uri, fix="name another file")


def _check_driver(uri: str) -> None:
    from sqlalchemy.engine import make_url

    make_url(uri).get_dialect().import_dbapi()
