"""Triplets: a target image, its prompt, and one or more reference images of the same subject.

A snapshot has one row per triplet in its tables ``triplets/*.parquet``. A row holds the place and the hash of each
image in a pack of its dataset (``shards/<sha256>.tar``), so that rows can be read by range, in any order. Versions
share packs, and an image is stored once, whatever the number of its triplets.
"""

import hashlib
import logging
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from safetensors.numpy import load, save

from lookalike.data.images import decode
from lookalike.data.parts import PartedTable, lists_pack, open_table
from lookalike.data.ranges import ByteRange, read_ranges
from lookalike.errors import InputError
from lookalike.storage import Store, manifest_of

log = logging.getLogger(__name__)

MAX_MEMBER_BYTES = 1 << 30  # of one image; a row with more is damaged
_MAX_ID = 1024  # characters
_ROWS = 4_096  # that are Python objects at once
_LATENTS = "latents"  # the tensor of a file of latents
_PACK = re.compile(r"shards/[0-9a-f]{64}\.tar")
_FIX = "curate the photos again, or train without this triplet"
Split = Literal["train", "validation"]
SPLITS: tuple[Split, ...] = get_args(Split)


class ShardError(InputError):
    """A pack that the snapshot lists is missing, empty or not readable, so that none of its triplets can be read."""


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
                _check(triplet)
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


@dataclass(frozen=True)
class TripletFiles:
    """The files of one triplet as they are stored, each checked by its hash."""

    target: bytes
    """JPEG."""
    references: tuple[bytes, ...]
    """JPEG."""
    target_latents: bytes | None = None
    """As :func:`write_latents` writes them; None unless they were asked for."""
    reference_latents: tuple[bytes, ...] | None = None


@dataclass(frozen=True)
class Loaded:
    """The images of one triplet: uint8 RGB ``[H, W, 3]``, upright."""

    target: np.ndarray
    references: list[np.ndarray]
    target_latents: np.ndarray | None = None
    """float32 ``[T, C]``, T tokens with C channels; None unless they were asked for."""
    reference_latents: np.ndarray | None = None
    """float32 ``[R, T', C]`` of R references."""


def read_files(
    version_store: Store, rows: Sequence[Triplet | Mapping[str, Any]], *, images: bool = True, latents: bool = False
) -> list[TripletFiles | InputError]:
    """Read the files of triplets by range, all at once: neighbours are joined, and each range is read once.

    Without ``images`` only the latents are read, and the files of images are empty.

    Returns for each row its files, or the InputError of that row: it is damaged, has no ``latents``, or a file has
    changed or cannot be read (ShardError if nothing in its pack can be read).
    """
    wanted: list[list[StoredFile] | InputError] = []
    for row in rows:
        try:
            wanted.append(list(_files(row, images, latents)))
        except InputError as error:
            wanted.append(error)
    data = iter(
        read_stored(version_store, [file for files in wanted if not isinstance(files, InputError) for file in files])
    )
    results: list[TripletFiles | InputError] = []
    for files in wanted:
        if isinstance(files, InputError):
            results.append(files)
            continue
        read = [next(data) for _ in files]
        checked = [item for item in read if not isinstance(item, InputError)]
        if len(checked) < len(read):
            results.append(next(item for item in read if isinstance(item, InputError)))
            continue
        count = len(checked) // (images + latents)  # of images
        target, *references = checked[:count] if images else [b""] * count
        if latents:
            results.append(TripletFiles(target, tuple(references), checked[-count], tuple(checked[-count:][1:])))
        else:
            results.append(TripletFiles(target, tuple(references)))
    return results


def stored_images(row: Triplet | Mapping[str, Any]) -> list["StoredFile"]:
    """Return the image files of a triplet: the target, then its references. Raises InputError if the row is damaged."""
    return list(_files(row, images=True, latents=False))


def read_stored(version_store: Store, files: Sequence["StoredFile"]) -> list[bytes | InputError]:
    """Read files of a snapshot's packs by range, all at once.

    Returns for each file its bytes, or the InputError of that file: it has changed or cannot be read (ShardError if
    nothing in its pack can be read).
    """
    results: list[bytes | InputError] = []
    for file, data in zip(files, read_ranges(version_store.parent, [file.place for file in files]), strict=True):
        try:
            results.append(_checked(version_store, file, data))
        except InputError as error:
            results.append(error)
    return results


def load_many(
    version_store: Store, rows: Sequence[Triplet | Mapping[str, Any]], *, latents: bool = False
) -> Iterator[Loaded | Exception]:
    """Read triplets as :func:`read_files` does, and yield the decoded images of each.

    A file that does not decode is the error of its row. The images of one row are in memory at a time.
    """
    for row, files in zip(rows, read_files(version_store, rows, latents=latents), strict=True):
        try:
            loaded: Loaded | Exception = files if isinstance(files, InputError) else _decoded(_id(row), files)
        except MemoryError:
            raise
        except Exception as error:  # whatever a decoder raises for the bytes of this row
            loaded = error
        yield loaded


def load_images(version_store: Store, row: Triplet | Mapping[str, Any]) -> tuple[np.ndarray, list[np.ndarray]]:
    """Read the images of one triplet by range: target and references, each uint8 RGB ``[H, W, 3]``, upright.

    Raises:
        InputError: the row is damaged, or an image has changed or does not decode.
        ShardError: nothing in the pack can be read.
    """
    (loaded,) = load_many(version_store, [row])
    if isinstance(loaded, Exception):
        raise loaded
    return loaded.target, loaded.references


