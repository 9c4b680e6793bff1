"""A store as a pyarrow file system, for libraries that write files themselves (Ray Train)."""

from typing import TYPE_CHECKING

from lookalike.errors import ConfigError, UnreachableError
from lookalike.storage.base import Store
from lookalike.storage.local import LocalStore
from lookalike.storage.s3 import S3Store

if TYPE_CHECKING:
    from pyarrow.fs import FileSystem


def arrow_filesystem(store: Store) -> "tuple[FileSystem, str]":
    """Return the file system and the path in it. A URI would not do, since pyarrow parses ``#``, ``?`` and ``%`` in it.

    Raises:
        ConfigError: a location that pyarrow cannot represent exactly.
    """
    from pyarrow.fs import FileSystem, LocalFileSystem

    assert isinstance(store, S3Store | LocalStore)
    path = f"{store.bucket}/{store.prefix[:-1]}" if isinstance(store, S3Store) else str(store.root)
    if "//" in path or path.endswith("/") or not path.isprintable():
        raise ConfigError(
            "Ray cannot write to this location: it has empty segments or control characters, or is not UTF-8",
            value=store.uri,
            fix="choose another location",
        )
    if isinstance(store, LocalStore):
        return LocalFileSystem(), path
    try:
        return FileSystem.from_uri(f"s3://{store.bucket}")[0], path
    except OSError as error:
        raise UnreachableError(
            f"pyarrow cannot connect to S3: {str(error)[:200]}", value=store.uri, fix="check AWS_ENDPOINT_URL"
        ) from error
