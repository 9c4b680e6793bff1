"""Translate errors of MLflow, its server, its database and its libraries into LookalikeErrors with a fix."""

import re
from pathlib import Path

from lookalike.errors import ConfigError, InputError, LookalikeError, UnreachableError, first_line

_STATUS = re.compile(r"failed with error code (\d{3})")
_REVISION = re.compile(r"found version (\w+)|revision identified by '(\w+)'")
_DATABASE = (
    "unable to open database",
    "readonly database",
    "disk i/o error",
    "disk is full",
    "file is not a database",
    "is malformed",
)
_UNKNOWN_USER = ("UNAUTHENTICATED", "PERMISSION_DENIED", "CUSTOMER_UNAUTHORIZED")
_PASSWORD_FIX = "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"  # pragma: allowlist secret


def translate(error: Exception, uri: str) -> LookalikeError:
    """Return a LookalikeError for ``error``, which was raised while MLflow at ``uri`` was used.

    An UnreachableError means that a later attempt may succeed, an InputError that something is missing or unusable, a
    ConfigError that the URI is wrong, and a plain LookalikeError that MLflow refused the request.
    """
    return _of_database(error, uri) or _of_mlflow(error, uri) or _of_libraries(error, uri)


def _of_database(error: Exception, uri: str) -> LookalikeError | None:
    text = str(error)
    lower = text.lower()
    if "database is locked" in lower or "database table is locked" in lower:
        return UnreachableError(
            "MLflow's database is locked by another process",
            value=uri,
            fix="run the same command again when that process has ended; use an MLflow server for many jobs at once",
        )
    if "out-of-date database schema" in lower or "can't locate revision" in lower:
        return _of_another_version(text, uri)
    if any(words in lower for words in _DATABASE) or "Can't locate" in text:
        return InputError(
            f"MLflow's database cannot be used: {first_line(text)}",
            value=uri,
            fix="check the path, its permissions, and the free space",
        )
    return None


def _of_another_version(text: str, uri: str) -> LookalikeError:
    import mlflow

    match = _REVISION.search(text)
    revision = next(filter(None, match.groups()), "") if match else ""
    versions = Path(mlflow.__file__).parent / "store" / "db_migrations" / "versions"
    if revision and not list(versions.glob(f"{revision}_*")):
        return InputError(
            "MLflow's database was written by a newer MLflow",
            value=uri,
            fix=f"install a newer MLflow (this is {mlflow.__version__}), or name another database",
        )
    return InputError(
        "MLflow's database was written by an older MLflow",
        value=uri,
        fix=f"back it up, then run: mlflow db upgrade '{uri}'",
    )


def _of_mlflow(error: Exception, uri: str) -> LookalikeError | None:
    from mlflow.exceptions import MlflowException, RestException

    if not isinstance(error, MlflowException):
        return None
    code, text = error.error_code, first_line(error.message)
    if isinstance(error, RestException) or not uri.startswith("http"):
        if code == "RESOURCE_DOES_NOT_EXIST":
            return InputError(
                f"MLflow has no such entry: {text}", value=uri, fix="check the name, or name another MLflow"
            )
        if code in _UNKNOWN_USER:
            return LookalikeError(f"MLflow refused the user: {text}", value=uri, fix=_PASSWORD_FIX)
        if code == "TEMPORARILY_UNAVAILABLE":
            return UnreachableError(f"MLflow does not answer: {text}", value=uri, fix="run the same command again")
        return LookalikeError(f"MLflow refused the request: {text}", value=uri, fix="see MLflow's log")
    status = int(match.group(1)) if (match := _STATUS.search(str(error.message))) else 0
    if status in (401, 403):
        return LookalikeError(f"MLflow refused the user (HTTP {status})", value=uri, fix=_PASSWORD_FIX)
    if (0 < status < 500 and status not in (408, 429)) or "not in a valid JSON format" in str(error.message):
        return InputError(
            f"the address is not that of an MLflow server{f' (HTTP {status})' if status else ''}",
            value=uri,
            fix="check MLFLOW_TRACKING_URI or --tracking",
        )
    return UnreachableError(
        "MLflow does not answer", value=uri, fix="check MLFLOW_TRACKING_URI, and that the server is running"
    )


def _of_libraries(error: Exception, uri: str) -> LookalikeError:
    if isinstance(error, ImportError):
        return ConfigError(
            f"the driver of the database is not installed: {first_line(error)}",
            value=uri,
            fix="pip install it (psycopg2-binary for postgresql, pymysql for mysql), or name an MLflow server",
        )
    if type(error).__module__.startswith("sqlalchemy") and type(error).__name__ in (
        "ArgumentError",
        "NoSuchModuleError",
    ):
        return ConfigError(
            f"the database URI is not valid: {first_line(error)}",
            value=uri,
            fix="write postgresql://USER:PASSWORD@HOST/NAME",  # pragma: allowlist secret
        )
    if type(error).__module__.startswith("sqlalchemy"):
        return UnreachableError(
            f"MLflow's database does not answer: {first_line(error)}",
            value=uri,
            fix="check its address, and that it is running",
        )
    if type(error).__module__.startswith("requests"):
        return UnreachableError(
            "MLflow does not answer", value=uri, fix="check MLFLOW_TRACKING_URI, and that the server is running"
        )
    if isinstance(error, OSError):
        return InputError(
            f"MLflow cannot read or write its files: {first_line(error)}",
            value=uri,
            fix="check the permissions and the free space there",
        )
    return LookalikeError(
        f"MLflow failed: {type(error).__name__}: {first_line(error)}", value=uri, fix="see MLflow's log"
    )
