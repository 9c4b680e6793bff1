"""Kill curation (kill -9) at every write and at random, restart it each time, and measure the cost of a new shard.

    python -m pytest tests/bench -k kills -s

Writes results/curation-kills.json. The dataset is on an S3 server behind a proxy (faulty_s3.py) that sees every put
and kills just before the server has it, or just after: the driver, after which nothing more goes through, or the worker
that sent it. The jobs join one Ray cluster, which outlives them.
"""

import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
from aiohttp import web

from lookalike.data.formats import HEAD_BYTES
from lookalike.storage import open_store
from pipelines.private_ray import MODE, TOKEN_PATH
from tests.bench.measured import keep
from tests.conftest import REPO, job_environment
from tests.drawn import photo, world, write_raw
from tests.faulty_s3 import FaultyProxy, serve_in_thread

# What a curation writes, in the order in which it does.
POINTS = (
    r"work/vectors/", r"work/rows/", r"work/gather/.*/contents/", r"work/gather/.*/subjects/",
    r"work/gather/.*json", r"work/duplicates/.*/repeated/", r"work/duplicates/.*sharing", r"work/plan/.*images",
    r"work/plan/.*subjects", r"work/plan/.*summary", r"v\d+/claim\.json", r"work/layout/",
    r"shards/", r"v\d+/images/", r"v\d+/triplets/", r"work/materialise/.*unit", r"v\d+/lists/",
    r"work/materialise/.*lists",
    r"v\d+/report\.json", r"v\d+/report\.html", r"v\d+/manifest\.json", r"published/",
)  # fmt: skip
WITH_EMBEDDER = (r"work/gather/.*/bands/", r"work/links/")  # what a run without an embedder does not write
OF_WORKERS = (
    (r"work/vectors/", "after"),
    (r"work/gather/.*/subjects/", "before"),
    (r"work/links/.*/ends/", "after"),
    (r"work/plan/.*images", "before"),
    (r"shards/", "after"),
)
RANDOM_MOMENTS = (7, 31, 53, 17, 71, 40)  # requests after the start; after the last kill it runs to its end
SETTINGS = ("--plan.rows_per_partition=40", "--shards.shard_mib=1", "--shards.image_size=null")
# At the named writes without an embedder: an actor then starts in a second. At random moments and in workers with it.
BLIND = ("--embedder=none", "--filters.skip=[near_duplicate,off_subject]", "--filters.no_pair.min_similarity=0")

pytestmark = pytest.mark.timeout(7200)


def _begins(byte_range: str) -> bool:
    """Whether a request reads an object from its start, and more than the bytes by which its format is recognised."""
    return byte_range.startswith("bytes=0-") and byte_range != f"bytes=0-{HEAD_BYTES - 1}"


class Reaper:
    """Watches the requests below one dataset, and kills once at the armed moment."""

    def __init__(self) -> None:
        self.puts: list[str] = []  # keys below the dataset that the server got
        self.begun: list[str] = []  # raw shards, each time that one was read from its start
        self.driver: subprocess.Popen[bytes] | None = None
        self.disarm()

    def disarm(self) -> None:
        """Stop killing."""
        self._point, self._when, self._whom, self._countdown, self.struck = "", "", "", 0, False

    def arm(self, point: str, when: str, whom: str) -> None:
        """Kill ``whom`` (driver or worker) ``when`` (before or after) the server gets a key that matches."""
        self.disarm()
        self._point, self._when, self._whom = point, when, whom

    def arm_random(self, requests: int) -> None:
        """Kill the driver when so many requests have come."""
        self.disarm()
        self._countdown, self._whom = requests, "driver"

    def choose(self, request: web.Request) -> str | None:
        key = re.sub(r"^/scratch/[^/]+/[^/]+/", "", request.path)
        if self.struck and self._whom == "driver":
            return "reset before"  # whoever outlives the driver for a moment does no more
        if self._countdown:
            self._countdown -= 1
            if self._countdown == 0:
                self._kill(request)
                return "reset before"
        if request.method == "PUT":
            if self._point and not self.struck and re.match(self._point, key):
                if self._when == "before":
                    self._kill(request)
                    return "reset before"
                self.puts.append(key)
                return "reset after"
            self.puts.append(key)
        elif "/raw/" in request.path and _begins(request.headers.get("Range", "")):
            self.begun.append(request.path)
        return None

    def acted(self, request: web.Request) -> None:
        self._kill(request)

    def _kill(self, request: web.Request) -> None:
        if self.struck:  # two puts came through at once
            return
        assert self.driver is not None
        assert request.transport is not None
        self.struck = True
        pid = self.driver.pid
        if self._whom == "worker":
            port = request.transport.get_extra_info("peername")[1]
            pid = next(
                c.pid
                for c in psutil.net_connections("tcp")
                if c.laddr and c.laddr.port == port and c.pid != os.getpid()
            )
            assert pid != self.driver.pid
        os.kill(pid, signal.SIGKILL)


