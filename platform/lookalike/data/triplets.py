"""Triplets: a target image, its prompt, and one or more reference images of the same subject.

A snapshot has one row per triplet in its tables ``triplets/*.parquet``. A row holds the place of each image in a shard
of the same snapshot, so that rows can be read by range, in any order.
"""

import hashlib
import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from safetensors.numpy import load, save

from lookalike.data.images import decode
from lookalike.data.parts import PartedTable, open_table
from lookalike.errors import InputError
from lookalike.storage import Store, check_file, manifest_of

log = logging.getLogger(__name__)

MAX_MEMBER_BYTES = 1 << 30  # of one image; a row with more is damaged
_MAX_ID = 1024  # characters
_FIX = "curate the photos again, or train without this triplet"
Split = Literal["train", "validation"]
SPLITS: tuple[Split, ...] = get_args(Split)


class ShardError(InputError):
    """A shard that the manifest lists is missing, empty or not readable, so that none of its triplets can be read."""


@dataclass(frozen=True)
class Triplet:
    """One row of the triplet table."""

    triplet_id: str
    """Unique in its snapshot; the key of the sample in ``shard``."""
    split: str
    """``train`` or ``validation``; all triplets of a subject are in the same split."""
    subject: str
    """The subject that all images of the triplet show."""
    class_name: str
    """Class of the subject ("backpack"); may be empty."""
    prompt: str
    """Caption of the target."""
    shard: str
    """Key of the shard in the version's store, for example ``shards/train-000000.tar``."""
    target_offset: int
    """First byte of the target image in ``shard``."""
    target_length: int
    """Bytes of the target image."""
    reference_offsets: tuple[int, ...]
    """First byte of each reference image in ``shard``."""
    reference_lengths: tuple[int, ...]
    """Bytes of each reference image."""
    reference_similarities: tuple[float, ...]
    """Cosine similarity of each reference to the target, by the embedder that the manifest names."""
    target_image: str
    """SHA-256 (hex) of the raw target file, as in the image table."""
    reference_images: tuple[str, ...]
    """SHA-256 (hex) of each raw reference file."""
    latents_offset: int | None = None
    """First byte of the VAE's latents in ``shard``; None unless curation encoded them (``shards.latents``)."""
    latents_length: int | None = None
    """Bytes of the latents."""
    target_sha256: str | None = None
    """SHA-256 (hex) of the target's bytes in ``shard``; None in snapshots of earlier software, like the next two, whose
    shards are hashed whole before use."""
    reference_sha256s: tuple[str, ...] | None = None
    """SHA-256 (hex) of each reference's bytes in ``shard``."""
    latents_sha256: str | None = None
    """SHA-256 (hex) of the latents' bytes in ``shard``."""

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> "Triplet":
        """Make a triplet from a row of the table, as Arrow, Ray Data or pandas give it."""
        return cls(**{field.name: _plain(row.get(field.name)) for field in fields(cls)})


_ARROW_TYPES: dict[Any, pa.DataType] = {
    **dict.fromkeys((str, str | None), pa.string()),
    **dict.fromkeys((int, int | None), pa.int64()),
    **dict.fromkeys((tuple[str, ...], tuple[str, ...] | None), pa.list_(pa.string())),
    tuple[int, ...]: pa.list_(pa.int64()),
    tuple[float, ...]: pa.list_(pa.float32()),
}
SCHEMA = pa.schema([(field.name, _ARROW_TYPES[field.type]) for field in fields(Triplet)])
"""A column for each field of :class:`Triplet`, in their order; None is null."""


def open_triplets(version_store: Store, split: Split, manifest_sha256: str | None = None) -> PartedTable:
    """Open the triplets (:data:`SCHEMA`) of one split of a snapshot version, in the order of the shards.

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
    """Read the triplet table (:data:`SCHEMA`) of a snapshot version, of one split or both, in the order of the shards.

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
    table = read_table(version_store, split, manifest_sha256, choose)
    try:
        rows = table.to_pylist()
    except UnicodeDecodeError:  # a text that is not UTF-8 makes the whole conversion fail
        rows = [row for index in range(len(table)) for row in _readable_row(table, index)]
    whole = []
    for row in rows:
        try:
            triplet = Triplet.from_row(row)
            _check(triplet)
            whole.append(triplet)
        except InputError as error:
            log.warning("%s is left out of %s", error, version_store.uri)
    if not whole:
        raise InputError("no row of the snapshot is a valid triplet", value=version_store.uri, fix="curate it again")
    return whole


def _readable_row(table: pa.Table, index: int) -> list[dict[str, Any]]:
    try:
        return list(table.slice(index, 1).to_pylist())
    except UnicodeDecodeError as error:
        log.warning("row %d is left out: %s", index, error)
        return []


