"""A token and a folder that protect a Ray cluster which one process starts for itself.

Ray's servers listen on every interface of the machine (there is no option to change that), and a client can run
commands. Its session folders in ``/tmp/ray`` are writable by every user of the machine.
"""

import logging
import os
import secrets
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

from lookalike.scratch import SHORT, kept_folder

log = logging.getLogger(__name__)

MODE, TOKEN, TOKEN_PATH = "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"
_SOCKET_PATH_BYTES = 107  # of the kernel
_SOCKET = "session_2026-01-01_00-00-00_000000_0000000/sockets/plasma_store"


@contextmanager
def fresh_token() -> Iterator[None]:
    """Make clusters that start inside the block require a token that only this process and its children can read.

    The token is a new one, whatever the environment holds; RAY_AUTH_MODE=disabled leaves them open, with a warning.
    """
    if os.environ.get(MODE, "").lower() == "disabled":
        log.warning("RAY_AUTH_MODE=disabled: anyone who reaches this machine's ports can run commands on it; unset it")
        yield
        return
    before = {name: os.environ.get(name) for name in (MODE, TOKEN, TOKEN_PATH)}
    with _folder("ray-token") as folder:
        path = folder / "token"
        path.touch(mode=0o600, exist_ok=False)
        path.write_text(secrets.token_hex(32))
        try:
            _export({MODE: "token", TOKEN: None, TOKEN_PATH: str(path)})
            yield
        finally:
            _export(before)


@contextmanager
def session_folder() -> Iterator[str | None]:
    """Create a folder for Ray's sockets, logs and unpacked code that no other user can enter, and remove it at the end.

    It lies in /tmp if TMPDIR is too long for the path of a socket. None, which means Ray's own place, if RAY_TMPDIR
    names that.
    """
    if os.environ.get("RAY_TMPDIR"):
        yield None
        return
    with ExitStack() as stack:
        folder = stack.enter_context(_folder("ray"))
        if len(os.fsencode(folder / _SOCKET)) > _SOCKET_PATH_BYTES:
            folder = stack.enter_context(_folder("ray", SHORT))
        yield str(folder)


@contextmanager
def _folder(purpose: str, parent: str | None = None) -> Iterator[Path]:
    """Create a temporary folder for the block; ``scratch`` would blame the job's own errors on this folder's disk."""
    folder = kept_folder(purpose, parent)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _export(variables: Mapping[str, str | None]) -> None:
    """Set environment variables, or unset those that are None; Ray reads its own once, at its import."""
    for name, value in variables.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
    if (raylet := sys.modules.get("ray._raylet")) is not None:
        raylet.Config.initialize("")
        raylet.AuthenticationTokenLoader.instance().reset_cache()
