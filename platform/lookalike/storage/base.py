"""The ``Store`` protocol, objects under one prefix: every file that the platform keeps goes through it."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

from lookalike.errors import ConfigError


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


def check_key(key: str, value: str) -> None:
    """Raise ConfigError for a key that would name something outside of its store, or another key's object."""
    segments = key.split("/")
    if key.startswith("/") or ".." in segments:
        raise ConfigError("a key leaves its store", value=value, fix="use a relative key without '..'")
    if "." in segments:
        raise ConfigError("a key has a '.' segment", value=value, fix="use a key without one")
