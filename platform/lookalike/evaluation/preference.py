"""Statistics of human preference: win rates, Bradley-Terry strengths, agreement of judges, and of metrics with people.

Pure functions of votes (numpy and scipy only). Their order does not matter, and equal votes give equal results.

Votes of one judge resemble each other, and so do votes about one subject. The variance behind all 95 % intervals counts
both (Cameron, Gelbach and Miller 2011, "Robust Inference With Multiway Clustering"): the variance over resamples of
whole subjects, plus that over resamples of whole judges, minus that over resamples of the votes of each subject and
judge, which both contain; at least the larger of the first two. Each is multiplied by n / (n - 1) for n resampled
clusters, and an interval is ± 1.96 standard deviations. With one subject only judges are resampled, with one judge only
subjects: it then says nothing about other ones. With fewer than about ten of either it is a little too narrow. It is
never narrower than if all votes were independent (a share: Wilson's interval; a strength: the curvature of its
likelihood), so that equal votes do not seem certain.
"""

import warnings
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import numpy.typing as npt
from scipy import special, stats

from lookalike.errors import InputError
from lookalike.evaluation.estimates import RESAMPLES, Clustered, Estimate, share_of
from lookalike.process_wide import alone_in_process

Floats = npt.NDArray[np.float64]

PRIOR_SD = 3.0
"""Standard deviation of the prior of a Bradley-Terry strength, in logits: weak (95 % of the odds of two models lie
between 1 : 4,000 and 4,000 : 1), but it keeps the strength of a model that won every vote finite."""
_Z = 1.959963984540054  # the 97.5 % quantile of the normal distribution
_NEWTON_STEPS = 100  # it takes about 6, and about 15 for a model that won every vote
_CELLS = 1 << 22  # resamples times votes that are in memory at a time


@dataclass(frozen=True)
class Vote:
    """The choice of one judge between the images of two models."""

    judge: str
    """Id of the judge."""
    pair: str
    """Id of the pair; with ``judge`` unique."""
    subject: str
    """The subject that the images should show."""
    first: str
    """Name of one model."""
    second: str
    """Name of the other."""
    result: float
    """1.0: the first is preferred; 0.0: the second; 0.5: a tie."""


@dataclass(frozen=True)
class WinRate:
    """How often one model is preferred to another."""

    model: str
    against: str
    wins: int
    ties: int
    losses: int
    share: float
    """(wins + ties / 2) / votes, 0 to 1."""
    low: float
    """Lower end of the 95 % interval over subjects and judges."""
    high: float
    """Upper end."""
    wilson_low: float
    """Lower end of the 95 % interval if all votes were independent (:func:`wilson`)."""
    wilson_high: float
    """Upper end."""


@dataclass(frozen=True)
class Strength:
    """The strength of one model by :func:`bradley_terry`, in logits; the mean of all models is 0."""

    model: str
    strength: float
    low: float
    """Lower end of the 95 % interval over subjects and judges."""
    high: float
    """Upper end."""


@dataclass(frozen=True)
class Agreement:
    """Agreement of a metric with people, over pairs of images."""

    metric: str
    share: Estimate
    """Share of the pairs in which the image with the higher value is the one that most judges prefer; equal values
    count half. Chance is 0.5; a share below it belongs to a metric of which lower values are better. ``n`` is the
    number of pairs."""
    tau: float | None
    """Kendall's tau-b of the difference of the metric and the mean vote, -1 to 1; None if either never varies."""
    undecided: int
    """Pairs that are left out since the judges are even."""


def wilson(wins: float, votes: int) -> tuple[float, float]:
    """Compute the 95 % score interval of a share (Wilson 1927), 0 to 1. ``wins`` may count ties as half, whose spread
    is smaller than a binomial one: the interval is then too wide rather than too narrow.

    With p = wins / n: (p + z²/2n ± z·√(p(1-p)/n + z²/4n²)) / (1 + z²/n).
    """
    share, spread = wins / votes, _Z**2 / votes
    middle = share + spread / 2
    half = _Z * np.sqrt(share * (1 - share) / votes + spread / (4 * votes))
    low, high = (middle - half) / (1 + spread), (middle + half) / (1 + spread)
    return max(0.0, float(low)), min(1.0, float(high))


def win_rates(votes: Iterable[Vote], models: Sequence[str], *, seed: int = 0) -> list[WinRate]:
    """Compute the win rate of each model against each later one of ``models`` that it was compared with.

    Raises InputError for no vote, a vote on an unknown model, a result other than 0, 0.5 and 1, or two votes of one
    judge on one pair.
    """
    table = _Table(votes, models)
    deviations = table.deviations(_shares, seed)
    rates = []
    for i, j in combinations(range(len(models)), 2):
        results = table.results_between(i, j)
        if not len(results):
            continue
        wins, ties, count = int((results == 1).sum()), int((results == 0.5).sum()), len(results)
        share, half, least = float(results.mean()), _Z * float(deviations[i, j]), wilson(wins + ties / 2, count)
        rates.append(
            WinRate(
                *(models[i], models[j], wins, ties, count - wins - ties),
                *(share, max(0.0, min(share - half, least[0])), min(1.0, max(share + half, least[1]))),
                *least,
            )
        )
    return rates


