"""Triplets: a target image, its prompt, and one or more reference images of the same subject.

A snapshot has one row per triplet in its tables ``triplets/*.parquet``. A row holds the place and the hash of each
image in a pack of its dataset (``shards/<sha256>.tar``), so that rows can be read by range, in any order. Versions
share packs, and an image is stored once, whatever the number of its triplets.
"""

import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from lookalike.data.parts import PartedTable, open_table
from lookalike.errors import InputError
from lookalike.storage import Store, manifest_of

log = logging.getLogger(__name__)

_MAX_ID = 1024  # characters
_ROWS = 4_096  # that are Python objects at once
ROW_FIX = "curate the photos again, or train without this triplet"
Split = Literal["train", "validation"]
SPLITS: tuple[Split, ...] = get_args(Split)


@dataclass(frozen=True)
class Triplet:
    """One row of the triplet table."""

    triplet_id: str
    """Unique in its snapshot."""
    split: str
    """``train`` or ``validation``; all triplets of a subject are in the same split."""
    subject: str
    """The subject that all images of the triplet show."""
    class_name: str
    """Class of the subject ("backpack"); may be empty."""
    prompt: str
    """Caption of the target."""
    target_shard: str
    """Key of the pack with the target, below the dataset's prefix: ``shards/<sha256 of the pack>.tar``."""
    target_offset: int
    """First byte of the target image in ``target_shard``."""
    target_length: int
    """Bytes of the target image."""
    target_sha256: str
    """SHA-256 (hex) of these bytes."""
    reference_shards: tuple[str, ...]
    """Key of the pack with each reference, below the dataset's prefix."""
    reference_offsets: tuple[int, ...]
    """First byte of each reference image in its pack."""
    reference_lengths: tuple[int, ...]
    """Bytes of each reference image."""
    reference_sha256s: tuple[str, ...]
    """SHA-256 (hex) of these bytes."""
    reference_similarities: tuple[float, ...]
    """Cosine similarity of each reference to the target, by the embedder that the manifest names."""
    target_image: str
    """SHA-256 (hex) of the raw target file, as in the image table; the target's name in its pack."""
    reference_images: tuple[str, ...]
    """SHA-256 (hex) of each raw reference file."""
    target_latents_offset: int | None = None
    """First byte of the target's latents in ``target_shard``; None unless curation encoded them (``shards.latents``),
    like the next five."""
    target_latents_length: int | None = None
    """Bytes of these latents."""
    target_latents_sha256: str | None = None
    """SHA-256 (hex) of these bytes."""
    reference_latents_offsets: tuple[int, ...] | None = None
    """First byte of each reference's latents in its pack."""
    reference_latents_lengths: tuple[int, ...] | None = None
    """Bytes of these latents."""
    reference_latents_sha256s: tuple[str, ...] | None = None
    """SHA-256 (hex) of these bytes."""

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> "Triplet":
        """Make a triplet from a row of the table, as Arrow, Ray Data or pandas give it."""
        return cls(**{field.name: _plain(row.get(field.name)) for field in fields(cls)})


_ARROW_TYPES: dict[Any, pa.DataType] = {
    **dict.fromkeys((str, str | None), pa.string()),
    **dict.fromkeys((int, int | None), pa.int64()),
    **dict.fromkeys((tuple[str, ...], tuple[str, ...] | None), pa.list_(pa.string())),
    **dict.fromkeys((tuple[int, ...], tuple[int, ...] | None), pa.list_(pa.int64())),
    tuple[float, ...]: pa.list_(pa.float32()),
}
SCHEMA = pa.schema([(field.name, _ARROW_TYPES[field.type]) for field in fields(Triplet)])
"""A column for each field of :class:`Triplet`, in their order; None is null."""


def open_triplets(version_store: Store, split: Split, manifest_sha256: str | None = None) -> PartedTable:
    """Open the triplets (:data:`SCHEMA`) of one split of a snapshot version, in the order of the subjects' hashes.

    Raises InputError: the split has no triplets, or a list or the manifest (``manifest_sha256``) has changed.
    """
    return open_table(version_store, split, SCHEMA, manifest_sha256)


