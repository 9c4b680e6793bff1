"""Detect raw shards that changed after they were indexed, by the hash of each image that is read again.

A listing shows most changes, and then the shard is indexed again. It does not show other bytes of the same size and
modification time, or a change during the run. Such a change is recorded as a mark below ``work/changed/``. The next
run adds the mark to the shard's ETag, so it indexes the shard again.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from lookalike.data.ranges import ByteRange, read_ranges
from lookalike.errors import InputError
from lookalike.storage import ObjectInfo, Store
from pipelines.curate.rows import sha256
from pipelines.curate.workspace import CHANGED, change_mark, shard_id


def with_recorded_changes(shards: list[ObjectInfo], dataset: Store) -> list[ObjectInfo]:
    """Return the listed shards; the ETags of those with a recorded change include the mark."""
    marks = {info.key.rpartition("/")[2] for info in dataset.list(f"{CHANGED}/")}
    if not marks:  # a shard's id is a hash, and there may be 100,000
        return shards
    return [_marked(info, dataset, marks.__contains__) for info in shards]


def read_image(raw: Store, dataset: Store, row: Mapping[str, Any]) -> bytes:
    """Return the file of an image, at the ``offset`` and ``length`` of its row in its raw shard (``shard``), or in the
    tar that was ``unpacked`` from it.

    If the bytes are not those that were indexed, the change of the shard is recorded and InputError raised.
    """
    store, key = _place(raw, dataset, row)
    (data,) = read_ranges(store, [ByteRange(key, row["offset"], row["length"])])
    return check_image(raw, dataset, row, data)


def check_image(raw: Store, dataset: Store, row: Mapping[str, Any], data: bytes | InputError) -> bytes:
    """Return ``data``, which was read as the file of an image; raise as :func:`read_image` does."""
    store, key = _place(raw, dataset, row)
    if isinstance(data, InputError):
        info = _listed(store, key)
        if info is None or info.size >= row["offset"] + row["length"]:  # missing or unreadable: the error names it
            raise data
        data = b""
    if sha256(data) == row["sha256"]:
        return data
    shard = _listed(raw, row["shard"])
    if shard is not None:  # a shard that is gone is not listed by the next run either
        name = shard_id(_marked(shard, dataset, lambda mark: dataset.exists(change_mark(mark))))
        dataset.write(change_mark(name), sha256(data).encode())
    raise InputError(
        f"the raw shard changed after it was indexed: the image at byte {row['offset']} differs",
        value=f"{store.uri}/{key}",
        fix="run the same command again: the shard is indexed again",
    )


def _place(raw: Store, dataset: Store, row: Mapping[str, Any]) -> tuple[Store, str]:
    return (dataset, row["unpacked"]) if row["unpacked"] else (raw, row["shard"])


def _listed(store: Store, key: str) -> ObjectInfo | None:
    return next((info for info in store.list(key) if info.key == key), None)


def _marked(info: ObjectInfo, dataset: Store, is_mark: Callable[[str], bool]) -> ObjectInfo:
    while is_mark(name := shard_id(info)):
        info = replace(info, etag=f"{info.etag}+{dataset.read(change_mark(name)).decode()[:12]}")
    return info
