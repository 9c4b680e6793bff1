"""Cached SHA-256 of files: a file that has not changed since it was hashed is not read again.

A file counts as unchanged while its path, device, inode, size, mtime and ctime stay the same; no program can set a
ctime. The cache is ``lookalike/digests`` below ``XDG_CACHE_HOME`` (``~/.cache``), one small file for each folder. Only
this user may write it; otherwise it is not used. If several processes need the same hashes, one computes them and the
others wait.
"""

import fcntl
import hashlib
import json
import logging
import os
import re
import stat
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path

from lookalike.errors import InputError

log = logging.getLogger(__name__)

Stamp = tuple[str, int, int, int, int, int]
"""Path, device, inode, size in bytes, mtime and ctime in ns."""

_THREADS = 8
_SETTLED_NS = 50_000_000  # clocks of file systems tick every 1 to 10 ms: a change within a tick cannot be detected
_MOST_FOLDERS = 512  # in the cache; the oldest are removed
_WORTH_A_LINE = 1 << 30  # bytes; hashing more is logged

_SHA256 = re.compile(r"[0-9a-f]{64}")

_known: dict[Stamp, str] = {}


def file_sha256s(folder: Path, names: Iterable[str], *, keep: bool = True) -> dict[str, str]:
    """Return the SHA-256 (hex) of files below ``folder``, by name.

    Args:
        folder: the folder.
        names: files, relative to it.
        keep: whether to cache the hashes on disk, and not in this process only.

    Raises InputError if a file cannot be read, or changes while it is read.
    """
    stamps = {name: _stamp(folder / name) for name in names}
    if any(stamp not in _known for stamp in stamps.values()):
        cache_file = _cache_file(folder) if keep else None
        with _locked(cache_file):
            if cache_file is not None:
                _known.update(_read_cache(cache_file))
            missing = [name for name, stamp in stamps.items() if stamp not in _known]
            if missing:
                stamps |= _hash(folder, missing, wait=keep)
                if cache_file is not None:
                    _write_cache(cache_file, {stamp: _known[stamp] for stamp in stamps.values()})
    return {name: _known[stamp] for name, stamp in stamps.items()}


def _hash(folder: Path, names: list[str], wait: bool) -> dict[str, Stamp]:
    """Hash files into ``_known``; returns their stamps. ``wait`` is not needed for files of this process alone."""
    stamps = {name: _stamp(folder / name) for name in names}
    if wait:
        _let_clock_pass(max(stamp[5] for stamp in stamps.values()))
    size, started = sum(stamp[3] for stamp in stamps.values()), time.perf_counter()
    if size >= _WORTH_A_LINE:
        log.info("verifying %.1f GB in %d files: %s", size / 1e9, len(names), folder)
    largest_first = sorted(names, key=lambda name: -stamps[name][3])
    with ThreadPoolExecutor(min(_THREADS, os.cpu_count() or 1)) as pool:
        hashes = dict(zip(largest_first, pool.map(lambda name: sha256_of(folder / name), largest_first), strict=True))
    if size >= _WORTH_A_LINE:
        log.info("verified %.1f GB at %.2f GB/s", size / 1e9, size / 1e9 / (time.perf_counter() - started))
    for name in names:
        if _stamp(folder / name) != stamps[name]:
            raise InputError(
                "a file changed while it was hashed",
                value=str(folder / name),
                fix="try again when nothing writes to it",
            )
        _known[stamps[name]] = hashes[name]
    return stamps


def cached_below(folder: Path) -> list[Path]:
    """Return the cache files of this user on this machine that name a file below ``folder``."""
    cache = _cache_folder()
    if not cache.is_dir():
        return []
    inside = f"{folder.absolute()}{os.sep}"
    return [file for file in cache.glob("*.json") if any(stamp[0].startswith(inside) for stamp in _read_cache(file))]


def forget_below(folder: Path) -> int:
    """Remove what :func:`cached_below` returns, and forget it in this process; returns how many files there were."""
    files = cached_below(folder)
    for file in files:
        file.unlink(missing_ok=True)
        file.with_suffix(".lock").unlink(missing_ok=True)
    inside = f"{folder.absolute()}{os.sep}"
    for stamp in [stamp for stamp in _known if stamp[0].startswith(inside)]:
        del _known[stamp]
    return len(files)


def sha256_of(path: Path) -> str:
    """Return the SHA-256 (hex) of a file. Raises InputError if it cannot be read."""
    try:
        with path.open("rb", buffering=0) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()  # releases the GIL
    except OSError as error:
        raise _unreadable(path, error) from error


def _stamp(path: Path) -> Stamp:
    try:
        found = path.stat()
    except OSError as error:
        raise _unreadable(path, error) from error
    return str(path.absolute()), found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def _unreadable(path: Path, error: OSError) -> InputError:
    what = f"cannot read the file or folder: {error.strerror or error}"
    return InputError(what, value=str(path), fix="check its permissions and the disk")


def _let_clock_pass(newest_ns: int) -> None:
    """Wait until a change would get a later time than ``newest_ns``, the newest change so far."""
    age = time.time_ns() - newest_ns
    if age < _SETTLED_NS:
        time.sleep(min(_SETTLED_NS - age, 2 * _SETTLED_NS) / 1e9)


def _cache_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lookalike" / "digests"


def _cache_file(folder: Path) -> Path | None:
    """Return the cache file for ``folder``; None if there is no safe place for it."""
    try:
        cache = _cache_folder()
        cache.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = cache.lstat()
    except (OSError, RuntimeError) as error:  # no home, a read-only one, a full disk
        _warn_once(f"hashes of files are not cached: {error}")
        return None
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o077:
        _warn_once(f"hashes of files are not cached: other users can write {cache}; restrict it (chmod 700)")
        return None
    return cache / f"{hashlib.sha256(os.fsencode(folder.absolute())).hexdigest()[:32]}.json"


@lru_cache
def _warn_once(message: str) -> None:
    log.warning(message)


@contextmanager
def _locked(cache_file: Path | None) -> Iterator[None]:
    """Hold the lock of a cache file; on file systems without locks every process hashes."""
    if cache_file is None:
        yield
        return
    lock = -1
    with suppress(OSError):
        lock = os.open(cache_file.with_suffix(".lock"), os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        fcntl.flock(lock, fcntl.LOCK_EX)
    try:
        yield
    finally:
        if lock >= 0:
            os.close(lock)


def _read_cache(cache_file: Path) -> dict[Stamp, str]:
    """Read a cache file; empty if it is missing or damaged."""
    hashes: dict[Stamp, str] = {}
    try:
        for path, device, inode, size, mtime, ctime, sha256 in json.loads(cache_file.read_bytes())["files"]:
            if _SHA256.fullmatch(sha256):
                hashes[path, int(device), int(inode), int(size), int(mtime), int(ctime)] = sha256
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return {}
    return hashes


def _write_cache(cache_file: Path, hashes: Mapping[Stamp, str]) -> None:
    """Replace a cache file and remove the oldest ones; if the disk is full, nothing is cached."""
    with suppress(OSError):
        handle, part = tempfile.mkstemp(dir=cache_file.parent, suffix=".part")
        with os.fdopen(handle, "w") as file:
            json.dump({"files": [[*stamp, sha256] for stamp, sha256 in hashes.items()]}, file)
        Path(part).replace(cache_file)
        cache_files = sorted(cache_file.parent.glob("*.json"), key=lambda path: path.stat().st_mtime_ns)
        for old in cache_files[:-_MOST_FOLDERS]:
            old.unlink(missing_ok=True)
            old.with_suffix(".lock").unlink(missing_ok=True)
