"""Connect to MLflow: one client per call, no global state, and errors that name the server."""

import fcntl
import logging
import os
import re
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote, urlsplit

from lookalike.errors import ConfigError, InputError, LookalikeError, UnreachableError, first_line

# MLflow reads these at each request. Three tries of 7 s, 4 s apart: a dead server is reported after 30 s, not 248 s.
_DEFAULTS = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "7",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}
_SQLITE = "sqlite:///"
_LOCK_S = 5.0  # wait for a locked database before MLflow opens it, which would retry for minutes
_STATUS = re.compile(r"failed with error code (\d{3})")
_REVISION = re.compile(r"found version (\w+)|revision identified by '(\w+)'")
_UNUSABLE = re.compile(
    "unable to open database|readonly database|disk i/o error|disk is full|file is not a database|is malformed"
)
_UNKNOWN_USER = ("UNAUTHENTICATED", "PERMISSION_DENIED", "CUSTOMER_UNAUTHORIZED")
_PASSWORD_FIX = "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"  # pragma: allowlist secret

Problem = tuple[type[LookalikeError], str, str]  # the class of the error, what is wrong, the fix

_NO_ANSWER_FIX = "check MLFLOW_TRACKING_URI, and that the server is running"
_NO_ANSWER: Problem = (UnreachableError, "MLflow does not answer", _NO_ANSWER_FIX)