def load_images(version_store: Store, row: Triplet | Mapping[str, Any]) -> tuple[np.ndarray, list[np.ndarray]]:
    """Read the images of one triplet by range: target and references, each uint8 RGB ``[H, W, 3]``, upright.

    Raises:
        InputError: the row is damaged, or an image has changed or does not decode.
        ShardError: nothing in the shard can be read.
    """
    triplet = row if isinstance(row, Triplet) else Triplet.from_row(row)
    _check(triplet)

    def load(what: str, offset: int, length: int, sha256: str | None) -> np.ndarray:
        data = _read(version_store, triplet, what, offset, length, sha256)
        try:
            return decode(data)
        except InputError as error:
            raise InputError(f"{what} does not decode: {error.what}", value=triplet.triplet_id, fix=_FIX) from error

    target = load("the target", triplet.target_offset, triplet.target_length, triplet.target_sha256)
    hashes = triplet.reference_sha256s or (None,) * len(triplet.reference_offsets)
    places = zip(triplet.reference_offsets, triplet.reference_lengths, hashes, strict=True)
    return target, [load(f"reference {index}", *place) for index, place in enumerate(places)]


def write_latents(target: np.ndarray, references: np.ndarray) -> bytes:
    """Encode packed latents of a triplet as a safetensors file of float16.

    ``target`` is ``[T, C]``, T tokens with C channels, and ``references`` ``[R, T', C]`` of R references.
    """
    tensors = {"target": target, "references": references}
    return bytes(save({name: np.ascontiguousarray(tensor, np.float16) for name, tensor in tensors.items()}))


def load_latents(version_store: Store, row: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """Read the latents of one triplet by range: the target's ``[T, C]`` and the references' ``[R, T', C]``, float16.

    Raises:
        InputError: the snapshot has no latents, or they are damaged.
        ShardError: nothing in the shard can be read.
    """
    triplet = Triplet.from_row(row)
    if triplet.latents_offset is None or triplet.latents_length is None:
        raise InputError("the triplet has no latents", value=triplet.triplet_id, fix="curate with shards.latents")
    place = triplet.latents_offset, triplet.latents_length
    data = _read(version_store, triplet, "the latents", *place, triplet.latents_sha256)
    try:
        tensors = load(data)
        return tensors["target"].astype(np.float16), tensors["references"].astype(np.float16)
    except Exception as error:  # safetensors raises several classes for damaged bytes
        raise InputError(f"the latents are damaged: {error}", value=triplet.triplet_id, fix=_FIX) from error


def _check(triplet: Any) -> None:
    """Raise InputError for a damaged row; every one of its values may be null."""
    wrong = None
    if not isinstance(triplet.triplet_id, str) or not 0 < len(triplet.triplet_id) <= _MAX_ID:
        wrong = f"triplet_id is not text of 1 to {_MAX_ID} characters"
    elif not isinstance(triplet.shard, str) or not isinstance(triplet.subject, str):
        wrong = "shard or subject is null"
    elif not isinstance(triplet.prompt, str):
        wrong = "prompt is null"
    elif not triplet.reference_offsets or not triplet.reference_lengths:
        wrong = "it has no reference"
    elif len(triplet.reference_offsets) != len(triplet.reference_lengths):
        wrong = f"{len(triplet.reference_offsets)} reference offsets, {len(triplet.reference_lengths)} lengths"
    elif triplet.reference_sha256s and len(triplet.reference_sha256s) != len(triplet.reference_offsets):
        wrong = f"{len(triplet.reference_offsets)} references, {len(triplet.reference_sha256s)} hashes"
    if wrong is not None:
        raise InputError(f"the triplet's row is damaged: {wrong}", value=str(triplet.triplet_id)[:80], fix=_FIX)


def _read(version_store: Store, triplet: Triplet, what: str, offset: int, length: int, sha256: str | None) -> bytes:
    """The bytes of a member, checked by its hash. Raises ShardError if nothing in the shard can be read."""
    integers = isinstance(offset, int) and isinstance(length, int)
    if not integers or offset < 0 or not 0 < length <= MAX_MEMBER_BYTES:
        raise InputError(f"the row has no valid place of {what}", value=f"offset={offset}, length={length}", fix=_FIX)
    try:
        data = version_store.read_range(triplet.shard, offset, length)
    except InputError as error:
        if _is_listed(version_store, triplet.shard):
            try:
                version_store.read_range(triplet.shard, 0, 1)
            except InputError as cause:
                raise ShardError(
                    f"a shard of the snapshot cannot be read: {cause.what}",
                    value=f"{version_store.uri}/{triplet.shard}",
                    fix="restore it, or curate the raw shards again into another dataset and train on that",
                ) from cause
        raise InputError(
            f"{what} cannot be read: {error.what}", value=f"{triplet.shard}, byte {offset}", fix=_FIX
        ) from error
    if sha256 is None:
        check_file(version_store, triplet.shard)
    elif (actual := hashlib.sha256(data).hexdigest()) != sha256:
        raise InputError(
            f"{what} has changed since it was curated: its SHA-256 is {actual}, but its row has {sha256}",
            value=f"{triplet.shard}, byte {offset}",
            fix=_FIX,
        )
    return data


def _is_listed(version_store: Store, shard: str) -> bool:
    """Whether the snapshot's manifest lists ``shard``; True without a manifest."""
    try:
        return shard in json.loads(version_store.read("manifest.json"))["files"]
    except (InputError, ValueError, KeyError, TypeError):
        return True


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    return tuple(value) if isinstance(value, (list, tuple)) else value
