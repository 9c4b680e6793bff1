"""Subjects are found by the embeddings of their photos."""

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from lookalike.storage import Store, open_store
from pipelines.curate import cluster_subjects
from pipelines.curate.cluster_subjects import group
from pipelines.curate.config import FoundConfig, LabelsConfig
from pipelines.curate.filters import FiltersConfig
from pipelines.curate.filters.no_pair import NoPair
from pipelines.curate.rows import subject_hash
from pipelines.curate.tables import read_table
from pipelines.curate.work import StageWork
from tests.drawn import photo, world, write_raw
from tests.unit.curate.indexed import Counted, directions, find, groups_of, photos, write_index

LOOSE = FiltersConfig(no_pair=NoPair(min_similarity=-1.0))
Planned = Callable[..., StageWork]


def test_grouping_finds_subjects_and_is_deterministic() -> None:
    vectors = directions(200, 5, 0.4)
    labels = group(vectors, FoundConfig())
    assert (labels == np.repeat(np.arange(200) * 5, 5)).mean() > 0.98
    assert (labels == group(vectors, FoundConfig())).all()


def test_a_chain_of_similar_images_is_divided() -> None:
    angles = np.radians(np.arange(0, 180, 20))  # neighbours have 0.94, ends -0.94
    vectors = np.stack([np.cos(angles), np.sin(angles), 0 * angles], 1).astype(np.float32)
    labels = group(vectors, FoundConfig(min_similarity=0.66, neighbours=4))
    assert len(set(labels)) >= 3


def test_one_image_is_one_group() -> None:
    assert group(directions(1, 1, 0), FoundConfig()).tolist() == [0]


