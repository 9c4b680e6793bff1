"""An order to cancel stops a job as SIGTERM does, and stays until it is withdrawn."""

import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from lookalike.errors import StoppedError
from lookalike.progress import cancel
from lookalike.progress.cancel import CancelledError, check_not_cancelled, order_cancel, stops_when_cancelled
from lookalike.storage import open_store


@pytest.fixture(autouse=True)
def quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cancel, "_POLL_S", 0.02)


@pytest.fixture
def in_a_job() -> Iterator[None]:
    """SIGTERM unwinds, as in a job."""
    before = signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(143))
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.mark.usefixtures("in_a_job")
def test_order_unwinds_a_job_that_does_anything(tmp_path: Path) -> None:
    place, asked = open_store(str(tmp_path)), []
    began = time.monotonic()

    def job() -> None:
        with stops_when_cancelled(place, asked.clear):
            order_cancel(place)
            time.sleep(30)

    with pytest.raises(CancelledError, match=r"cancelled at 20.*--resume"):
        job()
    assert time.monotonic() - began < 10
    with pytest.raises(CancelledError):
        check_not_cancelled(place)
    cancel.withdraw_cancel(place)
    check_not_cancelled(place)


def test_without_a_handler_of_signals_training_is_asked_to_stop(tmp_path: Path) -> None:
    place, asked = open_store(str(tmp_path)), []
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL

    def job() -> None:
        with stops_when_cancelled(place, lambda: asked.append(1)):
            order_cancel(place)
            while not asked:
                time.sleep(0.01)
            raise StoppedError("stopped after step 3", fix="x")

    with pytest.raises(CancelledError):
        job()


@pytest.mark.usefixtures("in_a_job")
def test_another_stop_is_not_a_cancellation(tmp_path: Path) -> None:
    with pytest.raises(SystemExit), stops_when_cancelled(open_store(str(tmp_path)), lambda: None):
        sys.exit(143)


def test_order_keeps_its_time_and_a_damaged_one_counts(tmp_path: Path) -> None:
    place = open_store(str(tmp_path))
    assert order_cancel(place) == order_cancel(place)
    place.write(cancel.CANCEL, b"{")
    with pytest.raises(CancelledError, match="an unknown time"):
        check_not_cancelled(place)
