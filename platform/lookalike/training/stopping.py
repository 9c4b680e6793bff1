"""Stopping on request: SIGTERM at the driver becomes a marker in the run's store, which the first rank looks for.

The driver's signal reaches no rank (they are other processes, on other machines), and a rank must not stop alone. So
the first rank polls the marker, and its answer travels with the sum that all ranks take at each step.
"""

import logging
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Self

from lookalike.errors import LookalikeError, StoppedError
from lookalike.storage import Store

log = logging.getLogger(__name__)

STOP = "STOP"  # writing it by hand stops a run as well
_POLL_S = 1.0


class StopNotice:
    """Whether the marker is there. A thread looks for it, so that asking costs a step nothing."""

    def __init__(self, store: Store, *, poll: bool) -> None:
        self._store = store
        self._found, self._closed = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._poll, name="stop-notice", daemon=True) if poll else None

    def __call__(self) -> bool:
        """Whether a stop was asked for, as far as this process knows."""
        return self._found.is_set()

    def __enter__(self) -> Self:
        if self._thread:
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closed.set()

    def _poll(self) -> None:
        while not self._closed.wait(_POLL_S):
            try:
                if self._store.exists(STOP):
                    self._found.set()
                    return
            except LookalikeError as error:  # a store that is away for a while must not end the watch
                log.warning("cannot look for %s: %s", STOP, error)


@contextmanager
def stops_on_sigterm(store: Store, grace_s: float) -> Iterator[None]:
    """Within it SIGTERM writes the marker; a body that runs for longer than ``grace_s`` ends with StoppedError.

    A marker of an earlier attempt is removed first. Outside the main thread, where Python takes no signals, it does
    nothing else.
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
            "stopped without a checkpoint: the ranks made none in time",
            value=f"safety.grace_s={grace_s}",
            fix="the same command resumes from the last one; a longer grace allows for a longer step",
        ) from None
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in before.items():
            signal.signal(number, handler)
        left.set()
        asked.set()  # lets the thread go
