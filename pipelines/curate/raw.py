"""List the raw shards, and count the other objects beside them."""

import math
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import braceexpand

from lookalike.data.passed_over import PassedOver
from lookalike.data.text import is_utf8
from lookalike.errors import ConfigError, InputError
from lookalike.storage import ObjectInfo, Store, locate_object, open_store, overlap
from lookalike.storage.store import survey
from lookalike.storage.walk import Skipped

_SHARD = re.compile(r".*\.(tar(\.(gz|bz2|xz|zst|zstd|lz4))?|tgz|tbz2?|txz|tzst)", re.IGNORECASE | re.DOTALL)
_ARCHIVE = re.compile(
    r".*\.(tar\..*|tar~|zip|7z|rar|cpio|ar|(gz|bz2|xz|zst|lz4|lzma|br|z)|(tlz|tz|taz))", re.IGNORECASE | re.DOTALL
)
_MAX_NAMES = 100_000  # maximum of one brace expression
_RANGE = re.compile(r"(-?\d{1,30})\.\.(-?\d{1,30})(?:\.\.(-?\d{1,30}))?")
_RECORDS = {"run.json", "ingest.json", "_truth.json"}  # that jobs/ingest.py writes beside the shards


@dataclass(frozen=True)
class RawListing:
    """The raw shards, and a count of all objects that were listed."""

    shards: list[ObjectInfo]
    """Sorted by their keys below :func:`raw_store`."""
    objects: PassedOver
    """``found``: objects below the prefixes of ``raw``; those that are not raw shards are passed over."""


def is_shard(name: str) -> bool:
    """Return whether a name has the extension of a raw shard, in any case. Its bytes decide how it is read."""
    return _SHARD.fullmatch(name) is not None


def raw_store(raw: str | Sequence[str]) -> Store:
    """Return the deepest prefix of everything in ``raw`` (a URI, a brace expression, or a list of these)."""
    return _common(_places(raw))


def list_raw(raw: str | Sequence[str], dataset: Store) -> RawListing:
    """List the raw shards in ``raw`` and count the objects beside them. Each folder is listed once.

    Raises:
        ConfigError: the raw shards and the dataset share a prefix, or several places have no prefix in common.
        InputError: a shard does not exist, or a prefix has no shard.
    """
    places = _places(raw)
    common = _common(places)
    if overlap(dataset, common):
        uris = [common.uri, dataset.uri]
        raise ConfigError("raw and dataset share a prefix", value=uris, fix="use two separate prefixes")
    shards: dict[str, ObjectInfo] = {}
    objects = PassedOver()
    prefixes = {(store.prefix_in(common) or "").rstrip("/") for store, shard in places if not shard}
    outermost = sorted(prefix for prefix in prefixes if not any(_holds(other, prefix) for other in prefixes - {prefix}))
    for prefix in outermost:
        shards |= _below(common, prefix, objects)
    for prefix in prefixes.difference(outermost):
        if not any(_holds(prefix, key) for key in shards):
            _below(common, prefix, PassedOver())  # raises an error that names what is there instead
    named = sorted({(store.prefix_in(common) or "") + shard for store, shard in places if shard})
    wanted = [key for key in named if not any(_holds(prefix, key) for prefix in outermost)]
    there = _named(common, wanted)
    objects.found += len(there)
    shards |= there
    missing = [key for key in named if key not in shards]
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise InputError("the shard does not exist", value=f"{common.uri_of(missing[0])}{more}", fix="correct --raw")
    return RawListing(sorted(shards.values(), key=lambda info: info.key), objects)


def _places(raw: str | Sequence[str]) -> list[tuple[Store, str]]:
    """Return (store, key) of each shard in ``raw``, and (store, "") of each prefix."""
    written = [raw] if isinstance(raw, str) else list(raw)
    names = [name for item in written for name in _expanded(item)]
    if not names:
        raise ConfigError("no raw shards are named", value=written, fix="give --raw a prefix, or shards")
    return [locate_object(name) if is_shard(name) else (open_store(name), "") for name in names]


