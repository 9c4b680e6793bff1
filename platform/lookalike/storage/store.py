"""Open stores and objects by URI, and functions that work on any store."""

from collections.abc import Iterator
from pathlib import Path

from lookalike.errors import ConfigError, InputError
from lookalike.storage import location
from lookalike.storage.base import ObjectInfo, Store
from lookalike.storage.documents import size_of
from lookalike.storage.local import LocalStore
from lookalike.storage.walk import Skipped


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


def download_tree(store: Store, folder: Path) -> Path:
    """Copy every object of ``store`` below ``folder`` and return it; of a local store, return its own folder."""
    if isinstance(store, LocalStore):
        return store.root
    for info in store.list():
        if not info.key.endswith("/"):  # marks a folder; S3 consoles create it
            store.download(info.key, folder / info.key)
    return folder


def upload_tree(folder: Path, store: Store) -> None:
    """Copy every file below ``folder`` into ``store``, sorted by name."""
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        store.upload(path.relative_to(folder).as_posix(), path)
