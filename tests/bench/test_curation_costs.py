"""Measure curation in seconds of one core, step by step, and project the cost of a billion images.

    LOOKALIKE_BENCH_PHOTOS=FOLDER python -m pytest tests/bench -k costs -s

Writes results/curation-costs.json. Time of this process's own CPU, one thread, local files: what a network or a disk
adds is not in it, nor Ray, nor the search for near copies across subjects.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from lookalike.annotators.embedder import load_embedder
from lookalike.storage import open_store
from pipelines.curate.config import CurateConfig, PlanConfig, ShardsConfig
from pipelines.curate.duplicates import find_duplicates
from pipelines.curate.index import read_images
from pipelines.curate.materialise import fit
from pipelines.curate.plan import plan_partition
from pipelines.curate.screen import screen_shard
from pipelines.curate.tables import read_part
from pipelines.curate.work import CONTENT_ROWS
from tests.bench.measured import keep
from tests.bench.repeated import bench_photos, write_repeated
from tests.bench.test_curation_scale import synthetic_stage

ROWS, ROWS_PER_SHARD = 40_000, 10_000
RANGE = 20_000  # rows that are planned at once: the default
BILLION = 10**9
RANGES_OF = {"default": RANGE, "ten times the memory": 10 * RANGE}

pytestmark = pytest.mark.timeout(3600)


@contextmanager
def cpu_seconds(found: dict[str, float], name: str, divisor: float) -> Iterator[None]:
    """Set ``found[name]`` to the CPU seconds of the block, divided."""
    started = time.process_time()
    yield
    found[name] = (time.process_time() - started) / divisor


def projected(cost: dict[str, float], images: int, rows_per_shard: int, rows_per_range: int) -> dict[str, float]:
    """Core hours of ``images`` images in shards of ``rows_per_shard``, all of them kept and scaled down.

    images · (index + embed + plan_row + scale_down); besides, each range of content hashes reads all rows, and each
    range of subjects opens the two tables of each raw shard.
    """
    shards, ranges = images / rows_per_shard, images / rows_per_range
    seconds = {
        "index": images * cost["index"],
        "embed (CPU)": images * cost["embed"],
        "equal files": images * max(1.0, images / CONTENT_ROWS) * cost["duplicates_row"],
        "plan: rows": images * cost["plan_row"],
        "plan: opening tables": 2 * ranges * shards * cost["open"],
        "scale down": images * cost["scale_down"],
    }
    return {name: round(value / 3600, 1) for name, value in seconds.items()}


def test_costs_of_each_step_and_of_a_billion_images(tmp_path: Path) -> None:
    import torch

    torch.set_num_threads(1)
    cost: dict[str, float] = {}
    raw = open_store(str(write_repeated(tmp_path / "photos", bench_photos(), 1, 105)))
    config = CurateConfig(raw=raw.uri, dataset=raw.uri)
    with cpu_seconds(cost, "index", 105), Path(tmp_path / "photos" / "shard-000000.tar").open("rb") as file:
        pixels = [image for _, image in read_images(file, "shard", config) if image is not None]
    embed = load_embedder(config.embedder)
    embed(pixels[:1])
    with cpu_seconds(cost, "embed", 32):
        embed(pixels[:32])
    files = [path.read_bytes() for path in bench_photos()[:32]]
    with cpu_seconds(cost, "scale_down", len(files)):
        for data in files:
            fit(data, ShardsConfig())
    config = CurateConfig(
        raw=str(tmp_path / "raw"), dataset=str(tmp_path / "dataset"), plan=PlanConfig(rows_per_partition=RANGE)
    )
    stage = synthetic_stage(config, ROWS, ROWS_PER_SHARD)
    for unit in stage.inputs.units:
        screen_shard(stage, unit)
    find_duplicates(stage, 0)  # warm
    stage.dataset.delete(next(info.key for info in stage.dataset.list("work/duplicates") if "subject_hash" in info.key))
    with cpu_seconds(cost, "duplicates_row", ROWS):
        find_duplicates(stage, 0)
    nowhere = (2**62 - 2, 2**62 - 1)
    tables = [*stage.rows, *stage.vectors] * 5
    with cpu_seconds(cost, "open", len(tables)):
        for info in tables:
            assert len(read_part(stage.dataset, info, nowhere)) == 0
    with cpu_seconds(cost, "plan_row", 1):
        plan_partition(stage, 0)
    cost["plan_row"] = (cost["plan_row"] - 2 * len(stage.rows) * cost["open"]) / stage.read_summary(0).images
    record: dict[str, Any] = {
        "command": "LOOKALIKE_BENCH_PHOTOS=dreambooth-dev python -m pytest tests/bench -k costs -s",
        "core_ms": {name: round(seconds * 1000, 4) for name, seconds in cost.items()},
        "projected_core_hours_of_a_billion_images": {
            f"{rows:,} rows in a range ({name}), {ROWS_PER_SHARD:,} images in a shard": projected(
                cost, BILLION, ROWS_PER_SHARD, rows
            )
            for name, rows in RANGES_OF.items()
        },
    }
    keep("curation-costs", record)
    assert all(seconds > 0 for seconds in cost.values())
