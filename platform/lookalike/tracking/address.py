"""Which tracking server: always said, never guessed."""

import os
from pathlib import Path

from lookalike.errors import ConfigError

_VARIABLE = "MLFLOW_TRACKING_URI"
_SQLITE = "sqlite:///"
_SCHEMES = ("http://", "https://", _SQLITE, "postgresql", "mysql", "mssql", "jsonl:", "none:")


def tracking_uri(uri: str | None = None) -> str:
    """The tracking URI that ``uri`` or else the environment names, in a form that means the same in every process.

    ``http(s)://…`` (an MLflow server), ``sqlite:///FILE`` or another SQLAlchemy URI (MLflow's own database),
    ``jsonl:FOLDER`` (a file per run, no MLflow), ``none:`` (nothing is kept). Relative files become absolute, because
    the workers of a job run in other folders than its driver. Raises ConfigError where no URI is given: MLflow's own
    default depends on which folders lie about.
    """
    chosen = uri or os.environ.get(_VARIABLE)
    if not chosen:
        raise ConfigError(
            "no tracking server is named", fix=f"set {_VARIABLE} or --tracking, e.g. sqlite:////absolute/path/mlflow.db"
        )
    if not chosen.startswith(_SCHEMES):
        raise ConfigError("unknown kind of tracking URI", value=chosen, fix=f"use one of {', '.join(_SCHEMES)}")
    for scheme in (_SQLITE, "jsonl:"):
        if chosen.startswith(scheme):
            return f"{scheme}{Path(chosen.removeprefix(scheme)).absolute()}"
    return chosen