@contextmanager
def cluster(env: dict[str, str]) -> Iterator[tuple[psutil.Process, dict[str, str]]]:
    """A Ray head of two CPUs whose workers have ``env``, and the environment in which a job joins it."""
    with tempfile.TemporaryDirectory(prefix="ray-") as folder:
        env = {**env, **{name: os.environ[name] for name in (MODE, TOKEN_PATH) if name in os.environ}}
        options = ("--port=0", "--num-cpus=2", "--include-dashboard=false", f"--temp-dir={folder}", "--block")
        argv = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--disable-usage-stats", *options]
        with (
            (Path(folder) / "log").open("wb") as log,
            subprocess.Popen(argv, env=job_environment(env), stdout=log, stderr=log) as head,
        ):
            try:
                address = Path(folder) / "ray_current_cluster"
                deadline = time.monotonic() + 120
                while not address.exists() and head.poll() is None and time.monotonic() < deadline:
                    time.sleep(0.2)
                yield psutil.Process(head.pid), {**env, "RAY_ADDRESS": address.read_text().strip()}
            finally:
                head.terminate()  # with --block it ends what it started


@dataclass
class Bench:
    """Starts jobs on a cluster whose requests a reaper watches."""

    reaper: Reaper
    head: psutil.Process
    env: dict[str, str]
    log: Path

    def run(self, *arguments: str) -> int:
        """Start the job once, wait for its workers, and return its exit status."""
        with self.log.open("ab") as file:
            argv = [sys.executable, str(REPO / "jobs" / "curate.py"), "run", *arguments]
            self.reaper.driver = subprocess.Popen(
                argv, env=job_environment(self.env), stdout=file, stderr=file, cwd=REPO
            )
            status = self.reaper.driver.wait(600)
        while any(map(_maps, self.head.children(recursive=True))):
            time.sleep(0.2)
        return status


def _maps(process: psutil.Process) -> bool:
    """Whether the process is a busy worker of Ray Data."""
    with suppress(psutil.Error):
        return any("Map" in word for word in process.cmdline()[:1])
    return False


@pytest.fixture
def bench(s3_server: dict[str, str], tmp_path: Path) -> Iterator[Bench]:
    """The proxy, the cluster behind it, and a reaper that lets everything through."""
    reaper = Reaper()
    env = {**s3_server, "AWS_ENDPOINT_URL": serve_in_thread(FaultyProxy(s3_server["AWS_ENDPOINT_URL"], reaper))}
    with cluster(env) as (head, joined):
        yield Bench(reaper, head, joined, tmp_path / "log")


def contents(prefix: str) -> dict[str, bytes]:
    store = open_store(prefix)
    return {info.key: store.read(info.key) for info in store.list()}


