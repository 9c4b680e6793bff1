"""Export: write the triplets of a snapshot as plain WebDataset shards, for tools that do not read its tables.

A sample is a subject: ``<key>.000.jpg``, ``<key>.001.jpg``, … and ``<key>.json`` with its triplets, which name images
by their number. So an image is written once, whatever the number of its triplets.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from lookalike.config import NOT_IDENTITY, canonical_json, fingerprint
from lookalike.data import triplet_files, triplets
from lookalike.data.part_lists import GROUP_ROWS, check_format, read_lists
from lookalike.data.parts import PartedTable
from lookalike.data.shards import write_tar
from lookalike.errors import ConfigError, InputError
from lookalike.scratch import scratch
from lookalike.storage import Store, latest_version, open_store, overlap, read_manifest, version_store
from lookalike.storage.claim import read_result, run_once, write_result
from lookalike.values import Mib, configuration
from pipelines.actors import Columns, run_tasks
from pipelines.curate.rows import IMAGES_SCHEMA, subject_hash
from pipelines.curate.workspace import exported

RESULT = "export.json"
_COUNTS = {"subjects": int, "triplets": int, "images": int}
_TRIPLETS_AT_ONCE = 256  # whose images are in memory
_IMAGES = pa.schema(
    [IMAGES_SCHEMA.field(name) for name in ("subject_hash", "subject", "sha256", "licence", "source", "drop_reason")]
)


@configuration()
class ExportConfig:
    """Settings of an export."""

    dataset: str = field(metadata=NOT_IDENTITY)
    """URI of the prefix of the snapshots."""
    output: str = field(metadata=NOT_IDENTITY)
    """URI of the prefix for the shards."""
    version: int | None = field(default=None, metadata=NOT_IDENTITY)
    """Version to export; null: the newest."""
    split: Literal["train", "validation", "both"] = "both"
    """Which triplets."""
    shard_mib: Mib = 256
    """Approximate size of a shard in MiB; a subject is in one shard."""


@dataclass(frozen=True)
class ExportWork:
    """What a task that writes a shard gets. Units are the shards of the first split, then those of the next."""

    version: Store
    output: Store
    parts: dict[triplets.Split, pa.Table]
    """The parts of the triplet table, by split."""
    images: pa.Table
    """The parts of the image table."""
    rows_per_shard: int
    """Rows of a triplet table that are divided among shards; a subject goes to the shard with its first one."""

    def shards(self, split: triplets.Split) -> int:
        """Units of a split."""
        return -(-int(pc.sum(self.parts[split]["rows"]).as_py() or 0) // self.rows_per_shard)

    def shard_of(self, unit: int) -> tuple[triplets.Split, int]:
        """The split of a unit, and its number in it."""
        for split in self.parts:
            if unit < self.shards(split):
                return split, unit
            unit -= self.shards(split)
        raise IndexError(unit)


def export(config: ExportConfig) -> dict[str, Any]:
    """Export a snapshot, and return ``shards`` (number by split), ``subjects``, ``triplets`` and ``images``.

    A killed export resumes with the same command: a shard that exists is done.

    Raises:
        InputError: the snapshot does not exist, has another format, or has changed.
        ConflictError: ``output`` holds another export.
    """
    dataset, output = open_store(config.dataset), open_store(config.output)
    if overlap(dataset, output):
        raise ConfigError("output and dataset share a prefix", value=output.uri, fix="choose another --output")
    number = latest_version(dataset) if config.version is None else config.version
    manifest = read_manifest(dataset, number)
    check_format(version_store(dataset, number), manifest)
    snapshot = {"uri": version_store(dataset, number).uri, "sha256": fingerprint(manifest)}
    return run_once(
        output,
        RESULT,
        config,
        content={"snapshot": snapshot},
        earlier=lambda run: read_result(output, RESULT, run, {"shards": dict, **_COUNTS})[0],
        work=lambda run: _export(export_work(config, manifest, number), run),
    )


def export_work(config: ExportConfig, manifest: dict[str, Any], number: int) -> ExportWork:
    """Return the work of an export of version ``number``, whose manifest is given."""
    version, tables = version_store(open_store(config.dataset), number), manifest["tables"]
    splits = [split for split in triplets.SPLITS if config.split in (split, "both")]
    rows = sum(tables[split]["rows"] for split in triplets.SPLITS)
    size = manifest["counts"]["bytes_stored"] + manifest["counts"]["bytes_reused"]
    of_size = (config.shard_mib << 20) * rows // max(1, size)
    return ExportWork(
        version,
        open_store(config.output),
        {split: read_lists(version, tables[split]["lists"], manifest) for split in splits},
        read_lists(version, tables["images"]["lists"], manifest),
        max(of_size, manifest["config"]["plan"]["max_triplets_per_subject"], 1),  # so that no shard is empty but a last
    )


def export_shard(work: ExportWork, unit: int) -> Columns:
    """Write a shard unless it exists; returns its ``split``, ``shards`` (0 if it is empty), and counts."""
    split, number = work.shard_of(unit)
    name = exported(split, number)
    rows = _rows(PartedTable(work.version, work.parts[split], triplets.SCHEMA), number, work.rows_per_shard)
    subjects = [list(group) for _, group in groupby(rows, key=lambda row: row["subject"])]
    if subjects and not work.output.exists(name):
        with scratch("export") as folder:
            write_tar(folder / "shard.tar", _samples(work, subjects))
            work.output.upload(name, folder / "shard.tar")
    counts = {
        "shards": int(bool(subjects)),
        "subjects": len(subjects),
        "triplets": len(rows),
        "images": sum(len(_numbers(group)) for group in subjects),
    }
    return {"split": np.array([split]), **{name: np.array([count]) for name, count in counts.items()}}


def _export(work: ExportWork, run: str) -> dict[str, Any]:
    units = sum(work.shards(split) for split in work.parts)
    result: dict[str, Any] = {"shards": dict.fromkeys(work.parts, 0), **dict.fromkeys(_COUNTS, 0)}
    for table in run_tasks(export_shard, work, units, noun="shards exported"):
        for row in table.to_pylist():
            result["shards"][row["split"]] += row["shards"]
            for name in _COUNTS:
                result[name] += row[name]
    write_result(work.output, RESULT, result, run)
    return result


def _rows(table: PartedTable, number: int, rows: int) -> list[dict[str, Any]]:
    """The triplets of the subjects whose first row is in the range ``number`` of ``rows`` rows."""
    first, stop = number * rows, min((number + 1) * rows, len(table))
    mine = table.take(np.arange(first, stop))
    if first:
        before = table.take(np.array([first - 1]))["subject"][0]
        mine = mine.slice(_leading(mine, before))
    while len(mine) and stop < len(table):
        more = table.take(np.arange(stop, min(stop + GROUP_ROWS, len(table))))
        same = _leading(more, mine["subject"][-1])
        mine = pa.concat_tables([mine, more.slice(0, same)])
        if same < len(more):
            break
        stop += len(more)
    return list(mine.to_pylist())


def _leading(table: pa.Table, subject: pa.Scalar) -> int:
    """The number of rows of ``subject`` before the first of another one."""
    other = pc.index(pc.equal(table["subject"], subject), False).as_py()
    return len(table) if other < 0 else int(other)


def _samples(work: ExportWork, subjects: list[list[dict[str, Any]]]) -> Iterator[tuple[str, dict[str, bytes]]]:
    """Yield the sample of each subject; the images of a few subjects are in memory at a time."""
    hashes = [subject_hash(rows[0]["subject"]) for rows in subjects]
    images = PartedTable(work.version, work.images, _IMAGES).read_span((min(hashes), max(hashes) + 1))
    kept = images.filter(pc.is_null(images["drop_reason"])).select(["subject", "sha256", "licence", "source"])
    labels = {(image.pop("subject"), image["sha256"]): image for image in reversed(kept.to_pylist())}
    for some in _batches(subjects):
        files = triplet_files.read_files(work.version, [row for rows in some for row in rows])
        left = iter(files)
        for rows in some:
            contents: dict[str, bytes] = {}
            for row in rows:
                each = next(left)
                if isinstance(each, InputError):
                    raise each
                names = [row["target_image"], *row["reference_images"]]
                contents |= dict(zip(names, (each.target, *each.references), strict=True))
            yield _sample(rows, contents, labels)


def _batches(subjects: list[list[dict[str, Any]]]) -> Iterator[list[list[dict[str, Any]]]]:
    batch: list[list[dict[str, Any]]] = []
    for rows in subjects:
        batch.append(rows)
        if sum(map(len, batch)) >= _TRIPLETS_AT_ONCE:
            yield batch
            batch = []
    if batch:
        yield batch


def _sample(
    rows: list[dict[str, Any]], contents: dict[str, bytes], labels: dict[tuple[str, str], dict[str, Any]]
) -> tuple[str, dict[str, bytes]]:
    subject, numbers = rows[0]["subject"], _numbers(rows)
    metadata = {
        "subject": subject,
        "class": rows[0]["class_name"],
        "images": [labels[subject, content] for content in numbers],
        "triplets": [
            {
                "id": row["triplet_id"],
                "class": row["class_name"],
                "prompt": row["prompt"],
                "target": numbers[row["target_image"]],
                "references": [numbers[content] for content in row["reference_images"]],
                "similarities": row["reference_similarities"],
            }
            for row in rows
        ],
    }
    payload = {f"{number:03d}.jpg": contents[content] for content, number in numbers.items()}
    key = hashlib.sha256(subject.encode()).hexdigest()[:24]
    return key, payload | {"json": canonical_json(metadata).encode()}


def _numbers(rows: list[dict[str, Any]]) -> dict[str, int]:
    """The number of each image of a subject, by content and in the order of its triplets."""
    contents = (content for row in rows for content in (row["target_image"], *row["reference_images"]))
    return {content: number for number, content in enumerate(dict.fromkeys(contents))}