def test_unlabelled_photos_of_many_shards_get_subjects_and_labelled_ones_keep_theirs(
    planned: Planned, tmp_path: Path
) -> None:
    unlabelled = {"caption": "a thing"}
    photos = [replace(p, metadata=unlabelled) for p in world(6, 4)] + [photo(6, view) for view in range(3)]
    raw = write_raw(tmp_path / "raw", photos, per_shard=4)
    for cells in (1, 3):  # photos of a subject in two cells are two subjects
        settings = FoundConfig(min_similarity=0.7, images_per_cell=-(-len(photos) // cells))
        work = planned(raw, filters=LOOSE, labels=LabelsConfig(found=settings))
        tables = [work.read_plan(i, "images") for i in range(work.partitions)]
        subject = {row["key"]: row["subject"] for row in pa.concat_tables(tables).to_pylist()}
        assert {subject[p.key] for p in photos[24:]} == {"thing06"}
        names_of = [{subject[f"thing{thing:02d}-{view}"] for view in range(4)} for thing in range(6)]
        assert all(name.startswith("found-") for names in names_of for name in names)
        owners = [sum(name in names for names in names_of) for name in set().union(*names_of)]
        assert owners.count(1) >= 0.8 * len(owners)  # few names belong to two subjects
        if cells == 1:
            assert sum(len(names) < 4 for names in names_of) >= 4  # most have views that are found together


def test_labelled_photos_keep_their_subjects_if_few_or_none_are_unlabelled(planned: Planned, tmp_path: Path) -> None:
    settings = LabelsConfig(found=FoundConfig(images_per_cell=2))
    for unlabelled in (0, 1):
        photos = world(3, 3)
        photos[:unlabelled] = [replace(p, metadata={"caption": "a thing"}) for p in photos[:unlabelled]]
        work = planned(write_raw(tmp_path / f"raw{unlabelled}", photos), filters=LOOSE, labels=settings)
        tables = [work.read_plan(i, "images") for i in range(work.partitions)]
        rows = pa.concat_tables(tables).to_pylist()
        assert sum(row["subject"].startswith("thing") for row in rows) == len(photos) - unlabelled
        assert sum(row["subject"].startswith("found-") for row in rows) == unlabelled


def test_a_shard_without_a_decodable_photo_gets_no_subjects(planned: Planned, tmp_path: Path) -> None:
    broken = [replace(photo(0, view), jpeg=b"not a photo") for view in range(2)]
    raw = write_raw(tmp_path / "raw", [*world(2, 2), *broken], per_shard=4)
    work = planned(raw, filters=LOOSE, labels=LabelsConfig(found=FoundConfig()))
    assert work.read_summary(0).dropped == {"undecodable": 2}


def test_a_component_of_equal_photos_is_one_group_however_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster_subjects, "_LARGEST", 10)  # more than this are not compared with each other
    vectors = np.concatenate([directions(1, 60, 0), -directions(2, 3, 0.1)])
    labels = group(vectors, FoundConfig(min_similarity=0.7))
    assert set(labels[:60].tolist()) == {0}
    assert 0 not in labels[60:]


def found(store: Store) -> dict[str, bytes]:
    """The tables with the subjects, by the end of their keys."""
    infos = [info for info in store.list("work/found/") if "centroids" not in info.key]
    return {"/".join(info.key.split("/")[-2:]): store.read(info.key) for info in infos}


def subjects_of(store: Store) -> dict[str, str]:
    """The subject of each photo, by its key."""
    rows = [
        read_table(store, info.key).select(["key", "subject"])
        for info in store.list("work/found/")
        if "/rows/" in info.key
    ]
    table = pa.concat_tables(rows)
    return dict(zip(table["key"].to_pylist(), table["subject"].to_pylist(), strict=True))


def test_subjects_depend_on_neither_groups_nor_order_nor_levels_of_the_shuffle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tables: list[dict[str, bytes]] = []
    for number, (group_bytes, width) in enumerate(((64 << 20, 2000), (1, 2000), (45_000, 2))):
        monkeypatch.setattr("lookalike.data.shuffle._MAX_WIDTH", width)
        store = open_store(str(tmp_path / str(number)))
        shards = write_index(store, photos(8, 50), {(2, 7): "cup", (5, 3): "cup"})
        assert len(groups_of(shards, group_bytes)) == (1, 8, 4)[number]
        find(store, shards, FoundConfig(images_per_cell=60), number, group_bytes)
        tables.append(found(store))
        names = subjects_of(store)
        assert Counter(names.values())["cup"] == 2
        assert sum(name.startswith("found-") for name in names.values()) == len(names) - 2 == 398
    assert len(tables[0]) == 16
    assert tables[0] == tables[1] == tables[2]


def test_rows_keep_their_notes_and_vectors_follow_the_rows(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    vectors = photos(2, 20)
    find(store, write_index(store, vectors), FoundConfig())
    tables = {info.key.rsplit("/", 2)[1:][0] + info.key[-14:]: info.key for info in store.list("work/found/")}
    rows, embedded = (read_table(store, tables[f"{kind}000001.parquet"]) for kind in ("rows", "vectors"))
    assert b'"members":1' in rows.schema.metadata[b"lookalike"]
    assert embedded["sha256"].to_pylist() == rows["sha256"].to_pylist()
    assert (
        embedded["subject_hash"].to_pylist()
        == rows["subject_hash"].to_pylist()
        == sorted(rows["subject_hash"].to_pylist())
    )
    assert rows["subject_hash"].to_pylist() == [subject_hash(name) for name in rows["subject"].to_pylist()]
    number = [int(key.split("-")[1]) for key in rows["key"].to_pylist()]
    stored = np.stack([np.asarray(vector) for vector in embedded["vector"].to_pylist()])
    assert np.allclose(stored, vectors[1][number], atol=1e-3)


def test_a_run_that_was_killed_repeats_no_unit(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    shards = write_index(store, photos(4, 50))
    find(store, shards, FoundConfig(images_per_cell=60))
    before, counted = found(store), Counted(store)
    find(counted, shards, FoundConfig(images_per_cell=60))
    assert counted.requests["write", "work"] == 0
    assert found(store) == before


def test_more_raw_shards_and_cells_read_no_table_more_often(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    requests = {}
    for shards in (16, 128):
        store = open_store(str(tmp_path / str(shards)))
        tables = write_index(store, photos(shards, 50))
        size = tables[0].rows.size + tables[0].vectors.size
        monkeypatch.setattr(cluster_subjects, "_SAMPLED_SHARDS", 16)
        counted = Counted(store)
        find(counted, tables, FoundConfig(images_per_cell=400), group_bytes=4 * size + size // 2)
        requests[shards] = counted.reads("tables") / shards
    assert requests[128] <= requests[16] <= 6


def test_a_cell_of_nearly_equal_photos_is_grouped_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []

    def counted(vectors: np.ndarray, settings: FoundConfig) -> np.ndarray:
        sizes.append(len(vectors))
        return group(vectors, settings)

    monkeypatch.setattr(cluster_subjects, "group", counted)
    store = open_store(str(tmp_path))
    equal = np.concatenate([np.repeat(directions(1, 1, 0), 380, axis=0), directions(4, 5, 0.1)]).reshape(4, 100, 64)
    results = find(store, write_index(store, equal), FoundConfig(images_per_cell=20))
    parts = [int(result["parts"]) for result in results if "parts" in result]
    assert max(parts) == 10
    assert max(sizes) <= 1.5 * 40
    names = subjects_of(store)
    assert all(name.startswith("found-") for name in names.values())
    assert len({name for key, name in names.items() if not key.startswith("3-8") and not key.startswith("3-9")}) >= max(
        parts
    )


def test_photos_whose_vectors_are_not_finite_are_subjects_of_their_own(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    vectors = photos(2, 20)
    vectors[0, 3], vectors[1, 4, 0] = np.nan, np.inf
    find(store, write_index(store, vectors), FoundConfig(images_per_cell=10))
    names = subjects_of(store)
    counts = Counter(names.values())
    assert counts[names["0-3"]] == counts[names["1-4"]] == 1
