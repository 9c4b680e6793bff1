"""A lease: at most one worker at a time below a prefix. It expires when its holder dies.

Every holder has a number. The object ``<number>.json`` is created by a conditional put, so that one of two workers that
want the next number gets it. The holder rewrites it while it works, and the highest number is the valid one. No
compare-and-set is needed, which some stores lack. Clocks of the machines must differ by much less than ``TTL_S``.

A suspended process does not notice that another has taken over. Therefore a holder calls :meth:`Fence.check`, which
reads the store, before each commit, and puts its number into the names that it writes: if two holders wrote, the higher
number is valid.
"""

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
from typing import Annotated, Any

from pydantic import Field

from lookalike.documents import render_json
from lookalike.errors import BusyError, ConflictError, InputError, LookalikeError
from lookalike.storage.base import Store
from lookalike.storage.erasing import refuse_if_erasing
from lookalike.storage.store import read_members

log = logging.getLogger(__name__)

TTL_S = 60.0  # seconds without a renewal after which a holder counts as dead
_BEAT_S = 10.0  # between two renewals
_LONGEST_S = 3600.0  # largest time from now to the expiry in a valid record
_HOST = Annotated[str, Field(min_length=1, max_length=255)]
_PID = Annotated[int, Field(gt=0, lt=2**31)]
_LARGEST_RECORD = 64 << 10  # bytes
_AFTER_IT = "wait until that worker has ended; the same command then resumes"
_NUMBERED = re.compile(r"^(\d{8,})\.json$")
_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)  # counts while a process or the machine is suspended


@dataclass(frozen=True)
class Fence:
    """The number of a holder, which every process that works for the holder checks before it commits."""

    store: Store
    """Holds the objects of the lease."""
    number: int
    """Number of the holder; later holders have higher numbers."""

    def check(self) -> None:
        """Read the store before a commit. Raises BusyError if another worker holds the lease now, or none does."""
        refuse_if_erasing(self.store)
        newest = max(_numbers(self.store), default=0)
        if newest == 0:
            what = "the lease was removed, so the data that it guards may be erased"
            raise BusyError(what, value=self.store.uri, fix="run the same command again if that was not intended")
        if newest != self.number:
            raise BusyError(
                f"the lease was lost to another worker, which has number {newest}", value=self.number, fix=_AFTER_IT
            )


@dataclass
class Lease:
    """A lease that is held; call :meth:`check` before each commit."""

    fence: Fence
    ttl_s: float
    identity: dict[str, Any]
    """Holder, host, process id and start time, as other workers read them."""
    lost: threading.Event = field(default_factory=threading.Event)
    """Set if another worker has taken over, or if the store did not answer for ``ttl_s``."""
    renewed: float = field(default_factory=lambda: _now())

    @property
    def number(self) -> int:
        """Number of this holder; later holders have higher numbers."""
        return self.fence.number

    def check(self) -> None:
        """Read the store before a commit. Raises BusyError if another worker holds the lease now."""
        try:
            if self.lost.is_set():
                raise BusyError("the lease was lost to another worker", value=self.number, fix=_AFTER_IT)
            if _now() - self.renewed > self.ttl_s:  # this process was suspended: others may have taken over
                self.renew()
            else:
                self.fence.check()
        except BusyError:
            self.lost.set()
            raise

    def renew(self) -> None:
        """Extend the lease by ``ttl_s``. Raises BusyError as :meth:`check` does."""
        began = _now()
        self.fence.check()
        self.fence.store.write(_key(self.number), _record(self.identity, time.time() + self.ttl_s))
        self.fence.check()  # another may have taken over between the first check and the write
        self.renewed = began


