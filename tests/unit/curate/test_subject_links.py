"""Subjects that share an image are in the same split."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from lookalike.errors import InputError
from pipelines.curate.config import PlanConfig
from pipelines.curate.filters import FiltersConfig
from pipelines.curate.filters.no_pair import NoPair
from pipelines.curate.layout import divide, join
from pipelines.curate.subject_links import join_links
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
    assert work.read_components() == {
        "thing00": "thing00", "thing01": "thing00", "thing05": "thing00", "thing02": "thing02", "thing03": "thing02",
    }  # fmt: skip
    rows = [row for i in range(work.partitions) for row in work.read_plan(i, "subjects").to_pylist()]
    place = {row["subject"]: row["split_hash"] for row in rows}
    assert place["thing00"] == place["thing01"] == place["thing05"] != place["thing02"] == place["thing03"]
    assert len(set(place.values())) == 5


def test_linked_subjects_count_as_one_in_the_validation_minimum(planned: Planned, tmp_path: Path) -> None:
    photos = [*world(3, 3), photo(0, 0).under("b", "thing01"), photo(0, 1).under("c", "thing02")]
    work = planned(write_raw(tmp_path / "raw", photos), filters=LOOSE, plan=PlanConfig(validation_fraction=0.0))
    assert (
        join(work, tables(divide, work, work.partitions)).split_cut == 0
    )  # all three are one: nothing is left to train on if they were validation


def test_without_shared_images_nothing_is_linked(planned: Planned, tmp_path: Path) -> None:
    assert not planned(write_raw(tmp_path / "raw", world(6, 4)), filters=LOOSE).linked


@pytest.mark.parametrize("name", ["part-00000.parquet", "components.parquet"])
def test_a_table_of_another_program_is_an_error_that_names_it(name: str, planned: Planned, tmp_path: Path) -> None:
    photos = [*world(3, 3), photo(0, 0).under("b", "thing01")]
    work = planned(write_raw(tmp_path / "raw", photos), filters=LOOSE)
    key = work.workspace.links(0) if name.startswith("part") else work.workspace.components()
    assert key.endswith(name)
    write_table(work.dataset, key, pa.table({"other columns": [1]}))
    with pytest.raises(InputError, match=f"not a table of links: .*{name}.*remove it, and run the same command again"):
        join_links(work, 0) if name.startswith("part") else work.read_components()
