"""The gate computes scores again from their measurements: values that do not follow from them are refused by name."""

import hashlib
import io
from dataclasses import replace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lookalike.errors import InputError
from lookalike.evaluation.estimates import Estimate
from lookalike.evaluation.measurements import SCHEMA, UNREADABLE, estimates, to_parquet
from lookalike.evaluation.scores import Scores, Source


def _rows(shift: float = 0.0, count: int = 24) -> list[dict]:
    return [
        {"unit": 0, "case": f"c{i}", "subject": f"s{i % 6}", "metric": "loss_gap", "value": 0.1 * (i % 5) + shift}
        for i in range(count)
    ]


_OF = {"bundle": "b" * 64, "suite": "s" * 64, "conditions": "right", "seed": 3}


def _data(rows: list[dict], **of: object) -> bytes:
    return to_parquet(pa.Table.from_pylist(rows, SCHEMA), _OF | of)


def _scores(data: bytes) -> Scores:
    return Scores(
        bundle=Source("file:///b", "b" * 64),
        suite=Source("file:///s", "s" * 64, 1),
        conditions="right",
        metrics=estimates(data, 3, "m"),
        config={"seed": 3},
        measurements_sha256=hashlib.sha256(data).hexdigest(),
    )


def test_scores_match_their_measurements() -> None:
    data = _data([*_rows(), {"unit": 1, "case": "x", "subject": "s", "metric": f"{UNREADABLE}cut", "value": 1.0}])
    scores = _scores(data)
    assert scores.proven(data, "m") == scores
    assert set(scores.metrics) == {"loss_gap"}
    earlier = replace(scores, measurements_sha256=None)
    assert b"measurements_sha256" not in earlier.to_json()
    buffer = io.BytesIO()
    pq.write_table(pq.read_table(io.BytesIO(data)).replace_schema_metadata(None), buffer)
    assert earlier.proven(buffer.getvalue(), "m") == earlier  # of an earlier version: the measurements still lie beside


def test_changed_measurements_are_refused() -> None:
    scores = _scores(_data(_rows()))
    with pytest.raises(InputError, match=r"measurements were changed: their SHA-256 is [0-9a-f]"):
        scores.proven(_data(_rows(0.5)), "m")


@pytest.mark.parametrize("of", [{"bundle": "c" * 64}, {"suite": "t" * 64}, {"conditions": "shuffled"}, {"seed": 4}])
def test_measurements_of_another_evaluation_are_refused(of: dict) -> None:
    """A good bundle's evaluation, with the hash of a bad one written into its scores.json."""
    data = _data(_rows(), **of)
    with pytest.raises(InputError, match=r"the measurements are of .* but scores.json is of"):
        _scores(data).proven(data, "m")


@pytest.mark.parametrize(
    "forged",
    [
        lambda e: {"loss_gap": replace(e, mean=e.mean + 1e-6)},
        lambda e: {"loss_gap": replace(e, low=e.high)},
        lambda e: {"loss_gap": replace(e, high=1e12)},
        lambda e: {"loss_gap": replace(e, n=e.n * 10)},
        lambda e: {"loss_gap": Estimate(float("nan"), e.low, e.high, e.n)},
        lambda e: {},
        lambda e: {"loss_gap": e, "identity_margin": e},
    ],
)
def test_forged_scores_are_refused(forged) -> None:
    data = _data(_rows())
    scores = _scores(data)
    with pytest.raises(InputError, match=r"scores.json has .* but its measurements give"):
        replace(scores, metrics=forged(scores.metrics["loss_gap"])).proven(data, "m")


def test_slightly_other_interval_ends_are_replaced_by_the_measurements() -> None:
    data = _data(_rows())
    scores = _scores(data)
    real = scores.metrics["loss_gap"]
    nudged = replace(scores, metrics={"loss_gap": replace(real, low=real.low + 0.02 * (real.high - real.low))})
    assert nudged.proven(data, "m").metrics["loss_gap"] == real


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "not a table of measurements"),
        (b"PAR1" + bytes(40) + b"PAR1", "not a table of measurements"),
        (_data([*_rows(), *_rows(1.0, 1)]), "a case was measured twice"),
        (_data([{**_rows()[0], "value": None}]), "no case, subject, metric or value"),
        (_data([{**_rows()[0], "subject": None}]), "no case, subject, metric or value"),
    ],
)
def test_broken_measurements_are_named(data: bytes, message: str) -> None:
    with pytest.raises(InputError, match=message) as refused:
        estimates(data, 0, "file:///m.parquet")
    assert refused.value.value == "file:///m.parquet"


def test_measurement_that_is_not_finite_gives_nan() -> None:
    for value in (float("inf"), float("nan"), -float("inf")):
        found = estimates(_data([*_rows(), {**_rows()[0], "case": "x", "value": value}]), 0, "m")["loss_gap"]
        assert found.mean != found.mean
        assert found.n == 25