@contextmanager
def hold(store: Store, ttl_s: float = TTL_S, beat_s: float = _BEAT_S, above: int = 0) -> Iterator[Lease]:
    """Hold the lease in ``store`` while the block runs, with a number larger than ``above``.

    Raises:
        BusyError: another worker holds it; the message names the process, the host and since when.
        InputError: the record of its holder is not valid; the message names the command that breaks the lease.
    """
    identity, began = _identity(), _now()
    lease = Lease(Fence(store, _acquire(store, identity, ttl_s, above)), ttl_s, identity, renewed=began)
    done = threading.Event()
    beat = threading.Thread(target=_keep, args=(lease, beat_s, done), daemon=True)
    beat.start()
    try:
        yield lease
    finally:
        done.set()
        beat.join()
        if max(_numbers(store), default=0) == lease.number:  # nobody took over, and nothing was erased
            store.write(_key(lease.number), _record(identity, 0.0))


def break_lease(store: Store) -> str | None:
    """End the lease in ``store`` even if it is held, and return a description of it; None if there is none.

    Numbers continue to increase, so a holder that still works notices at its next commit and stops.
    """
    number = max(_numbers(store), default=0)
    if number == 0:
        return None
    try:
        record = _read(store, number)
        state = "is still alive" if _lives(record) else "has ended"
        described = f"process {record['pid']} on {record['host']}, which {state}"
    except InputError as error:
        described = f"a holder whose record is not valid ({error.what})"
    store.create(_key(number + 1), _record(_identity(), 0.0))
    store.delete(_key(number))
    return f"lease {number} of {described}"


def live_holder(store: Store) -> str | None:
    """Describe the process that may hold the lease in ``store`` now; None if there is none.

    Raises InputError for a record that no holder can have written.
    """
    _, record = _newest(store)
    if record is None or not _lives(record):
        return None
    return f"process {record['pid']} on {record['host']}"


def _acquire(store: Store, identity: dict[str, Any], ttl_s: float, above: int) -> int:
    refuse_if_erasing(store)
    number, record = _newest(store)
    if record is not None and _lives(record):
        since = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(record["since"]))
        raise BusyError(
            f"process {record['pid']} on {record['host']} has been working here since {since} UTC",
            value=store.uri,
            fix=f"wait until it ends; if it was killed, its lease expires in {record['expires'] - time.time():.0f} s",
        )
    mine = max(number, above) + 1
    try:
        store.create(_key(mine), _record(identity, time.time() + ttl_s))
    except ConflictError:
        raise BusyError("another worker has just started here", value=store.uri, fix=_AFTER_IT) from None
    if _newest(store)[0] != mine:  # this process was suspended between the listing and the put
        raise BusyError("another worker has just started here", value=store.uri, fix=_AFTER_IT)
    if record is not None:
        if record["expires"]:
            died = f"process {record['pid']} on {record['host']} died while it held the lease"
            log.warning("%s; this one takes over", died)
        store.delete(_key(number))
    return mine


def _lives(record: dict[str, Any]) -> bool:
    """Whether a holder may be alive: its lease has not expired, and it is not an ended process of this machine."""
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
        except LookalikeError as error:  # the store may answer again at the next renewal
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
            # else a later holder has just removed it: list again
    return 0, None


def _numbers(store: Store) -> list[int]:
    return [int(match.group(1)) for info in store.list() if (match := _NUMBERED.match(info.key))]


def _read(store: Store, number: int) -> dict[str, Any]:
    """Read the record of a holder. Raises InputError for one that no holder can have written."""
    fix = f"if no process is working here, run: python jobs/break_lease.py --lease {store.uri}"
    moment = Annotated[float, Field(ge=0, le=time.time() + _LONGEST_S)]
    types = {"host": _HOST, "pid": _PID, "since": moment, "expires": moment}
    return read_members(store, _key(number), types, most=_LARGEST_RECORD, fix=fix)


def _identity() -> dict[str, Any]:
    return {"holder": uuid.uuid4().hex, "host": socket.gethostname(), "pid": os.getpid(), "since": time.time()}


def _record(identity: dict[str, Any], expires: float) -> bytes:
    return render_json(identity | {"expires": expires})


def _key(number: int) -> str:
    return f"{number:08d}.json"


def _now() -> float:
    return time.clock_gettime(_CLOCK)
