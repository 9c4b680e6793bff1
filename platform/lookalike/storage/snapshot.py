"""Immutable versions under one prefix: ``v0001/ … manifest.json``, whose manifest is written last, by one winner.

A version without a manifest does not exist for any reader. The manifest is the marker: it is created by a conditional
put, so two publishers of the same version cannot both win.
"""

import re
from collections.abc import Mapping
from typing import Any

from lookalike.config import canonical_json
from lookalike.errors import InputError
from lookalike.storage.documents import read_object
from lookalike.storage.store import Store

MANIFEST = "manifest.json"
_VERSION = re.compile(r"^v(\d{4,})/manifest\.json$")


def list_versions(store: Store) -> list[int]:
    """Numbers of the complete versions, ascending."""
    return sorted(int(m.group(1)) for info in store.list("v") if (m := _VERSION.match(info.key)))


def latest_version(store: Store) -> int:
    """The newest complete version; an empty prefix is an :class:`~lookalike.errors.InputError`."""
    versions = list_versions(store)
    if not versions:
        raise InputError("no complete snapshot here", value=store.uri, fix="run the job that makes it first")
    return versions[-1]


def version_store(store: Store, version: int) -> Store:
    """The store of one version."""
    return store.child(f"v{version:04d}")


def publish(store: Store, version: int, manifest: Mapping[str, Any]) -> None:
    """Make ``version`` visible. Every other object of it must be there already. Raises ConflictError if it lost."""
    version_store(store, version).create(MANIFEST, canonical_json(manifest).encode())


def read_manifest(store: Store, version: int | None = None) -> dict[str, Any]:
    """The manifest of ``version``, by default of the newest one."""
    chosen = latest_version(store) if version is None else version
    return read_object(version_store(store, chosen), MANIFEST)