def connect(uri: str) -> Any:
    """Return an ``MlflowClient`` for the server or database at ``uri`` (tracking and registry), without a request.

    The tables of a new database file are made by one process at a time: MLflow's migrations fail if two run at once.

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
            with _one_at_a_time(_path_of(uri).parent):  # another process may be at it
                if not _has_tables(uri):
                    _client(uri).search_registered_models(max_results=1)
        elif not uri.startswith("http"):
            _check_driver(uri)
        parts = urlsplit(uri)
        if uri.startswith("http") and parts.username and parts.password:
            user, password = unquote(parts.username), unquote(parts.password)
            os.environ.update(MLFLOW_TRACKING_USERNAME=user, MLFLOW_TRACKING_PASSWORD=password)
            uri = parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
        return _client(uri)


@contextmanager
def mlflow_errors(uri: str) -> Iterator[None]:
    """Translate exceptions of MLflow and its libraries, see :func:`translate`."""
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


def _has_tables(uri: str) -> bool:
    """Open the file once, since MLflow would retry a permanent failure ten times, for minutes."""
    path = _path_of(uri)
    if path.is_dir():
        raise InputError(
            "the path of MLflow's database is a folder", value=uri, fix=f"name a file, such as {uri}/mlflow.db"
        )
    with closing(sqlite3.connect(f"file:{quote(str(path))}?mode=rwc", timeout=_LOCK_S, uri=True)) as database:
        tables = {name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    if tables and "alembic_version" not in tables:
        raise InputError("the database belongs to another program than MLflow", value=uri, fix="name another file")
    return bool(tables)


@contextmanager
def _one_at_a_time(folder: Path) -> Iterator[None]:
    """Keep other processes and threads that enter this for ``folder`` waiting; its lock ends with its process."""
    folder.mkdir(parents=True, exist_ok=True)
    opened = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # a file system without locks
            fcntl.flock(opened, fcntl.LOCK_EX)
        yield
    finally:
        os.close(opened)


def _client(uri: str) -> Any:
    from mlflow import MlflowClient

    # MLflow logs each database error with its traceback before it raises it.
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)
    return MlflowClient(tracking_uri=uri, registry_uri=uri)


def _path_of(uri: str) -> Path:
    return Path(uri.removeprefix(_SQLITE).partition("?")[0])


def _check_driver(uri: str) -> None:
    from sqlalchemy.engine import make_url

    make_url(uri).get_dialect().import_dbapi()


def translate(error: Exception, uri: str) -> LookalikeError:
    """Return a LookalikeError for ``error``, which was raised while MLflow at ``uri`` was used.

    An UnreachableError means that a later attempt may succeed, an InputError that something is missing or unusable, a
    ConfigError that the URI is wrong, and a plain LookalikeError that MLflow refused the request.
    """
    from mlflow.exceptions import MlflowException

    problem = _of_database(str(error), uri)
    if problem is None:
        problem = _of_mlflow(error, uri) if isinstance(error, MlflowException) else _of_libraries(error)
    error_class, what, fix = problem
    return error_class(what, value=uri, fix=fix)


def _of_database(text: str, uri: str) -> Problem | None:
    lower = text.lower()
    if "database is locked" in lower or "database table is locked" in lower:
        fix = "run the same command again when that process has ended; use an MLflow server for many jobs at once"
        return UnreachableError, "MLflow's database is locked by another process", fix
    if "out-of-date database schema" in lower or "can't locate revision" in lower:
        return _of_another_version(text, uri)
    if _UNUSABLE.search(lower) or "Can't locate" in text:
        fix = "check the path, its permissions, and the free space"
        return InputError, f"MLflow's database cannot be used: {first_line(text)}", fix
    return None


def _of_another_version(text: str, uri: str) -> Problem:
    import mlflow

    match = _REVISION.search(text)
    revision = next(filter(None, match.groups()), "") if match else ""
    versions = Path(mlflow.__file__).parent / "store" / "db_migrations" / "versions"
    if revision and not list(versions.glob(f"{revision}_*")):
        fix = f"install a newer MLflow (this is {mlflow.__version__}), or name another database"
        return InputError, "MLflow's database was written by a newer MLflow", fix
    fix = f"back it up, then run: mlflow db upgrade '{uri}'"
    return InputError, "MLflow's database was written by an older MLflow", fix


def _of_mlflow(error: Any, uri: str) -> Problem:
    from mlflow.exceptions import RestException

    code, text = error.error_code, first_line(error.message)
    if isinstance(error, RestException) or not uri.startswith("http"):
        if code == "RESOURCE_DOES_NOT_EXIST":
            return InputError, f"MLflow has no such entry: {text}", "check the name, or name another MLflow"
        if code in _UNKNOWN_USER:
            return LookalikeError, f"MLflow refused the user: {text}", _PASSWORD_FIX
        if code == "TEMPORARILY_UNAVAILABLE":
            return UnreachableError, f"MLflow does not answer: {text}", "run the same command again"
        return LookalikeError, f"MLflow refused the request: {text}", "see MLflow's log"
    status = int(match.group(1)) if (match := _STATUS.search(str(error.message))) else 0
    if status in (401, 403):
        return LookalikeError, f"MLflow refused the user (HTTP {status})", _PASSWORD_FIX
    if (0 < status < 500 and status not in (408, 429)) or "not in a valid JSON format" in str(error.message):
        answer = f" (HTTP {status})" if status else ""
        fix = "check MLFLOW_TRACKING_URI or --tracking"
        return InputError, f"the address is not that of an MLflow server{answer}", fix
    return _NO_ANSWER


def _of_libraries(error: Exception) -> Problem:
    library, text = type(error).__module__, first_line(error)
    if isinstance(error, ImportError):
        fix = "pip install it (psycopg2-binary for postgresql, pymysql for mysql), or name an MLflow server"
        return ConfigError, f"the driver of the database is not installed: {text}", fix
    if library.startswith("sqlalchemy") and type(error).__name__ in ("ArgumentError", "NoSuchModuleError"):
        fix = "write postgresql://USER:PASSWORD@HOST/NAME"  # pragma: allowlist secret
        return ConfigError, f"the database URI is not valid: {text}", fix
    if library.startswith("sqlalchemy"):
        fix = "check its address, and that it is running"
        return UnreachableError, f"MLflow's database does not answer: {text}", fix
    if library.startswith("requests"):
        return _NO_ANSWER
    if isinstance(error, OSError):
        fix = "check the permissions and the free space there"
        return InputError, f"MLflow cannot read or write its files: {text}", fix
    return LookalikeError, f"MLflow failed: {type(error).__name__}: {text}", "see MLflow's log"
