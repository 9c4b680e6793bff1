"""End a process that hangs: write its threads' stacks to the run's store, then exit with a code for its launcher."""

import faulthandler
import logging
import os
import tempfile
import threading
import time
from typing import Self

from lookalike.storage import Store

log = logging.getLogger(__name__)

EXIT_HANG = 70  # EX_SOFTWARE
HANGS = "hangs"
_STDERR = 2


class Watchdog:
    """Ends the process if :meth:`alive` was not called for ``timeout_s`` seconds.

    A rank hangs in a collective if another rank is missing; PyTorch releases the interpreter's lock there, so a thread
    still runs. If the lock is held, faulthandler's own thread writes to stderr and exits, after 1.5 times the timeout.
    """

    def __init__(self, store: Store, rank: int, timeout_s: float) -> None:
        self._store, self._rank, self._timeout_s = store, rank, timeout_s
        self._closed = threading.Event()
        self._step, self._seen = 0, time.monotonic()

    def alive(self, step: int) -> None:
        """Report that ``step`` begins now."""
        self._step, self._seen = step, time.monotonic()
        faulthandler.dump_traceback_later(1.5 * self._timeout_s, exit=True, file=_STDERR)

    def __enter__(self) -> Self:
        self.alive(self._step)
        threading.Thread(target=self._watch, name="watchdog", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closed.set()
        faulthandler.cancel_dump_traceback_later()

    def _watch(self) -> None:
        while not self._closed.wait(min(1.0, self._timeout_s / 4)):
            if time.monotonic() - self._seen > self._timeout_s:
                self._end()

    def _end(self) -> None:
        try:
            with tempfile.TemporaryFile() as file:
                faulthandler.dump_traceback(file)
                file.seek(0)
                stacks = file.read()
            key = f"{HANGS}/step-{self._step:08d}-rank-{self._rank}.txt"
            log.error(
                "rank %d hangs at step %d for %.0f s; stacks in %s\n%s",
                *(self._rank, self._step, self._timeout_s, self._store.uri_of(key), stacks.decode()),
            )
            self._store.write(key, stacks)
        finally:
            os._exit(EXIT_HANG)
