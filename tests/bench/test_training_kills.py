"""Kill a training run (kill -9) at least twenty times in an epoch, on two ranks, on one and on two again.

    python -m pytest tests/bench/test_training_kills.py -s

Writes results/training-kills.json. The run lies on an S3 server behind a proxy (tests/faulty_s3.py) that can kill just
before or just after the server has an object; others strike in the middle of a step or of a start. Who is killed and
when is drawn from a seed: a rank, a process of Ray Data, Ray Train's controller, the raylet, the driver, or the driver
with everything below it. What has ended is started again by the same command (from one section to the next with another
number of ranks), at once and without a look at what may still run.

With LOOKALIKE_BENCH_FOLDER it resumes there after the last recorded kill.
"""

import json
import os
import random
import re
import shutil
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from hashlib import sha256
from itertools import pairwise
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from aiohttp import web

from lookalike.data.triplets import read_table
from lookalike.storage import open_store, version_store
from lookalike.training.checkpoint import committed_steps
from lookalike.training.epoch_plan import EpochPlan
from lookalike.training.ledger import read_ledger
from pipelines.curate import CurateConfig, curate
from tests.bench.measured import keep
from tests.conftest import REPO, LocalStack, job_environment
from tests.drawn import world, write_raw
from tests.faulty_s3 import FaultyProxy, serve_in_thread

pytestmark = pytest.mark.timeout(7200)

SEED = 0
SECTIONS = ((2, 9), (1, 4), (2, 8))  # ranks, kills
BATCH, MICRO, EVERY = 8, 1, 2  # samples of a step, of a forward pass; steps between checkpoints
PATIENCE_S = 600.0

# A process by the title that Ray gives it.
TITLES = {
    "rank": r"ray::RayTrainWorker",
    "data": r"ray::(MapBatches|SplitCoordinator)",
    "controller": r"ray::TrainController",
    "raylet": r"\S*/raylet/raylet ",
}
ENDS_THE_JOB = ("raylet", "driver", "job")
WHOM = ("rank",) * 8 + ("data",) * 2 + ("controller",) * 2 + ("raylet",) * 2 + ("driver",) * 4 + ("job",) * 3
UPLOADS = (
    ("PUT metrics", "after"),
    ("PUT ledger/", "after"),
    ("PUT checkpoints/.*part-", "before"),
    ("PUT checkpoints/.*part-", "after"),
    ("PUT checkpoints/.*state", "after"),
    ("PUT checkpoints/.*COMMIT", "before"),
    ("PUT checkpoints/.*COMMIT", "after"),
    ("DELETE checkpoints/", "after"),
)
MOMENTS = (*UPLOADS, *(("start", ""),) * 2, *(("step", ""),) * 11)


@dataclass(frozen=True)
class Kill:
    """Who is killed, on how many ranks, when, and not before which step."""

    whom: str
    ranks: int
    moment: tuple[str, str]
    step: int


def draw_kills(total_steps: int) -> list[Kill]:
    """The schedule: each kind of process and each moment as often as named above, in an order of the seed."""
    chance = random.Random(SEED)
    whom, moments = (chance.sample(pool, len(pool)) for pool in (WHOM, MOMENTS))
    last = 0
    for _, count in SECTIONS:  # another number of ranks takes another start, so each ends with one that ends the job
        last += count
        ender = next(i for i in range(last - count, len(whom)) if whom[i] in ENDS_THE_JOB)
        whom[last - 1], whom[ender] = whom[ender], whom[last - 1]
    ranks = [ranks for ranks, count in SECTIONS for _ in range(count)]
    return [
        Kill(*drawn, step=round((number + 1) * total_steps / (len(ranks) + 2)))
        for number, drawn in enumerate(zip(whom, ranks, moments, strict=True))
    ]


