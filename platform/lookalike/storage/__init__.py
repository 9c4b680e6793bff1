"""One interface to ``file://`` and ``s3://`` storage, and immutable snapshots on top of it."""

from lookalike.storage.base import ObjectInfo, Store
from lookalike.storage.snapshot import (
    check_file,
    latest_version,
    list_versions,
    manifest_of,
    mark_published,
    publish,
    read_file,
    read_listed,
    read_manifest,
    version_store,
    withdraw,
)
from lookalike.storage.store import (
    delete_all,
    locate_object,
    open_store,
    overlap,
    read_at_most,
    read_json,
    read_lines,
    read_members,
    read_object,
    size_of,
)

__all__ = [
    "ObjectInfo",
    "Store",
    "check_file",
    "delete_all",
    "latest_version",
    "list_versions",
    "locate_object",
    "manifest_of",
    "mark_published",
    "open_store",
    "overlap",
    "publish",
    "read_at_most",
    "read_file",
    "read_json",
    "read_lines",
    "read_listed",
    "read_manifest",
    "read_members",
    "read_object",
    "size_of",
    "version_store",
    "withdraw",
]
