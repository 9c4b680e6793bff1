"""Collection: what is removed below work/ and shards/, what stays, and a collection that is killed."""

import hashlib
import io
import json
import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lookalike.errors import BusyError, InputError
from lookalike.storage import Store, latest_version, list_versions, open_store, publish, version_store
from lookalike.storage.lease import hold
from lookalike.storage.local import LocalStore
from pipelines.curate.collect import CollectConfig, collect, complete, render_collected
from pipelines.curate.filters import FiltersConfig
from pipelines.curate.filters.no_pair import NoPair
from pipelines.curate.inputs import Inputs
from pipelines.curate.work import StageWork
from pipelines.curate.workspace import COLLECTION, LEASE, change_mark, shard_id, take_down_list
from tests.drawn import world, write_raw
from tests.published import materialise

LOOSE = FiltersConfig(no_pair=NoPair(min_similarity=-1.0))
DAY = 86_400
Planned = Callable[..., StageWork]


def pack(text: str) -> str:
    return f"shards/{hashlib.sha256(text.encode()).hexdigest()}.tar"


def list_packs(version: Store, names: list[str]) -> tuple[str, str]:
    """Write a list of packs, and return its name and hash."""
    columns = {"name": names, "images": [1] * len(names), "size": [4] * len(names), "sha256": [n[7:71] for n in names]}
    buffer = io.BytesIO()
    pq.write_table(pa.table(columns), buffer)
    version.write("lists/shards-00000.parquet", buffer.getvalue())
    return "lists/shards-00000.parquet", hashlib.sha256(buffer.getvalue()).hexdigest()


def stage_of(key: str) -> str:
    """Return the prefix of the results of a stage that ``key`` belongs to."""
    return "/".join(key.split("/")[:3]) + "/"


class Dataset:
    """A dataset with two versions in format 2 that share a pack, made of a real curation of two raw shards."""

    def __init__(self, planned: Planned, root: Path) -> None:
        self.uri, self.store = str(root / "dataset"), open_store(str(root / "dataset"))
        raw = write_raw(root / "raw", world(4, 4), per_shard=8)
        self.first = planned(raw, filters=LOOSE, seed=1)
        self.work = planned(raw, filters=LOOSE)
        self.shards = list(open_store(str(raw)).list())
        for text in ("shared", "old", "new", "orphan"):
            self.store.write(pack(text), text.encode())
        self.publish(1, self.first, ["shared", "old"])
        self.publish(2, self.work, ["shared", "new"])

    def publish(self, number: int, work: StageWork, packs: list[str]) -> None:
        scratch = materialise(work, f"v{number + 90:04d}").version
        manifest = json.loads(scratch.read("manifest.json"))
        for info in list(scratch.list()):
            version_store(self.store, number).write(info.key, scratch.read(info.key))
            scratch.delete(info.key)
        version_store(self.store, number).delete("manifest.json")
        name, digest = list_packs(version_store(self.store, number), [pack(text) for text in packs])
        manifest |= {"version": number, "format": 2}
        manifest["tables"]["shards"] = {"lists": [name]}
        manifest["files"][name] = digest
        publish(self.store, number, manifest)

    def keys(self, prefix: str = "") -> set[str]:
        lease = f"{LEASE}/"
        return {info.key for info in self.store.list(prefix) if not info.key.startswith(lease)}

    def age(self, prefix: str = "", days: float = 3) -> None:
        """Make the objects old."""
        assert isinstance(self.store, LocalStore)
        then = time.time() - days * DAY
        for info in self.store.list(prefix):
            os.utime(self.store.root / info.key, (then, then))

    def collect(self, **settings: Any) -> str:
        config = CollectConfig(self.uri, **settings)
        return render_collected(collect(config), dry_run=config.dry_run)


@pytest.fixture
def dataset(planned: Planned, tmp_path: Path) -> Dataset:
    return Dataset(planned, tmp_path)


