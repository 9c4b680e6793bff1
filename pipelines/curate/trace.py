"""Lineage: find the raw images of a triplet, and the triplets that use an image."""

import json
import logging
import re
from collections import Counter
from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from lookalike.config import canonical_json
from lookalike.data import triplets
from lookalike.data.part_lists import Kind
from lookalike.documents import decoding
from lookalike.errors import ConfigError, InputError
from lookalike.storage import Store, list_versions, open_store, read_manifest, version_store
from lookalike.values import configuration
from pipelines.actors import Columns, run_tasks
from pipelines.curate.rows import subject_hash
from pipelines.curate.snapshot_tables import FEW, Snapshot, SnapshotTable

log = logging.getLogger(__name__)

_TRIPLET_ID = re.compile(r"[0-9a-f]{20}(-[0-9a-f]{12})?-\d+")
_CONTENT = re.compile(r"[0-9a-f]{8,64}")
_SHOWN = 12  # maximum triplets of an image that are shown for a snapshot
_DROPPED_SHOWN = 100  # maximum dropped images of a hash: the same placeholder may have come in a million times
_IMAGE_COLUMNS = ("sha256", "key", "offset", "length", "subject", "licence", "source", "drop_reason", "shard")
_MEMBER_COLUMNS = ("triplet_id", "target_image", "reference_images")
_FIX = "restore it, or use another --version"


@configuration()
class TraceConfig:
    """Settings of a search for the raw images of a triplet, or for the triplets of an image."""

    id: str
    """Id of a triplet, or the SHA-256 of an image's bytes (its first 8 digits or more)."""
    dataset: str
    """URI of the prefix of the snapshots."""
    version: int | None = None
    """Version to search; null: all, the newest first."""
    json: bool = False
    """Print JSON."""

    def __post_init__(self) -> None:
        if not (_TRIPLET_ID.fullmatch(self.id) or _CONTENT.fullmatch(self.id)):
            raise ConfigError(
                "id is neither a triplet's id nor a content hash",
                value=self.id,
                fix="copy one from a version's triplets/ or images/; a hash needs 8 hexadecimal digits or more",
            )


def trace(config: TraceConfig) -> list[dict[str, Any]]:
    """Return what each snapshot contains about a triplet or an image, the newest snapshot first.

    For a triplet: ``version, triplet_id, split, subject, prompt, shard, images`` with the role and the place in the raw
    shards of each image. For an image: ``version, image`` with its place and drop reason, ``triplets`` (how many use
    it), ``splits`` (how many of each split) and ``examples`` of them.

    Raises InputError if no snapshot exists or contains it.
    """
    dataset = open_store(config.dataset)
    versions = [config.version] if config.version is not None else list_versions(dataset)[::-1]
    if not versions:
        raise InputError("the dataset has no complete snapshot", value=dataset.uri, fix="run jobs/curate.py run first")
    entries: list[dict[str, Any]] = []
    for version in versions:
        entries += entries_in(dataset, version, config.id)
    if not entries:
        names = ", ".join(f"v{version:04d}" for version in versions)
        what = f"no triplet or image with this id in {names}"
        raise InputError(what, value=config.id, fix="correct the id or --dataset")
    return entries


def entries_in(dataset: Store, version: int, wanted: str) -> list[dict[str, Any]]:
    """Return the entries of :func:`trace` of one version; none if it has no such triplet or image.

    Raises InputError if the version is missing or damaged.
    """
    of_one = _triplet if _TRIPLET_ID.fullmatch(wanted) else _image
    return of_one(_Version(dataset, version), wanted)


