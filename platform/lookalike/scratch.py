"""Temporary folders, each below a folder of its process, which is removed when the process or its job ends.

The folder of a process is ``lookalike-XXXXXXXX`` in ``TMPDIR``, with a file that the process keeps locked. It is
removed when the process ends. Folders of killed processes are removed by :func:`sweep`, which is called when a process
makes its folder and when a job ends: their locks are free then, which also works across containers. Other users'
folders, and those without a lock file, stay.
"""

import atexit
import errno
import fcntl
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from lookalike.errors import InputError, LookalikeError, first_line

JOB_VARIABLE = "LOOKALIKE_JOB"
"""Environment variable with the identity of the job, which its worker processes on this machine inherit."""

_PREFIX = "lookalike-"
_LOCK = ".lookalike-scratch"  # marks a folder of this module, and holds the identity of the job
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG}
_LEAST_FREE = 1 << 20  # bytes; with less, an error of a library is taken for a full disk

_UNNAMED_S = 60.0  # in which a process names its new folder; a hidden one that is older is of a killed process
SHORT = "/tmp"
"""The place of folders whose paths have to be short."""

_folders: dict[tuple[int, str], tuple[Path, int]] = {}  # by process id, since a forked process needs its own folder


@contextmanager
def scratch(purpose: str) -> Iterator[Path]:
    """Make a temporary folder for the block, which is removed at its end.

    Raises InputError if the folder cannot be made, or its disk is full or read-only.
    """
    folder = kept_folder(purpose)
    try:
        yield folder
    except LookalikeError:
        raise
    except Exception as error:  # libraries raise their own classes for a full disk
        if _is_full(error, folder):
            raise _failed(error) from error
        raise
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def kept_folder(purpose: str, parent: str | None = None) -> Path:
    """Make a temporary folder that is removed when the process ends, in ``TMPDIR`` or in ``parent``.

    ``parent`` is :data:`SHORT`: no other place is swept. Raises InputError as :func:`scratch` does.
    """
    try:
        return Path(tempfile.mkdtemp(prefix=f"{purpose}-", dir=_process_folder(parent or tempfile.gettempdir())))
    except OSError as error:
        raise _failed(error) from error


def sweep(job: str | None = None, wait_s: float = 0.0) -> None:
    """Remove the folders of ended processes; wait up to ``wait_s`` for processes of ``job`` that have not ended."""
    with suppress(OSError):
        parents, end = {Path(tempfile.gettempdir()), Path(SHORT)}, time.monotonic() + wait_s
        for parent in parents:
            _remove_unnamed(parent)
        while True:
            folders = [folder for parent in parents for folder in parent.glob(f"{_PREFIX}*")]
            ending = [folder for folder in folders if _remove_if_dead(folder, job)]
            if not ending or time.monotonic() >= end:
                return
            time.sleep(0.05)


def remove_own() -> None:
    """Remove the folders of this process with their contents."""
    for process, parent in [key for key in _folders if key[0] == os.getpid()]:
        folder, lock = _folders.pop((process, parent))
        shutil.rmtree(folder, ignore_errors=True)
        with suppress(OSError):
            os.close(lock)


def _process_folder(parent: str) -> Path:
    key = os.getpid(), parent
    if key not in _folders or not _folders[key][0].is_dir():
        sweep()
        # hidden from sweep() of other processes by its name until it is locked
        new = Path(tempfile.mkdtemp(prefix=f".{_PREFIX}", dir=parent))
        lock = os.open(new / _LOCK, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        fcntl.flock(lock, fcntl.LOCK_EX)
        os.write(lock, os.environ.get(JOB_VARIABLE, "").encode(errors="replace"))
        folder = new.with_name(new.name[1:])
        new.rename(folder)
        if all(process != key[0] for process, _ in _folders):
            atexit.register(remove_own)
        _folders[key] = folder, lock
    return _folders[key][0]


def _remove_unnamed(parent: Path) -> None:
    """Remove folders whose processes were killed before they named them."""
    for folder in parent.glob(f".{_PREFIX}{'?' * 8}"):  # as mkdtemp names them
        with suppress(OSError):
            status = folder.lstat()
            old = time.time() - status.st_mtime > _UNNAMED_S
            if stat.S_ISDIR(status.st_mode) and status.st_uid == os.getuid() and old:
                shutil.rmtree(folder, ignore_errors=True)


def _remove_if_dead(folder: Path, job: str | None) -> bool:
    """Remove the folder if its process has ended; return whether a live process of ``job`` owns it."""
    if any(folder == own for own, _ in _folders.values()):
        return False
    try:
        if folder.is_symlink() or folder.stat().st_uid != os.getuid():
            return False
        lock = os.open(folder / _LOCK, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:  # not a folder of this module, or removed already
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
        return True  # the folder was removed by another process


def _failed(error: Exception) -> InputError:
    try:
        where = tempfile.gettempdir()
    except OSError:
        where = os.environ.get("TMPDIR", "/tmp")
    problem = (isinstance(error, OSError) and error.strerror) or first_line(error) or "the disk is full"
    return InputError(
        f"cannot write temporary files: {problem}",
        value=where,
        fix="free some space there, or set TMPDIR to a folder on another disk",
    )
