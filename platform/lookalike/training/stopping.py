"""Stop a run on request: SIGTERM at the driver writes a marker to the run's store, which the first rank polls.

The driver's signal does not reach the ranks (other processes, on other machines), and a rank must not stop alone. So
the first rank polls the marker, and the result is part of the sum that all ranks compute in each step.
"""

import logging
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Self

from lookalike.errors import LookalikeError, StoppedError
from lookalike.storage import Store

log = logging.getLogger(__name__)

STOP = "STOP"  # a user may also write it
_POLL_S = 1.0


class StopNotice:
    """Returns whether the marker was seen. A thread polls it, so that a step does not wait for the store."""

    def __init__(self, store: Store, *, poll: bool) -> None:
        self._store = store
        self._found, self._closed = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._poll, name="stop-notice", daemon=True) if poll else None

    def __call__(self) -> bool:
        return self._found.is_set()

    def __enter__(self) -> Self:
        if self._thread:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closed.set()

    def _poll(self) -> None:
        while not self._closed.wait(_POLL_S):
            try:
                if self._store.exists(STOP):
                    self._found.set()
                    return
            except LookalikeError as error:  # an unreachable store must not end the polling
                log.warning("cannot look for %s: %s", STOP, error)


@contextmanager
def stops_on_sigterm(store: Store, grace_s: float) -> Iterator[None]:
    """Return a context in which SIGTERM writes the marker; raise StoppedError if the body then takes over ``grace_s``.

    A marker of an earlier attempt is removed first. Outside the main thread, in which Python handles no
    signals, it does nothing else.
    """
    store.delete(STOP)
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    asked, left = threading.Event(), threading.Event()

    def on_sigterm(_signal: int, _frame: FrameType | None) -> None:
        if not asked.is_set():
            asked.set()
            signal.setitimer(signal.ITIMER_REAL, grace_s)

    def on_alarm(_signal: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt  # the one exception that ray.get lets through from a signal handler

    def write_marker() -> None:  # not in the handler: it may have interrupted the store's client
        asked.wait()
        if not left.is_set():
            log.warning("SIGTERM: stopping with a checkpoint, within %.0f s", grace_s)
            store.write(STOP, f"{time.time():.0f}\n".encode())

    handlers = {signal.SIGTERM: on_sigterm, signal.SIGALRM: on_alarm}
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    threading.Thread(target=write_marker, name="stop-marker", daemon=True).start()
    try:
        yield
    except KeyboardInterrupt:
        if not asked.is_set():
            raise
        raise StoppedError(
            "stopped without a checkpoint: the ranks did not finish one in time",
            value=f"safety.grace_s={grace_s}",
            fix="the same command resumes from the last checkpoint; raise safety.grace_s if steps take longer",
        ) from None
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in before.items():
            signal.signal(number, handler)
        left.set()
        asked.set()  # ends the thread
