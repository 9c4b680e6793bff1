"""Statistics of human preference, against values computed by hand, published ones and simulated truth."""

import random
from itertools import combinations

import numpy as np
import pytest
from scipy import optimize, stats

from lookalike.errors import InputError
from lookalike.evaluation.preference import (
    PRIOR_SD,
    Vote,
    agreement_of_judges,
    bradley_terry,
    krippendorff_alpha,
    metric_agreement,
    strengths,
    wilson,
    win_rates,
)


def _vote(pair: int, result: float, *, judge: str = "j", models: str = "ab", subject: str | None = None) -> Vote:
    return Vote(judge, f"p{pair}", subject or f"s{pair}", models[0], models[1], result)


@pytest.mark.parametrize(("wins", "count"), [(0, 10), (3, 10), (10, 10), (57, 120)])
def test_wilson_interval_equals_that_of_scipy(wins: int, count: int) -> None:
    expected = stats.binomtest(wins, count).proportion_ci(method="wilson")
    assert wilson(wins, count) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_ties_count_half_and_orientation_does_not_matter() -> None:
    votes = [_vote(0, 1.0), _vote(1, 1.0), _vote(2, 0.5), _vote(3, 0.0), _vote(4, 0.0, models="ba")]
    (rate,) = win_rates(votes, ["a", "b"])
    assert (rate.wins, rate.ties, rate.losses, rate.share) == (3, 1, 1, pytest.approx(0.7))
    turned = [Vote(v.judge, v.pair, v.subject, v.second, v.first, 1 - v.result) for v in votes]
    assert win_rates(turned, ["a", "b"]) == [rate]


def test_order_of_votes_does_not_matter() -> None:
    votes = _simulated({"a": 0.5, "b": 0.0, "c": -0.5}, subjects=12, judges=4, seed=1)
    mixed = random.Random(2).sample(votes, len(votes))
    assert win_rates(mixed, "abc", seed=3) == win_rates(votes, "abc", seed=3)
    assert strengths(mixed, "abc", seed=3) == strengths(votes, "abc", seed=3)
    assert win_rates(votes, "abc", seed=4) != win_rates(votes, "abc", seed=3)


def test_votes_of_one_subject_do_not_narrow_the_interval() -> None:
    """Forty votes on each of ten subjects, all votes of a subject equal: as much as ten votes."""
    repeated = [
        _vote(100 * subject + n, float(subject < 6), subject=f"s{subject}") for subject in range(10) for n in range(40)
    ]
    single = [_vote(subject, float(subject < 6)) for subject in range(10)]
    (many,), (few,) = win_rates(repeated, "ab"), win_rates(single, "ab")
    assert many.high - many.low == pytest.approx(few.high - few.low, abs=0.02)
    assert many.wilson_high - many.wilson_low < 0.5 * (many.high - many.low)


def test_interval_of_win_rates_covers_the_truth() -> None:
    """Judges and subjects with tastes of their own; the share of 95 % intervals that hold the true rate."""
    covered = 0
    for seed in range(40):
        rng = np.random.default_rng(seed)
        taste, ease = rng.normal(0, 0.5, 15), rng.normal(0, 0.8, 25)
        votes = []
        for judge, subject in np.ndindex(15, 25):
            better = 1 / (1 + np.exp(-(taste[judge] + ease[subject])))  # 0.5 on average, by symmetry
            votes.append(_vote(subject, float(rng.random() < better), judge=f"j{judge}"))
        (rate,) = win_rates(votes, "ab", seed=seed)
        covered += rate.low <= 0.5 <= rate.high
    assert covered >= 34


def test_interval_of_independent_votes_is_that_of_wilson() -> None:
    rng = np.random.default_rng(0)
    votes = [_vote(s, float(rng.random() < 0.5), judge=f"j{j}") for s in range(40) for j in range(20)]
    (rate,) = win_rates(votes, "ab")
    assert rate.high - rate.low == pytest.approx(rate.wilson_high - rate.wilson_low, rel=0.3)