def _expanded(item: str) -> Iterator[str]:
    """Yield the names in a brace expression; an existing folder or prefix with braces in its name is one name."""
    if "{" not in item or _is_there(item):
        yield item
        return
    ranges = [[int(number or 1) for number in bounds] for bounds in _RANGE.findall(item)]
    counts = [abs(end - start) // max(abs(step), 1) + 1 for start, end, step in ranges]
    names: list[str] = []
    too_many = math.prod(counts) > _MAX_NAMES  # braceexpand makes a list of each range
    if not too_many:
        try:
            names = list(islice(braceexpand.braceexpand(item), _MAX_NAMES + 1))
        except ValueError as error:
            fix = "close each brace, or use the prefix instead"
            raise ConfigError(f"not a valid brace expression: {error}", value=item, fix=fix) from None
    if too_many or len(names) > _MAX_NAMES:
        what = f"a brace expression has more than {_MAX_NAMES} names"
        raise ConfigError(what, value=item, fix="use the prefix instead")
    yield from names


def _is_there(item: str) -> bool:
    store, key = locate_object(item) if is_shard(item) else (open_store(item), "")
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
        "the raw shards have no prefix in common",
        value=[store.uri_of(key) if key else store.uri for store, key in places[:4]],
        fix="put them into one bucket",
    )


def _holds(prefix: str, key: str) -> bool:
    return not prefix or key.startswith(f"{prefix}/")


def _below(store: Store, prefix: str, objects: PassedOver) -> dict[str, ObjectInfo]:
    """Return the shards below a prefix by key, and count all its objects in ``objects``."""
    shards: dict[str, ObjectInfo] = {}
    own = PassedOver()
    for entry in survey(store, f"{prefix}/" if prefix else ""):
        own.found += 1
        if isinstance(entry, Skipped):
            own.add(entry.reason, entry.key)
        elif not is_utf8(entry.key):
            own.add("name_not_utf8", entry.key)
        elif is_shard(entry.key):
            shards[entry.key] = entry
        else:
            own.add(_why_no_shard(entry.key), entry.key or prefix)
    objects.merge(own)
    if shards:
        return shards
    place = store.child(prefix) if prefix else store
    reasons = ", ".join(f"{reason} {n}" for reason, n in sorted(own.counts.items()))
    what = f"no .tar among the {own.found} objects of the raw prefix: {reasons}"
    fix = "correct --raw, or run jobs/ingest.py first"
    if _is_object(place):
        what, fix = "the file is not a raw shard", "give --raw .tar files, or their folder"
    elif not own.found:
        what = "the raw prefix is missing or empty"
    elif own.counts["link_outside"]:
        fix = "links that lead out of the prefix are not followed: add their targets to --raw"
    raise InputError(what, value=place.uri, fix=fix)


def _is_object(place: Store) -> bool:
    """Return whether a store that was opened as a prefix is an object."""
    try:
        return place.parent.exists(place.name)
    except ConfigError:  # a bucket, or the root of a file system
        return False


def _why_no_shard(key: str) -> str:
    name = key.rpartition("/")[2]
    if not name:
        return "folder_marker"
    if name in _RECORDS:
        return "record_of_ingest"
    return "unsupported_archive" if _ARCHIVE.fullmatch(name) else "not_a_shard"


def _named(store: Store, keys: Iterable[str]) -> dict[str, ObjectInfo]:
    """Return the objects of ``keys`` that exist. Each folder is listed once, from the common beginning of its keys."""
    folders: dict[str, set[str]] = {}
    for key in keys:
        folders.setdefault(key.rpartition("/")[0], set()).add(key)
    there: dict[str, ObjectInfo] = {}
    for wanted in folders.values():
        begin = os.path.commonprefix(sorted(wanted))  # noqa: RUF071  # of characters: names, not folders
        there |= {info.key: info for info in store.list(begin) if info.key in wanted}
    return there
