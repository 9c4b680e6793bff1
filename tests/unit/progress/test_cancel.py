"""An order to cancel stops a job as SIGTERM does, and stays until it is withdrawn."""

import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from lookalike.errors import StoppedError
from lookalike.progress import cancel
from lookalike.progress.cancel import CancelledError, check_not_cancelled, order_cancel, stops_when_cancelled
from lookalike.storage import open_store


@pytest.fixture(autouse=True)
def quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cancel, "_POLL_S", 0.02)


def test_order_interrupts_what_is_not_training(tmp_path: Path) -> None:
    place, asked = open_store(str(tmp_path)), []
    began, before = time.monotonic(), signal.getsignal(signal.SIGUSR2)

    def job() -> None:
        with stops_when_cancelled(place, lambda: asked.append(1)):
            order_cancel(place)
            time.sleep(30)

    with pytest.raises(CancelledError, match=r"cancelled at 20.*--resume"):
        job()
    assert time.monotonic() - began < 10
    assert not asked
    assert signal.getsignal(signal.SIGUSR2) == before
    with pytest.raises(CancelledError):
        check_not_cancelled(place)
    cancel.withdraw_cancel(place)
    check_not_cancelled(place)


@pytest.mark.parametrize("main", [True, False])
def test_training_is_asked_for_a_checkpoint_and_not_interrupted(tmp_path: Path, main: bool) -> None:
    place, asked = open_store(str(tmp_path)), []

    def job() -> None:
        with stops_when_cancelled(place, lambda: asked.append(1)) as watch, watch.training():
            order_cancel(place)
            while len(asked) < 3:
                time.sleep(0.01)
            raise StoppedError("stopped after step 3", fix="x")

    if main:
        with pytest.raises(CancelledError):
            job()
    else:
        with ThreadPoolExecutor(1) as pool, pytest.raises(CancelledError):
            pool.submit(job).result()


@pytest.mark.parametrize("stop", [KeyboardInterrupt(), StoppedError("SIGTERM", fix="x")])
def test_another_stop_is_not_a_cancellation(tmp_path: Path, stop: BaseException) -> None:
    def job() -> None:
        with stops_when_cancelled(open_store(str(tmp_path)), lambda: None):
            raise stop

    with pytest.raises(type(stop)):
        job()


def test_order_keeps_its_time_and_a_damaged_one_counts(tmp_path: Path) -> None:
    place = open_store(str(tmp_path))
    assert order_cancel(place) == order_cancel(place)
    place.write(cancel.CANCEL, b"{")
    with pytest.raises(CancelledError, match="an unknown time"):
        check_not_cancelled(place)
