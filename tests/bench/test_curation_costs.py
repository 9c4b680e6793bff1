"""Measure curation in seconds of one core, step by step, and project the cost of a billion images.

    LOOKALIKE_BENCH_PHOTOS=FOLDER python -m pytest tests/bench -k costs -s

Writes results/curation-costs.json. Time of this process's own CPU, one thread, local files: what a network or a disk
adds is not in it, nor Ray.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from lookalike.annotators.embedder import load_embedder
from lookalike.storage import open_store
from pipelines.curate.config import CurateConfig, ShardsConfig
from pipelines.curate.index import read_images
from pipelines.curate.materialise import fit
from tests.bench.measured import keep
from tests.bench.repeated import bench_photos, write_repeated
from tests.bench.test_curation_scale import measure

SHARDS = 20  # of synthetic rows
STEPS = {
    "gather": "groups gathered",
    "compare": "ranges compared across subjects",
    "plan": "ranges of subjects planned",
}
BILLION = 10**9

pytestmark = pytest.mark.timeout(3600)


@contextmanager
def cpu_seconds(found: dict[str, float], name: str, divisor: float) -> Iterator[None]:
    """Set ``found[name]`` to the CPU seconds of the block, divided."""
    started = time.process_time()
    yield
    found[name] = (time.process_time() - started) / divisor


def projected(cost: dict[str, float], images: int) -> dict[str, float]:
    """Core hours of ``images`` images, all of them kept and scaled down. No step's cost per image depends on the number
    of images, but for the further levels of the shuffles, each of which costs less than gathering the rows."""
    return {name: round(images * seconds / 3600, 1) for name, seconds in cost.items()}


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
    rows = measure(tmp_path / "rows", SHARDS)
    for name, noun in STEPS.items():
        cost[name] = rows[noun]["us_per_row"] / 1e6
    record: dict[str, Any] = {
        "command": "LOOKALIKE_BENCH_PHOTOS=dreambooth-dev python -m pytest tests/bench -k costs -s",
        "core_ms": {name: round(seconds * 1000, 4) for name, seconds in cost.items()},
        "projected_core_hours_of_a_billion_images": projected(cost, BILLION),
    }
    keep("curation-costs", record)
    assert all(seconds > 0 for seconds in cost.values())
