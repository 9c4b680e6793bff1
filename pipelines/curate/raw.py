"""Find the raw shards, and what else lies beside them."""

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
_MAX_NAMES = 100_000  # that one brace expression may stand for
_RANGE = re.compile(r"(-?\d{1,30})\.\.(-?\d{1,30})(?:\.\.(-?\d{1,30}))?")
_RECORDS = {"run.json", "ingest.json", "_truth.json"}  # that jobs/ingest.py writes beside the shards


@dataclass(frozen=True)
class RawListing:
    """The raw shards, and a tally of all objects that were listed to find them."""

    shards: list[ObjectInfo]
    """In the order of their keys below :func:`raw_store`."""
    objects: PassedOver
    """``found``: names below the prefixes that ``raw`` names; those that are not raw shards are passed over."""


def is_shard(name: str) -> bool:
    """Whether a name is that of a raw shard, in lower or upper case. What is in it decides how it is read."""
    return _SHARD.fullmatch(name) is not None


def raw_store(raw: str | Sequence[str]) -> Store:
    """The deepest prefix that holds all that ``raw`` names (a URI, a brace expression, or several)."""
    return _common(_places(raw))


def list_shards(raw: str | Sequence[str], dataset: Store) -> list[ObjectInfo]:
    """The shards of :func:`list_raw`."""
    return list_raw(raw, dataset).shards


def list_raw(raw: str | Sequence[str], dataset: Store) -> RawListing:
    """The shards that ``raw`` names, and what lies beside them. Each folder is listed once, however many it has.

    Raises:
        ConfigError: the raw shards and the dataset share a prefix, or several places have no prefix in common.
        InputError: a shard that is not there, or a prefix without any.
    """
    places = _places(raw)
    common = _common(places)
    if overlap(dataset, common):
        raise ConfigError("raw and dataset share a prefix", value=[common.uri, dataset.uri], fix="keep them apart")
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
        raise InputError("the shard does not exist", value=f"{common.uri_of(missing[0])}{more}", fix="check --raw")
    return RawListing(sorted(shards.values(), key=lambda info: info.key), objects)


def _places(raw: str | Sequence[str]) -> list[tuple[Store, str]]:
    """The store and the key of each shard that is named, and the store of each prefix with the key ``""``."""
    written = [raw] if isinstance(raw, str) else list(raw)
    names = [name for item in written for name in _expanded(item)]
    if not names:
        raise ConfigError("no raw shards are named", value=written, fix="name a prefix, or shards")
    return [locate_object(name) if is_shard(name) else (open_store(name), "") for name in names]


def _expanded(item: str) -> Iterator[str]:
    """What a brace expression names; an existing folder or prefix whose name has these braces is itself."""
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
        "these raw shards have no prefix in common",
        value=[store.uri_of(key) if key else store.uri for store, key in places[:4]],
        fix="keep them in one bucket",
    )


def _holds(prefix: str, key: str) -> bool:
    return not prefix or key.startswith(f"{prefix}/")


def _below(store: Store, prefix: str, objects: PassedOver) -> dict[str, ObjectInfo]:
    """The shards below a prefix by key; everything that is there is counted in ``objects``."""
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
    where = place.uri
    if _is_object(place):
        raise InputError("this file is not a raw shard", value=where, fix="name .tar files, or the folder of them")
    if not own.found:
        what = "the raw prefix is missing or empty"
        raise InputError(what, value=where, fix="check --raw, or run jobs/ingest.py first")
    reasons = ", ".join(f"{reason} {n}" for reason, n in sorted(own.counts.items()))
    fix = "check --raw, or run jobs/ingest.py first"
    if own.counts["link_outside"]:
        fix = "a link that leads out of the prefix is not followed: name the places that it leads to in --raw"
    raise InputError(f"no .tar among the {own.found} objects of the raw prefix: {reasons}", value=where, fix=fix)


def _is_object(place: Store) -> bool:
    """Whether a place that was listed as a prefix is an object itself."""
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
    """Those of ``keys`` that are there. One listing for each folder, of the names that begin as theirs do."""
    folders: dict[str, set[str]] = {}
    for key in keys:
        folders.setdefault(key.rpartition("/")[0], set()).add(key)
    there: dict[str, ObjectInfo] = {}
    for wanted in folders.values():
        begin = os.path.commonprefix(sorted(wanted))  # noqa: RUF071  # of characters: names, not folders
        for info in store.list(begin):
            if info.key in wanted:
                there[info.key] = info
    return there
