"""A store is a prefix of objects. Everything that the platform keeps goes through this protocol."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable
from urllib.parse import unquote, urlsplit

from lookalike.errors import ConfigError


@dataclass(frozen=True)
class ObjectInfo:
    """One object: its key below the store's prefix, its size in bytes and a tag that changes with its content."""

    key: str
    size: int
    etag: str


@runtime_checkable
class Store(Protocol):
    """Objects under one prefix. Keys are relative, use ``/``, and never contain ``..``.

    Raises :class:`~lookalike.errors.InputError` for a missing key, :class:`~lookalike.errors.ConflictError` where
    :meth:`create` loses, :class:`~lookalike.errors.UnreachableError` where the service does not answer.
    """

    @property
    def uri(self) -> str:
        """The prefix as a URI without a trailing slash."""

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
    """Open ``file:///path``, a plain path, or ``s3://bucket/prefix`` (endpoint and keys from the AWS environment)."""
    from lookalike.storage.local import LocalStore

    parts = urlsplit(uri)
    if parts.scheme == "s3":
        if not parts.netloc:
            raise ConfigError("an S3 URI names no bucket", value=uri, fix="write s3://bucket/prefix")
        from lookalike.storage.s3 import S3Store  # boto3 takes 0.3 s, which files do not need

        return S3Store(bucket=parts.netloc, prefix=parts.path.strip("/"))
    if parts.scheme == "file":
        return LocalStore(Path(unquote(parts.path)))
    if parts.scheme == "" and uri:
        return LocalStore(Path(uri).expanduser().absolute())
    raise ConfigError("unknown kind of location", value=uri, fix="use file:///path, a path, or s3://bucket/prefix")


def download_tree(store: Store, folder: Path) -> Path:
    """Copy every object of ``store`` below ``folder``; a local store is returned where it stands."""
    from lookalike.storage.local import LocalStore

    if isinstance(store, LocalStore):
        return store.root
    for info in store.list():
        store.download(info.key, folder / info.key)
    return folder


def upload_tree(folder: Path, store: Store) -> None:
    """Copy every file below ``folder`` into ``store``, in the order of their names."""
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        store.upload(path.relative_to(folder).as_posix(), path)
