"""Who runs this process, as the promotion log records it."""

import os
import pwd

from lookalike.errors import first_line

_MOST = 100  # characters


def operator() -> str:
    """``mlflow:NAME``, the user whom MLflow's server knows, or else ``os:NAME``, the user of the operating system.

    MLflow's name comes first, since its server checks it by a password, and many people share one user in a container
    or on a Ray cluster. It is a statement and no proof: only a signed entry cannot be written by somebody else.
    """
    name = os.environ.get("MLFLOW_TRACKING_USERNAME", "").strip()
    if name:
        return f"mlflow:{_shown(name)}"
    uid = os.getuid()
    try:
        return f"os:{_shown(pwd.getpwuid(uid).pw_name)}"
    except KeyError:  # a container whose user is a number
        return f"os:{uid}"


def _shown(name: str) -> str:
    return "".join(character if character.isprintable() else "?" for character in first_line(name, _MOST))
