"""A lease: one worker at a time below a prefix. It ends by itself when its holder dies.

Every holder has a number. Object ``<number>.json`` is created by a conditional put, so of two that want the next number
one gets it; the holder writes it anew while it works, and the highest number is the one that counts. So no
compare-and-set is needed, which not every store has. Clocks of the machines may differ by far less than ``TTL_S``.

A process that was stopped does not know that another has taken over. So a holder calls :meth:`Fence.check` before each
commit, which asks the store, and what it writes carries its number: where two have written, the later number counts.
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
from lookalike.storage.base import Store

log = logging.getLogger(__name__)

TTL_S = 60.0  # a holder that was not heard of for so long is dead
_BEAT_S = 10.0
_LONGEST_S = 3600.0  # no holder asks for more at a time
_LARGEST_PID = 2**31 - 1
_LARGEST_RECORD = 64 << 10  # bytes
_AFTER_IT = "let that one work; the same command resumes after it"
_NUMBERED = re.compile(r"^(\d{8,})\.json$")
_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)  # counts while a process or the machine is suspended


@dataclass(frozen=True)
class Fence:
    """A holder's number, for every process that works for the holder."""

    store: Store
    """Where the lease is kept."""
    number: int
    """Of the holder; a later one has a higher number."""

    def check(self) -> None:
        """Ask the store, before each commit. Raises BusyError if another one holds the lease by now."""
        newest = max(_numbers(self.store), default=self.number)
        if newest != self.number:
            raise BusyError(
                f"the lease was lost to another worker, which has number {newest}",
                value=self.number,
                fix=_AFTER_IT,
            )


@dataclass
class Lease:
    """What a holder has; :meth:`check` before anything that only a holder may do."""

    fence: Fence
    ttl_s: float
    identity: dict[str, Any]
    """Who holds it, for the others."""
    lost: threading.Event = field(default_factory=threading.Event)
    """Set when another holder has come, or nothing was heard of the store for too long."""
    renewed: float = field(default_factory=lambda: _now())

    @property
    def number(self) -> int:
        """Of this holder; a later one has a higher number."""
        return self.fence.number

    def check(self) -> None:
        """Ask the store, before each commit. Raises BusyError if another one holds the lease by now."""
        try:
            if self.lost.is_set():
                raise BusyError(
                    "the lease was lost to another worker",
                    value=self.number,
                    fix=_AFTER_IT,
                )
            if _now() - self.renewed > self.ttl_s:  # this process was stopped: others take it for dead
                self.renew()
            else:
                self.fence.check()
        except BusyError:
            self.lost.set()
            raise

    def renew(self) -> None:
        """Tell the others that this holder lives. Raises BusyError as :meth:`check`."""
        began = _now()
        self.fence.check()
        self.fence.store.write(_key(self.number), _record(self.identity, time.time() + self.ttl_s))
        self.fence.check()  # a pause between the look and the write
        self.renewed = began


@contextmanager
def hold(store: Store, ttl_s: float = TTL_S, beat_s: float = _BEAT_S, above: int = 0) -> Iterator[Lease]:
    """Hold the lease that is kept in ``store`` while the block runs, with a number that is larger than ``above``.

    Raises:
        BusyError: another one holds it; the message says who, where and since when.
        InputError: the record of its holder is not valid; the message says how to break it.
    """
    identity = {"holder": uuid.uuid4().hex, "host": socket.gethostname(), "pid": os.getpid(), "since": time.time()}
    began = _now()
    lease = Lease(Fence(store, _acquire(store, identity, ttl_s, above)), ttl_s, identity, renewed=began)
    done = threading.Event()
    beat = threading.Thread(target=_keep, args=(lease, beat_s, done), daemon=True)
    beat.start()
    try:
        yield lease
    finally:
        done.set()
        beat.join()
        if not lease.lost.is_set() and max(_numbers(store), default=0) == lease.number:
            store.write(_key(lease.number), _record(identity, 0.0))