def write_latents(latents: np.ndarray) -> bytes:
    """Encode the packed latents ``[T, C]`` of one image, T tokens with C channels, as a safetensors file of float16."""
    return bytes(save({_LATENTS: np.ascontiguousarray(latents, np.float16)}))


def load_latents(version_store: Store, row: Triplet | Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """Read the latents of one triplet by range: the target's ``[T, C]`` and the references' ``[R, T', C]``, float16.

    Raises:
        InputError: the snapshot has no latents, or they are damaged.
        ShardError: nothing in the pack can be read.
    """
    (files,) = read_files(version_store, [row], images=False, latents=True)
    if isinstance(files, InputError):
        raise files
    return decode_latents(_id(row), files)


def decode_latents(triplet_id: str, files: TripletFiles) -> tuple[np.ndarray, np.ndarray]:
    """Decode latents: the target's ``[T, C]`` and the references' ``[R, T', C]``, float32.

    Raises InputError: they are damaged, or the references' shapes differ.
    """
    assert files.target_latents is not None, "latents were not read"
    assert files.reference_latents is not None
    try:
        target, *references = (
            load(data)[_LATENTS].astype(np.float16) for data in (files.target_latents, *files.reference_latents)
        )
        return target, np.stack(references)
    except Exception as error:  # safetensors raises several classes for damaged bytes
        raise InputError(f"the latents are damaged: {error}", value=triplet_id, fix=_FIX) from error


@dataclass(frozen=True)
class StoredFile:
    """A file of a triplet: what it is, its place in a pack, and its SHA-256 (hex)."""

    what: str
    place: ByteRange
    sha256: str


def _files(row: Triplet | Mapping[str, Any], images: bool, latents: bool) -> Iterator[StoredFile]:
    """Yield the files of a triplet: target, references, then the latents of these.

    Raises InputError if the row is damaged.
    """
    triplet: Any = row if isinstance(row, Triplet) else Triplet.from_row(row)
    _check(triplet)
    shards = [triplet.target_shard, *triplet.reference_shards]
    if images:
        yield from _listed(
            ["the target", *(f"reference {i}" for i in range(len(shards) - 1))],
            shards,
            [triplet.target_offset, *triplet.reference_offsets],
            [triplet.target_length, *triplet.reference_lengths],
            [triplet.target_sha256, *triplet.reference_sha256s],
        )
    if latents:
        columns = [
            [getattr(triplet, f"target_latents_{what}"), *(getattr(triplet, f"reference_latents_{what}s") or ())]
            for what in ("offset", "length", "sha256")
        ]
        if any(len(column) != len(shards) or None in column for column in columns):
            raise InputError("the triplet has no latents", value=triplet.triplet_id, fix="curate with shards.latents")
        yield from _listed(["the latents"] * len(shards), shards, *columns)


def _listed(names: list[str], shards: list[Any], offsets: list[Any], lengths: list[Any], sha256s: list[Any]) -> Any:
    for what, shard, offset, length, sha256 in zip(names, shards, offsets, lengths, sha256s, strict=True):
        integers = isinstance(offset, int) and isinstance(length, int)
        if not integers or offset < 0 or not 0 < length <= MAX_MEMBER_BYTES:
            where = f"offset={offset}, length={length}"
            raise InputError(f"the row has no valid place of {what}", value=where, fix=_FIX)
        if not isinstance(shard, str) or not _PACK.fullmatch(shard):
            raise InputError(f"the row has no valid shard of {what}", value=str(shard)[:100], fix=_FIX)
        if not isinstance(sha256, str):
            raise InputError(f"the row has no hash of {what}", value=f"{shard}, byte {offset}", fix=_FIX)
        yield StoredFile(what, ByteRange(shard, offset, length), sha256)


def _check(triplet: Any) -> None:
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
        raise InputError(f"the triplet's row is damaged: {wrong}", value=str(triplet.triplet_id)[:80], fix=_FIX)


def _checked(version_store: Store, file: StoredFile, data: bytes | InputError) -> bytes:
    """The bytes of a file, checked by its hash. Raises ShardError if nothing in its pack can be read."""
    pack, where = file.place.key, f"{file.place.key}, byte {file.place.offset}"
    if isinstance(data, InputError):
        dataset = version_store.parent
        if lists_pack(version_store, pack):
            try:
                dataset.read_range(pack, 0, 1)
            except InputError as cause:
                raise ShardError(
                    f"a shard of the snapshot cannot be read: {cause.what}",
                    value=dataset.uri_of(pack),
                    fix="restore it, or curate the raw shards again into another dataset and train on that",
                ) from cause
        raise InputError(f"{file.what} cannot be read: {data.what}", value=where, fix=_FIX) from data
    if (actual := hashlib.sha256(data).hexdigest()) != file.sha256:
        raise InputError(
            f"{file.what} has changed since it was curated: its SHA-256 is {actual}, but its row has {file.sha256}",
            value=where,
            fix=_FIX,
        )
    return data


def _decoded(triplet_id: str, files: TripletFiles) -> Loaded:
    def image(what: str, data: bytes) -> np.ndarray:
        try:
            return decode(data)
        except InputError as error:
            raise InputError(f"{what} does not decode: {error.what}", value=triplet_id, fix=_FIX) from error

    references = [image(f"reference {index}", data) for index, data in enumerate(files.references)]
    latents = (None, None) if files.target_latents is None else decode_latents(triplet_id, files)
    return Loaded(image("the target", files.target), references, *latents)


def _id(row: Triplet | Mapping[str, Any]) -> str:
    return str(row.triplet_id if isinstance(row, Triplet) else row["triplet_id"])


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    return tuple(value) if isinstance(value, (list, tuple)) else value
