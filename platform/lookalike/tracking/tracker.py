"""The tracking URI, which selects a tracker."""

import os
from pathlib import Path
from urllib.parse import urlsplit

from lookalike.errors import ConfigError
from lookalike.redaction import HIDDEN
from lookalike.tracking.base import NullTracker, Tracker
from lookalike.tracking.files import JsonLinesTracker

_VARIABLE = "MLFLOW_TRACKING_URI"
_SQLITE = "sqlite:///"
_SCHEMES = ("http://", "https://", _SQLITE, "postgresql", "mysql", "mssql", "jsonl:", "none:")


def tracking_uri(uri: str | None = None) -> str:
    """Return the tracking URI of ``uri``, or else of MLFLOW_TRACKING_URI, in a form that is valid in every process.

    ``http(s)://…`` (an MLflow server), ``sqlite:///FILE`` or another SQLAlchemy URI (MLflow's own database),
    ``jsonl:FOLDER`` (a folder per run, without MLflow), ``none:`` (nothing is recorded). Relative paths become
    absolute, since workers of a job have other working directories than its driver.

    Raises:
        ConfigError: no URI is given (MLflow's own default depends on which folders exist), or an invalid one.
    """
    chosen = uri or os.environ.get(_VARIABLE)
    if not chosen:
        raise ConfigError(
            "the tracking URI is missing", fix=f"set {_VARIABLE} or --tracking, e.g. sqlite:////absolute/path/mlflow.db"
        )
    if f"{HIDDEN}@" in chosen:
        raise ConfigError(
            "the tracking URI was copied from an output that hides its user and password",
            value=chosen,
            fix="leave them out, and set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD",
        )
    if chosen.startswith("sqlite:") and not chosen.startswith(_SQLITE):
        rest = chosen.removeprefix("sqlite:").lstrip("/")
        raise ConfigError(
            "a sqlite URI needs three slashes before the path of its file", value=chosen, fix=f"write {_SQLITE}{rest}"
        )
    if not chosen.startswith(_SCHEMES):
        # hides user:password@host without a scheme
        value = f"***@{chosen.rpartition('@')[2]}" if "@" in chosen else chosen
        fix = f"use one of {', '.join(_SCHEMES)}"
        raise ConfigError("the tracking URI has an unknown scheme", value=value, fix=fix)
    for scheme in (_SQLITE, "jsonl:"):
        if chosen.startswith(scheme):
            file = chosen.removeprefix(scheme)
            if file in ("", ":memory:") or "\0" in file:
                raise ConfigError("the tracking URI names no file", value=chosen, fix=f"write {scheme}/absolute/path")
            return f"{scheme}{Path(file).absolute()}"
    if chosen.startswith(("http://", "https://")):
        _check_host(chosen)
    return chosen


def open_tracker(
    uri: str | None, experiment: str, *, run_name: str | None = None, run_id: str | None = None
) -> Tracker:
    """Start a run of ``experiment``, or continue ``run_id``. Jobs use
    :func:`~lookalike.tracking.resilient.open_resilient` instead.

    Args:
        uri: see :func:`tracking_uri`.
        experiment: name of the experiment, which is created if it does not exist.
        run_name: display name of the run; need not be unique.
        run_id: id of a run to continue.

    Raises:
        ConfigError: the URI is missing or invalid.
        InputError: the run to continue does not exist, was deleted, or belongs to another experiment.
        UnreachableError: the server does not answer within 30 s.
    """
    address = tracking_uri(uri)
    if address.startswith("none:"):
        return NullTracker()
    if address.startswith("jsonl:"):
        return JsonLinesTracker(Path(address.removeprefix("jsonl:")), experiment, run_name=run_name, run_id=run_id)
    from lookalike.tracking.mlflow_tracker import MlflowTracker

    return MlflowTracker(address, experiment, run_name=run_name, run_id=run_id)


def _check_host(uri: str) -> None:
    try:
        parts = urlsplit(uri)
        valid = bool(parts.hostname) and parts.port != 0 and not any(letter.isspace() for letter in uri)
    except ValueError:  # a port that is not a number, or brackets that do not close
        valid = False
    if not valid:
        what = "the tracking URI is not a valid address of a server"
        raise ConfigError(what, value=uri, fix="write http://HOST:PORT")
