"""Kill a fleet of finetunes: workers, driver, and the job with all its processes.

    LOOKALIKE_BENCH_KILLS=20 LOOKALIKE_BENCH_FOLDER=/tmp/bench python -m pytest tests/bench/test_fleet_kills.py -s

Who is killed and when is drawn from a seed. What has ended is started again by the same command at once. At the end
each request must be done once, with one version, and with the adapter that it gets alone.
"""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest

from lookalike.registry import Registry
from tests.bench.fleet_world import FleetWorld, adapter_of, fleet_world, write_request
from tests.bench.measured import keep
from tests.conftest import REPO, job_environment

pytestmark = pytest.mark.timeout(7200)

SEED, KILLS = 0, int(os.environ.get("LOOKALIKE_BENCH_KILLS", "20"))
CUSTOMERS = 4
WAIT_S = (1.0, 12.0)  # between a kill and the next one, counted from when a request is in work
SETTINGS: dict[str, Any] = {
    "stages": [{"name": "personal", "steps": 12, "conditions": "mllm+references", "warmup_steps": 1}],
    "batch_size": 4,
    "evaluation": {"max_samples": 8, "subjects": 1, "prompts_per_subject": 1, "stages": ["preset"], "steps": 2},
}


@dataclass
class _Fleet:
    """A job that is started again when it has ended, until its work is done."""

    argv: list[str]
    log: Path
    requests: Path
    starts: int = 0
    process: psutil.Popen | None = None
    killed: Counter[str] = field(default_factory=Counter)

    def keep_running(self) -> None:
        if self.process is None or self.process.poll() is not None:
            with self.log.open("ab") as file:
                environment = job_environment({})
                self.process = psutil.Popen(self.argv, stdout=file, stderr=subprocess.STDOUT, env=environment)
            self.starts += 1

    def kill(self, target: str) -> bool:
        """Kill the worker, driver or whole job; return False if there is no such process."""
        process = self.process
        assert process is not None
        below = process.children(recursive=True) if process.is_running() else []
        processes = {"worker": self.at_work()[:1], "driver": [process], "job": [process, *below]}[target]
        for each in processes:
            with suppress(psutil.Error):
                os.kill(each.pid, signal.SIGKILL)
        if processes and target != "worker":
            process.wait(30)
        self.killed[target] += bool(processes)
        return bool(processes)

    def at_work(self) -> list[psutil.Process]:
        """The processes below the job that hold the lease of a request."""
        assert self.process is not None
        below = {each.pid: each for each in self.process.children(recursive=True)} if self.process.is_running() else {}
        newest = (max(folder.glob("*.json"), default=None) for folder in (self.requests / "leases").glob("*"))
        records = [json.loads(file.read_text()) for file in newest if file is not None]
        return [below[each["pid"]] for each in records if each["pid"] in below and each["expires"] > time.time()]


def test_kills_lose_and_double_nothing(bench_folder: Path) -> None:
    world, out = fleet_world(bench_folder / "fleet"), bench_folder / "fleet-kills"
    shutil.rmtree(out, ignore_errors=True)
    tracking = f"sqlite:///{out}/mlflow.db"
    places = ["--store", str(out / "store"), "--model", world.base, "--distractors", world.others]
    argv = [sys.executable, str(REPO / "jobs" / "finetune_fleet.py"), "--requests", str(out / "requests")]
    argv += [*places, "--tracking", tracking, "--workers", "2", "--at_once", "2", "--tries", "100", "--poll_s", "1"]
    for number in range(CUSTOMERS):
        write_request(out / "requests", number, world.photos[number], **SETTINGS)
    fleet, chance = _Fleet(argv, out / "fleet.log", out / "requests"), random.Random(SEED)
    began = time.perf_counter()
    while sum(fleet.killed.values()) < KILLS and _done(out) < CUSTOMERS:
        fleet.keep_running()
        _wait_for_work(fleet)
        time.sleep(chance.uniform(*WAIT_S))
        whom = chance.choice(["worker", "worker", "driver", "job"])
        if fleet.kill(whom):
            print(f"{sum(fleet.killed.values())}: {whom} killed, {_done(out)} done", flush=True)
    while _done(out) < CUSTOMERS:
        fleet.keep_running()
        time.sleep(1)
    assert fleet.process is not None
    assert fleet.process.wait(120) in (0, -signal.SIGKILL)
    record = {"kills": dict(fleet.killed), "starts": fleet.starts, "requests": CUSTOMERS}
    record |= {"minutes": round((time.perf_counter() - began) / 60, 1), **_checked(world, out, places, tracking)}
    keep("fleet-kills", record)


def _checked(world: FleetWorld, out: Path, places: list[str], tracking: str) -> dict[str, Any]:
    """Compare each result with that of its request alone."""
    apart = []
    requests, alone = out / "alone" / "requests", out / "alone" / "store"
    for number in range(CUSTOMERS):
        write_request(requests, number, world.photos[number], **SETTINGS)
    argv = [sys.executable, str(REPO / "jobs" / "finetune_fleet.py"), "--requests", str(requests), *places]
    argv[argv.index("--store") + 1] = str(alone)
    argv += ["--tracking", f"sqlite:///{out}/alone.db", "--at_once", "1"]  # one after the other
    subprocess.run(argv, check=True, env=job_environment({}), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    for number in range(CUSTOMERS):
        ours, theirs = adapter_of(out / "store", number), adapter_of(alone, number)
        apart.append(float((ours - theirs).norm() / theirs.norm()))
        assert Registry(tracking).contents(f"c{number:02d}--thing").keys() == {1}
        result = json.loads((out / "store" / "customers" / f"c{number:02d}" / "thing" / "result.json").read_text())
        assert result["version"] == 1
    assert max(apart) < 1e-4
    return {"greatest relative difference to the adapter alone": max(apart), "versions of each": 1}


def _done(out: Path) -> int:
    return len(list((out / "requests" / "done").glob("*.json")))


def _wait_for_work(fleet: _Fleet) -> None:
    """Wait until the fleet has a request in work, or ends."""
    assert fleet.process is not None
    until = time.monotonic() + 300
    while fleet.process.poll() is None and time.monotonic() < until and not fleet.at_work():
        time.sleep(0.2)
