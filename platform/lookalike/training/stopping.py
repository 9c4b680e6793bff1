"""Stop a run on request: SIGTERM at the driver writes a marker to the run's store, which the first rank polls.

The driver's signal does not reach the ranks (other processes, on other machines), and a rank must not stop alone. So
the first rank polls the marker, and the result is part of the sum that all ranks compute in each step.
"""

import logging
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from lookalike.errors import LookalikeError, StoppedError
from lookalike.storage import Store

log = logging.getLogger(__name__)

STOP = "STOP"  # a user may also write it
_POLL_S = 1.0


@contextmanager
def stop_notice(store: Store, *, poll: bool) -> Iterator[Callable[[], bool]]:
    """Yield a function that returns whether the marker was seen; with ``poll`` a thread looks for it every second, so
    that a step does not wait for the store."""
    seen, closed = threading.Event(), threading.Event()

    def look() -> None:
        while not seen.is_set() and not closed.wait(_POLL_S):
            try:
                if store.exists(STOP):
                    seen.set()
            except LookalikeError as error:  # an unreachable store must not end the polling
                log.warning("cannot look for %s: %s", STOP, error)

    if poll:
        threading.Thread(target=look, name="stop-notice", daemon=True).start()
    try:
        yield seen.is_set
    finally:
        closed.set()


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