def strengths(votes: Iterable[Vote], models: Sequence[str], *, seed: int = 0) -> list[Strength]:
    """Compute the Bradley-Terry strength of each of ``models`` with its interval. Raises as :func:`win_rates`."""
    table = _Table(votes, models)
    wins = table.wins(np.ones((1, len(table.results))))[0]
    found = bradley_terry(wins)
    centre = np.eye(len(models)) - 1 / len(models)
    if_independent = centre @ np.linalg.inv(_curvature(wins, found)) @ centre
    half = _Z * np.maximum(table.deviations(bradley_terry, seed), np.sqrt(np.diag(if_independent)))
    rows = zip(models, found, found - half, found + half, strict=True)
    return [Strength(model, float(strength), float(low), float(high)) for model, strength, low, high in rows]


def bradley_terry(wins: Floats) -> Floats:
    """Fit strengths θ [..., K] to ``wins`` [..., K, K]: ``wins[i, j]`` counts votes for i over j, a tie half for each.

    P(i is preferred to j) = 1 / (1 + exp(θj - θi)) (Bradley and Terry 1952). The result maximises the likelihood times
    a normal prior of each θ with mean 0 and standard deviation :data:`PRIOR_SD`. That is strictly concave, so Newton's
    method finds the one maximum; its mean is 0.
    """
    theta = np.zeros(wins.shape[:-1])
    for _ in range(_NEWTON_STEPS):
        pull = wins * _odds(theta)
        slope = pull.sum(axis=-1) - pull.sum(axis=-2) - theta / PRIOR_SD**2
        step = np.linalg.solve(_curvature(wins, theta), slope[..., None])[..., 0]
        theta = theta + step
        if np.abs(step).max() < 1e-10:
            break
    return np.asarray(theta - theta.mean(axis=-1, keepdims=True), dtype=np.float64)


def _odds(theta: Floats) -> Floats:
    """P(j is preferred to i) at [..., i, j]."""
    return np.asarray(special.expit(theta[..., None, :] - theta[..., :, None]))


def _curvature(wins: Floats, theta: Floats) -> Floats:
    """Negative second derivative [..., K, K] of the logarithm that :func:`bradley_terry` maximises."""
    odds = _odds(theta)
    bend = (wins + np.swapaxes(wins, -1, -2)) * odds * (1 - odds)
    return np.asarray(np.eye(wins.shape[-1]) * (bend.sum(axis=-1) + 1 / PRIOR_SD**2)[..., None] - bend)


def krippendorff_alpha(units: Iterable[Sequence[float]]) -> float | None:
    """Compute Krippendorff's alpha of interval data: ``units`` has the values that the judges gave to each unit.

    α = 1 - Do / De with δ² = (c - k)²: Do is the mean squared difference of two values of one unit, De of any two
    values (Krippendorff 2011, "Computing Krippendorff's Alpha-Reliability"). Judges may be missing; a unit with one
    value does not count. 1: all agree; 0: chance; below 0: less than chance. None if there are no two values of one
    unit, or if all values are equal.
    """
    rated = [np.asarray(values, dtype=np.float64) for values in units if len(values) > 1]
    if not rated:
        return None
    everything = np.concatenate(rated)
    observed = sum(_squared_differences(values) / (len(values) - 1) for values in rated) / len(everything)
    expected = _squared_differences(everything) / (len(everything) * (len(everything) - 1))
    return None if expected == 0 else float(1 - observed / expected)


def agreement_of_judges(votes: Iterable[Vote]) -> float | None:
    """Compute :func:`krippendorff_alpha` of votes: pairs are units, and a tie lies in the middle of both choices.

    The order of a pair's two images is arbitrary, so each pair counts in both orders: De does not depend on how often
    the better image happened to be the first.
    """
    units = _by_pair(votes).values()
    values = [[vote.result for vote in unit] for unit in units]
    return krippendorff_alpha([*values, *([1 - value for value in unit] for unit in values)])


def metric_agreement(
    votes: Iterable[Vote], values: Mapping[str, tuple[float, float]], metric: str, *, seed: int = 0
) -> Agreement | None:
    """Compare a metric with the votes; ``values`` has its value of the first and the second image by pair.

    Pairs without votes, or without two finite values, are left out. Kendall's tau counts each pair in both orders of
    its images, since their order is arbitrary. Returns None if no decided pair has values.
    """
    differences, means, subjects, undecided = [], [], [], 0
    for pair, unit in _by_pair(votes).items():
        if pair not in values or not np.isfinite(values[pair]).all():
            continue
        mean = float(np.mean([vote.result for vote in unit])) - 0.5
        undecided += mean == 0
        differences.append(values[pair][0] - values[pair][1])
        means.append(mean)
        subjects.append(unit[0].subject)
    d, m = np.asarray(differences), np.asarray(means)
    decided = m != 0
    if not decided.any():
        return None
    right = 0.5 + 0.5 * np.sign(d[decided]) * np.sign(m[decided])
    clusters = [subject for subject, counts in zip(subjects, decided, strict=True) if counts]
    tau = float(stats.kendalltau(np.concatenate([d, -d]), np.concatenate([m, -m])).statistic)
    share = share_of(Clustered.of(right, clusters), seed=seed)
    return Agreement(metric, share, None if np.isnan(tau) else tau, undecided)


