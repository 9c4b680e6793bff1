"""Immutable versions under one prefix: ``v0001/ … manifest.json``, whose manifest is written last, by one winner.

A version without a manifest does not exist for any reader. The manifest is the marker: it is created by a conditional
put, so two publishers of the same version cannot both win. Beside the versions ``published/v0001.json`` keeps the
manifest's hash: a newest version whose manifest is deleted or edited is an error, not a silent return to the one
before. The manifest in turn lists the hash of every file of its version.
"""

import hashlib
import re
from collections.abc import Mapping
from contextlib import suppress
from functools import lru_cache
from typing import Any

from lookalike.config import canonical_json, fingerprint
from lookalike.errors import ConflictError, InputError
from lookalike.storage.base import Store
from lookalike.storage.documents import read_object
from lookalike.storage.store import open_store

MANIFEST = "manifest.json"
_VERSION = re.compile(r"^v(\d{4,})/manifest\.json$")
_MARK = re.compile(r"^published/v(\d{4,})\.json$")
_BLOCK = 16 << 20  # bytes of a range request
_FIX = "restore the file from a copy, or curate again into another dataset"


def list_versions(store: Store) -> list[int]:
    """Numbers of the complete versions, ascending.

    Raises:
        InputError: the newest version that was published is not there any more.
    """
    versions = sorted(int(m.group(1)) for info in store.list("v") if (m := _VERSION.match(info.key)))
    marked = [int(m.group(1)) for info in store.list("published/") if (m := _MARK.match(info.key))]
    newest = versions[-1] if versions else 0
    if marked and max(marked) > newest:
        instead = f"version {newest} would be read in its place" if newest else "no version is left"
        raise InputError(
            f"version {max(marked)} was published, and its manifest is missing: {instead}",
            value=version_store(store, max(marked)).uri_of(MANIFEST),
            fix="restore it from a copy; if the version was removed on purpose, remove "
            f"{store.uri_of(_mark(max(marked)))} too",
        )
    return versions


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
    earlier = list_versions(store)
    version_store(store, version).create(MANIFEST, canonical_json(manifest).encode())
    for number in [*earlier, version]:  # those of earlier versions of this software, and of a publisher that was killed
        if not store.exists(_mark(number)):
            sha256 = fingerprint(read_object(version_store(store, number), MANIFEST))
            with suppress(ConflictError):
                store.create(_mark(number), canonical_json({"version": number, "sha256": sha256}).encode())


def read_manifest(store: Store, version: int | None = None) -> dict[str, Any]:
    """The manifest of ``version``, by default of the newest one.

    Raises:
        InputError: no such version, or a manifest that is damaged or was edited since it was published.
    """
    chosen = latest_version(store) if version is None else version
    manifest = read_object(version_store(store, chosen), MANIFEST)
    if store.exists(_mark(chosen)):
        _check_manifest(version_store(store, chosen), manifest, read_object(store, _mark(chosen), "sha256")["sha256"])
    return manifest


def read_file(version: Store, key: str, manifest_sha256: str | None = None) -> bytes:
    """A file of a version, checked against the hash in the manifest, if there is a manifest.

    With ``manifest_sha256`` there has to be one, with this fingerprint.

    Raises:
        InputError: the file is missing or has changed, or the manifest is another one.
    """
    data = version.read(key)
    if manifest_sha256 is not None or version.exists(MANIFEST):
        manifest = read_object(version, MANIFEST)
        if manifest_sha256 is not None:
            _check_manifest(version, manifest, manifest_sha256)
        _check_hash(version, key, manifest, hashlib.sha256(data).hexdigest())
    return data


def check_file(version: Store, key: str) -> None:
    """Hash a large file of a version, once in a process. Raises InputError as :func:`read_file`."""
    if version.exists(MANIFEST):
        _check_hash(version, key, read_object(version, MANIFEST), _hash(version.uri, key))


@lru_cache(maxsize=100_000)
def _hash(version_uri: str, key: str) -> str:
    version, digest = open_store(version_uri), hashlib.sha256()
    size = next((info.size for info in version.list(key) if info.key == key), 0)
    for start in range(0, size, _BLOCK):
        digest.update(version.read_range(key, start, min(_BLOCK, size - start)))
    return digest.hexdigest()


def _check_manifest(version: Store, manifest: dict[str, Any], sha256: str) -> None:
    if (found := fingerprint(manifest)) != sha256:
        raise InputError(
            f"the manifest of the snapshot has changed: its fingerprint is {found}, published was {sha256}",
            value=version.uri_of(MANIFEST),
            fix="restore it from a copy, or curate again into another dataset",
        )


def _check_hash(version: Store, key: str, manifest: dict[str, Any], found: str) -> None:
    files = manifest.get("files")
    if files is None:
        return
    listed = files.get(key) if isinstance(files, dict) else None
    if listed != found:
        raise InputError(
            f"a file of the snapshot has changed: its SHA-256 is {found}, the manifest lists {listed}",
            value=version.uri_of(key),
            fix=_FIX,
        )


def _mark(version: int) -> str:
    return f"published/v{version:04d}.json"
