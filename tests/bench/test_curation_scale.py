"""Measure time and memory with more shards, and the cost of the stages between index and layout over synthetic rows.

    LOOKALIKE_BENCH_PHOTOS=FOLDER python -m pytest tests/bench -k time_grows_linearly -s
    python -m pytest tests/bench -k cost_of_an_image -s
    python -m pytest tests/bench -k many_rows -s

Writes results/curation-scale.json, results/curation-scale-cost.json and results/curation-scale-rows.json. The second
counts the requests of one process; LOOKALIKE_BENCH_SHARDS sets the numbers of raw shards (10,40,160,640),
LOOKALIKE_BENCH_SHARD_ROWS the rows of each (2000), LOOKALIKE_BENCH_DIM the dimensions of a vector (64). It judges the
bytes read at 384 dimensions, of the smallest embedder in use (DINO ViT-S/16): the smaller a vector, the more of a row
are its 15 keys of near copies. The third runs
LOOKALIKE_BENCH_ROWS rows (10,000,000) in 1,000 raw shards on Ray with two CPUs.
"""

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from shutil import rmtree
from typing import Any
from unittest.mock import patch

import numpy as np
import pyarrow as pa
import pytest

from lookalike.data.passed_over import PassedOver
from lookalike.storage import Store, open_store
from pipelines.actors import ActorConfig, Units, run_units
from pipelines.curate.config import CurateConfig
from pipelines.curate.inputs import Inputs
from pipelines.curate.raw import list_raw
from pipelines.curate.row_stages import run_row_stages
from pipelines.curate.rows import IMAGE_SCHEMA, subject_hash
from pipelines.curate.run import RETURNED_MEMORY
from pipelines.curate.summary import Summary
from pipelines.curate.tables import vectors_array, with_notes, write_table
from pipelines.curate.work import StageWork
from tests.bench.measured import keep
from tests.bench.memory import PeakMemory
from tests.bench.repeated import bench_photos, write_repeated
from tests.conftest import REPO, job_environment

SCALES, SHARDS, PER_SHARD = (1, 4, 16), 16, 50
SETTINGS = (
    "--embedder=none", "--filters.skip=[exact_duplicate,near_duplicate,off_subject]",
    "--filters.no_pair.min_similarity=0", "--plan.max_triplets_per_subject=1", "--shards.image_size=null",
    "--shards.shard_mib=16",
)  # fmt: skip
ROWS = int(os.environ.get("LOOKALIKE_BENCH_ROWS", "10000000"))
COUNTS = tuple(int(count) for count in os.environ.get("LOOKALIKE_BENCH_SHARDS", "10,40,160,640").split(","))
SHARD_ROWS = int(os.environ.get("LOOKALIKE_BENCH_SHARD_ROWS", "2000"))
DIM = int(os.environ.get("LOOKALIKE_BENCH_DIM", "64"))
USUAL_DIM, USUAL_COUNT = 384, 160
OF_A_SUBJECT, MANY_SHARDS = 10, 1_000
ONE_IN = 100  # images that repeat a file of another raw shard, and that are a near copy of one
CPU_GROWS, GETS_GROW, BYTES_READ, MEMORY_GROWS = 1.5, 2.0, 4.0, 1.1
SECONDS, MIB = 360, 4096  # of ten million rows

pytestmark = pytest.mark.timeout(14400)