class _Table:
    """Votes as arrays, sorted by pair and judge."""

    def __init__(self, votes: Iterable[Vote], models: Sequence[str]) -> None:
        rows = sorted(votes, key=lambda vote: (vote.pair, vote.judge))
        if not rows:
            raise InputError("there are no votes", fix="pass the choices of at least one judge")
        number = {model: index for index, model in enumerate(models)}
        for row in rows:
            if row.first not in number or row.second not in number or row.first == row.second:
                raise InputError("a vote is not on two of the models", value=row, fix="check the models")
            if row.result not in (0.0, 0.5, 1.0):
                raise InputError("the result of a vote is not 0, 0.5 or 1", value=row, fix="check the choices")
        if len({(row.pair, row.judge) for row in rows}) < len(rows):
            raise InputError("a judge voted twice on one pair", fix="pass each vote once")
        self.count = len(models)
        self.first = np.array([number[row.first] for row in rows])
        self.second = np.array([number[row.second] for row in rows])
        self.results = np.array([row.result for row in rows])
        self.subject, self.judge = (
            np.unique([getattr(row, name) for row in rows], return_inverse=True)[1] for name in ("subject", "judge")
        )

    def results_between(self, i: int, j: int) -> Floats:
        """Results of the votes on models i and j, as seen by i."""
        forward, backward = (self.first == i) & (self.second == j), (self.first == j) & (self.second == i)
        return np.concatenate([self.results[forward], 1 - self.results[backward]])

    def wins(self, weights: Floats) -> Floats:
        """``wins`` [R, K, K] of :func:`bradley_terry`, with each vote counted ``weights`` [R, N] times."""
        votes, wins = np.arange(len(self.results)), np.zeros((len(self.results), self.count, self.count))
        wins[votes, self.first, self.second] = self.results
        wins[votes, self.second, self.first] = 1 - self.results
        return np.asarray((weights @ wins.reshape(len(votes), -1)).reshape(-1, self.count, self.count))

    def deviations(self, statistic: Callable[[Floats], Floats], seed: int) -> Floats:
        """Standard deviation of ``statistic`` (``wins`` [R, K, K] -> [R, ...]) over subjects and judges."""

        def variance(clusters: npt.NDArray[np.int64]) -> Floats:
            values = statistic(self._resampled_wins(clusters, seed))
            with alone_in_process(), warnings.catch_warnings():
                warnings.simplefilter("ignore", RuntimeWarning)  # of two models that were not compared
                return np.asarray(np.nanvar(values, axis=0)) * (1 + 1 / max(1, int(clusters.max())))

        if self.subject.max() == 0 or self.judge.max() == 0:
            clusters = self.subject + self.judge
            return np.sqrt(variance(clusters if clusters.max() else np.arange(len(clusters))))
        of_subjects, of_judges = variance(self.subject), variance(self.judge)
        _, both = np.unique(self.subject * (self.judge.max() + 1) + self.judge, return_inverse=True)
        least = np.maximum(of_subjects, of_judges)
        return np.asarray(np.sqrt(np.maximum(of_subjects + of_judges - variance(both), least)))

    def _resampled_wins(self, clusters: npt.NDArray[np.int64], seed: int) -> Floats:
        """``wins`` [R, K, K] of R resamples of whole clusters; ``clusters`` [N] has the cluster of each vote."""
        rng, size, count = np.random.default_rng(seed), max(1, _CELLS // len(clusters)), int(clusters.max()) + 1
        parts = []
        for start in range(0, RESAMPLES, size):
            times = rng.multinomial(count, np.full(count, 1 / count), min(size, RESAMPLES - start))
            parts.append(self.wins(times[:, clusters].astype(np.float64)))
        return np.concatenate(parts)


def _shares(wins: Floats) -> Floats:
    """Share of each model's wins over each other one: [..., K, K] to the same shape, NaN if they were not compared."""
    with np.errstate(invalid="ignore"):
        return np.asarray(wins / (wins + np.swapaxes(wins, -1, -2)))


def _by_pair(votes: Iterable[Vote]) -> dict[str, list[Vote]]:
    units: dict[str, list[Vote]] = defaultdict(list)
    for vote in sorted(votes, key=lambda vote: (vote.pair, vote.judge)):
        units[vote.pair].append(vote)
    return units


def _squared_differences(values: Floats) -> float:
    """Sum of (c - k)² over all ordered pairs of ``values``."""
    return float(2 * len(values) * ((values - values.mean()) ** 2).sum())
