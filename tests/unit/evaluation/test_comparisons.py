"""Paired differences, the number of subjects that finds one, and exact intervals of shares."""

import math

import numpy as np
import pytest

from lookalike.errors import ConfigError
from lookalike.evaluation import estimates, paired
from lookalike.evaluation.estimates import Estimate, binomial_interval, cluster_bootstrap, subjects_needed
from lookalike.evaluation.measurements import Measurement, table_of


def _model(shift: float, seed: int, metric: str = "identity", subjects: int = 12) -> list[Measurement]:
    """Subjects differ by 0.2, cases by 0.02: a shift of 0.03 shows in pairs only."""
    rng, own = np.random.default_rng(seed), np.random.default_rng(7).normal(0.5, 0.2, subjects)
    return [
        Measurement(f"s{s}-{i}", f"s{s}", metric, float(own[s] + shift + rng.normal(0, 0.02)))
        for s in range(subjects)
        for i in range(4)
    ]


def paired_difference(a: list[Measurement], b: list[Measurement]) -> Estimate:
    found = paired.paired_difference(table_of(a), table_of(b))
    assert found is not None
    return found


def test_paired_difference_finds_what_two_intervals_do_not() -> None:
    a, b = _model(0.03, seed=1), _model(0.0, seed=2)
    found = paired_difference(a, b)
    assert found.mean == pytest.approx(0.03, abs=0.01)
    assert 0 < found.low < found.high < 0.06
    assert found.n == 48
    alone = cluster_bootstrap(np.array([row.value for row in a]), [row.subject for row in a])
    assert alone.high - alone.low > 5 * (found.high - found.low)


def test_order_does_not_matter_and_cases_of_one_model_only_are_left_out() -> None:
    a, b = _model(0.1, seed=1), _model(0.0, seed=2, metric="before/identity")
    found = paired_difference(a, b)
    assert found == paired_difference(a[::-1], b)
    assert paired_difference(a, b[:8]).n == 8
    assert paired_difference([*a, Measurement("new", "s0", "identity", 9.0)], b) == found


@pytest.mark.parametrize(
    ("b", "message"),
    [
        ([Measurement("s0-0", "s0", "clip_t", 0.1)], "no common metric"),
        ([Measurement("s0-0", "other", "identity", 0.1)], "case s0-0 shows another subject"),
        ([Measurement("s0-0", "s0", "identity", 0.1)] * 2, "one value of one metric per case"),
        (
            [Measurement("s0-0", "s0", "identity", 0.1), Measurement("s0-1", "s0", "clip_t", 0.1)],
            "one value of one metric per case",
        ),
    ],
)
def test_rows_that_cannot_be_paired_are_an_error(b: list[Measurement], message: str) -> None:
    a = _model(0.0, seed=1)
    for pair in ((a, b), (b, a)):
        with pytest.raises(ConfigError, match=message):
            paired_difference(*pair)


def test_models_without_a_shared_case_have_no_difference() -> None:
    a = table_of(_model(0.0, seed=1))
    for b in ([], [Measurement("elsewhere", "s0", "identity", 0.1)]):
        assert paired.paired_difference(a, table_of(b)) is None
        assert paired.paired_difference(table_of(b), a) is None


def test_difference_of_a_value_that_is_not_finite_is_nan() -> None:
    a = _model(0.0, seed=1)
    assert math.isnan(paired_difference([Measurement("s0-0", "s0", "identity", math.inf)], a).mean)


def test_the_number_of_subjects_has_the_power_that_was_asked_for() -> None:
    """Simulated: a t test on that many subjects finds the difference in 80 % of the trials."""
    rng = np.random.default_rng(0)
    pilot = rng.normal(0.0, 0.1, 4000)
    needed = subjects_needed(pilot, [str(i) for i in range(len(pilot))], 0.05)
    assert needed == 34  # of the textbook, for an effect of half a standard deviation
    trials = rng.normal(0.05, 0.1, (4000, needed))
    t = trials.mean(1) / (trials.std(1, ddof=1) / np.sqrt(needed))
    assert np.mean(t > estimates.stats.t.ppf(0.975, needed - 1)) == pytest.approx(0.8, abs=0.03)


def test_smaller_differences_and_more_power_need_more_subjects() -> None:
    rng = np.random.default_rng(1)
    own = rng.normal(0, 0.1, 20)
    values, names = np.repeat(own, 5) + rng.normal(0, 0.01, 100), [f"s{i}" for i in range(20) for _ in range(5)]
    counts = [subjects_needed(values, names, difference) for difference in (0.2, 0.05, 0.01, 0.0001)]
    assert all(count is not None for count in counts)
    assert counts == sorted(counts)
    assert counts[0] >= 2
    assert counts[3] > 1_000_000
    assert subjects_needed(values, names, -0.05) == counts[1]
    assert subjects_needed(values, names, 0.05, power=0.95) > counts[1]
    # Five cases of a subject are not five subjects.
    assert counts[2] == pytest.approx(subjects_needed(own, sorted(set(names)), 0.01), rel=0.1)


def test_number_of_subjects_is_unknown_without_a_variance_between_subjects() -> None:
    assert subjects_needed(np.array([0.1, 0.2, 0.3]), ["only"] * 3, 0.1) is None
    assert subjects_needed(np.array([0.1, np.nan]), ["a", "b"], 0.1) is None
    assert subjects_needed(np.array([0.1, 0.1]), ["a", "b"], 0.1) == 2


@pytest.mark.parametrize(("difference", "power"), [(0.0, 0.8), (math.nan, 0.8), (0.1, 1.0), (0.1, 0.01)])
def test_difference_that_cannot_be_found_is_an_error(difference: float, power: float) -> None:
    with pytest.raises(ConfigError, match="no number of subjects"):
        subjects_needed(np.array([0.1, 0.2]), ["a", "b"], difference, power)


def test_binomial_interval_is_exact() -> None:
    """Clopper and Pearson: at each end the outcome, or a more extreme one, has a probability of 2.5 %."""
    low, high = binomial_interval(19, 20)
    assert estimates.stats.binom.sf(18, 20, low) == pytest.approx(0.025, abs=1e-6)
    assert estimates.stats.binom.cdf(19, 20, high) == pytest.approx(0.025, abs=1e-6)
    assert binomial_interval(0, 20) == (0.0, pytest.approx(1 - 0.025 ** (1 / 20)))
    assert binomial_interval(20, 20) == (pytest.approx(0.025 ** (1 / 20)), 1.0)
    for successes, trials in ((-1, 5), (6, 5), (0, 0)):
        with pytest.raises(ConfigError, match="not a number of successes"):
            binomial_interval(successes, trials)


def test_many_clusters_have_the_percentile_interval() -> None:
    """Of many clusters it is that of the normal distribution; BCa would take the square of the time."""
    values = np.random.default_rng(0).normal(0, 1, 6_000)
    found = cluster_bootstrap(values, [str(i) for i in range(len(values))])
    assert found.high - found.low == pytest.approx(2 * 1.96 / 6_000**0.5, rel=0.1)
