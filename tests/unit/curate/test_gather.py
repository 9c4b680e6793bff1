"""Gather: each table is read once, each image is in the shuffles once, and tasks hold no list of raw shards."""

import pickle
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from lookalike.errors import InputError
from lookalike.storage import Store
from pipelines.curate.config import PlanConfig
from pipelines.curate.filters import FiltersConfig
from pipelines.curate.filters.large_subject import LargeSubject
from pipelines.curate.filters.no_pair import NoPair
from pipelines.curate.gather import gather
from pipelines.curate.rows import image_hashes
from pipelines.curate.subject_rows import read_subjects
from pipelines.curate.tables import read_table, write_table
from pipelines.curate.work import StageWork
from tests.drawn import Photo, draw, jpeg, photo, world, write_raw

LOOSE = FiltersConfig(no_pair=NoPair(min_similarity=-1.0))
Planned = Callable[..., StageWork]


class Reading:
    """A store that counts the reads of each object."""

    def __init__(self, store: Store, counts: Counter[str]) -> None:
        self._store, self._counts = store, counts

    def __getattr__(self, name: str) -> Any:
        if name == "_store":  # of a copy that is not set up yet
            raise AttributeError(name)
        return getattr(self._store, name)

    def read(self, key: str) -> bytes:
        self._counts[key] += 1
        return self._store.read(key)

    def read_range(self, key: str, offset: int, length: int) -> bytes:
        self._counts[key] += 1
        return self._store.read_range(key, offset, length)


def ungathered(work: StageWork) -> StageWork:
    """The work under another seed, so that nothing after the index is done."""
    inputs = replace(work.inputs, config=work.inputs.config | {"seed": 7})
    return replace(work, inputs=inputs, config=replace(work.config, seed=7))


def test_a_unit_reads_each_of_its_tables_once_and_no_other(planned: Planned, tmp_path: Path) -> None:
    work = ungathered(planned(write_raw(tmp_path / "raw", world(6, 4), per_shard=4), filters=LOOSE))
    shards = next(work.groups()).shards
    assert len(shards) == 6
    counts: Counter[str] = Counter()
    task = replace(work.for_tasks(), dataset=Reading(work.dataset, counts))  # type: ignore[arg-type]
    group = replace(next(work.groups()), shards=shards[2:4])
    assert gather(task, group)["images"].tolist() == [8]
    tables = {info.key for shard in shards[2:4] for info in (shard.rows, shard.vectors)}
    assert {key: count for key, count in counts.items() if key.endswith(".parquet")} == dict.fromkeys(tables, 1)
    counts.clear()
    gather(task, group)
    assert list(counts) == [task.workspace.gathered(0)]