@dataclass
class Trap:
    """Kills at the first request at the proxy that matches."""

    pattern: str = ""
    when: str = ""
    strike: Callable[[], None] = print
    sprung: str = ""
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def set(self, pattern: str, when: str, strike: Callable[[], None]) -> None:
        """Call ``strike`` ``when`` (before or after) the server gets a request ``METHOD key`` that matches."""
        self.sprung, self.when, self.strike, self.pattern = "", when, strike, pattern

    def choose(self, request: web.Request) -> str | None:
        asked = f"{request.method} {re.sub(r'^/scratch/[^/]+/[^/]+/', '', request.path)}"
        with self._lock:
            if not self.pattern or not re.match(self.pattern, asked):
                return None
            self.sprung, self.pattern = asked, ""
        if self.when == "after":
            return "reset after"
        self.strike()
        return "reset before"

    def acted(self, request: web.Request) -> None:
        self.strike()


@dataclass
class Job:
    """A training job as a user starts it, with restarts."""

    config: Path
    env: dict[str, str]
    tracking: Path
    log: Path
    process: subprocess.Popen[bytes] | None = None
    starts: int = 0

    def start(self, ranks: int) -> None:
        """Start the same command with another number of ranks."""
        argv = [sys.executable, str(REPO / "jobs" / "train.py"), "run", "--config", str(self.config)]
        argv += ["--workers.num_workers", str(ranks)]
        with self.log.open("ab") as file:
            self.process = subprocess.Popen(argv, env=self.env, stdout=file, stderr=file, cwd=REPO)
        self.starts += 1

    def end(self) -> None:
        """Wait until it has done all its steps."""
        assert self.process is not None
        assert self.process.wait(2 * PATIENCE_S) == 0, self.log.read_text()[-4000:]

    @property
    def runs(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def family(self) -> list[psutil.Process]:
        """The driver and everything that it has started."""
        assert self.process is not None
        try:
            driver = psutil.Process(self.process.pid)
            return [driver, *driver.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def find(self, kind: str) -> list[psutil.Process]:
        """Its processes of a kind."""
        found = []
        for process in self.family():
            try:
                if re.match(TITLES[kind], " ".join(process.cmdline())):
                    found.append(process)
            except psutil.Error:  # it has just ended
                continue
        return found

    def steps(self, since: float) -> list[tuple[float, int]]:
        """(time, step) of the steps that were done after ``since``."""
        lines = [line for path in self.tracking.glob("*/*/events.jsonl") for line in path.read_text().splitlines()]
        events = [json.loads(line) for line in lines if '"train/loss"' in line]
        return [(event["time"], event["step"]) for event in events if event["time"] > since]


class Reaper:
    """Carries out kills on a job."""

    def __init__(self, job: Job, trap: Trap) -> None:
        self.job, self.trap, self.chance = job, trap, random.Random(SEED)
        self.struck_at = 0.0
        self.family: list[psutil.Process] = []

    def strike(self, whom: str) -> None:
        """SIGKILL, now."""
        self.family = self.job.family()
        if whom in TITLES:
            victims = [self.chance.choice(self.job.find(whom))]
        else:
            victims = self.family if whom == "job" else self.family[:1]
        self.struck_at = time.time()
        for victim in victims:
            try:
                os.kill(victim.pid, signal.SIGKILL)
            except ProcessLookupError:
                continue

    def carry_out(self, kill: Kill) -> dict[str, Any]:
        """Wait for the moment, with as many starts as that takes, and strike; what happened."""
        began, (moment, when) = self.struck_at, kill.moment
        while True:
            if not self.job.runs:
                self.job.start(kill.ranks)
            if self._await(lambda: len(self.job.find("rank")) == kill.ranks) and self._strikes(kill, moment, when):
                break
        done = self.job.steps(began)
        return {
            **{"whom": kill.whom, "ranks": kill.ranks, "after_step": done[-1][1] if done else None},
            "moment": f"{when} {self.trap.sprung}" if self.trap.sprung else f"in a {moment}",
            "stepping_again_after_s": round(done[0][0] - began, 1) if done and began else None,
        }

    def _strikes(self, kill: Kill, moment: str, when: str) -> bool:
        since, self.trap.sprung = self.struck_at, ""
        if moment == "start":
            time.sleep(self.chance.uniform(0, 6))
        else:
            early = 0 if moment == "step" else EVERY  # so that a checkpoint is still to come
            if not self._await(lambda: any(step >= kill.step - early for _, step in self.job.steps(since))):
                return False
        if when:
            self.trap.set(moment, when, lambda: self.strike(kill.whom))
            return self._await(lambda: self.struck_at > since)
        if moment == "step":
            times = [at for at, _ in self.job.steps(since)]
            length = statistics.median(b - a for a, b in pairwise(times)) if times[1:] else 1.0
            time.sleep(self.chance.uniform(0.1, 0.9) * length)
        if kill.whom in TITLES and not self._await(lambda: bool(self.job.find(kill.whom))):
            return False
        self.strike(kill.whom)
        return True

    def settle(self, kill: Kill) -> dict[str, Any]:
        """See what a kill did to the job; whatever lives on is left alone."""
        if kill.whom not in (*ENDS_THE_JOB, "controller"):
            return {}
        assert self.job.process is not None
        status = self.job.process.wait(PATIENCE_S)
        _, alive = psutil.wait_procs(self.family, timeout=30)
        return {
            "exit": status,
            "ended_after_s": round(time.time() - self.struck_at, 1),
            **({"left_over": len(alive)} if alive else {}),
        }

    def _await(self, condition: Callable[[], bool]) -> bool:
        """Until the condition holds (True) or the job has ended (False)."""
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline:
            if condition():
                return True
            if not self.job.runs:
                return False
            time.sleep(0.02)
        raise AssertionError(f"the job hangs; the end of its log:\n{self.job.log.read_text()[-4000:]}")


@pytest.fixture
def folder(bench_folder: Path) -> Path:
    """Folder of the bench, which a later run resumes."""
    folder = bench_folder / "training-kills"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.fixture
def s3(folder: Path) -> Iterator[dict[str, str]]:
    """An S3 server of the bench's own, for the environment of its clients."""
    stack = LocalStack(folder / "stack")
    stack.up("s3")
    yield {name: value for name, value in stack.environment.items() if name.startswith("AWS_")}
    stack.down()


def losses(run: str) -> dict[int, float]:
    records = [json.loads(line) for line in open_store(run).read("metrics.jsonl").decode().splitlines()]
    return {record["step"]: record["loss"] for record in records if "loss" in record}


def learned(ray_folder: Path) -> dict[int, list[list[str]]]:
    """For each step what each attempt's ranks have logged: ids in the order of their forward passes."""
    found: dict[int, list[list[str]]] = defaultdict(list)
    for path in sorted(p for p in ray_folder.glob("**/session_2*/logs/train/ray-train-app-worker-*.log")):
        of_rank: dict[int, list[str]] = defaultdict(list)
        for line in path.read_text().splitlines():
            if match := re.match(r"step (\d+) learns from (\[.*\])$", json.loads(line)["message"]):
                of_rank[int(match[1])] += json.loads(match[2])
        for step, ids in of_rank.items():
            found[step].append(ids)
    return found


def test_epoch_with_twenty_kills_sees_each_sample_once(
    folder: Path, s3: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in s3.items():
        monkeypatch.setenv(name, value)
    dataset, quietly, killed = (f"s3://scratch/training-kills/{name}" for name in ("dataset", "quiet", "killed"))
    if not open_store(dataset).exists("v0001/manifest.json"):
        curate(CurateConfig(raw=str(write_raw(folder / "raw", world(24, 5))), dataset=dataset))
    ids = read_table(version_store(open_store(dataset), 1), "train").column("triplet_id").to_pylist()
    plan = EpochPlan(len(ids), BATCH, SEED)
    total = plan.steps_per_epoch
    trap = Trap()
    url = serve_in_thread(FaultyProxy(s3["AWS_ENDPOINT_URL"], trap))
    # Ray's sockets lie there, whose paths must be short, and its logs.
    ray_folder = Path("/tmp") / f"kills-{sha256(str(folder).encode()).hexdigest()[:8]}"

    def job_of(run: str) -> Job:
        name = run.rpartition("/")[2]
        tracking = folder / f"{name}-tracking"
        first = total // 2
        config = {
            **{"dataset": dataset, "run": run, "tracking": f"jsonl:{tracking}", "seed": SEED},
            "stages": [
                {"name": "one", "steps": first, "conditions": "mllm", "warmup_steps": 2},
                {"name": "two", "steps": total - first, "conditions": "mllm+references", "warmup_steps": 2},
            ],
            **{"batch_size": BATCH, "micro_batch_size": MICRO, "log_every": 1},
            **{"validation": {"every": 10_000, "samples": 4}, "checkpoint": {"every": EVERY, "keep": 2}},
            "workers": {"max_failures": 100},
        }
        path = folder / f"{name}.yaml"
        path.write_text(yaml.safe_dump(config))
        where = ray_folder / name
        where.mkdir(parents=True, exist_ok=True)
        variables = {"AWS_ENDPOINT_URL": url, "LOOKALIKE_LOG_LEVEL": "DEBUG", "RAY_TMPDIR": str(where)}
        return Job(path, job_environment({**s3, **variables}), tracking, folder / f"{name}.log")

    if not open_store(quietly).exists("result.json"):
        quiet = job_of(quietly)
        quiet.start(2)
        quiet.end()

    kills, job, notes = draw_kills(total), job_of(killed), folder / "notes.jsonl"
    reaper = Reaper(job, trap)
    events = [json.loads(line) for line in notes.read_text().splitlines()] if notes.exists() else []
    print(f"{len(ids)} samples, {total} steps, {len(kills)} kills, {len(events)} of them done", flush=True)
    for kill in kills[len(events) :]:
        began, found = time.monotonic(), committed_steps(open_store(f"{killed}/checkpoints"))
        event = {"from": found[-1] if found else 0, **reaper.carry_out(kill), **reaper.settle(kill)}
        events.append({**event, "seconds": round(time.monotonic() - began, 1)})
        with notes.open("a") as file:
            file.write(json.dumps(events[-1]) + "\n")
        print(events[-1], flush=True)
    if not job.runs:
        job.start(SECTIONS[-1][0])
    job.end()

    ledger = {record["step"]: record for record in read_ledger(open_store(killed))}
    seen = Counter((record["epoch"], sample) for record in ledger.values() for sample in record["samples"])
    attempts = learned(ray_folder / "killed")
    strange = [
        (step, found)
        for step, lists in attempts.items()
        for found in lists
        if found not in _starts_of_shares(ledger[step]["samples"])
    ]
    pairs = pairwise(events)
    taken_up = [after["from"] for before, after in pairs if before["ranks"] != after["ranks"]]
    expected, found = losses(quietly), losses(killed)
    record = {
        "command": "python -m pytest tests/bench/test_training_kills.py -s",
        "samples": len(ids),
        "steps": total,
        "kills": events,
        "kills_by_victim": dict(Counter(kill.whom for kill in kills)),
        "taken_up_by_another_number_of_ranks_at": taken_up,
        "minutes_to_the_last_kill": round(sum(event["seconds"] for event in events) / 60, 1),
        "steps_begun_again": sum(len(lists) > 2 for lists in attempts.values()),
        "shares_cut_off_in_mid_accumulation": sum(
            found not in _shares(ledger[step]["samples"]) for step, lists in attempts.items() for found in lists
        ),
        "ids_that_differ_from_the_ledger": len(strange),
        "each_sample_once": seen == Counter((0, sample) for sample in ids),
        "largest_difference_of_a_loss_before_the_first_resize": max(
            abs(found[step] - expected[step]) for step in range(taken_up[0])
        ),
        "largest_difference_of_a_loss": max(abs(found[step] - expected[step]) for step in expected),
    }
    keep("training-kills", record)
    shutil.rmtree(ray_folder)
    assert not strange
    assert sorted(ledger) == sorted(found) == sorted(expected) == list(range(total))
    assert record["each_sample_once"]
    assert record["shares_cut_off_in_mid_accumulation"] > 0
    assert record["largest_difference_of_a_loss_before_the_first_resize"] < 1e-5
    assert record["largest_difference_of_a_loss"] < 1e-3


def _shares(samples: list[str]) -> list[list[str]]:
    """What one rank of one, and each of two, computes of a step's samples (padding, which is last, left out)."""
    half = BATCH // 2
    return [samples, samples[:half], samples[half:]]


def _starts_of_shares(samples: list[str]) -> list[list[str]]:
    return [share[:length] for share in _shares(samples) for length in range(len(share) + 1)]