def test_votes_of_one_judge_do_not_narrow_the_interval() -> None:
    """Twelve judges, each of whom always prefers one model: as much as twelve votes."""
    votes = [_vote(s, float(j % 2), judge=f"j{j}") for s in range(50) for j in range(12)]
    (rate,) = win_rates(votes, "ab")
    deviation = (0.25 / 11) ** 0.5
    assert rate.high - rate.low == pytest.approx(2 * 1.96 * deviation, rel=0.1)


def test_bradley_terry_of_two_models_is_the_logit_of_the_share() -> None:
    strong = bradley_terry(np.array([[0.0, 3000.0], [1000.0, 0.0]]))  # so many votes that the prior is negligible
    assert strong[0] - strong[1] == pytest.approx(np.log(3), abs=1e-3)
    assert strong.sum() == pytest.approx(0, abs=1e-9)


def test_bradley_terry_is_the_maximum_that_scipy_finds() -> None:
    rng = np.random.default_rng(0)
    tables = rng.integers(0, 30, (20, 4, 4)) * (1.0 - np.eye(4))
    tables[0] *= np.triu(np.ones((4, 4)))  # each model won every vote against the later ones
    tables[1, 2:] = tables[1, :, 2:] = 0  # two models without votes

    def loss(theta: np.ndarray, wins: np.ndarray) -> float:
        margin = theta[:, None] - theta[None, :]
        return float((wins * np.log1p(np.exp(-margin))).sum() + (theta**2).sum() / (2 * PRIOR_SD**2))

    for wins, found in zip(tables, bradley_terry(tables), strict=True):
        expected = optimize.minimize(loss, np.zeros(4), args=(wins,), options={"gtol": 1e-9}).x
        assert found == pytest.approx(expected, abs=1e-4)


def test_bradley_terry_finds_simulated_strengths() -> None:
    truth = {"a": 1.0, "b": 0.2, "c": -0.3, "d": -0.9}
    votes = _simulated(truth, subjects=40, judges=12, seed=0)
    found = {s.model: s for s in strengths(votes, list(truth))}
    for model, strength in truth.items():
        assert found[model].strength == pytest.approx(strength, abs=0.15)
        assert found[model].low <= strength <= found[model].high


def test_a_model_that_won_every_vote_has_a_finite_strength() -> None:
    votes = [_vote(n, 1.0, models=models) for n, models in enumerate(["ab", "ac", "bc"] * 10)]
    found = [s.strength for s in strengths(votes, "abc")]
    assert np.isfinite(found).all()
    assert found[0] > found[1] > found[2]
    more = [_vote(n, 1.0, models=models) for n, models in enumerate(["ab", "ac", "bc"] * 40)]
    assert strengths(more, "abc")[0].strength > found[0]


def test_equal_votes_do_not_seem_certain() -> None:
    votes = [
        _vote(n, 1.0, models=models, judge=judge) for n, models in enumerate(["ab", "ac", "bc"] * 4) for judge in "xy"
    ]
    assert [(rate.share, rate.high) for rate in win_rates(votes, "abc")] == [(1.0, 1.0)] * 3
    assert all(rate.low == rate.wilson_low < 0.7 for rate in win_rates(votes, "abc"))
    assert all(strength.high - strength.low > 1 for strength in strengths(votes, "abc"))


def test_equal_models_tie() -> None:
    assert bradley_terry(np.full((3, 3), 5.0) - 5 * np.eye(3)) == pytest.approx([0, 0, 0], abs=1e-9)


def test_alpha_equals_published_values() -> None:
    """The examples of Krippendorff 2011, "Computing Krippendorff's Alpha-Reliability": A (binary), C (interval)."""
    one, other = "0100000010", "1110010000"
    assert krippendorff_alpha([[int(a), int(b)] for a, b in zip(one, other, strict=True)]) == pytest.approx(
        0.095, abs=5e-4
    )
    observers = ["12332141 2...".replace(" ", ""), "123322412 5.3".replace(" ", ""), ".33323422 51.".replace(" ", "")]
    observers.append("12332441251.")
    units = [[float(o[i]) for o in observers if o[i] != "."] for i in range(12)]
    assert krippendorff_alpha(units) == pytest.approx(0.849, abs=5e-4)


