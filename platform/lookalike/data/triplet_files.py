"""The files of triplets: images and latents in the packs of a dataset, read by range and checked by their hashes."""

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from safetensors.numpy import load, save

from lookalike.data.images import decode
from lookalike.data.part_lists import lists_pack
from lookalike.data.ranges import ByteRange, read_ranges
from lookalike.data.triplets import ROW_FIX, Triplet, check_row
from lookalike.errors import InputError
from lookalike.storage import Store

MAX_MEMBER_BYTES = 1 << 30  # of one image; a row with more is damaged
_LATENTS = "latents"  # the tensor of a file of latents
_PACK = re.compile(r"shards/[0-9a-f]{64}\.tar")


class ShardError(InputError):
    """A pack that the snapshot lists is missing, empty or not readable, so that none of its triplets can be read."""


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
        raise InputError(f"the latents are damaged: {error}", value=triplet_id, fix=ROW_FIX) from error


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
    check_row(triplet)
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
            raise InputError(f"the row has no valid place of {what}", value=where, fix=ROW_FIX)
        if not isinstance(shard, str) or not _PACK.fullmatch(shard):
            raise InputError(f"the row has no valid shard of {what}", value=str(shard)[:100], fix=ROW_FIX)
        if not isinstance(sha256, str):
            raise InputError(f"the row has no hash of {what}", value=f"{shard}, byte {offset}", fix=ROW_FIX)
        yield StoredFile(what, ByteRange(shard, offset, length), sha256)


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
        raise InputError(f"{file.what} cannot be read: {data.what}", value=where, fix=ROW_FIX) from data
    if (actual := hashlib.sha256(data).hexdigest()) != file.sha256:
        raise InputError(
            f"{file.what} has changed since it was curated: its SHA-256 is {actual}, but its row has {file.sha256}",
            value=where,
            fix=ROW_FIX,
        )
    return data


def _decoded(triplet_id: str, files: TripletFiles) -> Loaded:
    def image(what: str, data: bytes) -> np.ndarray:
        try:
            return decode(data)
        except InputError as error:
            raise InputError(f"{what} does not decode: {error.what}", value=triplet_id, fix=ROW_FIX) from error

    references = [image(f"reference {index}", data) for index, data in enumerate(files.references)]
    latents = (None, None) if files.target_latents is None else decode_latents(triplet_id, files)
    return Loaded(image("the target", files.target), references, *latents)


def _id(row: Triplet | Mapping[str, Any]) -> str:
    return str(row.triplet_id if isinstance(row, Triplet) else row["triplet_id"])
