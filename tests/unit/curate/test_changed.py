"""A raw shard that changed with the same size and time: images are verified, and the same command recovers."""

import gzip
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from lookalike.errors import InputError
from lookalike.storage import ObjectInfo, open_store
from pipelines.curate.changed import with_recorded_changes
from pipelines.curate.filters import FiltersConfig
from pipelines.curate.filters.no_pair import NoPair
from pipelines.curate.index import IndexWork, RawShard, ShardIndexer
from pipelines.curate.inputs import Inputs
from pipelines.curate.raw import list_raw
from pipelines.curate.subject_rows import read_subjects
from pipelines.curate.work import StageWork
from tests.drawn import photo, world, write_raw
from tests.published import materialise

Planned = Callable[..., StageWork]
LOOSE = FiltersConfig(no_pair=NoPair(min_similarity=-1.0), skip=["near_duplicate", "off_subject"])


def change(shard: Path, number: int = 0) -> None:
    """Replace bytes of an image without changing the shard's size and time."""
    status, data = shard.stat(), bytearray(shard.read_bytes())
    jpeg = world(2, 3)[number].jpeg
    place = data.index(jpeg) + len(jpeg) - 300
    data[place : place + 200] = b"x" * 200
    shard.write_bytes(data)
    os.utime(shard, ns=(status.st_atime_ns, status.st_mtime_ns))


def recurated(work: StageWork) -> Inputs:
    """Return the inputs of a second run of the same command."""
    dataset = open_store(work.config.dataset)
    return Inputs.of(work.config, with_recorded_changes(list_raw(work.config.raw, dataset).shards, dataset))


def test_a_change_that_no_listing_shows_is_an_error_and_the_same_command_indexes_again(
    planned: Planned, tmp_path: Path
) -> None:
    raw = write_raw(tmp_path / "raw", world(2, 3))
    for number in range(3):  # and once more, with a mark that is there already
        work = planned(raw, filters=LOOSE)
        change(raw / "shard-000000.tar", number)
        with pytest.raises(InputError, match=r"changed after it was indexed.*at byte \d+.*run the same command again"):
            materialise(work, f"v{number:04d}")
        after = recurated(work)
        assert after.fingerprint != work.inputs.fingerprint
        assert after.ids[0] != work.inputs.ids[0]
    materialise(planned(raw, filters=LOOSE), "v0009")


def test_every_reader_after_the_index_compares_hashes(planned: Planned, tmp_path: Path) -> None:
    raw = write_raw(tmp_path / "raw", world(2, 3))
    work = planned(raw, filters=LOOSE)
    rows = read_subjects(work, 0).rows.to_pylist()
    change(raw / "shard-000000.tar")
    with pytest.raises(InputError, match="changed after it was indexed"):
        work.read_image(next(row for row in rows if row["key"] == "thing00-0"))
    assert work.read_image(next(row for row in rows if row["key"] == "thing01-1"))
    inputs = replace(work.inputs, embedder="another")  # rows are there, vectors are not
    indexer = ShardIndexer(IndexWork(work.config, inputs, work.raw, work.dataset))
    assert "changed after it was indexed" in str(indexer(RawShard(0, inputs.shards[0]))["error"][0])


def test_a_shard_that_shrank_and_one_that_was_deleted_are_errors(planned: Planned, tmp_path: Path) -> None:
    raw = write_raw(tmp_path / "raw", world(2, 3))
    work = planned(raw, filters=LOOSE)
    row = read_subjects(work, 0).rows.to_pylist()[-1]
    shard = raw / "shard-000000.tar"
    os.truncate(shard, row["offset"] + 10)
    with pytest.raises(InputError, match="changed after it was indexed"):
        work.read_image(row)
    shard.unlink()
    with pytest.raises(InputError, match="no such object"):
        work.read_image(row)


def test_a_compressed_shard_is_read_from_its_copy(planned: Planned, tmp_path: Path) -> None:
    raw = write_raw(tmp_path / "raw", [*world(2, 3), photo(5, 1)])
    shard = raw / "shard-000000.tar"
    shard.write_bytes(gzip.compress(shard.read_bytes()))
    work = planned(raw, filters=LOOSE)
    rows = read_subjects(work, 0).rows.to_pylist()
    shard.write_bytes(b"something else")
    assert all(work.read_image(row) for row in rows)
    (copy,) = (Path(work.config.dataset) / "work" / "unpacked").glob("*.tar")
    copy.write_bytes(bytes(copy.stat().st_size))
    with pytest.raises(InputError, match="run the same command again"):
        work.read_image(rows[0])
    assert recurated(work).ids[0] != work.inputs.ids[0]


def test_without_marks_no_shard_is_hashed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipelines.curate.changed.shard_id", None)
    shards = [ObjectInfo(f"{number}.tar", 1, "e") for number in range(3)]
    assert with_recorded_changes(shards, open_store(str(tmp_path))) == shards