def test_time_grows_linearly_with_shards(bench_folder: Path, tmp_path: Path) -> None:
    photos = bench_photos()
    found: dict[int, dict[str, float]] = {}
    for scale in SCALES:
        raw = write_repeated(bench_folder / f"scale-raw-{scale}", photos, scale * SHARDS, PER_SHARD)
        dataset = tmp_path / f"dataset-{scale}"
        argv = [
            sys.executable,
            str(REPO / "jobs" / "curate.py"),
            "run",
            "--raw",
            str(raw),
            "--dataset",
            str(dataset),
            *SETTINGS,
        ]
        started = time.monotonic()
        with (tmp_path / "log").open("wb") as log:
            job = subprocess.Popen(argv, stdout=log, stderr=log, cwd=REPO, env=job_environment({}))
            with PeakMemory(job.pid) as peak:
                assert job.wait() == 0, (tmp_path / "log").read_text()[-4000:]
        found[scale] = {
            "shards": scale * SHARDS,
            "images": scale * SHARDS * PER_SHARD,
            "seconds": round(time.monotonic() - started, 1),
            "driver_mib": round(peak.own / 2**20),
            "all_processes_mib": round(peak.tree / 2**20),
        }
        print(found[scale], flush=True)
    record = {
        "command": "LOOKALIKE_BENCH_PHOTOS=dreambooth-dev python -m pytest tests/bench -k scale -s",
        "runs": list(found.values()),
        "time_4_to_1": round(found[4]["seconds"] / found[1]["seconds"], 2),
        "time_16_to_4": round(found[16]["seconds"] / found[4]["seconds"], 2),
        "memory_4_to_1": round(found[4]["all_processes_mib"] / found[1]["all_processes_mib"], 3),
        "driver_16_to_1": round(found[16]["driver_mib"] / found[1]["driver_mib"], 3),
    }
    keep("curation-scale", record)
    assert max(record["time_4_to_1"], record["time_16_to_4"]) <= 4.4
    assert record["memory_4_to_1"] <= 1.2
    assert record["driver_16_to_1"] <= 1.1


def test_the_cost_of_an_image_does_not_grow_with_shards(tmp_path: Path) -> None:
    os.environ |= RETURNED_MEMORY  # of the process that is measured, as of a worker
    runs = [apart(tmp_path, count) for count in COUNTS]
    os.environ["LOOKALIKE_BENCH_DIM"] = str(USUAL_DIM)
    usual = {count: apart(tmp_path, count)["all"] for count in (COUNTS[0], min(COUNTS[-1], USUAL_COUNT))}
    first = runs[0]["all"]
    record = {
        "command": f"LOOKALIKE_BENCH_DIM={DIM} python -m pytest tests/bench -k cost_of_an_image -s",
        "rows_of_a_shard": SHARD_ROWS,
        "dimension": DIM,
        "runs": dict(zip(map(str, COUNTS), runs, strict=True)),
        "cpu_grows": round(max(run["all"]["us_per_row"] for run in runs) / first["us_per_row"], 2),
        "gets_grow": round(max(run["all"]["gets_per_shard"] for run in runs) / first["gets_per_shard"], 2),
        "bytes_read": max(run["all"]["bytes_read"] for run in runs),
        f"at_{USUAL_DIM}_dimensions": usual,
        "memory_grows": round(max(run["all"]["peak_mib"] for run in runs) / first["peak_mib"], 2),
    }
    keep("curation-scale-cost", record)
    assert record["cpu_grows"] <= CPU_GROWS
    assert record["gets_grow"] <= GETS_GROW
    assert max(run["bytes_read"] for run in usual.values()) <= BYTES_READ
    assert record["memory_grows"] <= MEMORY_GROWS