Choice = Callable[[int], npt.NDArray[np.int64]]
"""Number of rows of a split → numbers of those to read."""


def read_table(
    version_store: Store,
    split: Split | None = None,
    manifest_sha256: str | None = None,
    choose: Choice | None = None,
) -> pa.Table:
    """Read the triplet table (:data:`SCHEMA`) of a snapshot version, of one split or both.

    All rows are in memory at once, or of each split those that ``choose`` chooses.

    Raises InputError: the split has no triplets, or the table or the manifest (``manifest_sha256``) has changed.
    """
    splits = SPLITS if split is None else (split,)
    counts = manifest_of(version_store, manifest_sha256).get("tables", {})
    opened = [
        open_triplets(version_store, each, manifest_sha256)
        for each in splits
        if split is not None or counts.get(each, {"rows": 1})["rows"]
    ]
    tables = [
        part for table in opened for part in (table.parts() if choose is None else [table.take(choose(len(table)))])
    ]
    return pa.concat_tables(tables) if tables else SCHEMA.empty_table()


def read_triplets(
    version_store: Store,
    split: Split | None = None,
    manifest_sha256: str | None = None,
    choose: Choice | None = None,
) -> list[Triplet]:
    """Return the rows of :func:`read_table` as triplets; damaged rows are logged and left out.

    Raises InputError also if no row is a valid triplet.
    """
    return list(each_triplet(version_store, split, manifest_sha256, choose))


def each_triplet(
    version_store: Store,
    split: Split | None = None,
    manifest_sha256: str | None = None,
    choose: Choice | None = None,
) -> Iterator[Triplet]:
    """Yield the triplets of :func:`read_triplets` one by one; the table is in memory, and few of its rows as triplets.

    Raises InputError also if no row is a valid triplet.
    """
    table, whole = read_table(version_store, split, manifest_sha256, choose), 0
    for first in range(0, len(table), _ROWS):
        for row in _readable_rows(table.slice(first, _ROWS), first):
            try:
                triplet = Triplet.from_row(row)
                check_row(triplet)
            except InputError as error:
                log.warning("%s is left out of %s", error, version_store.uri)
            else:
                whole += 1
                yield triplet
    if not whole:
        raise InputError("no row of the snapshot is a valid triplet", value=version_store.uri, fix="curate it again")


def _readable_rows(table: pa.Table, first: int) -> Iterator[dict[str, Any]]:
    """Yield the rows of a part of a table that begins with row ``first``; one that is not UTF-8 is logged."""
    try:
        yield from table.to_pylist()
    except UnicodeDecodeError:  # makes the conversion of all rows fail
        for index in range(len(table)):
            try:
                yield from table.slice(index, 1).to_pylist()
            except UnicodeDecodeError as error:
                log.warning("row %d is left out: %s", first + index, error)


def check_row(triplet: Any) -> None:
    """Raise InputError for a damaged row; every one of its values may be null."""
    wrong = None
    if not isinstance(triplet.triplet_id, str) or not 0 < len(triplet.triplet_id) <= _MAX_ID:
        wrong = f"triplet_id is not text of 1 to {_MAX_ID} characters"
    elif not isinstance(triplet.target_shard, str) or not isinstance(triplet.subject, str):
        wrong = "target_shard or subject is null"
    elif not isinstance(triplet.prompt, str):
        wrong = "prompt is null"
    elif not triplet.reference_offsets or not triplet.reference_lengths or not triplet.reference_shards:
        wrong = "it has no reference"
    else:
        columns = ("offsets", "lengths", "shards", "sha256s")
        counts = {name: len(getattr(triplet, f"reference_{name}") or ()) for name in columns}
        if len(set(counts.values())) > 1:
            wrong = "its references have " + ", ".join(f"{count} {name}" for name, count in counts.items())
    if wrong is not None:
        raise InputError(f"the triplet's row is damaged: {wrong}", value=str(triplet.triplet_id)[:80], fix=ROW_FIX)


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    return tuple(value) if isinstance(value, (list, tuple)) else value
