"""A store as one of pyarrow's file systems, for libraries that write by themselves (Ray Train)."""

from typing import TYPE_CHECKING

from lookalike.errors import ConfigError, UnreachableError
from lookalike.storage.base import Store
from lookalike.storage.local import LocalStore
from lookalike.storage.s3 import S3Store

if TYPE_CHECKING:
    from pyarrow.fs import FileSystem


def arrow_filesystem(store: Store) -> "tuple[FileSystem, str]":
    """The file system and the path in it. A URI would not do: pyarrow reads ``#``, ``?`` and ``%`` in its own way.

    Raises:
        ConfigError: a place that pyarrow cannot name exactly.
    """
    from pyarrow.fs import FileSystem, LocalFileSystem

    if isinstance(store, S3Store):
        path = f"{store.bucket}/{store.prefix[:-1]}"
    elif isinstance(store, LocalStore):
        path = str(store.root)
    else:
        raise ConfigError(
            "this kind of store is not supported by pyarrow", value=store.uri, fix="use a folder or an S3 prefix"
        )
    if "//" in path or path.endswith("/") or not path.isprintable():
        raise ConfigError(
            "Ray cannot keep its state in this place, which has an empty segment, control characters or is not UTF-8",
            value=store.uri,
            fix="choose another location",
        )
    if isinstance(store, LocalStore):
        return LocalFileSystem(), path
    try:
        return FileSystem.from_uri(f"s3://{store.bucket}")[0], path
    except OSError as error:
        raise UnreachableError(
            f"S3 does not answer pyarrow: {str(error)[:200]}",
            value=store.uri,
            fix="check AWS_ENDPOINT_URL",
        ) from error
