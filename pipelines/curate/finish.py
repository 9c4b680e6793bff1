"""Finish: join the tables of all partitions and shards, and write the report."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lookalike.config import canonical_json
from lookalike.data import triplets
from lookalike.scratch import scratch
from lookalike.storage import Store, read_object, version_store
from pipelines.actors import Columns
from pipelines.curate.report import build_report, drift, render_report
from pipelines.curate.rows import IMAGES_SCHEMA
from pipelines.curate.summary import Summary
from pipelines.curate.tables import read_table
from pipelines.curate.work import MaterialiseWork
from pipelines.curate.workspace import IMAGES_TABLE, REPORT_HTML, REPORT_JSON, TAKEN_DOWN_JSON


@dataclass(frozen=True)
class FinishWork:
    """What the task of this stage gets."""

    materialised: MaterialiseWork
    summary: Summary
    manifest: dict[str, Any]
    """The manifest, except the hashes of files."""
    matched: dict[str, int] = field(default_factory=dict)
    """Images that each entry of the take-down list names, if the list is too long for the manifest."""


def finish(work: FinishWork, unit: int) -> Columns:
    """Write the tables and the report of a version; return the hash of each. One part is in memory at a time."""
    done, version = work.materialised, work.materialised.version
    stage = done.stage
    hashes: dict[str, str] = {}
    with scratch("tables") as folder:
        images, table = folder / IMAGES_TABLE, folder / triplets.TABLE
        _join(images, IMAGES_SCHEMA, (stage.read_plan(i, "images") for i in range(stage.partitions)))
        keys = (stage.workspace.part(version.name, shard.name, "parquet") for shard in done.shards)
        _join(table, triplets.SCHEMA, (read_table(stage.dataset, key) for key in keys))
        for path in (images, table):
            version.upload(path.name, path)
            hashes[path.name] = hashlib.sha256(path.read_bytes()).hexdigest()
        report = build_report(stage, work.summary, work.manifest, table, version)
    report["drift"] = _drift(stage.dataset, report, work.manifest["parent"])
    page = render_report(report, f"Curation report, version {work.manifest['version']}")
    texts = {REPORT_JSON: canonical_json(report), REPORT_HTML: page}
    if work.matched:
        texts[TAKEN_DOWN_JSON] = canonical_json(work.matched)
    for name, text in texts.items():
        version.write(name, text.encode())
        hashes[name] = hashlib.sha256(text.encode()).hexdigest()
    return {"name": np.array(list(hashes), object), "sha256": np.array(list(hashes.values()), object)}


def _drift(dataset: Store, report: dict[str, Any], parent: int | None) -> dict[str, Any] | None:
    """Return the drift since the parent snapshot; None without a parent, or if its report is missing."""
    before = None if parent is None else version_store(dataset, parent)
    if before is None or not before.exists(REPORT_JSON):
        return None
    return {"since": parent, **drift(report, read_object(before, REPORT_JSON))}


def _join(path: Path, schema: pa.Schema, parts: Iterable[pa.Table]) -> None:
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        for part in parts:
            writer.write_table(part.select(schema.names).cast(schema))