def test_alpha_of_judges() -> None:
    agreed = [_vote(pair, float(pair % 2), judge=judge) for pair in range(6) for judge in "xyz"]
    assert agreement_of_judges(agreed) == pytest.approx(1)
    always_first = [_vote(pair, 1.0, judge=judge) for pair in range(6) for judge in "xy"]
    assert agreement_of_judges(always_first) == pytest.approx(1)  # the order of images has no meaning
    assert agreement_of_judges([vote for vote in agreed if vote.judge == "x"]) is None
    rng = np.random.default_rng(0)
    chance = [_vote(pair, float(rng.integers(2)), judge=judge) for pair in range(400) for judge in "xy"]
    assert agreement_of_judges(chance) == pytest.approx(0, abs=0.1)
    opposed = [_vote(pair, float(judge == "x"), judge=judge) for pair in range(50) for judge in "xy"]
    assert (agreement_of_judges(opposed) or 0) < -0.9


def test_metric_agrees_with_the_majority() -> None:
    votes = [_vote(pair, result, judge=judge) for pair, result in enumerate([1, 1, 0, 0, 1]) for judge in "xyz"]
    votes.append(_vote(0, 0.0, judge="w"))  # against three
    values = {"p0": (0.9, 0.1), "p1": (0.2, 0.7), "p2": (0.1, 0.3), "p3": (0.4, 0.4), "p5": (9.0, 1.0)}
    found = metric_agreement(votes, values, "identity")
    assert found is not None
    assert found.share.n == 4  # p4 has no value, p5 no vote
    assert found.share.mean == pytest.approx((1 + 0 + 1 + 0.5) / 4)
    assert found.undecided == 0


def test_pairs_on_which_judges_are_even_are_undecided() -> None:
    votes = [_vote(0, 1.0, judge="x"), _vote(0, 0.0, judge="y"), _vote(1, 0.5), _vote(2, 1.0)]
    values = {"p0": (1.0, 0.0), "p1": (1.0, 0.0), "p2": (1.0, 0.0)}
    found = metric_agreement(votes, values, "m")
    assert found is not None
    assert (found.undecided, found.share.n, found.share.mean) == (2, 1, 1.0)
    assert metric_agreement(votes[:3], values, "m") is None


def test_tau_does_not_depend_on_the_order_of_images() -> None:
    rng = np.random.default_rng(0)
    votes = [_vote(pair, float(rng.random() < 0.6)) for pair in range(60)]
    values = {vote.pair: (0.5 * vote.result + float(rng.normal()), 0.0) for vote in votes}
    found = metric_agreement(votes, values, "m")
    turned = [
        Vote(v.judge, v.pair, v.subject, v.second, v.first, 1 - v.result) if n % 2 else v for n, v in enumerate(votes)
    ]
    swapped = {v.pair: values[v.pair][::-1] if n % 2 else values[v.pair] for n, v in enumerate(votes)}
    again = metric_agreement(turned, swapped, "m")
    assert found is not None
    assert again is not None
    assert again.tau == pytest.approx(found.tau)
    assert again.share.mean == found.share.mean
    perfect = metric_agreement(votes, {v.pair: (v.result, 1 - v.result) for v in votes}, "m")
    assert perfect is not None
    assert perfect.tau == pytest.approx(1)
    assert perfect.share.mean == 1


@pytest.mark.parametrize(
    "votes",
    [
        [],
        [_vote(0, 1.0), _vote(0, 0.0)],
        [_vote(0, 0.7)],
        [_vote(0, 1.0, models="az")],
        [_vote(0, 1.0, models="aa")],
    ],
)
def test_wrong_votes_are_errors(votes: list[Vote]) -> None:
    with pytest.raises(InputError):
        win_rates(votes, "ab")


def _simulated(truth: dict[str, float], subjects: int, judges: int, seed: int) -> list[Vote]:
    rng = np.random.default_rng(seed)
    votes = []
    for pair, (subject, (one, other)) in enumerate((s, two) for s in range(subjects) for two in combinations(truth, 2)):
        better = 1 / (1 + np.exp(truth[other] - truth[one]))
        for judge in range(judges):
            votes.append(Vote(f"j{judge}", f"p{pair}", f"s{subject}", one, other, float(rng.random() < better)))
    return votes
