"""Open stores and objects by URI, and functions that work on any store."""

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from lookalike.documents import REWRITE, parse_json, parse_members, parse_object
from lookalike.errors import ConfigError, InputError
from lookalike.storage import location
from lookalike.storage.base import ObjectInfo, Store
from lookalike.storage.local import LocalStore
from lookalike.storage.walk import Skipped

_BLOCK = 16 << 20  # bytes of a range request
_AT_ONCE = 16  # requests
MOST_BYTES = 64 << 20
"""Largest size of a record or a result of a job; they usually have a few kilobytes."""


def open_store(uri: str) -> Store:
    """Open ``file:///path``, a plain path, or ``s3://bucket/prefix`` (endpoint and keys from the AWS environment).

    It is the exact inverse of :attr:`Store.uri`; :mod:`lookalike.storage.location` documents the syntax. Raises
    ConfigError for an invalid location.
    """
    if location.is_s3(uri):
        from lookalike.storage.s3 import S3Store  # importing boto3 takes 0.3 s

        return S3Store(*location.s3_parts(uri))
    return LocalStore(location.local_path(uri))


def locate_object(uri: str) -> tuple[Store, str]:
    """Return the store and the key of one object, for URIs of users and records: the inverse of :meth:`Store.uri_of`.

    Raises:
        ConfigError: the location is invalid, or is that of a folder (it ends with a slash, or names a bucket).
    """
    if location.is_s3(uri):
        from lookalike.storage.s3 import S3Store

        bucket, key = location.s3_parts(uri)
        prefix, slash, name = key.rpartition("/")
        if not name:
            raise ConfigError(
                "the URI is that of a bucket or folder, not an object",
                value=uri,
                fix="write s3://bucket/key, without a slash at the end",
            )
        return S3Store(bucket, prefix + slash), name
    path = location.local_path(uri)
    if uri.endswith(("/", "/.", "/..")) or not path.name:
        raise ConfigError(
            "the location is a folder, not a file", value=uri, fix="name the file, without a slash at the end"
        )
    return LocalStore(path.parent), path.name


def size_of(store: Store, key: str) -> int:
    """Return the size of the object at ``key`` in bytes; 0 if it is missing."""
    return next((info.size for info in store.list(key) if info.key == key), 0)


def sha256_of(store: Store, key: str, size: int) -> str:
    """Return the SHA-256 (hex) of an object of ``size`` bytes, which may be larger than the memory."""
    digest = hashlib.sha256()
    for start in range(0, size, _BLOCK):
        digest.update(store.read_range(key, start, min(_BLOCK, size - start)))
    return digest.hexdigest()


def read_json(store: Store, key: str) -> Any:
    """Read the JSON value at ``key``. Raises InputError if it is missing or is not JSON."""
    return parse_json(store.read(key), store.uri_of(key))


def read_object(store: Store, key: str, *names: str) -> dict[str, Any]:
    """Read the JSON object at ``key``. Raises InputError if it is missing, or has not the keys ``names``."""
    return parse_object(store.read(key), store.uri_of(key), *names)


def read_members(
    store: Store, key: str, types: Mapping[str, Any], *, most: int = MOST_BYTES, fix: str = REWRITE
) -> dict[str, Any]:
    """Read the JSON object at ``key``, whose members have these types (:func:`lookalike.documents.parse_members`).

    Raises InputError if it is missing, is not such an object, or has more than ``most`` bytes.
    """
    where = store.uri_of(key)
    if (size := size_of(store, key)) > most:
        raise InputError(f"the JSON document has {size} bytes, more than {most}", value=where, fix=fix)
    return parse_members(store.read(key), where, types, fix=fix)


def read_lines(store: Store, key: str, *names: str) -> list[dict[str, Any]]:
    """Read JSON lines at ``key``, each an object with the keys ``names``. Raises InputError that names the line."""
    lines = store.read(key).splitlines()
    return [
        parse_object(line, f"{store.uri_of(key)}, line {number}", *names)
        for number, line in enumerate(lines, 1)
        if line.strip()
    ]


def read_at_most(store: Store, key: str, max_mib: int, setting: str) -> bytes:
    """Read a whole object.

    Raises:
        InputError: it has more than ``max_mib`` MiB, which ``setting`` allows; it is not read.
    """
    if (size := size_of(store, key)) > max_mib << 20:
        raise InputError(
            f"the file has {size} bytes, more than the {max_mib} MiB that {setting} allows",
            value=store.uri_of(key),
            fix=f"name a smaller file, or raise {setting}",
        )
    return store.read(key)


def overlap(one: Store, other: Store) -> bool:
    """Return whether one of two prefixes contains the other, after links of local folders are resolved."""
    if isinstance(one, LocalStore) and isinstance(other, LocalStore):
        one, other = LocalStore(one.root.resolve()), LocalStore(other.root.resolve())
    return one.prefix_in(other) is not None or other.prefix_in(one) is not None


def survey(store: Store, prefix: str = "") -> Iterator[ObjectInfo | Skipped]:
    """List objects whose key starts with ``prefix``, and each name that gives no object, in the order of keys.

    For prefixes that other programs have filled. In a file system, links are followed if they stay within the store.
    Object stores have no links and no unreadable folders, so there it is a plain listing.
    """
    yield from store.survey(prefix) if isinstance(store, LocalStore) else store.list(prefix)


def delete_all(store: Store, keys: Iterable[str]) -> None:
    """Remove the objects of ``keys``, several at a time."""
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        for _ in pool.map(store.delete, keys):
            pass


def upload_tree(folder: Path, store: Store) -> None:
    """Copy every file below ``folder`` into ``store``, sorted by name."""
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        store.upload(path.relative_to(folder).as_posix(), path)
