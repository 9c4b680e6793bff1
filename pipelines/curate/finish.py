"""Finish: list the parts of all units, add the summaries of all partitions, and write the report."""

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from lookalike.config import canonical_json
from lookalike.data import triplets
from lookalike.data.part_lists import KINDS, PACK_SCHEMA, write_list, write_pack_list
from lookalike.documents import parse_record
from lookalike.storage import Store, read_object, version_store
from pipelines.actors import Columns
from pipelines.curate.examples import Examples
from pipelines.curate.materialised import LISTED, Done, MaterialiseWork
from pipelines.curate.report import build_report, drift, render_report
from pipelines.curate.summary import Summary
from pipelines.curate.work import StageWork
from pipelines.curate.workspace import REPORT_HTML, REPORT_JSON, TAKEN_DOWN_JSON, pack_hash

_SUMMARIES = 256  # that one task adds
_AT_ONCE = 16  # requests
_COUNTS = ("images_stored", "bytes_stored", "images_reused", "bytes_reused")


@dataclass(frozen=True)
class Group:
    """What the lists of up to 1,000 units hold together: the content of their record."""

    lists: list[dict[str, Any]]
    """``kind``, ``name``, ``sha256`` and ``rows`` of each list, and ``first_hash`` of a list of images."""
    counts: dict[str, int]
    """Images and bytes, stored and reused."""
    examples: dict[str, list[dict[str, Any]]]
    """As :class:`Examples` chooses them."""


@dataclass(frozen=True)
class FinishWork:
    """What the task that writes the report gets."""

    materialised: MaterialiseWork
    summary: Summary
    manifest: dict[str, Any]
    """The manifest, except the hashes of the reports."""
    examples: list[dict[str, Any]]
    """Triplets to show."""
    matched: dict[str, int] = field(default_factory=dict)
    """Images that each entry of the take-down list names, if the list is too long for the manifest."""


def summaries(work: StageWork) -> int:
    """Return the number of units of :func:`add_summaries`."""
    return -(-work.partitions // _SUMMARIES)


def add_summaries(work: StageWork, unit: int) -> Columns:
    """Add the summaries of a few partitions; returns the sum as JSON, for :func:`total`."""
    summary = Summary()
    partitions = range(unit * _SUMMARIES, min((unit + 1) * _SUMMARIES, work.partitions))
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        for each in pool.map(work.read_summary, partitions):
            summary.add(each)
    return {"summary": np.array([canonical_json(vars(summary))], object)}


def total(tables: Iterable[pa.Table]) -> Summary:
    """Add what :func:`add_summaries` has returned, by unit."""
    parts = {table["unit"][0].as_py(): table["summary"][0].as_py() for table in tables}
    summary = Summary()
    for unit in sorted(parts):
        summary.add(parse_record(Summary, parts[unit], f"the sum of summaries {unit}"))
    return summary


def groups(work: MaterialiseWork) -> int:
    """Return the number of units of :func:`list_parts`."""
    return -(-work.layout.units // LISTED)


def list_parts(work: MaterialiseWork, number: int) -> Columns:
    """Write the lists of the parts and packs of up to 1,000 units, unless that is done; returns the :class:`Group`."""
    store, key = work.stage.dataset, work.stage.workspace.listed(work.name, number)
    if store.exists(key):
        group = parse_record(Group, store.read(key), store.uri_of(key))
        if all(work.version.exists(each["name"]) for each in group.lists):
            return _columns(group)
    units = range(number * LISTED, min((number + 1) * LISTED, work.layout.units))
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        group = _list(work, number, pool.map(lambda unit: Done.of(work, unit), units))
    store.write(key, canonical_json(vars(group)).encode())
    return _columns(group)


def join_groups(tables: Iterable[pa.Table]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return the members ``tables``, ``files`` and ``counts`` of the manifest, and examples of triplets.

    ``tables`` are what :func:`list_parts` has returned for each group, in any order.
    """
    texts = {table["unit"][0].as_py(): table["group"][0].as_py() for table in tables}
    manifest: dict[str, Any] = {"tables": {kind: {"rows": 0, "lists": []} for kind in (*KINDS, "shards")}, "files": {}}
    manifest["tables"]["images"]["first_hashes"] = []
    counts, examples = Counter[str](), Examples()
    for number in sorted(texts):
        group = parse_record(Group, texts[number], f"the lists {number}")
        counts.update(group.counts)
        examples.merge(group.examples)
        for each in group.lists:
            table = manifest["tables"][each["kind"]]
            table["rows"] += each["rows"]
            table["lists"].append(each["name"])
            manifest["files"][each["name"]] = each["sha256"]
            if each["kind"] == "images":
                table["first_hashes"].append(each["first_hash"])
    rows = {split: manifest["tables"][split]["rows"] for split in triplets.SPLITS}
    manifest["counts"] = {"triplets": rows} | {name: counts[name] for name in _COUNTS}
    return manifest, examples.rows()


def finish(work: FinishWork, unit: int) -> Columns:
    """Write the report of a version, and the take-down list's matches; returns ``name`` and ``sha256`` of each file."""
    done, version = work.materialised, work.materialised.version
    report = build_report(done.stage, work.summary, work.manifest, version, work.examples)
    report["drift"] = _drift(done.stage.dataset, report, work.manifest["parent"])
    page = render_report(report, f"Curation report, version {work.manifest['version']}")
    texts = {REPORT_JSON: canonical_json(report), REPORT_HTML: page}
    if work.matched:
        texts[TAKEN_DOWN_JSON] = canonical_json(work.matched)
    for name, text in texts.items():
        version.write(name, text.encode())
    hashes = [hashlib.sha256(text.encode()).hexdigest() for text in texts.values()]
    return {"name": np.array(list(texts)), "sha256": np.array(hashes)}


def _list(work: MaterialiseWork, number: int, units: Iterator[Done]) -> Group:
    parts: dict[str, list[Any]] = {kind: [] for kind in KINDS}
    used, sizes, counts, examples = Counter[str](), dict[str, int](), Counter[str](), Examples()
    for done in units:
        for kind, part in done.parts.items():
            parts[kind].append(part)
        for pack, (images, size) in done.packs.items():
            used[pack] += images
            sizes[pack] = size
        counts.update({name: getattr(done, name) for name in _COUNTS})
        examples.merge(done.examples)
    lists = [
        write_list(work.version, kind, number, of_kind) | {"kind": kind, "first_hash": of_kind[0].first_hash}
        for kind, of_kind in parts.items()
        if of_kind
    ]
    packs = [{"name": key, "rows": used[key], "size": sizes[key], "sha256": pack_hash(key)} for key in sorted(used)]
    if packs:
        table = pa.Table.from_pylist(packs, PACK_SCHEMA)
        lists.append(write_pack_list(work.version, number, table) | {"kind": "shards", "first_hash": None})
    return Group(lists, dict(counts), examples.chosen)


def _columns(group: Group) -> Columns:
    return {"group": np.array([canonical_json(vars(group))], object)}


def _drift(dataset: Store, report: dict[str, Any], parent: int | None) -> dict[str, Any] | None:
    """Return the drift since the parent snapshot; None without a parent, or if its report is missing."""
    before = None if parent is None else version_store(dataset, parent)
    if before is None or not before.exists(REPORT_JSON):
        return None
    return {"since": parent, **drift(report, read_object(before, REPORT_JSON))}