def break_lease(store: Store) -> str | None:
    """End the lease that is kept in ``store``, whoever holds it, and describe it; None if there is none.

    The numbers continue, so a holder that still works loses it: it stops at its next commit.
    """
    number = max(_numbers(store), default=0)
    if number == 0:
        return None
    try:
        record = _read(store, number)
        state = "still works" if _lives(record) else "has ended"
        described = f"process {record['pid']} on {record['host']}, which {state}"
    except InputError as error:
        described = f"a holder whose record is not valid ({error.what})"
    identity = {"holder": uuid.uuid4().hex, "host": socket.gethostname(), "pid": os.getpid(), "since": time.time()}
    store.create(_key(number + 1), _record(identity, 0.0))
    store.delete(_key(number))
    return f"lease {number} of {described}"


def _acquire(store: Store, identity: dict[str, Any], ttl_s: float, above: int) -> int:
    number, record = _newest(store)
    if record is not None and _lives(record):
        since = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(record["since"]))
        raise BusyError(
            f"process {record['pid']} on {record['host']} works here since {since} UTC",
            value=store.uri,
            fix=f"let it end; if it is dead, it is taken for dead in {max(0, record['expires'] - time.time()):.0f} s",
        )
    mine = max(number, above) + 1
    try:
        store.create(_key(mine), _record(identity, time.time() + ttl_s))
    except ConflictError:
        raise BusyError("another worker has just begun here", value=store.uri, fix="let it end") from None
    if _newest(store)[0] != mine:  # who waited long between its look and its put
        raise BusyError("another worker has just begun here", value=store.uri, fix="let it end")
    if record is not None:
        if record["expires"]:
            log.warning("process %s on %s has died here; this one takes over", record["pid"], record["host"])
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


def _keep(lease: Lease, beat_s: float, done: threading.Event) -> None:
    while not done.wait(beat_s):
        try:
            lease.renew()
        except BusyError:
            lease.lost.set()
            return
        except LookalikeError as error:  # a store that does not answer for a moment
            log.warning("the lease could not be renewed: %s", error)
            if _now() - lease.renewed > lease.ttl_s:
                lease.lost.set()
                return


def _newest(store: Store) -> tuple[int, dict[str, Any] | None]:
    while numbers := _numbers(store):
        number = max(numbers)
        try:
            return number, _read(store, number)
        except InputError:
            if store.exists(_key(number)):
                raise
            # a later holder has just removed it: look again
    return 0, None


def _numbers(store: Store) -> list[int]:
    return [int(match.group(1)) for info in store.list() if (match := _NUMBERED.match(info.key))]


def _read(store: Store, number: int) -> dict[str, Any]:
    """The record of a holder. Raises InputError for one that no holder has written."""
    key = _key(number)
    where = store.uri_of(key)
    fix = f"if no process works here, run: python jobs/break_lease.py --lease {store.uri}"
    size = next((info.size for info in store.list(key) if info.key == key), 0)
    if size > _LARGEST_RECORD:
        raise InputError(f"a lease's record has {size} bytes", value=where, fix=fix)
    record = parse_object(store.read(key), where, "host", "pid", "since", "expires", fix=fix)
    problem = None
    if not isinstance(record["host"], str) or not 0 < len(record["host"]) <= 255:
        problem = "its host is not a name"
    elif type(record["pid"]) is not int or not 0 < record["pid"] <= _LARGEST_PID:
        problem = "its pid is not the number of a process"
    elif not all(type(record[name]) in (int, float) for name in ("since", "expires")):
        problem = "its times are not numbers"
    elif not (0 <= record["since"] <= (latest := time.time() + _LONGEST_S) and 0 <= record["expires"] <= latest):
        problem = "its times are not of a holder that lives or lived"
    if problem:
        raise InputError(f"a lease's record is not valid: {problem}", value=where, fix=fix)
    return record


def _record(identity: dict[str, Any], expires: float) -> bytes:
    return json.dumps(identity | {"expires": expires}).encode()


def _key(number: int) -> str:
    return f"{number:08d}.json"


def _now() -> float:
    return time.clock_gettime(_CLOCK)
