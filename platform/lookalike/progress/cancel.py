"""Cancel a request: an object in its place, which the job that works on it polls.

A job that sees it stops as on SIGTERM: training ends after its step with a checkpoint. The order stays, so that the
same command later says that the request was cancelled, unless it is withdrawn.
"""

import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime

from lookalike.documents import render_json
from lookalike.errors import InputError, LookalikeError, StoppedError
from lookalike.storage import Store, read_members

log = logging.getLogger(__name__)

CANCEL = "cancel.json"
_POLL_S = 2.0


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


@contextmanager
def stops_when_cancelled(place: Store, stop_training: Callable[[], None]) -> Iterator[None]:
    """Poll the order while the block runs; when it comes, stop the block, which then raises CancelledError.

    In a job, whose SIGTERM handler unwinds, the process signals itself once: so every part stops as it does for a
    scheduler. Where SIGTERM would only kill the process, ``stop_training`` is called at every poll in place of that;
    it asks the training for a checkpoint.
    """
    closed = threading.Event()

    def watch() -> None:
        signalled = False
        while not closed.wait(_POLL_S):
            try:
                if not place.exists(CANCEL) or signalled:
                    continue
                if signal.getsignal(signal.SIGTERM) in (signal.SIG_DFL, signal.SIG_IGN, None):
                    stop_training()
                elif not closed.is_set():
                    signalled = True
                    os.kill(os.getpid(), signal.SIGTERM)
            except LookalikeError as error:  # an unreachable store must not end the polling
                log.warning("cannot look for %s: %s", CANCEL, error)

    thread = threading.Thread(target=watch, name="cancel-notice", daemon=True)
    thread.start()
    try:
        yield
    except (StoppedError, SystemExit):
        check_not_cancelled(place)
        raise
    finally:
        closed.set()
