"""The raw shards: which they are, and how the bytes of their images are read."""

import os
import tempfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

import braceexpand

from lookalike.data.shards import open_object
from lookalike.errors import ConfigError, InputError
from lookalike.storage import ObjectInfo, Store, open_store

COMPRESSED = (".tar.gz", ".tgz")
_SHARD = (".tar", *COMPRESSED)


def raw_store(raw: str | Sequence[str]) -> Store:
    """The deepest prefix that holds all that ``raw`` names (a URI, a brace expression, or several)."""
    return _common(_places(raw))


def list_shards(raw: str | Sequence[str], dataset: Store) -> list[ObjectInfo]:
    """The shards that ``raw`` names, in the order of their keys below :func:`raw_store`.

    Raises:
        ConfigError: the raw shards and the dataset share a prefix, or several places have no prefix in common.
        InputError: a shard that is not there, or a prefix without any.
    """
    places = _places(raw)
    common = _common(places)
    ours, theirs = f"{dataset.uri}/", f"{common.uri}/"
    if ours.startswith(theirs) or theirs.startswith(ours):
        raise ConfigError("raw and dataset share a prefix", value=[common.uri, dataset.uri], fix="keep them apart")
    found: dict[str, ObjectInfo] = {}
    for place in places:
        key = place.removeprefix(common.uri).strip("/")
        if place.endswith(_SHARD):
            found[key] = _object(common, key)
        else:
            found |= {info.key: info for info in _below(common, key)}
    return sorted(found.values(), key=lambda info: info.key)


def unpack(raw: Store, info: ObjectInfo, dataset: Store, key: str) -> ObjectInfo:
    """Write the tar inside the compressed shard ``info`` to ``key`` of the dataset, unless it is there; returns it.

    A gzip stream has no ranges, so what follows the index reads the copy. One that breaks off gives what stands before
    the break.
    """
    if not dataset.exists(key):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "shard.tar"
            with path.open("wb") as file:
                for data in _inflated(open_object(raw, info)):
                    file.write(data)
            dataset.upload(key, path)
    return _object(dataset, key)


def _inflated(file: BinaryIO) -> Iterator[bytes]:
    """What a gzip file holds, up to where it breaks off: a tar that is too short then, which whoever reads it tells."""
    stream = zlib.decompressobj(wbits=31)
    while data := file.read(1 << 20):
        while data:
            try:
                yield stream.decompress(data)
            except zlib.error:
                return
            data = stream.unused_data
            if stream.eof:  # a file may be several, one after the other
                stream = zlib.decompressobj(wbits=31)


def _places(raw: str | Sequence[str]) -> list[str]:
    """URIs of shards and prefixes, brace expressions expanded, each as its store spells it."""
    written = [raw] if isinstance(raw, str) else list(raw)
    places = [open_store(place).uri for item in written for place in braceexpand.braceexpand(item)]
    if not places:
        raise ConfigError("no raw shards are named", value=written, fix="name a prefix, or shards")
    return places


def _common(places: Sequence[str]) -> Store:
    prefixes = [place.rpartition("/")[0] if place.endswith(_SHARD) else place for place in places]
    schemes = [prefix.partition("://") for prefix in prefixes]
    if len({scheme for scheme, _, _ in schemes}) == 1:
        common = os.path.commonpath([f"/{path.lstrip('/')}" for _, _, path in schemes]).lstrip("/")
        if common:  # of S3 a bucket at least
            scheme = schemes[0][0]
            return open_store(f"{scheme}:///{common}" if scheme == "file" else f"{scheme}://{common}")
    raise ConfigError(
        "these raw shards have no prefix in common", value=list(places)[:4], fix="keep them in one bucket"
    )


def _below(store: Store, prefix: str) -> list[ObjectInfo]:
    found, others = [], 0
    for info in store.list(f"{prefix}/" if prefix else ""):
        if info.key.endswith(_SHARD):
            found.append(info)
        else:
            others += 1
    if not found:
        what = (
            f"no .tar among the {others} objects of the raw prefix" if others else "the raw prefix is missing or empty"
        )
        where = f"{store.uri}/{prefix}" if prefix else store.uri
        raise InputError(what, value=where, fix="check --raw, or run jobs/ingest.py first")
    return found


def _object(store: Store, key: str) -> ObjectInfo:
    info = next((info for info in store.list(key) if info.key == key), None)
    if info is None:
        raise InputError("no such shard", value=f"{store.uri}/{key}", fix="check --raw")
    return info
