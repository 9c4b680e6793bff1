"""Finish: join the tables of all partitions and shards, and write the report."""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa

from lookalike.config import canonical_json
from lookalike.data import triplets
from lookalike.data.parts import KINDS, Kind, Part, write_list, write_part
from lookalike.storage import Store, read_object, version_store
from pipelines.actors import Columns
from pipelines.curate.report import build_report, drift, render_report
from pipelines.curate.rows import IMAGES_SCHEMA
from pipelines.curate.summary import Summary
from pipelines.curate.tables import read_table
from pipelines.curate.work import MaterialiseWork
from pipelines.curate.workspace import REPORT_HTML, REPORT_JSON, TAKEN_DOWN_JSON, images_part, triplets_part

_LISTED = 1000  # parts in a list


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
    """Write the tables and the report of a version. One part is in memory at a time.

    Returns a row for each list of parts and each report: ``name``, ``sha256``, and of a list the ``kind`` and ``rows``.
    """
    done, version = work.materialised, work.materialised.version
    stage = done.stage
    files = [written for kind, parts in _parts(done) for written in _write_lists(version, kind, parts)]
    keys = (stage.workspace.part(version.name, shard.name, "parquet") for shard in done.shards)
    tables = (read_table(stage.dataset, key) for key in keys)
    report = build_report(stage, work.summary, work.manifest, version, tables)
    report["drift"] = _drift(stage.dataset, report, work.manifest["parent"])
    page = render_report(report, f"Curation report, version {work.manifest['version']}")
    texts = {REPORT_JSON: canonical_json(report), REPORT_HTML: page}
    if work.matched:
        texts[TAKEN_DOWN_JSON] = canonical_json(work.matched)
    for name, text in texts.items():
        version.write(name, text.encode())
        files.append({"name": name, "sha256": hashlib.sha256(text.encode()).hexdigest(), "kind": "", "rows": 0})
    return {name: np.array([file[name] for file in files]) for name in ("name", "sha256", "kind", "rows")}


def tables_of(files: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """Return ``tables`` of the manifest from the rows that :func:`finish` has returned: the lists of each table."""
    tables: dict[str, Any] = {kind: {"rows": 0, "lists": []} for kind in KINDS}
    for file in files:
        if file["kind"]:
            tables[file["kind"]]["rows"] += file["rows"]
            tables[file["kind"]]["lists"].append(file["name"])
    return tables


def _parts(done: MaterialiseWork) -> Iterator[tuple[Kind, Iterator[Part]]]:
    """Write the parts of each table, as they are asked for."""
    stage, version = done.stage, done.version
    planned = ((images_part(i), stage.read_plan(i, "images")) for i in range(stage.partitions))
    yield "images", (write_part(version, name, _as(table, IMAGES_SCHEMA)) for name, table in planned if len(table))
    for split in triplets.SPLITS:
        shards = [shard.name for shard in done.shards if shard.split == split]
        tables = (read_table(stage.dataset, stage.workspace.part(version.name, name, "parquet")) for name in shards)
        named = zip(map(triplets_part, shards), tables, strict=True)
        yield split, (write_part(version, name, _as(table, triplets.SCHEMA)) for name, table in named)


def _write_lists(version: Store, kind: Kind, parts: Iterator[Part]) -> Iterator[dict[str, Any]]:
    number = 0
    while some := list(islice(parts, _LISTED)):
        yield write_list(version, kind, number, some) | {"kind": kind}
        number += 1


def _drift(dataset: Store, report: dict[str, Any], parent: int | None) -> dict[str, Any] | None:
    """Return the drift since the parent snapshot; None without a parent, or if its report is missing."""
    before = None if parent is None else version_store(dataset, parent)
    if before is None or not before.exists(REPORT_JSON):
        return None
    return {"since": parent, **drift(report, read_object(before, REPORT_JSON))}


def _as(table: pa.Table, schema: pa.Schema) -> pa.Table:
    return table.select(schema.names).cast(schema)
