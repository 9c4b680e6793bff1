"""A lease: one worker at a time below a prefix. It ends by itself where its holder dies.

Every holder has a number. Object ``<number>.json`` is created by a conditional put, so of two that want the next number
one gets it; the holder writes it anew while it works, and the highest number is the one that counts. So no
compare-and-set is needed, which not every store has. Clocks of the machines may differ by far less than ``TTL_S``.
"""

import json
import logging
import os
import re
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from lookalike.documents import parse_object
from lookalike.errors import BusyError, ConflictError, InputError, LookalikeError
from lookalike.storage.store import Store

log = logging.getLogger(__name__)

TTL_S = 60.0  # a holder that was not heard of for so long is dead
_BEAT_S = 10.0
_LATEST = 1e11  # s since 1970
_NUMBERED = re.compile(r"^(\d{8})\.json$")


@dataclass
class Lease:
    """What a holder has; :meth:`check` before anything that only a holder may do."""

    number: int
    """Of this holder; a later one has a higher number."""
    lost: threading.Event = field(default_factory=threading.Event)
    """Set when another holder has come, or nothing was heard of the store for too long."""

    def check(self) -> None:
        """Raise BusyError if another one holds the prefix by now."""
        if self.lost.is_set():
            raise BusyError("the lease was lost to another worker", value=self.number, fix="run the same command again")


@contextmanager
def hold(store: Store, ttl_s: float = TTL_S, beat_s: float = _BEAT_S) -> Iterator[Lease]:
    """Hold the lease that is kept in ``store`` while the block runs.

    Raises:
        BusyError: another one holds it; the message says who, where and since when.
    """
    identity = {"holder": uuid.uuid4().hex, "host": socket.gethostname(), "pid": os.getpid(), "since": time.time()}
    lease = Lease(_acquire(store, identity, ttl_s))
    done = threading.Event()
    beat = threading.Thread(target=_keep, args=(store, lease, identity, ttl_s, beat_s, done), daemon=True)
    beat.start()
    try:
        yield lease
    finally:
        done.set()
        beat.join()
        if not lease.lost.is_set():
            store.write(_key(lease.number), _record(identity, 0.0))


def _acquire(store: Store, identity: dict[str, Any], ttl_s: float) -> int:
    number, record = _newest(store)
    if record is not None and _lives(record):
        since = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(record["since"]))
        raise BusyError(
            f"process {record['pid']} on {record['host']} works here since {since} UTC",
            value=store.uri,
            fix=f"let it end; if it is dead, it is taken for dead in {max(0, record['expires'] - time.time()):.0f} s",
        )
    mine = number + 1
    try:
        store.create(_key(mine), _record(identity, time.time() + ttl_s))
    except ConflictError:
        raise BusyError("another worker has just begun here", value=store.uri, fix="let it end") from None
    if _newest(store)[0] != mine:  # who waited long between its look and its put
        raise BusyError("another worker has just begun here", value=store.uri, fix="let it end")
    if record is not None:
        if record["expires"]:
            log.warning("process %s on %s has died here; going on", record["pid"], record["host"])
        store.delete(_key(number))
    return mine


def _lives(record: dict[str, Any]) -> bool:
    """Whether a holder may still work: it was heard of, and is no process of this machine that has ended."""
    if record["expires"] <= time.time():
        return False
    if record["host"] != socket.gethostname():
        return True
    try:
        os.kill(record["pid"], 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def _keep(
    store: Store, lease: Lease, identity: dict[str, Any], ttl_s: float, beat_s: float, done: threading.Event
) -> None:
    heard = time.monotonic()
    while not done.wait(beat_s):
        try:
            if _newest(store)[0] != lease.number:
                lease.lost.set()
                return
            store.write(_key(lease.number), _record(identity, time.time() + ttl_s))
            heard = time.monotonic()
        except LookalikeError as error:  # a store that does not answer for a moment
            log.warning("the lease could not be renewed: %s", error)
            if time.monotonic() - heard > ttl_s:
                lease.lost.set()
                return


def _newest(store: Store) -> tuple[int, dict[str, Any] | None]:
    while numbers := [int(match.group(1)) for info in store.list() if (match := _NUMBERED.match(info.key))]:
        try:
            data = store.read(_key(max(numbers)))
        except InputError:  # a later holder has just removed it: look again
            continue
        return max(numbers), _parse(data, store.uri_of(_key(max(numbers))))
    return 0, None


def _parse(data: bytes, where: str) -> dict[str, Any]:
    """A record whose times are numbers. Raises InputError for a broken one."""
    fix = "remove this file when no other process works here"
    record = parse_object(data, where, "host", "pid", "since", "expires", fix=fix)
    numbers = [record[name] for name in ("pid", "since", "expires")]
    if not all(type(number) in (int, float) and abs(number) < _LATEST for number in numbers):
        raise InputError("a lease's record does not hold times", value=where, fix=fix)
    return record


def _record(identity: dict[str, Any], expires: float) -> bytes:
    return json.dumps(identity | {"expires": expires}).encode()


def _key(number: int) -> str:
    return f"{number:08d}.json"
