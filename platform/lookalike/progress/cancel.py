"""Cancel a request: an object in its place, which the job that works on it polls.

Training ends after its step with a checkpoint, as on SIGTERM, and other parts are interrupted. The order stays, so that
the same command later says that the request was cancelled, unless it is withdrawn.
"""

import logging
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from types import FrameType

from lookalike.documents import render_json
from lookalike.errors import InputError, LookalikeError, StoppedError
from lookalike.storage import Store, read_members

log = logging.getLogger(__name__)

CANCEL = "cancel.json"
_POLL_S = 2.0
_SIGNAL = signal.SIGUSR2  # SIGTERM is the scheduler's, and Ray ends its own processes on it


class CancelledError(StoppedError):
    """The request was cancelled; what it has computed is kept."""


def order_cancel(place: Store) -> str:
    """Write the order, unless it is there; return when it was given, ISO 8601 in UTC."""
    if (given := cancelled_at(place)) is not None:
        return given
    now = datetime.now(UTC).isoformat(timespec="seconds")
    place.write(CANCEL, render_json({"cancelled_at": now}))
    return now


def cancelled_at(place: Store) -> str | None:
    """Return when the request was cancelled; None if it was not."""
    if not place.exists(CANCEL):
        return None
    try:
        return str(read_members(place, CANCEL, {"cancelled_at": str})["cancelled_at"])
    except InputError:  # a damaged order is an order
        return "an unknown time"


def withdraw_cancel(place: Store) -> None:
    """Remove the order, so that the request may continue."""
    place.delete(CANCEL)


def check_not_cancelled(place: Store) -> None:
    """Raise CancelledError if the request was cancelled."""
    if (when := cancelled_at(place)) is not None:
        raise CancelledError(
            f"the request was cancelled at {when}",
            value=place.uri,
            fix="the same command with --resume continues from its last checkpoint",
        )


@dataclass
class Watch:
    """Polls the order to cancel while a block of :func:`stops_when_cancelled` runs."""

    place: Store
    stop_training: Callable[[], None]
    _training: bool = False
    _interrupted: bool = False

    @contextmanager
    def training(self) -> Iterator[None]:
        """Training runs in this block: it is asked for a checkpoint, and is not interrupted."""
        self._training = True
        try:
            yield
        finally:
            self._training = False

    def poll(self, closed: threading.Event, main: int | None) -> None:
        """Look for the order until ``closed``; ``main`` is the thread to interrupt, if it can be."""
        while not closed.wait(_POLL_S):
            try:
                if not self.place.exists(CANCEL):
                    continue
                if self._training:  # at every poll, since a training run that starts removes an earlier request
                    self.stop_training()
                elif main is not None and not self._interrupted and not closed.is_set():
                    signal.pthread_kill(main, _SIGNAL)
            except LookalikeError as error:  # an unreachable store must not end the polling
                log.warning("cannot look for %s: %s", CANCEL, error)

    def interrupt(self, _signal: int, _frame: FrameType | None) -> None:
        """Handle the signal, in the main thread."""
        if not self._training and not self._interrupted:
            self._interrupted = True
            raise KeyboardInterrupt  # the one exception that ray.get lets through from a signal handler


@contextmanager
def stops_when_cancelled(place: Store, stop_training: Callable[[], None]) -> Iterator[Watch]:
    """Poll the order while the block runs; when it comes, stop the block, which then raises CancelledError.

    In :meth:`Watch.training` ``stop_training`` is called at each poll, which asks the training run to stop with a
    checkpoint. Anything else is interrupted at once in the main thread; in another thread, in which Python handles no
    signals, the block has to call :func:`check_not_cancelled` itself.
    """
    closed, watch = threading.Event(), Watch(place, stop_training)
    is_main = threading.current_thread() is threading.main_thread()
    before = signal.signal(_SIGNAL, watch.interrupt) if is_main else None
    main = threading.main_thread().ident if is_main else None
    thread = threading.Thread(target=watch.poll, args=(closed, main), name="cancel-notice", daemon=True)
    thread.start()
    try:
        yield watch
    except (StoppedError, KeyboardInterrupt):
        check_not_cancelled(place)
        raise
    finally:
        closed.set()
        thread.join(_POLL_S)  # else its signal could come after the handler is gone
        if is_main:
            signal.signal(_SIGNAL, before)