def test_groups_depend_on_the_listing_and_hold_each_raw_shard_once(
    planned: Planned, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = planned(write_raw(tmp_path / "raw", world(6, 4), per_shard=3), filters=LOOSE)
    size = max(shard.rows.size + shard.vectors.size for shard in work.shards)
    monkeypatch.setattr("pipelines.curate.work._GROUP_BYTES", (2 * size, 2 * size))
    groups = list(work.groups())
    assert [group.number for group in groups] == list(range(len(groups)))
    assert [shard.number for group in groups for shard in group.shards] == list(range(8))
    assert {len(group.shards) for group in groups} == {2}


def test_what_tasks_share_does_not_grow_with_raw_shards(planned: Planned, tmp_path: Path) -> None:
    work = planned(write_raw(tmp_path / "raw", world(2, 4), per_shard=1), filters=LOOSE)
    more = replace(work, shards=work.shards * 100, inputs=replace(work.inputs, shards=work.inputs.shards * 100))
    assert len(pickle.dumps(work.for_tasks())) == len(pickle.dumps(more.for_tasks()))
    assert work.for_tasks().workspace == work.workspace


def test_grouping_and_ranges_change_no_row(planned: Planned, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    photos = [
        *world(5, 4),
        photo(0, 0).under("copy", "thing01"),
        photo(3, 1).under("again"),
        photo(1, 1).under("x", ""),
    ]
    raw = write_raw(tmp_path / "raw", photos, per_shard=4)

    def made(seed: int) -> list[dict[str, Any]]:
        work = planned(raw, filters=LOOSE, seed=0, plan=PlanConfig(rows_per_partition=5 + seed))
        read = [read_subjects(work, i) for i in range(work.partitions)]
        rows = [row for part in read for row in part.rows.to_pylist()]
        columns = zip(*(np.concatenate([getattr(part, name) for part in read]) for name in names), strict=True)
        return [row | dict(zip(names, values, strict=True)) for row, values in zip(rows, columns, strict=True)]

    names = ("reasons", "numbers", "repeated")
    whole = made(1000)
    assert sum(row["repeated"] for row in whole) == 3
    order = [(row["subject_hash"], row["subject"], row["shard"], row["offset"], row["key"]) for row in whole]
    assert order == sorted(order)
    monkeypatch.setattr("pipelines.curate.work._GROUP_BYTES", (1, 1))
    monkeypatch.setattr("lookalike.data.shuffle._MAX_WIDTH", 2)  # several levels
    monkeypatch.setattr("lookalike.data.shuffle._FAN_OUT_BITS", 1)
    monkeypatch.setattr("lookalike.data.shuffle._WITHOUT_INDEX", 0)
    assert made(0) == whole


def test_images_without_a_subject_are_spread_over_all_ranges(planned: Planned, tmp_path: Path) -> None:
    photos = [*world(2, 3), *(Photo(f"unnamed-{i}", jpeg(draw(4, i, 64)), "", {"caption": "?"}) for i in range(60))]
    work = planned(write_raw(tmp_path / "raw", photos), filters=LOOSE, plan=PlanConfig(rows_per_partition=20))
    assert work.partitions == 4
    reasons = [work.read_plan(i, "images")["drop_reason"].to_pylist() for i in range(work.partitions)]
    assert sum(part.count("unlabelled") for part in reasons) == 60
    assert max(map(len, reasons)) < 35
    images = pa.concat_tables([work.read_plan(i, "images") for i in range(work.partitions)])
    assert image_hashes(images).tolist() == images["subject_hash"].to_pylist()
    assert sum(work.read_summary(i).subjects_in for i in range(work.partitions)) == 2


def test_a_large_range_has_the_vectors_that_are_compared(
    planned: Planned, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    near = Photo("near", jpeg(draw(0, 5), 60), "thing01")
    photos = [*world(1, 9), *world(3, 3)[3:], near]
    filters = replace(LOOSE, large_subject=LargeSubject(max_photos=4))
    work = planned(write_raw(tmp_path / "raw", photos, per_shard=3), filters=filters)
    whole = read_subjects(work, 0)
    monkeypatch.setattr("pipelines.curate.subject_rows._LARGE_RANGE", 0)
    part = read_subjects(work, 0)
    assert part.rows.equals(whole.rows)
    assert (part.repeated.tolist(), part.numbers.tolist()) == (whole.repeated.tolist(), whole.numbers.tolist())
    has = part.vectors.any(1)
    np.testing.assert_array_equal(part.vectors[has], whole.vectors[has])
    plan = work.read_plan(0, "images").to_pylist()
    kept = np.array([row["drop_reason"] != "large_subject" for row in plan])
    requested = set(work.shuffle("requests").read(0)["number"].to_pylist())
    assert has.tolist() == [bool(k) or n in requested for k, n in zip(kept, part.numbers, strict=True)]
    assert sum(~kept) == 5
    assert sum(~has) in (4, 5)


def test_a_table_that_lacks_a_vector_is_an_error_that_names_it(planned: Planned, tmp_path: Path) -> None:
    work = ungathered(planned(write_raw(tmp_path / "raw", world(2, 3)), filters=LOOSE))
    key = work.shards[0].vectors.key
    table = read_table(work.dataset, key)
    write_table(work.dataset, key, table.filter(pa.array([True] * (len(table) - 1) + [False])))
    with pytest.raises(InputError, match=r"lacks the image [0-9a-f]{64}.*remove it"):
        gather(work, next(work.groups()))
