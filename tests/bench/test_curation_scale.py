"""Measure time and memory with more shards, and of a plan over synthetic rows.

    LOOKALIKE_BENCH_PHOTOS=FOLDER python -m pytest tests/bench -k scale -s

Writes results/curation-scale.json and results/curation-scale-plan.json. LOOKALIKE_BENCH_ROWS sets the rows of the plan
(1,000,000).
"""

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from lookalike.storage import open_store
from pipelines.actors import run_tasks
from pipelines.curate.config import CurateConfig
from pipelines.curate.duplicates import find_duplicates
from pipelines.curate.inputs import Inputs
from pipelines.curate.plan import plan_partition
from pipelines.curate.raw import list_raw
from pipelines.curate.rows import IMAGE_SCHEMA, subject_hash
from pipelines.curate.screen import screen_shard
from pipelines.curate.summary import Summary
from pipelines.curate.tables import vectors_array, write_table
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
ROWS = int(os.environ.get("LOOKALIKE_BENCH_ROWS", "1000000"))
DIM, OF_A_SUBJECT, ROWS_PER_SHARD = 64, 10, 50_000

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


def test_plan_over_many_rows_is_made_by_range(tmp_path: Path) -> None:
    config = CurateConfig(raw=str(tmp_path / "raw"), dataset=str(tmp_path / "dataset"))
    stage = synthetic_stage(config, ROWS)
    assert stage.images == ROWS
    seconds: dict[str, float] = {}
    import ray

    ray.init(address="local", num_cpus=2, include_dashboard=False, object_store_memory=512 << 20, log_to_driver=False)
    try:
        with PeakMemory(os.getpid()) as peak:
            for name, task, units in (
                ("screen", screen_shard, len(stage.rows)),
                ("duplicates", find_duplicates, stage.content_partitions),
                ("plan", plan_partition, stage.partitions),
            ):
                started = time.monotonic()
                assert sum(1 for _ in run_tasks(task, stage, units)) > 0
                seconds[name] = round(time.monotonic() - started, 1)
                print(name, seconds[name], flush=True)
    finally:
        ray.shutdown()
    summary = Summary()
    for partition in range(stage.partitions):
        summary.add(stage.read_summary(partition))
    record = {
        "command": f"LOOKALIKE_BENCH_ROWS={ROWS} python -m pytest tests/bench -k scale -s",
        "rows": ROWS,
        "subjects": ROWS // OF_A_SUBJECT,
        "dimension": DIM,
        "tables": len(stage.rows),
        "ranges_of_subjects": stage.partitions,
        "seconds": seconds,
        "rows_per_second": round(ROWS / sum(seconds.values())),
        "triplets": summary.triplets,
        "driver_mib": round(peak.own / 2**20),
        "all_processes_mib": round(peak.tree / 2**20),
    }
    keep("curation-scale-plan", record)
    assert summary.images == ROWS
    assert record["all_processes_mib"] <= 8 << 10


def synthetic_stage(config: CurateConfig, rows: int, rows_per_shard: int = ROWS_PER_SHARD) -> StageWork:
    """The tables that the index would have written, of subjects whose photos lie about a direction of their own."""
    raw, dataset = open_store(config.raw), open_store(config.dataset)
    shards = -(-rows // rows_per_shard)
    for shard in range(shards):
        raw.write(f"shard-{shard:06d}.tar", b"")
    inputs = Inputs.of(config, list_raw(config.raw, dataset).shards)
    for shard in inputs.units:
        table, vectors = _tables(shard, min(rows_per_shard, rows - shard * rows_per_shard))
        write_table(dataset, inputs.workspace.rows(shard), table)
        write_table(dataset, inputs.workspace.vectors(shard), vectors)
    return StageWork.of(config, inputs)


def _tables(shard: int, rows: int) -> tuple[pa.Table, pa.Table]:
    random = np.random.default_rng(shard)
    names = [f"subject-{shard:06d}-{number:06d}" for number in range(-(-rows // OF_A_SUBJECT))]
    place = np.repeat([subject_hash(name) for name in names], OF_A_SUBJECT)[:rows]
    directions = random.normal(size=(len(names), DIM)) / DIM**0.5
    vectors = np.repeat(directions, OF_A_SUBJECT, axis=0)[:rows] + random.normal(size=(rows, DIM)) * 0.6 / DIM**0.5
    order = np.argsort(place, kind="stable")
    digests = [random.bytes(32).hex() for _ in range(rows)]
    constant = {
        "shard": f"shard-{shard:06d}.tar", "length": 100_000, "width": 1024, "height": 768, "class_name": "thing",
        "caption": "a thing on a table", "licence": "CC0-1.0", "consent": "", "source": "synthetic", "sharpness": 300.0,
        "luma_mean": 120.0, "luma_std": 50.0, "subject_area": None, "cut": False, "error": "", "note": "",
    }  # fmt: skip
    columns: dict[str, Any] = {name: [value] * rows for name, value in constant.items()}
    columns |= {
        "subject_hash": place[order],
        "subject": [names[i // OF_A_SUBJECT] for i in order],
        "key": [f"{shard:06d}-{i:06d}" for i in order],
        "offset": order.astype(np.int64) * 100_352 + 512,
        "sha256": digests,
        "phash": random.integers(0, 2**63, rows).astype(np.uint64),
    }
    table = pa.table({field.name: pa.array(columns[field.name], field.type) for field in IMAGE_SCHEMA})
    unit = vectors[order] / np.linalg.norm(vectors[order], axis=1, keepdims=True)
    return table, pa.table(
        {"subject_hash": table["subject_hash"], "sha256": table["sha256"], "vector": vectors_array(unit)}
    )
