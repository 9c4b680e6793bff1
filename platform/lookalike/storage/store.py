"""A store is a prefix of objects. Everything that the platform keeps goes through this protocol."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

from lookalike.errors import ConfigError, InputError
from lookalike.storage import location


@dataclass(frozen=True)
class ObjectInfo:
    """One object: its key below the store's prefix, its size in bytes and a tag that changes with its content."""

    key: str
    size: int
    etag: str


@runtime_checkable
class Store(Protocol):
    """Objects under one prefix. Keys are relative, use ``/``, and have no ``.`` and ``..`` segments; keys of files have
    no empty segments either (S3 keeps ``a//b`` apart from ``a/b``, a file system does not).

    Raises :class:`~lookalike.errors.InputError` for a missing key, :class:`~lookalike.errors.ConflictError` where
    :meth:`create` loses, :class:`~lookalike.errors.UnreachableError` where the service does not answer.
    """

    @property
    def uri(self) -> str:
        """The prefix as a URI; :func:`open_store` of it gives an equal store, whatever its characters."""

    @property
    def name(self) -> str:
        """The last segment of the prefix, for display."""

    def uri_of(self, key: str) -> str:
        """The URI of an object; :func:`locate_object` of it finds this object and no other."""

    def prefix_in(self, outer: "Store") -> str | None:
        """What stands before this store's keys in ``outer`` (``""`` or ``a/b/``), or None if it is not below it."""

    @property
    def parent(self) -> "Store":
        """The store one segment above. Raises ConfigError at the root."""

    def child(self, prefix: str) -> "Store":
        """The store below ``prefix``."""

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """Objects whose key starts with ``prefix``, in the order of their keys."""

    def exists(self, key: str) -> bool:
        """Whether ``key`` is there."""

    def read(self, key: str) -> bytes:
        """The whole object."""

    def read_range(self, key: str, offset: int, length: int) -> bytes:
        """``length`` bytes from ``offset``; short answers are an error, never returned."""

    def write(self, key: str, data: bytes) -> None:
        """Write the object whole; a reader sees the old bytes or the new ones."""

    def create(self, key: str, data: bytes) -> None:
        """Write the object only if it is not there (conditional put): of two writers one gets ConflictError."""

    def upload(self, key: str, path: Path) -> None:
        """Write the object from a local file."""

    def download(self, key: str, path: Path) -> None:
        """Read the object into a local file, which appears whole."""

    def delete(self, key: str) -> None:
        """Remove ``key``; removing what is not there is no error."""


def open_store(uri: str) -> Store:
    """Open ``file:///path``, a plain path, or ``s3://bucket/prefix`` (endpoint and keys from the AWS environment).

    The exact inverse of :attr:`Store.uri`; :mod:`lookalike.storage.location` has the syntax. Raises ConfigError for
    what is not a location.
    """
    if location.is_s3(uri):
        from lookalike.storage.s3 import S3Store  # boto3 takes 0.3 s, which files do not need

        return S3Store(*location.s3_parts(uri))
    from lookalike.storage.local import LocalStore

    return LocalStore(location.local_path(uri))


def locate_object(uri: str) -> tuple[Store, str]:
    """The store and the key of one object: the exact inverse of :meth:`Store.uri_of`, for what users and records name.

    Raises:
        ConfigError: not a location, or the location of a folder (it ends with a slash, or names a bucket).
    """
    if location.is_s3(uri):
        from lookalike.storage.s3 import S3Store

        bucket, key = location.s3_parts(uri)
        prefix, slash, name = key.rpartition("/")
        if not name:
            raise ConfigError("not an object", value=uri, fix="write s3://bucket/key, without a slash at the end")
        return S3Store(bucket, prefix + slash), name
    from lookalike.storage.local import LocalStore

    path = location.local_path(uri)
    if uri.endswith(("/", "/.", "/..")) or not path.name:
        raise ConfigError("not a file", value=uri, fix="name the file, without a slash at the end")
    return LocalStore(path.parent), path.name


def read_at_most(store: Store, key: str, most: int) -> bytes:
    """The whole object. Raises InputError for one of more than ``most`` bytes, without reading it."""
    for info in store.list(key):
        if info.key == key and info.size > most:
            raise InputError(f"the file has more than {most} bytes", value=store.uri_of(key), fix="name another file")
    return store.read(key)


def overlap(one: Store, other: Store) -> bool:
    """Whether one of the two prefixes holds the other; folders that links lead to count as the folders themselves."""
    from lookalike.storage.local import LocalStore

    if isinstance(one, LocalStore) and isinstance(other, LocalStore):
        one, other = LocalStore(one.root.resolve()), LocalStore(other.root.resolve())
    return one.prefix_in(other) is not None or other.prefix_in(one) is not None


def download_tree(store: Store, folder: Path) -> Path:
    """Copy every object of ``store`` below ``folder``; a local store is returned where it stands."""
    from lookalike.storage.local import LocalStore

    if isinstance(store, LocalStore):
        return store.root
    for info in store.list():
        if not info.key.endswith("/"):  # the mark of a folder, as browsers of buckets make it
            store.download(info.key, folder / info.key)
    return folder


def upload_tree(folder: Path, store: Store) -> None:
    """Copy every file below ``folder`` into ``store``, in the order of their names."""
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        store.upload(path.relative_to(folder).as_posix(), path)


def check_key(key: str, value: str) -> None:
    """Raise ConfigError for a key that would name something outside of its store, or another key's object."""
    segments = key.split("/")
    if key.startswith("/") or ".." in segments:
        raise ConfigError("a key leaves its store", value=value, fix="use a relative key without '..'")
    if "." in segments:
        raise ConfigError("a key has a '.' segment", value=value, fix="use a key without one")
