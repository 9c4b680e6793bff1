"""Subjects that share an image are in the same split."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from lookalike.errors import InputError
from pipelines.curate.config import PlanConfig
from pipelines.curate.duplicates import find_repeated
from pipelines.curate.filters import FiltersConfig
from pipelines.curate.filters.no_pair import NoPair
from pipelines.curate.layout import divide, join
from pipelines.curate.rows import subject_hash, unit_hash
from pipelines.curate.subject_links import joins
from pipelines.curate.tables import write_table
from pipelines.curate.work import StageWork
from tests.drawn import Photo, draw, jpeg, photo, world, write_raw
from tests.published import tables

LOOSE = FiltersConfig(no_pair=NoPair(min_similarity=-1.0))
Planned = Callable[..., StageWork]


def test_subjects_that_share_an_image_or_a_near_copy_are_in_one_split(planned: Planned, tmp_path: Path) -> None:
    smaller = np.asarray(Image.fromarray(draw(2, 0)).resize((150, 150), Image.Resampling.LANCZOS))
    photos = [
        *world(8, 4), photo(0, 0).under("shared", "thing01"), photo(1, 1).under("again", "thing05"),
        Photo("near", jpeg(smaller, 80), "thing03"),
    ]  # fmt: skip
    raw = write_raw(tmp_path / "raw", photos, per_shard=7)
    work = planned(raw, filters=LOOSE, plan=PlanConfig(rows_per_partition=9))
    assert work.linked
    assert split_hashes(work)["thing00"] == split_hashes(work)["thing01"] == split_hashes(work)["thing05"]
    assert split_hashes(work)["thing02"] == split_hashes(work)["thing03"]
    assert len(set(split_hashes(work).values())) == 5
    lowest = min(("thing00", "thing01", "thing05"), key=subject_hash)
    assert split_hashes(work)["thing00"] == unit_hash("split", work.config.seed, lowest)


def split_hashes(work: StageWork) -> dict[str, float]:
    """The split hash of each subject, read range by range."""
    hashes: dict[str, float] = {}
    for partition in range(work.partitions):
        table = work.read_plan(partition, "subjects")
        split = work.split_hashes(table, work.span(partition))
        hashes |= dict(zip(table["subject"].to_pylist(), split.tolist(), strict=True))
    return hashes


def test_a_chain_of_links_is_one_component_whatever_tables_they_are_in(
    planned: Planned, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photos = world(9, 4)
    photos += [photo(i, 0).under(f"again{i}", f"thing{i + 1:02d}") for i in range(7)]
    monkeypatch.setattr("pipelines.curate.subject_links._FAN_IN", 2)
    monkeypatch.setattr("pipelines.curate.work._CONTENT_ROWS", (3, 3))
    work = planned(write_raw(tmp_path / "raw", photos, per_shard=7), filters=LOOSE)
    assert work.content_partitions == 16
    assert len(joins(work.content_partitions)) == 4
    hashes = split_hashes(work)
    assert len({hashes[f"thing{i:02d}"] for i in range(8)}) == 1
    assert hashes["thing08"] not in {hashes["thing00"]}
    assert hashes["thing08"] == unit_hash("split", work.config.seed, "thing08")


def test_linked_subjects_count_as_one_in_the_validation_minimum(planned: Planned, tmp_path: Path) -> None:
    photos = [*world(3, 3), photo(0, 0).under("b", "thing01"), photo(0, 1).under("c", "thing02")]
    work = planned(write_raw(tmp_path / "raw", photos), filters=LOOSE, plan=PlanConfig(validation_fraction=0.0))
    assert (
        join(work, tables(divide, work, work.partitions)).split_cut == 0
    )  # all three are one: nothing is left to train on if they were validation


def test_without_shared_images_nothing_is_linked(planned: Planned, tmp_path: Path) -> None:
    assert not planned(write_raw(tmp_path / "raw", world(6, 4)), filters=LOOSE).linked


@pytest.mark.parametrize("name", ["sharing-00000.parquet", "components.parquet"])
def test_a_table_of_another_program_is_an_error_that_names_it(name: str, planned: Planned, tmp_path: Path) -> None:
    photos = [*world(3, 3), photo(0, 0).under("b", "thing01")]
    work = planned(write_raw(tmp_path / "raw", photos), filters=LOOSE)
    key = work.workspace.sharing(0) if name.startswith("sharing") else work.workspace.components()
    assert key.endswith(name)
    write_table(work.dataset, key, pa.table({"other columns": [1]}))
    fix = f"not a table of links: .*{name}.*remove it, and run the same command again"
    subjects = work.read_plan(0, "subjects")
    with pytest.raises(InputError, match=fix):
        find_repeated(work, 0) if name.startswith("sharing") else work.split_hashes(subjects)
