"""Project the cost of a billion images in 100,000 raw shards from what was measured, term by term.

    python -m pytest tests/bench -k cost_of_a_billion -s

Reads results/curation-scale-cost.json (``-k cost_of_an_image``, the run with most raw shards), measures what another
level of a shuffle costs, and writes results/cost-of-a-billion.json. All figures there are *projected*, at the dimension
of the measured run. Decoding, embedding and writing images are left out. Prices are the list prices of Amazon S3
Standard in us-east-1: $0.005 for 1,000 PUT or LIST requests, $0.0004 for 1,000 GET requests; transfer inside a region
is free.
"""

import json
import time
from pathlib import Path

import numpy as np
import pyarrow as pa

from lookalike.data.shuffle import Shuffle
from lookalike.storage import open_store
from pipelines.curate.near import SCHEMA as BAND_SCHEMA
from pipelines.curate.work import _BAND_IMAGES, _CONTENT_ROWS
from tests.bench.measured import RESULTS, keep

IMAGES, SHARDS, PER_RANGE = 10**9, 100_000, 20_000
ROWS, ROUNDS = 400_000, 3  # of the measurement of a level
PUT_PRICE, GET_PRICE = 5e-6, 4e-7  # US dollars a request
LATENCY_S, STREAM_BYTES_S, AT_ONCE = 0.02, 80e6, 16  # of a GET, of a stream, and requests of a task at once
CORE_HOURS = 60


def test_cost_of_a_billion_images(tmp_path: Path) -> None:
    record = json.loads((RESULTS / "curation-scale-cost.json").read_text())
    runs, dim = record["runs"], record["dimension"]
    largest = max(runs, key=int)
    measured = runs[largest]["all"]
    level_us = _another_level(tmp_path, dim)
    row_bytes = {"subjects": 90 + 2 * dim, "contents": CONTENT_SCHEMA_BYTES, "bands": 15 * BAND_BYTES}
    shuffles = {
        "subjects": IMAGES // PER_RANGE,
        "contents": IMAGES // _CONTENT_ROWS[1],
        "bands": IMAGES // _BAND_IMAGES[1],
    }
    store = open_store(str(tmp_path))
    schema = pa.schema([("key", pa.int64())])
    levels = {
        name: len(Shuffle.for_size(store, name, schema, "key", SHARDS, ranges).bits)
        for name, ranges in shuffles.items()
    }
    gets = puts = read = 0.0
    hours = {"stages at the measured cost of a row": measured["us_per_row"] * IMAGES / 3.6e9}
    for name, ranges in shuffles.items():
        shuffle = Shuffle.for_size(store, name, schema, "key", SHARDS, ranges)
        objects = SHARDS
        for level in range(2, len(shuffle.bits) + 1):
            units = shuffle.units(level)
            gets += units * (shuffle.group + 1)
            puts += 2 * units
            objects = units
        gets += shuffle.partitions * min(objects, shuffle._width(len(shuffle.bits)) + 1)
        puts += 2 * SHARDS
        read += IMAGES * row_bytes[name] * len(shuffle.bits)
        rows = 15 if name == "bands" else 1
        extra = (levels[name] - 1) * level_us["bands" if name == "bands" else "vectors"] * rows
        hours[f"levels of the shuffle of {name} beyond the first"] = extra * IMAGES / 3.6e9
    gets += 2 * SHARDS  # the tables of the index, once
    read += IMAGES * (90 + 2 * dim)
    tables = IMAGES * (90 + 2 * dim)
    waits = gets * LATENCY_S / AT_ONCE + read / STREAM_BYTES_S
    record = {
        "command": "python -m pytest tests/bench -k cost_of_a_billion -s",
        "projected": True,
        "images": IMAGES,
        "raw_shards": SHARDS,
        "dimension": dim,
        "measured_us_per_row": {"all stages": measured["us_per_row"], "raw_shards": int(largest), **level_us},
        "levels": levels,
        "core_hours": {name: round(value, 1) for name, value in hours.items()} | {"all": round(sum(hours.values()), 1)},
        "core_hours_of_waiting_for_the_store": round(waits / 3600, 1),
        "requests": {"get": round(gets), "put": round(puts)},
        "dollars_of_requests": round(gets * GET_PRICE + puts * PUT_PRICE, 2),
        "terabytes_read": round(read / 1e12, 2),
        "bytes_read_of_the_tables": round(read / tables, 2),
    }
    keep("cost-of-a-billion", record)
    assert record["core_hours"]["all"] <= CORE_HOURS


BAND_BYTES = 40  # of a row before compression
CONTENT_SCHEMA_BYTES = 72


def _another_level(folder: Path, dim: int) -> dict[str, float]:
    """CPU microseconds of a row for writing and reading it once more: of rows with vectors, and of band rows."""
    random = np.random.default_rng(0)
    vectors = pa.schema([("key", pa.int64()), ("text", pa.string()), ("vector", pa.list_(pa.float16(), dim))])
    tables = {
        "vectors": (vectors, lambda n: pa.table(
            {"key": random.integers(0, 2**62, n), "text": [f"a photo, number {i}, of a thing" for i in range(n)],
             "vector": pa.FixedSizeListArray.from_arrays(pa.array(random.random(n * dim).astype(np.float16)), dim)},
            vectors)),
        "bands": (BAND_SCHEMA, lambda n: pa.table(
            {field.name: random.integers(0, 2**31, n).astype(field.type.to_pandas_dtype()) for field in BAND_SCHEMA},
            BAND_SCHEMA)),
    }  # fmt: skip
    found: dict[str, float] = {}
    for name, (schema, make) in tables.items():
        seconds = []
        for number in range(ROUNDS):
            shuffle = Shuffle(open_store(str(folder)), f"{name}-{number}", schema, "key", 4, (7, 7), group=4)
            for unit in range(4):
                shuffle.write(unit, make(ROWS // 4))
            for parent in range(shuffle.indices(1)):
                shuffle.write_index(1, parent)
            started = time.process_time()
            for unit in range(shuffle.units(2)):
                shuffle.merge(2, unit)
            seconds.append(time.process_time() - started)
        found[name] = round(sorted(seconds)[ROUNDS // 2] / ROWS * 1e6, 2)
    return found