def test_the_next_curation_finds_its_index_and_stages_of_published_runs_go(
    dataset: Dataset, planned: Planned, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset.store.write("work/rows/4-0123abcd/" + "0" * 24 + ".parquet", b"of an older revision")
    gone = shard_id(replace(dataset.shards[0], etag="another"))
    rows = dataset.work.workspace.rows(gone)
    answers = f"work/answers/{'a' * 16}/{gone}"
    for key in (rows, f"{answers}.parquet", f"{answers}/000001.parquet"):
        dataset.store.write(key, b"of a raw shard that was removed")
    kept = f"work/answers/{'a' * 16}/{shard_id(dataset.shards[1])}.parquet"
    dataset.store.write(kept, b"answers")
    dataset.store.write(change_mark("0" * 24), b"mark")
    dataset.store.write("work/notes.txt", b"of a user")
    dataset.age()
    ids = [shard_id(info) for info in dataset.shards]
    index = {make(i) for i in ids for make in (dataset.work.workspace.rows, dataset.work.workspace.vectors)}
    shown = dataset.collect()
    assert dataset.keys("work/") == index | {kept, change_mark("0" * 24), "work/notes.txt"}
    assert "work/plan" in shown
    before = {key: dataset.store.read(key) for key in index}
    monkeypatch.setattr("pipelines.curate.index.read_images", None)  # nothing is indexed again
    again = planned(tmp_path / "raw", filters=LOOSE, seed=2)
    assert again.images == 16
    assert {key: dataset.store.read(key) for key in index} == before


def test_packs_that_no_version_lists_are_removed_and_versions_stay_readable(dataset: Dataset) -> None:
    dataset.age()
    versions = dataset.keys("v")
    dataset.collect()
    assert dataset.keys("shards/") == {pack("shared"), pack("old"), pack("new")}
    assert dataset.keys("v") == versions


def test_young_objects_stay_and_of_a_stage_all_or_none(dataset: Dataset) -> None:
    every = dataset.keys()
    dataset.collect()
    assert dataset.keys() == every
    dataset.age()
    young = dataset.work.workspace.summary(0)
    dataset.store.write(young, dataset.store.read(young))
    of_stage = dataset.keys(stage_of(young))
    assert len(of_stage) > 1
    dataset.collect()
    assert dataset.keys(stage_of(young)) == of_stage
    assert not dataset.keys(stage_of(dataset.first.workspace.summary(0)))
    dataset.collect(grace_hours=0)
    assert not dataset.keys(stage_of(young))


def test_packs_of_a_killed_run_stay_as_long_as_its_results(dataset: Dataset, planned: Planned, tmp_path: Path) -> None:
    killed = planned(tmp_path / "raw", filters=LOOSE, seed=3)  # before its version was published
    dataset.store.write(killed.workspace.materialised("v0003", 0), b"{}")
    dataset.age("shards/")
    dataset.collect()
    assert pack("orphan") in dataset.keys("shards/")
    dataset.age()
    dataset.collect()
    assert pack("orphan") not in dataset.keys("shards/")


def test_a_dry_run_removes_nothing_and_shows_the_same_numbers(dataset: Dataset) -> None:
    dataset.age()
    before = dataset.keys()
    shown = dataset.collect(dry_run=True)
    assert dataset.keys() == before
    dataset.age(LEASE)
    done = dataset.collect()
    assert shown.replace("would remove", "removed") == done
    assert len(before) - len(dataset.keys()) == int(done.splitlines()[-1].split()[1])


@pytest.mark.parametrize("damage", ["changed", "missing", "no table", "format"])
def test_nothing_is_removed_if_a_version_cannot_be_read(dataset: Dataset, damage: str) -> None:
    first = version_store(dataset.store, 1)
    if damage == "changed":
        list_packs(first, [pack("shared")])
    elif damage == "missing":
        first.delete("lists/shards-00000.parquet")
    else:
        manifest = json.loads(first.read("manifest.json"))
        if damage == "no table":
            del manifest["tables"]["shards"]
        else:
            manifest["format"] = 3
        dataset.store.delete("published/v0001.json")
        first.write("manifest.json", json.dumps(manifest).encode())
    dataset.age()
    before = dataset.keys()
    with pytest.raises(InputError, match="v0001"):
        dataset.collect(grace_hours=0)
    assert dataset.keys() == before


def test_a_version_of_format_1_needs_no_packs(dataset: Dataset) -> None:
    first = version_store(dataset.store, 1)
    manifest = json.loads(first.read("manifest.json"))
    del manifest["format"], manifest["tables"]
    dataset.store.delete("published/v0001.json")
    first.write("manifest.json", json.dumps(manifest).encode())
    dataset.age()
    dataset.collect()
    assert dataset.keys("shards/") == {pack("shared"), pack("new")}
    assert list_versions(dataset.store) == [1, 2]


def test_take_down_lists_that_a_manifest_names_stay(dataset: Dataset) -> None:
    second = version_store(dataset.store, 2)
    manifest = json.loads(second.read("manifest.json"))
    manifest["taken_down"] = {"list": "a" * 64, "widened": "b" * 64}
    dataset.store.delete("published/v0002.json")
    second.write("manifest.json", json.dumps(manifest).encode())
    for digest in "abc":
        dataset.store.write(take_down_list(digest * 64), b"")
    dataset.age()
    dataset.collect()
    assert dataset.keys("work/taken-down/") == {take_down_list("a" * 64), take_down_list("b" * 64)}


def test_one_version_is_removed_with_the_packs_that_it_alone_lists(dataset: Dataset) -> None:
    dataset.age()
    dataset.collect(version=1)
    assert not dataset.keys("v0001/")
    assert not dataset.keys("published/v0001")
    assert list_versions(dataset.store) == [2]
    assert dataset.keys("shards/") == {pack("shared"), pack("new")}
    with pytest.raises(InputError, match="does not exist"):
        dataset.collect(version=1)
    with pytest.raises(InputError, match="is the newest"):
        dataset.collect(version=2)
    assert latest_version(dataset.store) == 2


@pytest.mark.parametrize("deletions", [0, 1, 2, 10])
def test_a_killed_collection_is_completed_by_the_next_and_by_a_curation(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, deletions: int
) -> None:
    dataset.age()
    dataset.store.write(f"{LEASE}/keep", b"")
    real, done = LocalStore.delete, []

    class Killed(BaseException):
        pass

    def delete(self: LocalStore, key: str) -> None:
        if "lease" not in str(self.root) and len(done) >= deletions:
            raise Killed
        done.append(key)
        real(self, key)

    monkeypatch.setattr(LocalStore, "delete", delete)
    monkeypatch.setattr("pipelines.curate.collect.delete_all", lambda store, keys: [store.delete(key) for key in keys])
    with pytest.raises(Killed):
        dataset.collect(version=1)
    monkeypatch.setattr(LocalStore, "delete", real)
    versions = list_versions(dataset.store)  # no reader sees a part of a version
    assert versions in ([1, 2], [2])
    for number in versions:
        assert {"manifest.json", "lists/shards-00000.parquet"} <= {
            info.key for info in version_store(dataset.store, number).list()
        }
    assert dataset.store.exists(COLLECTION)
    with hold(dataset.store.child(LEASE)) as lease:
        complete(dataset.store, lease)  # as a curation run does first
    assert not dataset.store.exists(COLLECTION)
    assert not dataset.keys("v0001/")
    assert not dataset.keys(stage_of(dataset.work.workspace.summary(0)))
    dataset.collect()
    assert dataset.keys("shards/") == {pack("shared"), pack("new")}


def test_a_record_of_a_collection_cannot_remove_other_prefixes(dataset: Dataset) -> None:
    before = dataset.keys()
    for prefix in ("", "work/", "v0002", "work/rows/", "published/"):
        dataset.store.write(COLLECTION, json.dumps({"prefixes": [prefix]}).encode())
        with pytest.raises(InputError, match="names a prefix that no collection removes"):
            dataset.collect()
        assert dataset.keys() == {*before, COLLECTION}


def test_a_running_curation_prevents_a_collection(dataset: Dataset) -> None:
    with hold(dataset.store.child(LEASE)), pytest.raises(BusyError):
        dataset.collect()


def test_a_place_that_is_no_dataset_stays_as_it_is(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no complete snapshot"):
        collect(CollectConfig(str(tmp_path / "nothing")))
    assert not (tmp_path / "nothing").exists()


def test_inputs_of_a_manifest_are_those_that_it_was_made_of(dataset: Dataset) -> None:
    manifest = json.loads(version_store(dataset.store, 2).read("manifest.json"))
    inputs = Inputs.of_manifest(manifest)
    assert inputs.fingerprint == dataset.work.inputs.fingerprint == manifest["inputs"]["fingerprint"]
    assert inputs.index_workspace == dataset.work.inputs.index_workspace
    assert list(inputs.ids) == [shard_id(info) for info in dataset.shards]
