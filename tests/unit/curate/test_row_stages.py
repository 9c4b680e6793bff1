"""The stages between index and layout end with the same bytes wherever they are stopped."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from lookalike.storage import Store, open_store
from pipelines.actors import ActorConfig, run_units
from pipelines.curate.config import PlanConfig
from pipelines.curate.filters import FiltersConfig
from pipelines.curate.filters.no_pair import NoPair
from pipelines.curate.row_stages import run_row_stages
from pipelines.curate.work import StageWork
from tests.drawn import Photo, draw, jpeg, photo, world, write_raw

LOOSE = FiltersConfig(no_pair=NoPair(min_similarity=-1.0))


class Stopping:
    """A store that stops before or after its ``number``-th write."""

    def __init__(self, store: Store, number: int, after: bool) -> None:
        self._store, self._left, self._after = store, [number], after

    def __getattr__(self, name: str) -> Any:
        if name == "_store":  # of a copy that is not set up yet
            raise AttributeError(name)
        return getattr(self._store, name)

    def write(self, key: str, data: bytes) -> None:
        self._left[0] -= 1
        if self._left[0] == 0 and not self._after:
            raise StoppedHereError
        self._store.write(key, data)
        if self._left[0] == 0:
            raise StoppedHereError


class StoppedHereError(BaseException):
    """Ends the stages at once."""


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in (folder / "work").rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


@pytest.mark.parametrize("after", [False, True])
def test_a_stop_at_any_write_and_another_run_give_the_same_bytes(
    planned: Callable[..., StageWork], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: bool
) -> None:
    monkeypatch.setattr("pipelines.curate.work._GROUP_BYTES", (1, 1))
    monkeypatch.setattr("lookalike.data.shuffle._WITHOUT_INDEX", 0)
    near = Photo("near", jpeg(draw(0, 1), 60), "thing02")
    photos = [*world(3, 3), photo(0, 0).under("copy", "thing01"), near]
    work = planned(
        write_raw(tmp_path / "raw", photos, per_shard=4), filters=LOOSE, plan=PlanConfig(rows_per_partition=9)
    )
    assert work.linked
    whole = contents(tmp_path / "dataset")
    stage = StageWork.of(work.config, work.inputs)
    writes = len([key for key in whole if key.split("/")[1] not in ("rows", "vectors")])
    assert writes > 30
    folder = tmp_path / "stopped"
    monkeypatch.setattr("pipelines.curate.row_stages.run_tasks", _one_by_one)
    for number in range(1, writes + 1, 2):
        shutil.rmtree(folder, ignore_errors=True)
        for kind in ("rows", "vectors"):
            shutil.copytree(tmp_path / "dataset" / "work" / kind, folder / "work" / kind)
        store = open_store(str(folder))
        with pytest.raises(StoppedHereError):
            run_row_stages(replace(stage, dataset=Stopping(store, number, after)))  # type: ignore[arg-type]
        resumed = run_row_stages(replace(stage, dataset=store))
        assert (resumed.images, resumed.linked) == (work.images, True)
        assert contents(folder) == whole, number


def _one_by_one(task: Any, shared: Any, units: Any, *, noun: str = "") -> Any:
    """``run_tasks`` without Ray, and without pickling the store that counts."""
    return run_units(lambda shared: partial(task, shared), shared, units, ActorConfig(count=0), noun=noun)
