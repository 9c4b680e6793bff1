"""The photos that a run may have learned from: the same by one range of subjects and by many, some of them empty."""

from pathlib import Path

import pytest

from lookalike.storage import open_store
from pipelines.curate import snapshot_tables
from pipelines.curate.snapshot_tables import Snapshot
from pipelines.trace.photos import PhotosWork, photos, photos_by_shard
from tests.unit.curate.test_snapshot_tables import drawn_world
from tests.versions import publish


@pytest.mark.parametrize("format_1", [True, False])
def test_photos_of_training_triplets_by_ranges(format_1: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipelines.trace.photos.FEW", 1000)
    images, rows = drawn_world(1, 40)
    publish(open_store(str(tmp_path)), 1, images, rows, format_1=format_1)
    train = [row for row in rows if row["split"] == "train"]
    used = {sha256 for row in train for sha256 in (row["target_image"], *row["reference_images"])}
    found = []
    for rows_of_a_unit in (10, 200_000):
        monkeypatch.setattr(snapshot_tables, "_ROWS_OF_A_UNIT", rows_of_a_unit)
        work = PhotosWork.of(Snapshot.of(open_store(str(tmp_path)), 1))
        assert work.ranges == 1 or rows_of_a_unit == 10
        found.append((photos_by_shard(work), list(photos(work))))
    assert found[0] == found[1]
    counts, listed = found[0]
    assert {photo["sha256"] for photo in listed} == used
    assert counts.total() == len(listed)


def test_snapshot_without_training_triplets(tmp_path: Path) -> None:
    images, _ = drawn_world(1, 5)
    publish(open_store(str(tmp_path)), 1, images, [], format_1=False)
    work = PhotosWork.of(Snapshot.of(open_store(str(tmp_path)), 1))
    assert (photos_by_shard(work).total(), list(photos(work))) == (0, [])