def test_kills_at_every_write_give_the_same_bytes(s3_uri: str, bench: Bench, tmp_path: Path) -> None:
    raw = open_store(f"{s3_uri}/raw")
    for path in sorted(write_raw(tmp_path / "raw", world(40, 4), per_shard=8).glob("*.tar")):
        raw.upload(path.name, path)
    shards = len(list(raw.list()))
    reaper, log = bench.reaper, bench.log

    def start(name: str) -> int:
        own = BLIND if "blind" in name else ()
        return bench.run("--raw", f"{s3_uri}/raw", "--dataset", f"{s3_uri}/{name}", *SETTINGS, *own)

    expected: dict[bool, dict[str, bytes]] = {}
    once: Counter[str] = Counter()
    for name in ("blind", "seeing"):
        assert start(name) == 0, log.read_text()
        expected[name == "blind"] = contents(f"{s3_uri}/{name}/v0001")
        unnamed = [
            key for key in reaper.puts if not any(re.match(at, key) for at in (*POINTS, *WITH_EMBEDDER, "work/lease/"))
        ]
        assert not unnamed
        once += _work(reaper.puts, reaper.begun)
        reaper.puts.clear()
        reaper.begun.clear()

    kills: list[dict[str, Any]] = []

    def killed(name: str, **kill: Any) -> None:
        before = _work(reaper.puts, reaper.begun)
        status = start(name)
        assert reaper.struck, f"never came to {kill}: {log.read_text()[-3000:]}"
        assert status == (0 if kill["whom"] == "worker" else -signal.SIGKILL), log.read_text()[-3000:]
        kills.append(kill)
        print(kill, dict(_work(reaper.puts, reaper.begun) - before), flush=True)

    def same_as_expected(name: str) -> bool:
        return contents(f"{s3_uri}/{name}/v0001") == expected["blind" in name]

    def finished(name: str) -> bool:
        """Run the job to its end, and return whether it made the same snapshot."""
        reaper.disarm()
        assert start(name) == 0, log.read_text()[-3000:]
        return same_as_expected(name)

    for point in POINTS:
        for when in ("before", "after"):
            reaper.arm(point, when, "driver")
            killed("blind-named", whom="driver", at=point, when=when)
    same = [finished("blind-named")]
    for moment in RANDOM_MOMENTS:
        reaper.arm_random(moment)
        killed("random", whom="driver", at=f"request {moment}", when="random")
    same.append(finished("random"))
    twice = _work(reaper.puts, reaper.begun) - once
    driver_kills = len(kills)
    for point, when in OF_WORKERS:
        reaper.arm(point, when, "worker")
        killed(f"worker-{len(kills)}", whom="worker", at=point, when=when)
        same.append(same_as_expected(f"worker-{len(kills) - 1}"))
    record = {
        "command": "python -m pytest tests/bench -k kills -s",
        "raw_shards": shards,
        "kills": len(kills),
        "at": kills,
        "same_bytes": all(same),
        "work_of_two_undisturbed_runs": dict(once),
        "kills_of_the_driver": driver_kills,
        "work_done_twice_after_them": dict(twice),
    }
    keep("curation-kills", record, "killed")
    assert all(same)
    assert sum(twice.values()) <= driver_kills


def test_only_the_new_shard_is_indexed_after_kills(s3_uri: str, bench: Bench, tmp_path: Path) -> None:
    raw = open_store(f"{s3_uri}/raw")
    photos = [photo(number // 4, number % 4, 96) for number in range(51 * 4)]
    paths = sorted(write_raw(tmp_path / "raw", photos, per_shard=4).glob("*.tar"))
    reaper, log = bench.reaper, bench.log
    arguments = ["--raw", f"{s3_uri}/raw", "--dataset", f"{s3_uri}/dataset", *BLIND]
    for path in paths[:50]:
        raw.upload(path.name, path)
    assert bench.run(*arguments) == 0, log.read_text()
    assert len(set(reaper.begun)) == len(reaper.begun) == 50
    reaper.begun.clear()
    reaper.puts.clear()
    raw.upload(paths[50].name, paths[50])
    assert bench.run(*arguments) == 0, log.read_text()
    tables = sum(key.startswith("work/rows/") for key in reaper.puts)
    keep("curation-kills", {"raw_shards": 51, "read": len(reaper.begun), "indexed": tables}, "a new shard among fifty")
    assert [Path(key).name for key in reaper.begun] == [paths[50].name]
    assert tables == 1


def _work(puts: list[str], begun: list[str]) -> Counter[str]:
    """Units of work: raw shards read, ranges planned, packs written."""
    kinds = {"ranges planned": r"work/plan/.*images", "packs written": r"shards/"}
    found = {name: sum(bool(re.match(point, key)) for key in puts) for name, point in kinds.items()}
    return Counter({"raw shards read": len(begun), **found})
