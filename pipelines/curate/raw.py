"""The raw shards: which they are, and how the bytes of their images are read."""

import math
import re
import zlib
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import BinaryIO

import braceexpand

from lookalike.data.shards import open_object
from lookalike.errors import ConfigError, InputError
from lookalike.scratch import scratch
from lookalike.storage import ObjectInfo, Store, locate_object, open_store, overlap

COMPRESSED = (".tar.gz", ".tgz")
_SHARD = (".tar", *COMPRESSED)
_MAX_NAMES = 100_000  # that one brace expression may stand for
_RANGE = re.compile(r"(-?\d{1,30})\.\.(-?\d{1,30})(?:\.\.(-?\d{1,30}))?")


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
    if overlap(dataset, common):
        raise ConfigError("raw and dataset share a prefix", value=[common.uri, dataset.uri], fix="keep them apart")
    found: dict[str, ObjectInfo] = {}
    for store, shard in places:
        prefix = store.prefix_in(common) or ""
        if shard:
            found[prefix + shard] = _object(common, prefix + shard)
        else:
            found |= {info.key: info for info in _below(common, prefix)}
    return sorted(found.values(), key=lambda info: info.key)


def unpack(raw: Store, info: ObjectInfo, dataset: Store, key: str) -> ObjectInfo:
    """Write the tar inside the compressed shard ``info`` to ``key`` of the dataset, unless it is there; returns it.

    A gzip stream has no ranges, so what follows the index reads the copy. One that breaks off gives what stands before
    the break.
    """
    if not dataset.exists(key):
        with scratch("shard") as folder:
            path = folder / "shard.tar"
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


def _places(raw: str | Sequence[str]) -> list[tuple[Store, str]]:
    """The store and the key of each shard that is named, and the store of each prefix with the key ``""``."""
    written = [raw] if isinstance(raw, str) else list(raw)
    names = [name for item in written for name in _expanded(item)]
    if not names:
        raise ConfigError("no raw shards are named", value=written, fix="name a prefix, or shards")
    return [locate_object(name) if name.endswith(_SHARD) else (open_store(name), "") for name in names]


def _expanded(item: str) -> Iterator[str]:
    """What a brace expression names; a folder or prefix that is named just like this, with its braces, is itself."""
    if "{" not in item or _is_there(item):
        yield item
        return
    ranges = [[int(number or 1) for number in found] for found in _RANGE.findall(item)]
    counts = [abs(end - start) // max(abs(step), 1) + 1 for start, end, step in ranges]
    if math.prod(counts) > _MAX_NAMES:  # braceexpand makes a list of each range
        raise ConfigError(f"a brace expression for more than {_MAX_NAMES} names", value=item, fix="name the prefix")
    try:
        names = list(islice(braceexpand.braceexpand(item), _MAX_NAMES + 1))
    except ValueError as error:
        raise ConfigError(str(error), value=item, fix="close each brace, or name the prefix") from None
    if len(names) > _MAX_NAMES:
        raise ConfigError(f"a brace expression for more than {_MAX_NAMES} names", value=item, fix="name the prefix")
    yield from names


def _is_there(item: str) -> bool:
    store, key = locate_object(item) if item.endswith(_SHARD) else (open_store(item), "")
    try:
        return store.exists(key) if key else next(store.list(), None) is not None
    except InputError:  # a name that no file can have
        return False


def _common(places: Sequence[tuple[Store, str]]) -> Store:
    stores = [store for store, _ in places]
    common = stores[0]
    while any(store.prefix_in(common) is None for store in stores):
        try:
            common = common.parent
        except ConfigError:
            break
    else:
        if common.uri != "file:///":
            return common
    raise ConfigError(
        "these raw shards have no prefix in common",
        value=[store.uri_of(key) if key else store.uri for store, key in places[:4]],
        fix="keep them in one bucket",
    )


def _below(store: Store, prefix: str) -> list[ObjectInfo]:
    found, others = [], 0
    for info in store.list(prefix):
        if info.key.endswith(_SHARD):
            found.append(info)
        else:
            others += 1
    if not found:
        what = (
            f"no .tar among the {others} objects of the raw prefix" if others else "the raw prefix is missing or empty"
        )
        raise InputError(
            what, value=store.uri_of(prefix) if prefix else store.uri, fix="check --raw, or run jobs/ingest.py first"
        )
    return found


def _object(store: Store, key: str) -> ObjectInfo:
    info = next((info for info in store.list(key) if info.key == key), None)
    if info is None:
        raise InputError("no such shard", value=store.uri_of(key), fix="check --raw")
    return info
