"""List what an erasure will remove: objects by kind, content hashes of the photos, entries in MLflow, shared data."""

import hashlib
import logging
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress

import numpy as np
import pyarrow.parquet as pq

from lookalike.data.images import EXTENSIONS
from lookalike.data.shards import iter_samples, open_object
from lookalike.documents import decoding
from lookalike.errors import InputError
from lookalike.registry.erasure import Tracked, TrackedErasure
from lookalike.storage import ObjectInfo, Store, read_members
from lookalike.storage.erasing import FOLDER
from lookalike.storage.purge import entries
from pipelines.curate.raw import is_shard
from pipelines.curate.takedown import contents_of, digests, first_of_each
from pipelines.erase import fleets
from pipelines.erase.outside import Outside
from pipelines.erase.scope import Scope
from pipelines.erase.state import Inventory

log = logging.getLogger(__name__)

_KINDS = (  # the first one that a key below the customer's prefix matches
    ("raw shards", r"raw/|.*/raw/"),
    ("generated images", r".*\.(?:png|webp|jpe?g|avif)"),
    ("triplets", r"(?:.*/)?(?:dataset|held-out)/"),
    ("checkpoints", r"(?:.*/)?run/(?:checkpoints|ray)/"),
    ("adapters and bundles", r"(?:.*/)?bundle/"),
    ("scores", r"(?:.*/)?(?:scores|champion-[0-9a-f]+)/"),
    ("events", r"(?:.*/)?events(?:/|\.jsonl)"),
    ("promotion logs and decisions", r"(?:.*/)?promotion"),
)
_KIND = [(kind, re.compile(written, re.DOTALL | re.IGNORECASE)) for kind, written in _KINDS]
_IMAGES = re.compile(r"(?:.*/)?v\d{4}/(?:images/part-\d+|images)\.parquet", re.DOTALL)
_RECORDS = ("tracking.json", "result.json")  # that name runs
_READ_AHEAD = 1 << 20


def kind_of(entry_kind: str, key: str) -> str:
    """The kind under which an entry is counted."""
    if entry_kind != "object":
        return {"folder": "empty folders", "special": "special files"}.get(entry_kind, f"{entry_kind}s")
    return next((kind for kind, pattern in _KIND if pattern.match(key)), "records")


def take(
    scope: Scope,
    tracker: TrackedErasure | None,
    outside: Outside,
    photos_key: str = "",
    requests: Sequence[str] = (),
) -> Inventory:
    """List everything.

    Args:
        scope: what is erased.
        tracker: MLflow's entries; None if nothing is tracked.
        outside: the search of other places.
        photos_key: where to write the photos' hashes below the prefix, so that tasks on other machines can search
            shared data for them; empty for a plan, which writes nothing and searches in this process.
        requests: URIs of fleets' folders of requests.
    """
    kinds: dict[str, list[int]] = {}
    listing, tables, recorded = 0, [], set[str]()
    for page in entries(scope.home):
        for entry in page:
            if f"{entry.key}/".startswith(f"{FOLDER}/") or entry.kind == "folder":
                continue
            counted = kinds.setdefault(kind_of(entry.kind, entry.key), [0, 0])
            counted[0], counted[1] = counted[0] + 1, counted[1] + entry.size
            named = f"{entry.key}\n{entry.size}\n{entry.etag}\n{entry.kind}\n{entry.version}"
            listing += int.from_bytes(hashlib.sha256(named.encode("utf-8", "surrogatepass")).digest())
            if entry.kind != "object":
                continue
            if _IMAGES.fullmatch(entry.key) or (is_shard(entry.key) and "raw/" in f"/{entry.key}"):
                tables.append(ObjectInfo(entry.key, entry.size, entry.etag))
            elif entry.key.rpartition("/")[2] in _RECORDS:
                recorded |= set(_recorded(scope.home, entry.key))
    contents, unreadable = _photos(scope.home, tables)
    lines = "".join(f"sha256:{row.tobytes().hex()}\n" for row in contents.astype(">u8")).encode()
    if photos_key:
        scope.home.write(photos_key, lines)
    tracked = tracker.find(recorded) if tracker else Tracked()
    found = outside.search(lines, scope.home.uri_of(photos_key) if photos_key else None)
    return Inventory(
        kinds=dict(sorted(kinds.items())),
        listing_sha256=f"{listing % (1 << 256):064x}",
        photos=len(contents),
        photos_sha256=hashlib.sha256(lines).hexdigest(),
        photos_key=photos_key,
        unreadable=unreadable,
        tracked=tracked,
        outputs=found.outputs,
        holders=found.holders,
        learned=found.learned,
        unclear=found.unclear,
        requests=fleets.count(requests, scope),
    )


def _recorded(home: Store, key: str) -> Iterator[str]:
    """Ids of runs in a record of a training run."""
    with suppress(InputError):  # a damaged record: MLflow's own entries are searched by their owner
        record = read_members(home, key, {"tracking_run": str})
        earlier = record.get("earlier")
        for run in (record["tracking_run"], *(earlier if isinstance(earlier, list) else [])):
            if isinstance(run, str) and re.fullmatch(r"[0-9a-f]{32}", run):
                yield run


def _photos(home: Store, objects: Iterable[ObjectInfo]) -> tuple[np.ndarray, int]:
    """Content hashes of all photos in raw shards and image tables, uint64 [P, 4]; and how many could not be read."""
    parts, unreadable = [np.zeros((0, 4), np.uint64)], 0
    for info in objects:
        try:
            if is_shard(info.key):
                parts.append(digests(list(_of_shard(home, info))))
            else:
                with decoding("a Parquet table", home.uri_of(info.key)):
                    table = pq.read_table(open_object(home, info, _READ_AHEAD), columns=["sha256"])
                parts.append(contents_of(table["sha256"])[1])
        except InputError as error:
            log.warning("the photos of a damaged object are not listed: %s", error.what)
            unreadable += 1
        if len(parts) > 1000:
            parts = [_unique(parts)]
    return _unique(parts), unreadable


def _unique(parts: list[np.ndarray]) -> np.ndarray:
    joined = np.concatenate(parts)
    return np.asarray(joined[first_of_each(joined)])


def _of_shard(home: Store, info: ObjectInfo) -> Iterator[str]:
    for _, members in iter_samples(open_object(home, info, _READ_AHEAD)):
        for extension, data in members.items():
            if extension.rpartition(".")[2] in EXTENSIONS:
                yield hashlib.sha256(data).hexdigest()
