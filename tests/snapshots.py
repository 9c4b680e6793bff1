"""Write the tables of a snapshot for tests, as curation does."""

import hashlib
from collections.abc import Iterable, Mapping
from io import BytesIO
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from lookalike.data.part_lists import FORMAT, KINDS, PACK_SCHEMA, write_list, write_pack_list
from lookalike.data.parts import write_part
from lookalike.data.shards import Sample, write_tar
from lookalike.storage import Store


def write_pack(dataset: Store, samples: Iterable[tuple[str, Mapping[str, bytes]]]) -> tuple[str, list[Sample]]:
    """Write a pack; return its key and the places of its samples."""
    buffer = BytesIO()
    places = write_tar(buffer, samples)
    key = f"shards/{hashlib.sha256(buffer.getvalue()).hexdigest()}.tar"
    dataset.write(key, buffer.getvalue())
    return key, places


def write_tables(version: Store, triplets: pa.Table, rows_per_part: int = 100) -> dict[str, Any]:
    """Write the triplets, in parts; return ``format``, ``tables`` and ``files`` of the manifest.

    Packs that exist below the version's parent are those of the version.
    """
    tables: dict[str, Any] = {kind: {"rows": 0, "lists": []} for kind in (*KINDS, "shards")}
    files: dict[str, str] = {}
    names = ("name", "rows", "size", "sha256")
    packs = [
        dict(zip(names, (info.key, 1, info.size, info.key[7:-4]), strict=True))
        for info in version.parent.list("shards/")
    ]
    written = write_pack_list(version, 0, pa.Table.from_pylist(packs, PACK_SCHEMA))
    tables["shards"] = {"rows": len(packs), "lists": [written["name"]]}
    files[written["name"]] = written["sha256"]
    for split in ("train", "validation"):
        rows = triplets.filter(pc.equal(triplets["split"], split))
        parts = [
            write_part(version, f"triplets/{split}-{number:06d}.parquet", rows.slice(first, rows_per_part))
            for number, first in enumerate(range(0, len(rows), rows_per_part))
        ]
        if parts:
            written = write_list(version, split, 0, parts)
            tables[split] = {"rows": written["rows"], "lists": [written["name"]]}
            files[written["name"]] = written["sha256"]
    return {"format": FORMAT, "tables": tables, "files": files}
