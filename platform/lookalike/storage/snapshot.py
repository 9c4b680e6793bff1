"""Immutable snapshot versions under one prefix: ``v0001/ … manifest.json``, with the manifest written last.

Readers ignore a version without a manifest. The manifest is created by a conditional put, so that of two publishers of
one version only one succeeds. ``published/v0001.json`` beside the versions keeps the manifest's hash: if the manifest
of the newest version is deleted or edited, readers get an error instead of the version before. The manifest lists the
hash of every file of its version.
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
from lookalike.storage.store import open_store, read_object, sha256_of, size_of

MANIFEST = "manifest.json"
_VERSION = re.compile(r"^v(\d{4,})/manifest\.json$")
_MARK = re.compile(r"^published/v(\d{4,})\.json$")
_FIX = "restore it from a copy, or curate again into another dataset"


def list_versions(store: Store) -> list[int]:
    """Return the numbers of the complete versions, ascending.

    Raises:
        InputError: the newest published version has no manifest any more.
    """
    marked = sorted(int(m.group(1)) for info in store.list("published/") if (m := _MARK.match(info.key)))
    versions = _complete(store, marked) if marked else _complete_by_listing(store)
    newest = versions[-1] if versions else 0
    if marked and max(marked) > newest:
        instead = f"version {newest} would be read instead" if newest else "no version is left"
        raise InputError(
            f"version {max(marked)} was published, but its manifest is missing: {instead}",
            value=version_store(store, max(marked)).uri_of(MANIFEST),
            fix="restore it from a copy; if the version was removed on purpose, remove "
            f"{store.uri_of(_mark(max(marked)))} too",
        )
    return versions


def _complete(store: Store, marked: list[int]) -> list[int]:
    """Return the versions that have a manifest, up to the last mark, and those after it whose publisher was killed
    before its mark.

    A version has up to millions of objects, which are not listed. Numbers are claimed one after the other.
    """
    following = marked[-1] + 1
    while next(version_store(store, following).list(), None) is not None:
        following += 1
    return [number for number in range(1, following) if version_store(store, number).exists(MANIFEST)]


def _complete_by_listing(store: Store) -> list[int]:
    """Return the versions that have a manifest, of a dataset without marks: a new one, or one of earlier software."""
    return sorted(int(m.group(1)) for info in store.list("v") if (m := _VERSION.match(info.key)))


def latest_version(store: Store) -> int:
    """Return the number of the newest complete version. Raises InputError if there is none."""
    versions = list_versions(store)
    if not versions:
        raise InputError("the location has no complete snapshot", value=store.uri, fix="run jobs/curate.py first")
    return versions[-1]


def version_store(store: Store, version: int) -> Store:
    """Return the store of one version."""
    return store.child(f"v{version:04d}")


def publish(store: Store, version: int, manifest: Mapping[str, Any]) -> None:
    """Write the manifest of ``version``, whose other objects must exist. Raises ConflictError if it is published."""
    mark_published(store)
    version_store(store, version).create(MANIFEST, canonical_json(manifest).encode())
    mark_published(store)


def mark_published(store: Store) -> list[int]:
    """Write the marks that are missing: earlier software wrote none, and a publisher may have been killed before.

    Returns the numbers of the complete versions, ascending. Raises InputError as :func:`list_versions` does.
    """
    versions = list_versions(store)
    for number in versions:
        if not store.exists(_mark(number)):
            sha256 = fingerprint(read_object(version_store(store, number), MANIFEST))
            with suppress(ConflictError):
                store.create(_mark(number), canonical_json({"version": number, "sha256": sha256}).encode())
    return versions


def withdraw(store: Store, version: int) -> None:
    """Remove the mark and then the manifest of a version, after which readers ignore it. Missing ones are no error.

    Its other objects stay. A process that is killed between the two leaves a complete version.
    """
    store.delete(_mark(version))
    version_store(store, version).delete(MANIFEST)


def read_manifest(store: Store, version: int | None = None) -> dict[str, Any]:
    """Read the manifest of ``version``, by default of the newest one.

    Raises:
        InputError: the version does not exist, or its manifest is damaged or was edited after it was published.
    """
    chosen = latest_version(store) if version is None else version
    manifest = read_object(version_store(store, chosen), MANIFEST)
    if store.exists(_mark(chosen)):
        _check_manifest(version_store(store, chosen), manifest, read_object(store, _mark(chosen), "sha256")["sha256"])
    return manifest


def manifest_of(version: Store, sha256: str | None = None) -> dict[str, Any]:
    """Read the manifest of a version's store. Raises InputError if it has not the fingerprint ``sha256``, if given."""
    manifest = read_object(version, MANIFEST)
    if sha256 is not None:
        _check_manifest(version, manifest, sha256)
    return manifest


def read_listed(version: Store, key: str, manifest: Mapping[str, Any]) -> bytes:
    """Read a file of a version. Raises InputError if its hash is not the one in the ``manifest``."""
    data = version.read(key)
    _check_hash(version, key, manifest, hashlib.sha256(data).hexdigest())
    return data


def read_file(version: Store, key: str, manifest_sha256: str | None = None) -> bytes:
    """Read a file of a version and check it against the hash in the manifest, if there is a manifest.

    With ``manifest_sha256`` the manifest must exist and have this fingerprint.

    Raises:
        InputError: the file is missing or has changed, or the manifest has another fingerprint.
    """
    data = version.read(key)
    if manifest_sha256 is not None or version.exists(MANIFEST):
        manifest = manifest_of(version, manifest_sha256)
        _check_hash(version, key, manifest, hashlib.sha256(data).hexdigest())
    return data


def check_file(version: Store, key: str) -> None:
    """Check a large file of a version by its hash, once per process. Raises InputError as :func:`read_file` does."""
    if version.exists(MANIFEST):
        _check_hash(version, key, read_object(version, MANIFEST), _hash(version.uri, key))


@lru_cache(maxsize=10_000)
def _hash(version_uri: str, key: str) -> str:
    version = open_store(version_uri)
    return sha256_of(version, key, size_of(version, key))


def _check_manifest(version: Store, manifest: Mapping[str, Any], sha256: str) -> None:
    if (found := fingerprint(manifest)) != sha256:
        what = f"the manifest of the snapshot has changed: its fingerprint is {found}, but {sha256} was published"
        raise InputError(what, value=version.uri_of(MANIFEST), fix=_FIX)


def _check_hash(version: Store, key: str, manifest: Mapping[str, Any], found: str) -> None:
    files = manifest.get("files")
    if files is None:
        return
    listed = files.get(key) if isinstance(files, dict) else None
    if listed != found:
        what = f"a file of the snapshot has changed: its SHA-256 is {found}, but the manifest lists {listed}"
        raise InputError(what, value=version.uri_of(key), fix=_FIX)


def _mark(version: int) -> str:
    return f"published/v{version:04d}.json"
