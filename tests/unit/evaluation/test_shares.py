"""Intervals of shares: exact where the bootstrap sees nothing, and never narrower than for independent subjects."""

import hashlib
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from lookalike.errors import ConfigError, InputError
from lookalike.evaluation import paired
from lookalike.evaluation.estimates import Clustered, Estimate, binomial_interval, mean_of, share_difference, share_of
from lookalike.evaluation.gate import decide
from lookalike.evaluation.gate_config import Ceiling, GateConfig
from lookalike.evaluation.measurements import SCHEMA, Measurement, estimates, summarise, table_of, to_parquet
from lookalike.evaluation.metrics import SHARES
from lookalike.evaluation.scores import Scores, Source


def _samples(values: list[float], subjects: int) -> Clustered:
    return Clustered.of(np.array(values), [f"s{i % subjects:03d}" for i in range(len(values))])


@pytest.mark.parametrize(
    ("images", "subjects", "trials"),
    [(8, 1, 8), (20, 20, 20), (40, 4, 4), (1, 1, 1)],
)
def test_no_copy_among_n_is_no_certainty(images: int, subjects: int, trials: int) -> None:
    """Of several subjects each counts as one trial, whatever the number of its images; of one, each of its images."""
    none, every = share_of(_samples([0.0] * images, subjects)), share_of(_samples([1.0] * images, subjects))
    end = 1 - 0.025 ** (1 / trials)
    assert none == Estimate(0.0, 0.0, pytest.approx(end), images)
    assert every == Estimate(1.0, pytest.approx(1 - end), 1.0, images)


def test_interval_holds_that_of_the_bootstrap() -> None:
    rng = np.random.default_rng(0)
    for subjects in (1, 3, 30):
        samples = _samples(list((rng.random(60) < 0.3).astype(float)), subjects)
        share, mean = share_of(samples), mean_of(samples)
        assert share.mean == mean.mean
        assert share.low <= mean.low <= mean.high <= share.high
    exact = binomial_interval(6, 20)
    independent = share_of(_samples([1.0] * 6 + [0.0] * 14, 20))
    assert independent.low <= exact[0]
    assert independent.high >= exact[1]


@pytest.mark.parametrize("alike", [0.05, 0.9])
def test_interval_covers_the_true_share_of_subjects_that_differ(alike: float) -> None:
    """Ten subjects with eight images, a true share of 8 %: the bootstrap alone misses it far more often than 5 %."""
    rng, truth = np.random.default_rng(1), 0.08
    covered = bootstrap = 0
    for _ in range(150):
        own = rng.beta(truth * (1 - alike) / alike, (1 - truth) * (1 - alike) / alike, 10)
        samples = _samples(list((rng.random((8, 10)) < own).astype(float).ravel()), 10)
        found, naive = share_of(samples), mean_of(samples)
        covered += found.low <= truth <= found.high
        bootstrap += naive.low <= truth <= naive.high
    assert covered >= 0.95 * 150
    assert bootstrap < 0.93 * 150


def test_values_that_are_no_shares_are_refused() -> None:
    for values in ([0.0, 1.5], [-0.1, 0.5]):
        with pytest.raises(ConfigError, match="a share is not between 0 and 1"):
            share_of(_samples(values, 2))
    assert np.isnan(share_of(_samples([0.0, np.nan], 2)).mean)


def _rows(metric: str, values: list[float], subjects: int = 4) -> list[Measurement]:
    return [Measurement(f"c{i}", f"s{i % subjects}", metric, value) for i, value in enumerate(values)]


def test_only_metrics_that_are_shares_have_such_intervals() -> None:
    assert {"copying", "nearer_than_real"} == SHARES
    rows = [row for name in ("copying", "before/copying", "loss_gap") for row in _rows(name, [0.0] * 12)]
    found = summarise(rows, 0, SHARES)
    assert found["copying"] == found["before/copying"] == Estimate(0.0, 0.0, pytest.approx(1 - 0.025**0.25), 12)
    assert found["loss_gap"] == Estimate(0.0, 0.0, 0.0, 12)


def _scores(rows: list[Measurement], shares: frozenset[str]) -> tuple[Scores, bytes]:
    of = {"bundle": "b" * 64, "suite": "s" * 64, "conditions": "right", "seed": 0}
    data = to_parquet(pa.Table.from_pylist([{"unit": 0, **vars(row)} for row in rows], SCHEMA), of)
    scores = Scores(
        Source("file:///b", "b" * 64),
        Source("file:///s", "s" * 64, 1),
        "right",
        estimates(data, 0, "m", shares),
        config={"seed": 0},
        measurements_sha256=hashlib.sha256(data).hexdigest(),
    )
    return scores, data


def test_scores_of_earlier_versions_are_read_and_get_todays_intervals() -> None:
    rows = [*_rows("copying", [0.0] * 12), *_rows("loss_gap", [0.1, 0.2, 0.3, 0.4])]
    earlier, data = _scores(rows, frozenset())
    assert earlier.metrics["copying"].high == 0
    assert earlier.proven(data, "m") == _scores(rows, SHARES)[0]
    for forged in (Estimate(0.0, 0.0, 0.3, 12), Estimate(0.5, 0.0, 0.0, 12), Estimate(0.0, 0.0, 0.0, 24)):
        with pytest.raises(InputError, match=r"scores.json has .* for copying, but its measurements give"):
            replace(earlier, metrics=earlier.metrics | {"copying": forged}).proven(data, "m")


def test_a_gate_with_a_ceiling_on_the_interval_does_not_trust_few_images() -> None:
    gate = GateConfig(floors=[], ceilings=[Ceiling("copying", below=0.5)], comparisons=[])
    for images, passed in ((3, False), (30, True)):
        scores, _ = _scores(_rows("copying", [0.0] * images, subjects=1), SHARES)
        assert decide(scores, None, gate).passed == passed


def test_two_models_without_copies_may_still_differ() -> None:
    ours, theirs = (table_of(_rows("copying", [0.0] * 20, subjects=20)) for _ in range(2))
    found = paired.paired_difference(ours, theirs)
    end = 1 - 0.0125 ** (1 / 20)
    assert found == Estimate(0.0, pytest.approx(-end), pytest.approx(end), 20)
    losses = [table_of(_rows("loss_gap", [0.0] * 20, subjects=20)) for _ in range(2)]
    assert paired.paired_difference(*losses) == Estimate(0.0, 0.0, 0.0, 20)


def test_a_clear_difference_of_shares_is_found() -> None:
    ours, theirs = _samples([1.0] * 24 + [0.0] * 6, 30), _samples([0.0] * 30, 30)
    found = share_difference(ours, theirs)
    assert found.mean == pytest.approx(0.8)
    assert 0.4 < found.low < 0.8 < found.high <= 1
    back = share_difference(theirs, ours)
    assert (back.mean, back.low, back.high) == pytest.approx((-0.8, -found.high, -found.low), abs=0.01)
