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
import torch

from lookalike.errors import BusyError, InputError
from lookalike.storage import Store, open_store
from lookalike.storage.lease import break_lease, hold
from lookalike.training import checkpoint
from lookalike.training.checkpoint import CheckpointState
from lookalike.training.ledger import ledger_key, read_ledger, remove_ledger_after
from lookalike.training.loop_config import CheckpointConfig
from lookalike.training.saver import Saver

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
        pytest.raises(BusyError, match=rf"process {os.getpid()} on .* has been working here since"),
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
    with pytest.raises(BusyError, match=r"process 1 on elsewhere .* expires in (29|30) s"), hold(store):
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
    assert numbers(store) == ["00000002.json"]  # a holder that lost its lease writes nothing


def _within_10_s(happened: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + 10
    while not happened() and time.monotonic() < deadline:
        time.sleep(0.02)
    return happened()


ZOMBIE = """
import sys, time
import torch
from lookalike.errors import BusyError
from lookalike.storage import open_store
from lookalike.storage.lease import hold
from lookalike.training.checkpoint import CheckpointState
from lookalike.training.loop_config import CheckpointConfig
from lookalike.training.ledger import ledger_key
from lookalike.training.saver import Saver
run = open_store(sys.argv[1])
try:
    with hold(run.child("lease"), ttl_s=2, beat_s=0.5) as lease:
        saver = Saver(run, CheckpointConfig(), write=True, fence=lease.fence)
        for step in range(1, 2000):
            beside = {ledger_key(step, lease.number): b'{"step": %d}\\n' % (step - 1)}
            saver.save(CheckpointState(step, "run", "base"), [("master/w", torch.full((4,), float(step)))], beside)
            saver.wait()
            print(step, flush=True)
            time.sleep(0.05)
except BusyError as busy:
    print(busy, flush=True)
"""


def test_a_trainer_that_was_stopped_writes_nothing_that_counts_into_its_successor_s_run(store: Store) -> None:
    argv = [sys.executable, "-c", ZOMBIE, store.uri]
    zombie = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert zombie.stdout is not None
    try:
        while int(zombie.stdout.readline()) < 5:
            pass
        os.kill(zombie.pid, signal.SIGSTOP)
        with pytest.raises(BusyError, match=f"process {zombie.pid}"), hold(store.child("lease")):
            pass
        time.sleep(3)  # longer than its lease
        with hold(store.child("lease"), above=checkpoint.latest_lease(store)) as mine:
            began = checkpoint.newest(store)
            state = CheckpointState(began + 2, "run", "base")
            remove_ledger_after(store, began)
            with Saver(store, CheckpointConfig(), write=True, fence=mine.fence) as saver:
                lines = b"".join(b'{"step": %d}\n' % step for step in range(began, began + 2))
                saver.save(state, [("master/w", torch.zeros(4))], {ledger_key(state.step, mine.number): lines})
            os.kill(zombie.pid, signal.SIGCONT)
            said, errors = zombie.communicate(timeout=60)
            assert "the lease was lost to another worker" in said, errors
            assert checkpoint.newest(store) == state.step
            _, tensors = checkpoint.load(store.child(checkpoint.CHECKPOINTS), state.step)
            assert not tensors["master/w"].any()
            assert [record["step"] for record in read_ledger(store)] == list(range(began + 2))
            mine.check()
    finally:
        zombie.kill()
    assert numbers(store.child("lease")) == ["00000002.json"]


def test_a_holder_that_was_stopped_looks_before_it_commits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    store = open_store(str(tmp_path))
    with hold(store, beat_s=3600) as lease:
        monkeypatch.setattr("lookalike.storage.lease._now", lambda: time.clock_gettime(time.CLOCK_BOOTTIME) + 120)
        before = json.loads(store.read("00000001.json"))["expires"]
        lease.check()  # no other holder came, so it renews and continues
        assert json.loads(store.read("00000001.json"))["expires"] > before
        break_lease(store)
        with pytest.raises(BusyError, match="lost to another worker, which has number 2"):
            lease.check()
        assert lease.lost.is_set()


GOOD = {"host": "elsewhere", "pid": 1, "since": 0.0, "expires": 0.0}


@pytest.mark.parametrize(
    "record",
    [
        b"",
        b"not JSON",
        b"[]",
        b"\xff\xfe",
        b"[" * 100_000,
        b"{}",
        *(
            json.dumps(GOOD | change).encode()
            for change in (
                {"expires": 253402300799.0},  # the year 9999
                {"expires": 4102444800.0},  # the year 2100
                {"expires": -1.0},
                {"expires": "60"},
                {"expires": True},
                {"expires": None},
                {"expires": float("nan")},
                {"expires": float("inf")},
                {"expires": 10**400},
                {"since": -1e12},
                {"pid": 1.5},
                {"pid": -1},
                {"pid": 0},
                {"pid": 10**30},
                {"pid": "1"},
                {"host": 7},
                {"host": "x" * 10_000},
                {"more": "x" * 1_000_000},
            )
        ),
    ],
)
def test_a_broken_lease_is_named_and_broken_by_a_command(tmp_path: Path, record: bytes) -> None:
    store = open_store(str(tmp_path / "run" / "lease"))
    store.write("00000041.json", record)
    with (
        pytest.raises(InputError, match=r"00000041.json.*run: python jobs/break_lease.py --lease") as caught,
        hold(store),
    ):
        pass
    assert str(caught.value).endswith(f"--lease {store.uri}")
    assert len(str(caught.value)) < 1000
    assert "is not valid" in (break_lease(store) or "")
    with hold(store) as mine:
        assert mine.number == 43


def test_a_lease_is_broken_by_its_command_and_its_holder_stops(
    tmp_path: Path, run_job: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    store = open_store(str(tmp_path))
    with hold(store) as lease:
        done = run_job("break_lease", "--lease", store.uri)
        assert done.returncode == 0, done.stderr
        assert f"broken: lease 1 of process {os.getpid()} on " in done.stdout
        assert "which is still alive" in done.stdout
        with pytest.raises(BusyError):
            lease.check()
        with hold(store) as mine:
            assert mine.number == 3
    assert numbers(store) == ["00000003.json"]
    done = run_job("break_lease", "--lease", open_store(str(tmp_path / "none")).uri)
    assert "there is no lease at" in done.stdout


def test_numbers_grow_whatever_became_of_the_lease_s_files(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    with hold(store, above=7) as lease:
        assert lease.number == 8
    store.write("99999999.json", json.dumps(GOOD).encode())
    with hold(store) as lease:
        assert lease.number == 100_000_000
        lease.check()
    with hold(store) as lease:
        assert lease.number == 100_000_001
