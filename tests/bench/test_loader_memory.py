"""Memory of a loader over tables of 0.1, 1 and 10 million triplets: it must not grow with them.

    .venv/bin/pytest tests/bench/test_loader_memory.py -s

``LOADER_ROWS=10000,100000`` measures other sizes and keeps no result.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa

from lookalike.data.part_lists import FORMAT, KINDS, Part, write_list
from lookalike.data.parts import write_part
from lookalike.data.triplets import SCHEMA
from lookalike.storage import Store, open_store
from tests.bench.measured import keep

SIZES = (100_000, 1_000_000, 10_000_000)
MOST = 1.05  # memory over the largest table / memory over the smallest
_PART_ROWS = 8192
_PARTS_OF_A_LIST = 256
_READS = 2000  # random samples' rows
_BATCH = 16
_DISTINCT = 8  # parts that are made; the others are copies under other names
_WORDS = np.array([*"abcdefgh", "red", "blue", "mug", "beach", "light", "wooden", "table", "street"])


def test_memory_of_a_loader_does_not_grow_with_the_table(tmp_path: Path) -> None:
    asked = os.environ.get("LOADER_ROWS")
    sizes = [int(size) for size in asked.split(",")] if asked else SIZES
    runs = []
    for rows in sizes:
        bytes_of_tables = write_triplets(open_store(str(tmp_path / str(rows) / "v0001")), rows)
        command = [sys.executable, __file__, str(tmp_path / str(rows) / "v0001")]
        run = json.loads(  # resident_mb: peak of the process
            subprocess.run(command, check=True, capture_output=True, text=True).stdout
        )
        shutil.rmtree(tmp_path / str(rows))
        runs.append({"rows": rows, "bytes_a_row": round(bytes_of_tables / rows, 1), **run})
    growth = runs[-1]["resident_mb"] / runs[0]["resident_mb"]
    record = {"runs": runs, "growth": round(growth, 3), "reads": _READS, "rows_of_a_part": _PART_ROWS}
    if asked:
        print(json.dumps(record, indent=1))
    else:
        keep("loader-memory", record)
    assert growth <= MOST


def write_triplets(version: Store, rows: int) -> int:
    """Write ``rows`` training triplets and the manifest; return the bytes of the parts."""
    full, rest = divmod(rows, _PART_ROWS)
    names = [f"triplets/train-{number:06d}.parquet" for number in range(full + (rest > 0))]
    made = [write_part(version, name, _table(number)) for number, name in enumerate(names[:_DISTINCT])]
    contents = [version.read(part.name) for part in made]
    size, lists, files = 0, [], {}

    def parts(first: int) -> Iterator[Part]:
        nonlocal size
        for number in range(first, min(first + _PARTS_OF_A_LIST, full)):
            part = replace(made[number % len(made)], name=names[number])
            version.write(part.name, contents[number % len(made)])
            size += part.size
            yield part
        if rest and first <= full < first + _PARTS_OF_A_LIST:
            part = write_part(version, names[full], _table(full).slice(0, rest))
            size += part.size
            yield part

    for number, first in enumerate(range(0, len(names), _PARTS_OF_A_LIST)):
        written = write_list(version, "train", number, parts(first))
        lists.append(written["name"])
        files[written["name"]] = written["sha256"]
    tables = {kind: {"rows": 0, "lists": []} for kind in KINDS} | {"train": {"rows": rows, "lists": lists}}
    manifest = {"version": 1, "format": FORMAT, "tables": tables, "files": files, "parent": None, "latents": None}
    version.write("manifest.json", json.dumps(manifest).encode())
    return size


def _table(number: int) -> pa.Table:
    """Make the rows of a part as curation writes them: hashes that do not compress, prompts and subjects that do."""
    rng, count = np.random.default_rng(number), _PART_ROWS
    numbers = np.arange(number * count, (number + 1) * count)
    values: dict[str, pa.Array] = {}
    for field in SCHEMA:
        if field.name == "triplet_id":
            values[field.name] = pa.array([f"{number:016x}" for number in numbers])
        elif field.name == "prompt":
            values[field.name] = pa.array([" ".join(words) for words in rng.choice(_WORDS, (count, 12))])
        elif field.name in ("subject", "class_name", "split", "shard") or field.name.endswith("_shard"):
            text = {"split": "train", "class_name": "mug"}.get(field.name)
            values[field.name] = pa.array([text or f"{field.name}-{number // 8:010d}" for number in numbers])
        elif pa.types.is_string(field.type):  # hashes
            values[field.name] = pa.array(_hashes(rng, count))
        elif pa.types.is_integer(field.type):
            values[field.name] = pa.array(rng.integers(0, 2**28, count))
        else:  # a list with a value for each of two references
            item = field.type.value_type
            if pa.types.is_string(item):
                items = _hashes(rng, 2 * count)
            else:
                items = rng.integers(0, 2**28, 2 * count) if pa.types.is_integer(item) else rng.random(2 * count)
            offsets = pa.array(np.arange(0, 2 * count + 1, 2, dtype=np.int32))
            values[field.name] = pa.ListArray.from_arrays(offsets, pa.array(items).cast(item))
    return pa.table(values, SCHEMA)


def _hashes(rng: np.random.Generator, count: int) -> list[str]:
    return [rng.bytes(32).hex() for _ in range(count)]


def _read(version: str) -> None:
    """Read the rows of random samples as a loader does; print what it took."""
    import re
    import time

    from lookalike.training.epoch_plan import EpochPlan
    from pipelines.train.samples import TripletSource

    started = time.perf_counter()
    source = TripletSource(version, "train", bundle_uri="none")
    table = source.table()
    plan = EpochPlan(len(table), _BATCH, seed=0)
    opened = time.perf_counter()
    read = 0
    for step in range(_READS // _BATCH):
        rows = table.take(plan.slots(step)).to_pylist()
        read += len(rows)
    seconds = time.perf_counter() - opened
    (peak,) = re.findall(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    numbers = {"resident_mb": round(int(peak) * 1024 / 1e6, 1), "open_s": round(opened - started, 3)}
    print(json.dumps(numbers | {"rows_per_second": round(read / seconds, 1)}))


if __name__ == "__main__":
    _read(sys.argv[1])
