"""Temporary folders: each lies below a folder of its process and is removed when its job ends.

The folder of a process is ``lookalike-XXXXXXXX`` in ``TMPDIR``, with a file that the process keeps locked. It is
removed when the process ends. What a killed process has left is removed by the next one that makes a folder there, and
by the frame of the job (:func:`sweep`): its lock is free then, across containers too, and whatever its process id.
"""

import atexit
import errno
import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from lookalike.errors import InputError, LookalikeError, first_line

JOB_VARIABLE = "LOOKALIKE_JOB"
"""Identity of the job for its worker processes on this machine, which inherit the environment."""

_PREFIX = "lookalike-"
_LOCK = ".lookalike-scratch"  # marks a folder as ours, and holds the job's identity
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG}
_LEAST_FREE = 1 << 20  # bytes; with less, any error of a library means that the disk is full

_folders: dict[int, tuple[Path, int]] = {}  # by process id: a fork has a folder of its own


@contextmanager
def scratch(purpose: str) -> Iterator[Path]:
    """A temporary folder for the block, removed at its end whatever happens.

    Raises:
        InputError: no temporary folder can be made, or its disk is full or read-only.
    """
    folder = kept_folder(purpose)
    try:
        yield folder
    except LookalikeError:
        raise
    except Exception as error:  # libraries have classes of their own for a full disk
        if _is_full(error, folder):
            raise _failed(error) from error
        raise
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def kept_folder(purpose: str) -> Path:
    """A temporary folder that is removed when the process ends. Raises InputError as :func:`scratch`."""
    try:
        return Path(tempfile.mkdtemp(prefix=f"{purpose}-", dir=_process_folder()))
    except OSError as error:
        raise _failed(error) from error


def sweep(job: str | None = None, wait_s: float = 0.0) -> None:
    """Remove the folders of processes that have ended; wait up to ``wait_s`` for those of ``job`` that still end."""
    with suppress(OSError):
        parent, end = Path(tempfile.gettempdir()), time.monotonic() + wait_s
        while True:
            ending = [folder for folder in parent.glob(f"{_PREFIX}*") if _remove_if_dead(folder, job)]
            if not ending or time.monotonic() >= end:
                return
            time.sleep(0.05)


def remove_own() -> None:
    """Remove this process's folder with all that is in it."""
    folder, lock = _folders.pop(os.getpid(), (None, -1))
    if folder is not None:
        shutil.rmtree(folder, ignore_errors=True)
        with suppress(OSError):
            os.close(lock)


def _process_folder() -> Path:
    process = os.getpid()
    if process not in _folders or not _folders[process][0].is_dir():
        sweep()
        # under another name until it is locked, so that no other process takes it for a dead one's
        new = Path(tempfile.mkdtemp(prefix=f".{_PREFIX}"))
        lock = os.open(new / _LOCK, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        fcntl.flock(lock, fcntl.LOCK_EX)
        os.write(lock, os.environ.get(JOB_VARIABLE, "").encode(errors="replace"))
        folder = new.with_name(new.name[1:])
        new.rename(folder)
        if process not in _folders:
            atexit.register(remove_own)
        _folders[process] = folder, lock
    return _folders[process][0]


def _remove_if_dead(folder: Path, job: str | None) -> bool:
    """Remove the folder if its process has ended; returns whether it belongs to a process of ``job`` that has not."""
    if any(folder == own for own, _ in _folders.values()):
        return False
    try:
        if folder.is_symlink() or folder.stat().st_uid != os.getuid():
            return False
        lock = os.open(folder / _LOCK, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:  # not ours, or gone
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return job is not None and os.read(lock, 256) == job.encode()
    else:
        shutil.rmtree(folder, ignore_errors=True)
        return False
    finally:
        os.close(lock)


def _is_full(error: Exception, folder: Path) -> bool:
    if isinstance(error, OSError) and error.errno in _FULL:
        return True
    if isinstance(error, OSError) and isinstance(error.filename, (str, bytes)):
        return Path(os.fsdecode(error.filename)).is_relative_to(folder) and error.errno != errno.ENOENT
    try:
        return shutil.disk_usage(folder).free < _LEAST_FREE
    except OSError:
        return True  # the folder was removed under us


def _failed(error: Exception) -> InputError:
    try:
        where = tempfile.gettempdir()
    except OSError:
        where = os.environ.get("TMPDIR", "/tmp")
    problem = (isinstance(error, OSError) and error.strerror) or first_line(error) or "the disk is full"
    return InputError(
        f"cannot write temporary files: {problem}",
        value=where,
        fix="free some space there, or set TMPDIR to a folder on a larger disk",
    )
