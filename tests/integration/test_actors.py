import os
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lookalike.errors import InputError, UnreachableError
from pipelines.actors import ActorConfig, Columns, run_tasks, run_units

pytestmark = pytest.mark.usefixtures("ray_local")


class _Squares:
    """Squares the numbers of a unit; unit 2 has no rows that anyone could square."""

    def __init__(self, work: list[list[int]]) -> None:
        self._work = work

    def __call__(self, unit: int) -> Columns:
        numbers = self._work[unit]
        if not numbers:
            raise InputError("nothing to square", value=unit, fix="bring numbers")
        return {"number": np.array(numbers), "square": np.square(numbers)}


@pytest.mark.parametrize("count", [0, 2])
def test_every_unit_gives_its_rows_once(count: int) -> None:
    work = [[1, 2], [3], [4, 5, 6]]
    rows = [row for table in run_units(_Squares, work, 3, ActorConfig(count=count)) for row in table.to_pylist()]
    assert sorted((row["unit"], row["number"], row["square"]) for row in rows) == [
        (unit, number, number**2) for unit, numbers in enumerate(work) for number in numbers
    ]


@pytest.mark.parametrize("count", [0, 1])
def test_our_own_error_comes_out_as_it_went_in(count: int) -> None:
    with pytest.raises(InputError, match=r"nothing to square \(1\); bring numbers") as caught:
        list(run_units(_Squares, [[1], []], 2, ActorConfig(count=count)))
    assert type(caught.value) is InputError


class _Broken:
    def __init__(self, work: Any) -> None:
        raise InputError("no such model", value=str(Path("here")), fix="look elsewhere")

    def __call__(self, unit: int) -> Columns:
        return {}


def test_an_actor_that_cannot_start_ends_the_work() -> None:
    with pytest.raises(InputError, match="no such model"):
        list(run_units(_Broken, None, 3, ActorConfig(count=2)))


def _total(work: list[list[int]], unit: int) -> Columns:
    if not work[unit]:
        raise InputError("nothing to add", value=unit, fix="bring numbers")
    return {"total": np.array([sum(work[unit])])}


def test_tasks_give_their_rows_and_their_errors_too() -> None:
    rows = [row for table in run_tasks(_total, [[1, 2], [3]], 2) for row in table.to_pylist()]
    assert sorted((row["unit"], row["total"]) for row in rows) == [(0, 3), (1, 3)]
    with pytest.raises(InputError, match="nothing to add"):
        list(run_tasks(_total, [[1], []], 2))


def test_many_units_share_tasks() -> None:
    units = 500
    rows = [row for table in run_tasks(_total, [[n] for n in range(units)], units) for row in table.to_pylist()]
    assert sorted((row["unit"], row["total"]) for row in rows) == [(n, n) for n in range(units)]
    with pytest.raises(InputError, match=r"nothing to add \(77\)"):  # which is not the first of its task
        list(run_tasks(_total, [[] if n == 77 else [n] for n in range(units)], units))


def _doubled(factor: int, unit: tuple[str, int]) -> Columns:
    return {"name": np.array([unit[0]], object), "number": np.array([factor * unit[1]])}


class _Doubler:
    def __init__(self, factor: int) -> None:
        self._factor = factor

    def __call__(self, unit: tuple[str, int]) -> Columns:
        return _doubled(self._factor, unit)


@pytest.mark.parametrize("count", [0, 2, -1])
def test_a_unit_gets_its_own_description(count: int) -> None:
    units, as_tasks = [("a", 1), ("b", 2), ("c", 3)], count < 0
    tables = run_tasks(_doubled, 2, units) if as_tasks else run_units(_Doubler, 2, units, ActorConfig(count=count))
    rows = [row for table in tables for row in table.to_pylist()]
    assert sorted((row["unit"], row["name"], row["number"]) for row in rows) == [(0, "a", 2), (1, "b", 4), (2, "c", 6)]


class _Counted:
    """Counts how often a process unpickles it."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (_count_unpickled, ())


_loads = 0


def _count_unpickled() -> _Counted:
    global _loads
    _loads += 1
    return _Counted()


def _report_loads(_: _Counted, unit: int) -> Columns:
    return {"process": np.array([os.getpid()]), "loads": np.array([_loads])}


def test_a_worker_process_unpickles_what_units_share_once() -> None:
    rows = [row for table in run_tasks(_report_loads, _Counted(), 100) for row in table.to_pylist()]
    assert len({row["process"] for row in rows}) < 100
    assert {row["loads"] for row in rows} == {1}


def _flaky(folder: str, unit: int) -> Columns:
    attempts = Path(folder) / str(unit)
    number = len(attempts.read_text()) if attempts.exists() else 0
    attempts.write_text("x" * (number + 1))
    if number < unit:
        raise UnreachableError("the store does not answer", value=unit, fix="wait")
    if number == 0 and unit == 0:
        raise OSError("the disk is away")
    return {"attempts": np.array([number + 1])}


def test_a_unit_whose_store_does_not_answer_is_done_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [row for table in run_tasks(_flaky, str(tmp_path), 3) for row in table.to_pylist()]
    assert {row["unit"]: row["attempts"] for row in rows} == {0: 2, 1: 2, 2: 3}
    monkeypatch.setattr("pipelines.actors._PAUSE_S", 0)
    with pytest.raises(UnreachableError, match="the store does not answer"):
        list(run_units(lambda folder: partial(_flaky, folder), str(tmp_path), [9], ActorConfig(count=0)))  # type: ignore[arg-type]
