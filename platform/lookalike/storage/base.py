"""The ``Store`` protocol, objects under one prefix: every file that the platform keeps goes through it."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, runtime_checkable

from lookalike.errors import ConfigError


@dataclass(frozen=True)
class ObjectInfo:
    """One object: its key below the store's prefix, its size in bytes and a tag that changes with its content."""

    key: str
    size: int
    etag: str
    modified: float = field(default=0.0, compare=False)
    """When it was written, s since 1970 by the clock of the server or file system."""


@runtime_checkable
class Store(Protocol):
    """Objects under one prefix. Keys are relative, use ``/``, and have no ``.`` and ``..`` segments; keys of files have
    no empty segments either (S3 keeps ``a//b`` apart from ``a/b``, a file system does not).

    Raises :class:`~lookalike.errors.InputError` for a missing key, :class:`~lookalike.errors.ConflictError` if
    :meth:`create` finds an existing object, :class:`~lookalike.errors.UnreachableError` if the service does not answer.
    """

    @property
    def uri(self) -> str:
        """The prefix as a URI; :func:`~lookalike.storage.store.open_store` of it gives an equal store."""

    @property
    def name(self) -> str:
        """The last segment of the prefix, for display."""

    def uri_of(self, key: str) -> str:
        """Return the URI of an object; :func:`~lookalike.storage.store.locate_object` of it gives this object."""

    def prefix_in(self, outer: "Store") -> str | None:
        """Return the prefix of this store's keys in ``outer`` (``""`` or ``a/b/``), or None if it is not below it."""

    @property
    def parent(self) -> "Store":
        """The store one segment above. Raises ConfigError at the root."""

    def child(self, prefix: str) -> "Store":
        """Return the store below ``prefix``."""

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """Yield the objects whose key starts with ``prefix``, sorted by key."""

    def exists(self, key: str) -> bool:
        """Return whether ``key`` exists."""

    def read(self, key: str) -> bytes:
        """Return the whole object."""

    def read_range(self, key: str, offset: int, length: int) -> bytes:
        """Return ``length`` bytes from ``offset``; raise InputError if the object has fewer."""

    def write(self, key: str, data: bytes) -> None:
        """Write the object atomically: a reader sees the old bytes or the new ones."""

    def create(self, key: str, data: bytes) -> None:
        """Write the object if it does not exist (conditional put): of two writers one gets ConflictError."""

    def upload(self, key: str, path: Path) -> None:
        """Write the object from a local file, atomically."""

    def download(self, key: str, path: Path) -> None:
        """Read the object into a local file, which appears when it is complete."""

    def delete(self, key: str) -> None:
        """Remove ``key``; a missing one is not an error."""


def check_key(key: str, value: str) -> None:
    """Raise ConfigError for a key that would name a file outside of its store, or the object of another key."""
    segments = key.split("/")
    if key.startswith("/") or ".." in segments:
        raise ConfigError("the key leaves its store", value=value, fix="use a relative key without '..'")
    if "." in segments:
        raise ConfigError("the key has a '.' segment", value=value, fix="use a key without one")
