"""One worker at a time below a prefix, on files and on a real S3 server."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from lookalike.errors import BusyError
from lookalike.storage import Store, open_store
from lookalike.storage.lease import hold

HOLDER = """
import sys, time
from lookalike.storage import open_store
from lookalike.storage.lease import hold
with hold(open_store(sys.argv[1])):
    print("holds", flush=True)
    time.sleep(60)
"""


@pytest.fixture(params=["file", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    return open_store(request.getfixturevalue("s3_uri") if request.param == "s3" else str(tmp_path))


def numbers(store: Store) -> list[str]:
    return [info.key for info in store.list()]


def test_the_second_is_told_who_works_and_the_next_comes_after(store: Store) -> None:
    with (
        hold(store) as first,
        pytest.raises(BusyError, match=rf"process {os.getpid()} on .* works here since"),
        hold(store),
    ):
        pass
    first.check()
    with hold(store) as second:
        assert second.number == first.number + 1
    assert numbers(store) == ["00000002.json"]


def test_of_eight_at_once_one_works(store: Store) -> None:
    def attempt(_: int) -> bool:
        try:
            with hold(store):
                time.sleep(1)
                return True
        except BusyError:
            return False

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(attempt, range(8))) == 1


def test_who_was_killed_is_taken_over_from_at_once(store: Store) -> None:
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, store.uri], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "holds\n"
    with pytest.raises(BusyError, match=f"process {holder.pid}"), hold(store):
        pass
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    with hold(store) as mine:
        assert mine.number == 2


def record(host: str, expires_in_s: float) -> bytes:
    return json.dumps({"host": host, "pid": 1, "since": 0.0, "expires": time.time() + expires_in_s}).encode()


def test_another_machines_lease_ends_by_silence_alone(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    store.create("00000001.json", record("elsewhere", 30))
    with pytest.raises(BusyError, match=r"process 1 on elsewhere .* dead in (29|30) s"), hold(store):
        pass
    store.write("00000001.json", record("elsewhere", -1))
    with hold(store) as mine:
        assert mine.number == 2


def test_a_holder_renews_and_notices_that_another_has_come(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    with hold(store, ttl_s=30, beat_s=0.05) as lease:
        first = json.loads(store.read("00000001.json"))["expires"]
        assert _within_10_s(lambda: json.loads(store.read("00000001.json"))["expires"] > first)
        store.create("00000002.json", record("elsewhere", 30))
        store.delete("00000001.json")
        assert _within_10_s(lease.lost.is_set)
        with pytest.raises(BusyError, match="lost to another"):
            lease.check()
    assert numbers(store) == ["00000002.json"]  # who lost it writes no more


def _within_10_s(happened: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + 10
    while not happened() and time.monotonic() < deadline:
        time.sleep(0.02)
    return happened()
