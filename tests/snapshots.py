"""Write the tables of a snapshot for tests, as curation does."""

from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from lookalike.data.parts import FORMAT, KINDS, write_list, write_part
from lookalike.storage import Store


def write_tables(version: Store, triplets: pa.Table, rows_per_part: int = 100) -> dict[str, Any]:
    """Write the triplets, in parts; return ``format``, ``tables`` and ``files`` of the manifest."""
    tables: dict[str, Any] = {kind: {"rows": 0, "lists": []} for kind in KINDS}
    files: dict[str, str] = {}
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
