"""Differences to the base, paired by case."""

import tracemalloc

import numpy as np
import pyarrow as pa
import pytest

from lookalike.errors import InputError
from lookalike.evaluation.against_base import differences_to_base
from lookalike.evaluation.measurements import SCHEMA, to_parquet


def _table(rows: list[tuple[str, str, str, float]]) -> bytes:
    listed = [{"unit": 0, "case": c, "subject": s, "metric": m, "value": v} for c, s, m, v in rows]
    return to_parquet(pa.Table.from_pylist(listed, SCHEMA), {})


def test_difference_is_narrow_where_the_values_are_not() -> None:
    values = np.random.default_rng(0).normal(size=40)
    rows = [
        (f"{i}", f"s{i % 8}", name, value + more)
        for i, value in enumerate(values)
        for name, more in (("loss_right", -0.1 - 0.001 * i), ("before/loss_right", 0.0))
    ]
    found = differences_to_base(_table(rows), ["loss_right"], 0, "here")["loss_right"]
    assert found.mean == pytest.approx(-0.1 - 0.001 * 19.5)
    assert -0.14 < found.low < found.high < -0.1
    assert found.n == 40


def test_only_common_cases_of_both_models_count() -> None:
    rows = [
        ("a", "s", "identity", 1.0),
        ("b", "s", "identity", 9.0),
        ("a", "s", "before/identity", 0.5),
        ("c", "s", "before/identity", 0.0),
        ("a", "s", "clip_t", 0.0),
    ]
    found = differences_to_base(_table(rows), ["identity", "clip_t", "nothing"], 0, "here")
    assert {name: (estimate.mean, estimate.n) for name, estimate in found.items()} == {"identity": (0.5, 1)}


def test_a_gate_that_compares_nothing_finds_no_difference() -> None:
    assert differences_to_base(_table([("a", "s", "identity", 1.0)]), [], 0, "here") == {}


def test_value_that_is_not_finite_gives_no_difference() -> None:
    rows = [("a", "s", "identity", float("nan")), ("a", "s", "before/identity", 0.5)]
    assert np.isnan(differences_to_base(_table(rows), ["identity"], 0, "here")["identity"].mean)


def test_damaged_table_is_named() -> None:
    with pytest.raises(InputError, match="not a table of measurements"):
        differences_to_base(b"PAR1", ["identity"], 0, "here")


def test_a_large_table_costs_no_objects_for_its_cases() -> None:
    """100,000 cases: a row as an object and its texts would be about 700 bytes, in two metrics."""
    count = 100_000
    columns = {"case": [f"case {i:024d}" for i in range(count)], "subject": [f"s{i % 50}" for i in range(count)]}
    values = np.random.default_rng(0).normal(size=count)
    tables = [
        pa.table({"unit": [0] * count, **columns, "metric": [name] * count, "value": values + shift}, schema=SCHEMA)
        for name, shift in (("identity", 0.25), ("before/identity", 0.0))
    ]
    data = to_parquet(pa.concat_tables(tables), {})
    del columns, tables
    tracemalloc.start()
    try:
        found = differences_to_base(data, ["identity"], 0, "here")["identity"]
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert (found.mean, found.n) == (pytest.approx(0.25), count)
    assert peak < 30e6
