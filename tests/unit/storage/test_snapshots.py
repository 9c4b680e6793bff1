"""Published versions: a lost one is an error, and files are checked against the manifest."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from lookalike.config import fingerprint
from lookalike.errors import ConflictError, InputError
from lookalike.storage import (
    ObjectInfo,
    Store,
    latest_version,
    list_versions,
    mark_published,
    open_store,
    publish,
    read_file,
    read_manifest,
    version_store,
)


def _publish(store: Store, version: int, data: bytes = b"table") -> dict:
    version_store(store, version).write("t.parquet", data)
    files = {"t.parquet": hashlib.sha256(data).hexdigest()}
    manifest = {"version": version, "parent": version - 1 or None, "files": files}
    publish(store, version, manifest)
    return manifest


@pytest.fixture
def store(tmp_path: Path) -> Store:
    made = open_store(str(tmp_path))
    for version in (1, 2):
        _publish(made, version)
    return made


def test_deleted_manifest_of_the_newest_version_is_an_error(store: Store) -> None:
    version_store(store, 2).delete("manifest.json")
    for read in (list_versions, latest_version, read_manifest):
        with pytest.raises(InputError, match=r"version 2 was published, but its manifest is missing: version 1") as no:
            read(store)
        assert str(no.value.value).endswith("v0002/manifest.json")
    with pytest.raises(InputError, match="version 2 was published"):
        publish(store, 3, {"version": 3})
    assert read_manifest(store, 1)["version"] == 1
    store.delete("published/v0002.json")  # the fix in the error, if the version was removed on purpose
    assert latest_version(store) == 1


def test_deletion_of_all_versions_is_an_error(store: Store) -> None:
    for version in (1, 2):
        version_store(store, version).delete("manifest.json")
    with pytest.raises(InputError, match="no version is left"):
        list_versions(store)


def test_removed_old_version_is_not_an_error(store: Store) -> None:
    version_store(store, 1).delete("manifest.json")
    assert list_versions(store) == [2]


def test_edited_manifest_is_an_error(store: Store) -> None:
    manifest = read_manifest(store)
    version_store(store, 2).write("manifest.json", json.dumps({**manifest, "parent": None}).encode())
    with pytest.raises(InputError, match=r"manifest of the snapshot has changed: its fingerprint is [0-9a-f]{64}, but"):
        read_manifest(store)


def test_datasets_without_marks_are_read_and_marked_by_the_next_publication(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    manifest = _publish(store, 1)
    store.delete("published/v0001.json")
    assert (latest_version(store), read_manifest(store)) == (1, manifest)
    _publish(store, 2)
    assert json.loads(store.read("published/v0001.json")) == {"version": 1, "sha256": fingerprint(manifest)}


def test_second_publisher_of_a_version_is_refused(store: Store) -> None:
    with pytest.raises(ConflictError):
        publish(store, 2, {"version": 2})
    assert read_manifest(store)["files"]


def test_changed_file_is_refused(store: Store) -> None:
    version = version_store(store, 2)
    assert read_file(version, "t.parquet") == b"table"
    version.write("t.parquet", b"other")
    with pytest.raises(InputError, match=r"has changed: its SHA-256 is d9298a10.*but the manifest lists [0-9a-f]{64}"):
        read_file(version, "t.parquet")
    version.write("added.parquet", b"x")
    with pytest.raises(InputError, match="the manifest lists None"):
        read_file(version, "added.parquet")


def test_manifest_replaced_during_a_run_is_refused(store: Store) -> None:
    version, manifest = version_store(store, 2), read_manifest(store)
    assert read_file(version, "t.parquet", fingerprint(manifest)) == b"table"
    forged = {**manifest, "files": {"t.parquet": hashlib.sha256(b"other").hexdigest()}}
    version.write("t.parquet", b"other")
    version.write("manifest.json", json.dumps(forged).encode())
    with pytest.raises(InputError, match="manifest of the snapshot has changed"):
        read_file(version, "t.parquet", fingerprint(manifest))
    version.delete("manifest.json")
    with pytest.raises(InputError, match="no such object"):
        read_file(version, "t.parquet", fingerprint(manifest))


def test_a_version_whose_publisher_was_killed_before_its_mark_is_complete(store: Store) -> None:
    for number in (3, 4):  # 3 was claimed and given up
        version_store(store, number).write("claim.json", b"{}")
    version_store(store, 4).create("manifest.json", b'{"version": 4}')
    assert list_versions(store) == [1, 2, 4]


def test_the_mark_of_a_publisher_that_was_killed_is_written_later(store: Store) -> None:
    written = store.read("published/v0002.json")
    store.delete("published/v0002.json")
    assert mark_published(store) == [1, 2]
    assert store.read("published/v0002.json") == written
    assert mark_published(store) == [1, 2]


def test_objects_of_published_versions_are_not_listed(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    listed: list[str] = []
    whole = type(store).list

    def watched(self: Store, prefix: str = "") -> Iterator[ObjectInfo]:
        listed.append(f"{self.uri}/{prefix}")
        return whole(self, prefix)

    before = list_versions(store)
    monkeypatch.setattr(type(store), "list", watched)
    assert list_versions(store) == before
    assert not [uri for uri in listed if uri.endswith("/v") or any(f"/v{n:04d}" in uri for n in before)]
