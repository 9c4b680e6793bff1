"""Measure the plan of tables of rows in memory: CPU time per row by photos of a subject, and of one large subject.

    python -m pytest tests/bench/test_plan_speed.py -s

Writes results/plan-speed.json: microseconds of this process's CPU per row, the median of five. Reading the rows is not
in it; ``write`` is the time to write the planned tables to local files.
"""

import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from lookalike.storage import open_store
from pipelines.curate.config import CurateConfig
from pipelines.curate.plan_rows import Planned, plan_rows
from pipelines.curate.rows import ROW_SCHEMA, subject_hash
from pipelines.curate.tables import write_table
from tests.bench.measured import keep

ROWS, DIM, REPEATS = 20_000, 64, 5
MIXED, SHARES = [1, 2, 3, 5, 8, 10, 20, 50, 120], [0.2, 0.2, 0.1, 0.1, 0.1, 0.15, 0.1, 0.04, 0.01]
MAX_US_PER_ROW = 15.0
CONFIG = CurateConfig(raw="raw", dataset="dataset")

pytestmark = pytest.mark.timeout(1800)


def test_cost_of_a_row_by_photos_of_a_subject(tmp_path: Path) -> None:
    mixed = np.random.default_rng(0).choice(MIXED, 4 * ROWS // 10, p=SHARES)
    mixed = mixed[np.cumsum(mixed) <= ROWS].tolist()
    cases: dict[str, tuple[dict[str, Any], int]] = {
        **{f"{n} photos": (synthetic([n] * (ROWS // n), DIM), ROWS) for n in (1, 2, 5, 10, 50)},
        "1 to 120 photos": (synthetic(mixed, DIM), sum(mixed)),
        "1 to 120 photos, a third dropped, texts to cut": (messy(synthetic(mixed, DIM)), sum(mixed)),
        "10 photos, 200,000 rows": (synthetic([10] * ROWS, DIM), 10 * ROWS),
        "10 photos, 1280 dimensions": (synthetic([10] * (ROWS // 10), 1280), ROWS),
        "200,000 photos of one subject": (synthetic([10 * ROWS], DIM), 10 * ROWS),
    }
    microseconds, planned = {}, dict[str, Planned]()
    for name, (arguments, rows) in cases.items():
        seconds = []
        for _ in range(REPEATS):
            started = time.process_time()
            planned[name] = plan_rows(**arguments, config=CONFIG)
            seconds.append(time.process_time() - started)
        microseconds[name] = round(statistics.median(seconds) / rows * 1e6, 2)
        print(name, microseconds[name], flush=True)
    store, typical = open_store(str(tmp_path)), planned["10 photos"]
    started = time.process_time()
    for key, table in (("images", typical.images), ("subjects", typical.subjects)):
        write_table(store, key, table)
    record = {
        "command": "python -m pytest tests/bench/test_plan_speed.py -s",
        "rows": ROWS,
        "dimensions": DIM,
        "microseconds_per_row": microseconds,
        "write_microseconds_per_row": round((time.process_time() - started) / ROWS * 1e6, 2),
        "triplets": {name: each.summary.triplets for name, each in planned.items()},
    }
    keep("plan-speed", record)
    assert microseconds["10 photos"] <= MAX_US_PER_ROW


def synthetic(sizes: list[int], dimensions: int) -> dict[str, Any]:
    """Arguments of :func:`plan_rows`: good photos of subjects of these sizes, each about a direction of its own."""
    random = np.random.default_rng(0)
    names = sorted((f"subject-{number:07d}" for number in range(len(sizes))), key=subject_hash)
    n, of = sum(sizes), np.repeat(np.arange(len(sizes)), sizes)
    vectors = np.empty((n, dimensions), np.float16)
    for first in range(0, n, ROWS):
        some = slice(first, first + ROWS)
        center = np.random.default_rng(1).standard_normal((len(sizes), dimensions), np.float32)[of[some]]
        vectors[some] = center + 0.6 * random.standard_normal(center.shape, np.float32)
    constant = {
        "shard": "shard-000000.tar", "length": 100_000, "width": 1024, "height": 768, "class_name": "thing",
        "caption": "a thing on a table", "licence": "CC0-1.0", "consent": "", "source": "synthetic", "sharpness": 300.0,
        "luma_mean": 120.0, "luma_std": 50.0, "subject_area": None, "cut": False, "linked": False, "error": "",
        "note": "", "unpacked": "",
    }  # fmt: skip
    columns: dict[str, Any] = {name: [value] * n for name, value in constant.items()}
    columns |= {
        "subject_hash": np.array([subject_hash(name) for name in names])[of],
        "subject": np.array(names, object)[of],
        "key": [f"{i:08d}" for i in range(n)],
        "offset": np.arange(n) * 100_352 + 512,
        "sha256": [random.bytes(32).hex() for _ in range(n)],
        "phash": random.integers(0, 2**63, n).astype(np.uint64),
    }
    return {
        "rows": pa.table({field.name: pa.array(columns[field.name], field.type) for field in ROW_SCHEMA}),
        "reasons": np.full(n, "", object),
        "vectors": vectors,
        "repeated": np.zeros(n, bool),
    }


def messy(arguments: dict[str, Any]) -> dict[str, Any]:
    """Let the screen drop a fifth of the photos, make a tenth copies of the one before, and captions too long."""
    random, rows = np.random.default_rng(2), arguments["rows"]
    n = len(rows)
    copies = np.flatnonzero(random.random(n) < 0.1)[1:]
    vectors, hashes = arguments["vectors"].copy(), rows["phash"].to_numpy().copy()
    vectors[copies], hashes[copies] = vectors[copies - 1], hashes[copies - 1]
    captions = random.choice(
        np.array(["a thing", "a <image> thing", "a long text " * 200], object), n, p=[0.8, 0.1, 0.1]
    )
    for name, values in (("phash", hashes), ("caption", captions)):
        rows = rows.set_column(rows.schema.get_field_index(name), name, pa.array(values))
    reasons = random.choice(np.array(["", "undecodable", "flat", "blurry"], object), n, p=[0.8, 0.1, 0.05, 0.05])
    return arguments | {"rows": rows, "reasons": reasons, "vectors": vectors}
