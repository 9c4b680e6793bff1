"""One door to ``file://`` and ``s3://``, and immutable snapshots on top of it."""

from lookalike.storage.snapshot import (
    latest_version,
    list_versions,
    publish,
    read_manifest,
    version_store,
)
from lookalike.storage.store import ObjectInfo, Store, open_object, open_store, overlap

__all__ = [
    "ObjectInfo",
    "Store",
    "latest_version",
    "list_versions",
    "open_object",
    "open_store",
    "overlap",
    "publish",
    "read_manifest",
    "version_store",
]