def render_trace(entries: list[dict[str, Any]]) -> str:
    """Return the entries as text for a terminal."""
    lines = []
    for entry in entries:
        version = f"v{entry['version']:04d}"
        if "triplet_id" in entry:
            lines.append(f"{version}  triplet {entry['triplet_id']} ({entry['split']}, {entry['subject']})")
            lines.append(f"       in {entry['shard']}: {entry['prompt']!r}")
            lines += [f"       {image['role']:<13}{_place(image)}" for image in entry["images"]]
            continue
        image = entry["image"]
        fate = f"dropped: {image['drop_reason']}" if image["drop_reason"] else f"in {entry['triplets']} triplets"
        lines.append(f"{version}  {_place(image)}  {fate}")
        lines += [f"       {example['role']:<13}of {example['triplet_id']}" for example in entry["examples"]]
    return "\n".join(lines)


def _place(image: dict[str, Any]) -> str:
    inside = "" if image["raw"].lower().endswith(".tar") else " of the tar inside"
    place = f"{image['raw']} at {image['offset']} + {image['length']}{inside}"
    return f"{image['sha256'][:12]}  {place}  key {image['key']}"


class _Version:
    """A version that is searched, with the store of its raw shards."""

    def __init__(self, dataset: Store, number: int) -> None:
        self.number, self.uri = number, version_store(dataset, number).uri
        manifest = read_manifest(dataset, number)
        with self.whole():
            self.raw = open_store(manifest["inputs"]["raw"])
        self.snapshot = Snapshot.of(dataset, number)

    def whole(self) -> Any:
        """Turn errors of what is missing in the version into an InputError."""
        return decoding("a whole snapshot", self.uri, fix=_FIX)

    def image(self, row: dict[str, Any]) -> dict[str, Any]:
        """A row of the image table as it is shown."""
        return {name: row[name] for name in _IMAGE_COLUMNS if name != "shard"} | {"raw": self.raw.uri_of(row["shard"])}


def _triplet(version: _Version, triplet_id: str) -> list[dict[str, Any]]:
    """All images of a triplet are of its subject, so that only the rows of this subject are read for them."""
    rows, _ = _search(version, triplets.SPLITS, triplet_id, first=True)
    entries = []
    with version.whole():
        for row in rows:
            roles = {"target": row["target_image"]}
            roles |= {f"reference {i}": content for i, content in enumerate(row["reference_images"])}
            of_subject = _of_subject(version.snapshot.table("images"), row["subject"], _IMAGE_COLUMNS)
            shown = pa.array(sorted(set(roles.values())), pa.string())
            of_subject = of_subject.filter(pc.is_in(of_subject["sha256"], shown))
            kept = {
                image["sha256"]: version.image(image) for image in of_subject.to_pylist() if not image["drop_reason"]
            }
            images = [{"role": role} | kept[content] for role, content in roles.items()]
            shown = {name: row[name] for name in ("triplet_id", "split", "subject", "prompt", "shard")}
            entries.append(shown | {"version": version.number, "images": images})
    return entries


def _image(version: _Version, content: str) -> list[dict[str, Any]]:
    rows, more = _search(version, ("images",), content)
    if more:
        log.warning("v%04d: %d more dropped images with this hash are not shown", version.number, more)
    entries = []
    with version.whole():
        for row in rows:
            uses = [] if row["drop_reason"] else _uses(version, row)
            splits = Counter(use["split"] for use in uses)
            found = {"version": version.number, "image": version.image(row), "triplets": len(uses)}
            found["splits"] = {split: splits[split] for split in triplets.SPLITS}
            entries.append(found | {"examples": uses[:_SHOWN]})
    return entries


def _uses(version: _Version, image: dict[str, Any]) -> list[dict[str, str]]:
    """Return the triplets that use a kept image: their subject is that of the image."""
    content, uses = image["sha256"], []
    for split in triplets.SPLITS:
        table = _of_subject(version.snapshot.table(split), image["subject"], _MEMBER_COLUMNS)
        if not len(table):
            continue
        mask = np.array(pc.equal(table["target_image"], content))
        parents = np.asarray(pc.list_parent_indices(table["reference_images"]))
        mask[parents[np.asarray(pc.equal(pc.list_flatten(table["reference_images"]), content))]] = True
        for row in table.filter(pa.array(mask)).to_pylist():
            members = [("target", row["target_image"]), *(("reference", image) for image in row["reference_images"])]
            use = {"triplet_id": row["triplet_id"], "split": split}
            uses += [{"role": role, **use} for role, image in members if image == content]
    return uses


