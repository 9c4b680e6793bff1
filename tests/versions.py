"""Write snapshot versions of given rows, as the software of their format does."""

import hashlib
import io
import json
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from lookalike.data import triplets
from lookalike.data.part_lists import KINDS, write_list
from lookalike.data.parts import write_part
from lookalike.storage import Store, version_store
from pipelines.curate.rows import IMAGES_SCHEMA, with_hashes

Rows = list[dict[str, Any]]


def hashed(data: str | bytes) -> str:
    """SHA-256 of bytes, or of a text, in hexadecimal digits."""
    return hashlib.sha256(data.encode() if isinstance(data, str) else data).hexdigest()


def publish(
    dataset: Store,
    number: int,
    images: Rows,
    rows: Rows,
    *,
    format_1: bool = False,
    per_part: int = 17,
    schema: pa.Schema = IMAGES_SCHEMA,
    **manifest_values: Any,
) -> Store:
    """Write a version with these images (of ``schema``) and triplets, which are in the order of subject hashes."""
    version = version_store(dataset, number)
    tables = {"images": pa.Table.from_pylist(images, schema)}
    for split in triplets.SPLITS:
        tables[split] = pa.Table.from_pylist([row for row in rows if row["split"] == split], triplets.SCHEMA)
    manifest: dict[str, Any] = {"version": number, "config": {}, "code_version": "1", "embedder": "none"}
    manifest |= {"inputs": {"raw": "file:///raw", "shards": {}, "fingerprint": "f"}, "files": {}}
    manifest |= manifest_values
    if format_1:
        both = pa.concat_tables([tables["train"], tables["validation"]])
        for name, table in (("images", tables["images"]), ("triplets", both)):
            buffer = io.BytesIO()
            pq.write_table(table, buffer, row_group_size=per_part)
            version.write(f"{name}.parquet", buffer.getvalue())
            manifest["files"][f"{name}.parquet"] = hashed(buffer.getvalue())
    else:
        manifest |= {"format": 2, "tables": {}}
        for kind in KINDS:
            table = tables[kind] if kind == "images" else with_hashes(tables[kind])
            slices = [table.slice(first, per_part) for first in range(0, len(table), per_part)]
            parts = [write_part(version, f"{kind}/{i}.parquet", part) for i, part in enumerate(slices)]
            lists = [write_list(version, kind, i, parts[i * 3 : i * 3 + 3]) for i in range(-(-len(parts) // 3))]
            manifest["tables"][kind] = {"rows": len(table), "lists": [entry["name"] for entry in lists]}
            manifest["files"] |= {entry["name"]: entry["sha256"] for entry in lists}
    version.write("manifest.json", json.dumps(manifest).encode())
    return version
