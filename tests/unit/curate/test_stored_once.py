"""Each image of a triplet is stored once in a dataset, and a new version uses the images of its parent again."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from lookalike.data.part_lists import read_pack_lists
from lookalike.data.parts import open_table
from lookalike.data.triplet_files import load_many
from lookalike.data.triplets import Triplet, read_table, read_triplets
from lookalike.storage import read_object
from lookalike.storage.snapshot import MANIFEST
from pipelines.curate.config import PlanConfig, ShardsConfig
from pipelines.curate.filters import FiltersConfig
from pipelines.curate.filters.no_pair import NoPair
from pipelines.curate.materialised import MaterialiseWork
from pipelines.curate.rows import IMAGES_SCHEMA, sha256
from pipelines.curate.work import StageWork
from tests.drawn import Photo, photo, world, write_raw
from tests.published import materialise

Planned = Callable[..., StageWork]
LOOSE = FiltersConfig(no_pair=NoPair(min_similarity=-1.0))


def photos_of(subjects: int, views: int, side: int = 240) -> list[Photo]:
    return [photo(subject, view, side) for subject in range(subjects) for view in range(views)]


def packs_of(work: StageWork) -> dict[str, int]:
    return {info.key: info.size for info in work.dataset.list("shards/")}


def counts_of(done: MaterialiseWork) -> dict[str, Any]:
    return dict(read_object(done.version, MANIFEST)["counts"])


def contents_of(done: MaterialiseWork) -> list[tuple[str, ...]]:
    """The triplets, without the places of their images."""
    return [
        (r["triplet_id"], r["target_sha256"], *r["reference_sha256s"]) for r in read_table(done.version).to_pylist()
    ]


def test_a_second_version_stores_what_is_new(planned: Planned, tmp_path: Path) -> None:
    every = FiltersConfig(
        no_pair=NoPair(min_similarity=-1.0, max_similarity=0.98), skip=["near_duplicate", "off_subject"]
    )
    photos = photos_of(20, 5)
    first = materialise(planned(write_raw(tmp_path / "raw", photos), filters=every))
    packs = packs_of(first.stage)
    files = {row["stored_sha256"]: row["stored_length"] for row in images_of(first) if row["stored_sha256"]}
    stored = len(files)
    assert stored > 95
    assert sum(packs.values()) <= 1.1 * sum(files.values())
    photos[7] = photo(1, 40, 240).under("changed", "thing01")
    work = planned(write_raw(tmp_path / "raw", photos), filters=every)
    second = materialise(work, "v0002", parent=1)
    added = {key: size for key, size in packs_of(work).items() if key not in packs}
    assert 0 < sum(added.values()) <= 0.03 * sum(packs.values())
    counts = counts_of(second)
    assert (counts["images_stored"], counts["images_reused"]) == (1, stored - 1)
    used = {t.target_image for t in all_triplets(second)}
    assert counts["bytes_stored"] + counts["bytes_reused"] == sum(len(p.jpeg) for p in photos if sha256(p.jpeg) in used)
    assert contents_of(materialise(work, "v0003")) == contents_of(second), "the same triplets as without a parent"


def all_triplets(done: MaterialiseWork) -> list[Triplet]:
    """The triplets, whose images can all be read."""
    triplets = read_triplets(done.version)
    assert not [item for item in load_many(done.version, triplets) if isinstance(item, Exception)]
    return triplets


def images_of(done: MaterialiseWork) -> list[dict[str, Any]]:
    return [row for part in open_table(done.version, "images", IMAGES_SCHEMA).parts() for row in part.to_pylist()]


def test_image_table_says_where_each_image_of_a_triplet_is_stored(planned: Planned, tmp_path: Path) -> None:
    photos = [*world(4, 4), photo(0, 0).under("copy"), photo(9, 0)]
    done = materialise(planned(write_raw(tmp_path / "raw", photos), filters=LOOSE))
    rows = images_of(done)
    assert len(rows) == 18
    stored = {row["key"] for row in rows if row["stored_shard"]}
    assert stored == {p.key for p in world(4, 4)}, "neither the dropped copy, nor a photo without a pair"
    for row in rows:
        if row["stored_shard"]:
            place = row["stored_shard"], row["stored_offset"], row["stored_length"]
            assert sha256(done.stage.dataset.read_range(*place)) == row["stored_sha256"]
            assert row["target_latents_offset"] is None
    assert [row["subject_hash"] for row in rows] == sorted(row["subject_hash"] for row in rows)
    (packs,) = read_pack_lists(done.version, read_object(done.version, MANIFEST))
    (pack,) = packs.to_pylist()
    assert pack["rows"] == 16
    assert pack["sha256"] == sha256(done.stage.dataset.read(pack["name"]))
    assert pack["size"] == packs_of(done.stage)[pack["name"]]


def test_triplets_of_a_subject_are_neighbours_in_their_pack(planned: Planned, tmp_path: Path) -> None:
    done = materialise(planned(write_raw(tmp_path / "raw", world(6, 4)), filters=LOOSE))
    stored = sorted((row["stored_offset"], row["subject_hash"]) for row in images_of(done))
    assert [place for _, place in stored] == sorted(place for _, place in stored)


@pytest.mark.parametrize("lost", ["removed", "tainted", "cut off"])
def test_images_of_a_lost_pack_are_stored_again(planned: Planned, tmp_path: Path, lost: str) -> None:
    raw, small = write_raw(tmp_path / "raw", world(8, 4)), PlanConfig(rows_per_partition=10)
    first = materialise(planned(raw, filters=LOOSE, plan=small))
    assert first.stage.partitions == 4
    packs, gone = packs_of(first.stage), sorted(packs_of(first.stage))[1]
    assert len(packs) > 2
    tainted = frozenset([gone] if lost == "tainted" else [])
    held = [row["key"] for row in images_of(first) if row["stored_shard"] == gone]
    left = [p for p in world(8, 4) if lost != "tainted" or p.key != held[1]]
    write_raw(raw, left)
    work = planned(raw, filters=LOOSE, plan=replace(small, max_triplets_per_subject=20))
    if lost == "removed":
        work.dataset.delete(gone)
    if lost == "cut off":
        work.dataset.write(gone, work.dataset.read(gone)[:2000])
    second = materialise(work, "v0002", parent=1, tainted=tainted)
    counts, used = counts_of(second), {t.target_shard for t in all_triplets(second)}
    assert counts["images_stored"] == len([p for p in left if p.key in held]) == len(held) - (lost == "tainted")
    assert counts["images_reused"] == 32 - len(held)
    assert packs.keys() - {gone} <= used
    assert (gone in used) == (lost != "tainted")


def test_images_in_another_form_are_not_used_again(planned: Planned, tmp_path: Path) -> None:
    raw = write_raw(tmp_path / "raw", photos_of(3, 3))
    materialise(planned(raw, filters=LOOSE))
    work = planned(raw, filters=LOOSE, shards=ShardsConfig(image_size=100))
    second = materialise(work, "v0002", parent=1)
    assert second.before is None
    assert counts_of(second)["images_reused"] == 0
    assert {item.target.shape for item in load_many(second.version, all_triplets(second))} == {(100, 100, 3)}  # type: ignore[union-attr]


def test_order_of_units_and_size_of_lists_change_no_byte(
    planned: Planned, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lists of two units; the parent's lists are found by their first subject hash."""
    monkeypatch.setattr("pipelines.curate.finish.LISTED", 2)
    monkeypatch.setattr("pipelines.curate.materialise.LISTED", 2)
    small = PlanConfig(rows_per_partition=4)
    raw = write_raw(tmp_path / "raw", world(8, 4))
    first = materialise(planned(raw, filters=LOOSE, plan=small))
    manifest = read_object(first.version, MANIFEST)
    assert len(manifest["tables"]["images"]["lists"]) > 2
    assert manifest["tables"]["images"]["first_hashes"] == sorted(manifest["tables"]["images"]["first_hashes"])
    assert manifest["tables"]["images"]["rows"] == 32
    work = planned(raw, filters=LOOSE, plan=replace(small, max_triplets_per_subject=20))
    second = materialise(work, "v0002", parent=1)
    assert counts_of(second)["images_stored"] == 0
    before = {info.key: work.dataset.read(info.key) for info in work.dataset.list("v0002/")}
    for info in list(work.dataset.list(f"work/materialise/{work.inputs.fingerprint[:16]}/")):
        work.dataset.delete(info.key)
    for key in before:
        work.dataset.delete(key)
    materialise(work, "v0002", parent=1)
    assert {info.key: work.dataset.read(info.key) for info in work.dataset.list("v0002/")} == before


def test_units_cover_images_of_subjects_without_triplets(planned: Planned, tmp_path: Path) -> None:
    photos = [*world(2, 2), *(photo(n, 0) for n in range(3, 12))]
    done = materialise(
        planned(write_raw(tmp_path / "raw", photos), filters=LOOSE, plan=PlanConfig(rows_per_partition=3))
    )
    assert done.stage.partitions > 3
    parts = [info.key for info in done.stage.dataset.list("v0001/images/")]
    rows = sum(pq.read_metadata(Path(done.version.uri[7:]) / key.removeprefix("v0001/")).num_rows for key in parts)
    assert rows == 13
