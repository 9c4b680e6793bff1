"""A subject with more photos than are compared is bounded by hash, with a reason and a count in the report."""

import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from lookalike.errors import ConfigError
from pipelines.curate.config import CurateConfig
from pipelines.curate.filters import FiltersConfig, Photos
from pipelines.curate.filters.large_subject import LargeSubject
from pipelines.curate.filters.no_pair import NoPair
from pipelines.curate.plan_rows import Drops, drop_of_subjects
from pipelines.curate.work import StageWork
from tests.drawn import world, write_raw
from tests.published import materialise


def photos(n: int, dim: int = 16) -> Photos:
    random = np.random.default_rng(0)
    vectors = random.normal(size=(n, dim)).astype(np.float32)
    columns = {
        "sha256": [f"{i:064x}" for i in range(n)],
        "phash": pa.array(random.integers(0, 1 << 62, n), pa.uint64()),
        "width": np.full(n, 100),
        "height": np.full(n, 100),
    }
    return Photos(pa.table(columns), np.arange(n)[None], vectors / np.linalg.norm(vectors, axis=1, keepdims=True))


def test_kept_photos_do_not_depend_on_order_or_other_photos() -> None:
    (keep,) = ~LargeSubject(max_photos=100).drop(photos(300))
    assert keep.sum() == 100
    order = np.random.default_rng(1).permutation(300)
    shuffled = Photos(photos(300).rows, order[None])
    assert (~LargeSubject(max_photos=100).drop(shuffled)).tolist() == [keep[order].tolist()]
    (more,) = ~LargeSubject(max_photos=100).drop(photos(400))
    assert set(np.flatnonzero(more[:300])) <= set(np.flatnonzero(keep))
    assert not LargeSubject(max_photos=300).drop(photos(300)).any()
    with pytest.raises(ConfigError, match=r"filters\.large_subject\.max_photos is below 2"):
        LargeSubject(max_photos=1)


def test_memory_is_bounded_for_a_large_subject() -> None:
    def peak(n: int) -> int:
        filters = FiltersConfig(large_subject=LargeSubject(max_photos=500), no_pair=NoPair(min_similarity=-1.0))
        own, drops = photos(n), Drops.of(np.full(n, ""), CurateConfig(raw="raw", dataset="dataset"))
        tracemalloc.start()
        try:
            drop_of_subjects([own], filters.steps("subject"), drops)
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    small, large = peak(500), peak(8000)
    assert large < 2 * small + 8000 * 1000  # all pairs of 8,000 would be 256 times those of 500


def test_photos_beyond_the_bound_have_a_reason_and_the_report_counts_subjects(
    planned: Callable[..., StageWork], tmp_path: Path
) -> None:
    loose = FiltersConfig(no_pair=NoPair(min_similarity=-1.0), skip=["near_duplicate", "off_subject"])
    work = planned(
        write_raw(tmp_path / "raw", [*world(1, 8), *world(3, 3)[3:]]),
        filters=replace(loose, large_subject=LargeSubject(max_photos=4)),
    )
    rows = work.read_plan(0, "images").to_pylist()
    assert sum(row["drop_reason"] == "large_subject" for row in rows) == 4
    assert sum(row["drop_reason"] is None for row in rows) == 10
    assert work.read_summary(0).bounded_subjects == 1
    page = materialise(work).version.read("report.html").decode()
    assert "1 subjects have more photos than are compared" in page