def test_many_rows_are_planned_in_bounded_time_and_memory(tmp_path: Path) -> None:
    stage = synthetic_stage(tmp_path, MANY_SHARDS, ROWS // MANY_SHARDS)
    import ray

    ray.init(address="local", num_cpus=2, include_dashboard=False, object_store_memory=512 << 20, log_to_driver=False)
    try:
        started = time.monotonic()
        with PeakMemory(os.getpid()) as peak:
            stage = run_row_stages(stage)
        seconds = time.monotonic() - started
    finally:
        ray.shutdown()
    summary = Summary()
    for partition in range(stage.partitions):
        summary.add(stage.read_summary(partition))
    assert stage.images == summary.images == summary.kept + summary.dropped.total()
    record = {
        "command": f"LOOKALIKE_BENCH_ROWS={ROWS} python -m pytest tests/bench -k many_rows -s",
        "rows": stage.images,
        "raw_shards": MANY_SHARDS,
        "dimension": DIM,
        "ranges_of_subjects": stage.partitions,
        "seconds": round(seconds, 1),
        "dropped": dict(summary.dropped),
        "triplets": summary.triplets,
        "driver_mib": round(peak.own / 2**20),
        "all_processes_mib": round(peak.tree / 2**20),
    }
    keep("curation-scale-rows", record)
    if ROWS == 10_000_000:
        assert record["seconds"] <= SECONDS
        assert record["all_processes_mib"] <= MIB


def apart(folder: Path, count: int) -> dict[str, dict[str, float]]:
    """Measure so many raw shards in a process of their own."""
    place = folder / f"shards-{count}"
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        costs = pool.submit(measure, place, count).result()
    rmtree(place)
    print(_shown(costs), flush=True)
    return costs


class Counting:
    """A store that counts its requests, and the bytes that are read."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.gets = self.bytes = self.puts = self.others = 0

    def __getattr__(self, name: str) -> Any:
        if name in ("exists", "list", "delete", "create"):
            self.others += 1
        return getattr(self._store, name)

    def read(self, key: str) -> bytes:
        return self._counted(self._store.read(key))

    def read_range(self, key: str, offset: int, length: int) -> bytes:
        return self._counted(self._store.read_range(key, offset, length))

    def write(self, key: str, data: bytes) -> None:
        self.puts += 1
        self._store.write(key, data)

    def _counted(self, data: bytes) -> bytes:
        self.gets += 1  # of several threads: a lost count is one of thousands
        self.bytes += len(data)
        return data


def measure(folder: Path, shards: int) -> dict[str, dict[str, float]]:
    """Run the stages in this process over so many raw shards; return the cost of each, and of ``all``."""
    stage = synthetic_stage(folder, shards, SHARD_ROWS)
    store = Counting(stage.dataset)
    stage = replace(stage, dataset=store)
    tables = sum(shard.rows.size + shard.vectors.size for shard in stage.shards)
    rows = shards * SHARD_ROWS
    costs: dict[str, dict[str, float]] = {}

    def add(name: str, seconds: float, before: tuple[int, int, int]) -> None:
        cost = costs.setdefault(
            name, dict.fromkeys(("us_per_row", "gets_per_shard", "puts_per_shard", "bytes_read"), 0.0)
        )
        cost["us_per_row"] += seconds / rows * 1e6
        gets, size, puts = (new - old for new, old in zip((store.gets, store.bytes, store.puts), before, strict=True))
        cost["gets_per_shard"] += gets / shards
        cost["puts_per_shard"] += puts / shards
        cost["bytes_read"] += size / tables
        cost["peak_mib"] = max(cost.get("peak_mib", 0.0), _peak_bytes() / 2**20)

    def in_process(task: Any, shared: Any, units: Units, *, noun: str = "") -> Iterator[pa.Table]:
        before, started = (store.gets, store.bytes, store.puts), time.process_time()
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins again
        yield from run_units(lambda shared: partial(task, shared), shared, units, ActorConfig(count=0), noun=noun)
        add(noun, time.process_time() - started, before)

    before, started = (store.gets, store.bytes, store.puts), time.process_time()
    with patch("pipelines.curate.row_stages.run_tasks", in_process):
        stage = run_row_stages(stage)
    peak = max(cost["peak_mib"] for cost in costs.values())
    add("all", time.process_time() - started, before)
    costs["all"]["peak_mib"] = peak
    assert stage.images == rows
    assert stage.linked
    return {name: {key: round(value, 2) for key, value in cost.items()} for name, cost in costs.items()}


def _peak_bytes() -> int:
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) << 10  # type: ignore[index]


def _shown(run: dict[str, dict[str, float]]) -> str:
    lines = [f"{'stage':32}" + "".join(f"{name:>16}" for name in run["all"])]
    lines += [f"{name:32}" + "".join(f"{value:16.2f}" for value in cost.values()) for name, cost in run.items()]
    return "\n".join(lines)


def synthetic_stage(folder: Path, shards: int, rows: int) -> StageWork:
    """The tables that the index would have written, of subjects whose photos lie about a direction of their own."""
    config = CurateConfig(raw=str(folder / "raw"), dataset=str(folder / "dataset"))
    raw, dataset = open_store(config.raw), open_store(config.dataset)
    for shard in range(shards):
        raw.write(f"shard-{shard:06d}.tar", b"")
    inputs = Inputs.of(config, list_raw(config.raw, dataset).shards)
    before = _Contents.of(shards - 1, rows)
    notes = {"members": PassedOver().to_json(), "unpacked": False}
    for shard, number in zip(inputs.ids, inputs.units, strict=True):
        own = _Contents.of(number, rows)
        table, vectors = _tables(number, own.repeating(before, number))
        write_table(dataset, inputs.workspace.rows(shard), with_notes(table, notes))
        write_table(dataset, inputs.workspace.vectors(shard), vectors)
        before = own
    return StageWork.of(config, inputs)


@dataclass
class _Contents:
    """Images of a raw shard, before some of them are made copies of others."""

    digests: np.ndarray  # uint8 [N, 32]
    phash: np.ndarray  # uint64 [N]
    vectors: np.ndarray  # [N, D]

    @classmethod
    def of(cls, shard: int, rows: int) -> "_Contents":
        random = np.random.default_rng(shard)
        directions = random.normal(size=(-(-rows // OF_A_SUBJECT), DIM))
        vectors = np.repeat(directions, OF_A_SUBJECT, axis=0)[:rows] + random.normal(size=(rows, DIM)) * 0.6
        digests = np.frombuffer(random.bytes(32 * rows), np.uint8).reshape(rows, 32)
        phash = random.integers(0, 2**64, rows, np.uint64, endpoint=False)
        return cls(digests, phash, vectors / np.linalg.norm(vectors, axis=1, keepdims=True))

    def repeating(self, other: "_Contents", shard: int) -> "_Contents":
        """Return these images, of which some are files of ``other``, and some near copies."""
        random = np.random.default_rng([shard, 1])
        rows = len(self.phash)
        same, near = np.split(random.permutation(rows)[: 2 * (rows // ONE_IN)], 2)
        digests, phash, vectors = self.digests.copy(), self.phash.copy(), self.vectors.copy()
        digests[same], phash[same], vectors[same] = other.digests[same], other.phash[same], other.vectors[same]
        flips = np.uint64(1) << random.integers(0, 64, len(near), np.uint64)
        phash[near] = other.phash[near] ^ flips
        vectors[near] = other.vectors[near] + random.normal(size=(len(near), DIM)) * 0.02 / DIM**0.5
        return _Contents(digests, phash, vectors)


def _tables(shard: int, contents: _Contents) -> tuple[pa.Table, pa.Table]:
    rows = len(contents.phash)
    names = [f"subject-{shard:06d}-{number:06d}" for number in range(-(-rows // OF_A_SUBJECT))]
    place = np.repeat([subject_hash(name) for name in names], OF_A_SUBJECT)[:rows]
    order = np.argsort(place, kind="stable")
    constant = {
        "shard": f"shard-{shard:06d}.tar", "length": 100_000, "width": 1024, "height": 768, "class_name": "thing",
        "caption": "a thing on a table", "licence": "CC0-1.0", "consent": "", "source": "synthetic", "sharpness": 300.0,
        "luma_mean": 120.0, "luma_std": 50.0, "subject_area": None, "cut": False, "linked": False, "error": "",
        "note": "",
    }  # fmt: skip
    columns: dict[str, Any] = {name: [value] * rows for name, value in constant.items()}
    columns |= {
        "subject_hash": place[order],
        "subject": [names[i // OF_A_SUBJECT] for i in order],
        "key": [f"{shard:06d}-{i:06d}" for i in order],
        "offset": order.astype(np.int64) * 100_352 + 512,
        "sha256": [digest.tobytes().hex() for digest in contents.digests[order]],
        "phash": contents.phash[order],
    }
    table = pa.table({field.name: pa.array(columns[field.name], field.type) for field in IMAGE_SCHEMA})
    vectors = vectors_array(contents.vectors[order])
    return table, pa.table({"subject_hash": table["subject_hash"], "sha256": table["sha256"], "vector": vectors})