def _of_subject(table: SnapshotTable, subject: str, columns: tuple[str, ...]) -> pa.Table:
    place = subject_hash(subject)
    rows = table.read_span((place, place + 1), [*dict.fromkeys((*columns, "subject"))])
    if rows is None:
        return pa.table({name: [] for name in columns})
    return rows.filter(pc.equal(rows["subject"], subject)).combine_chunks()


@dataclass(frozen=True)
class _Search:
    """What the tasks of a search get."""

    snapshot: Snapshot
    id: str
    """Id of a triplet, or the beginning of an image's hash."""
    units: tuple[tuple[Kind, int, int], ...]
    """Table, and half-open range of its pieces, of each task."""


def _search(
    version: _Version, kinds: tuple[Kind, ...], wanted: str, *, first: bool = False
) -> tuple[list[dict[str, Any]], int]:
    """Return the matching rows of tables in their order (with ``first`` those of the first unit that has any), and how
    many dropped images are left out."""
    units = [(kind, *pieces) for kind in kinds for pieces in version.snapshot.table(kind).units()]
    found: dict[int, dict[str, Any]] = {}
    work = _Search(version.snapshot, wanted, tuple(units))
    noun = f"groups of parts of v{version.number:04d} searched"
    tables_of_units = cast(Generator[pa.Table], run_tasks(search_pieces, work, len(units), noun=noun, few=FEW))
    with closing(tables_of_units) as tables:
        for table in tables:
            found |= dict(zip(table["unit"].to_pylist(), map(json.loads, table["result"].to_pylist()), strict=True))
            if first and any(result["rows"] for result in found.values()):
                break
    return _bounded(
        [row for unit in sorted(found) for row in found[unit]["rows"]], sum(r["more"] for r in found.values())
    )


def _bounded(rows: list[dict[str, Any]], more: int = 0) -> tuple[list[dict[str, Any]], int]:
    """Return the rows without some of many dropped images, and ``more`` plus their number."""
    shown, dropped = [], 0
    for row in rows:
        dropped += bool(row.get("drop_reason"))
        if not row.get("drop_reason") or dropped <= _DROPPED_SHOWN:
            shown.append(row)
    return shown, more + len(rows) - len(shown)


def search_pieces(work: _Search, unit: int) -> Columns:
    """Search pieces of a table for an id. Returns a ``result`` in JSON: the ``rows``, and how many ``more`` there are.

    All bytes of a piece are checked, so that a row in a piece that has changed is an error and not missing. All columns
    are decoded only of a piece that has the id.
    """
    kind, first, stop = work.units[unit]
    table = work.snapshot.table(kind)
    images = kind == "images"
    shard = "target_shard" if "target_shard" in table.columns else "shard"
    of_triplet = ("split", "subject", "prompt", shard, *_MEMBER_COLUMNS)
    rows: list[dict[str, Any]] = []
    more = 0
    for piece in range(first, stop):
        ids = pc.fill_null(table.read(piece, ["sha256" if images else "triplet_id"])[0], "")
        mask = pc.starts_with(ids, work.id) if images else pc.equal(ids, work.id)
        if pc.any(mask).as_py():
            matching = table.read(piece, _IMAGE_COLUMNS if images else of_triplet).filter(mask).to_pylist()
            renamed = [{"shard" if name == shard else name: row[name] for name in row} for row in matching]
            rows, more = _bounded([*rows, *renamed], more)
    return {"result": np.array([canonical_json({"rows": rows, "more": more})], object)}
