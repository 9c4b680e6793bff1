"""Means and shares with their 95 % intervals; the intervals of samples resample subjects (numpy and scipy).

Legend: N samples, K clusters (subjects).
"""

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import stats

from lookalike.errors import ConfigError
from lookalike.process_wide import alone_in_process

Floats = npt.NDArray[np.floating]

RESAMPLES = 2000  # the ends of a 95 % interval then vary by about 3 % of its width between seeds
_BATCH = 4_000_000  # values that are resampled at once
_MOST_BCA = 5_000  # samples or clusters; of more, BCa differs from percentile by 1 % of the width, and takes N² time


@dataclass(frozen=True)
class Estimate:
    """A mean and its confidence interval."""

    mean: float
    low: float
    """Lower end of the interval."""
    high: float
    """Upper end of the interval."""
    n: int
    """Number of samples."""


@dataclass(frozen=True)
class Clustered:
    """Samples, and the cluster of each."""

    values: Floats
    """float64 [N]."""
    index: npt.NDArray[np.int64]
    """[N], 0 to K - 1."""
    names: npt.NDArray[Any]
    """Names of the clusters [K], ascending."""

    @classmethod
    def of(cls, values: Floats, clusters: Sequence[str]) -> "Clustered":
        """Make it of N values and N names. Raises ConfigError for no value, or if there is not one name per value."""
        values = np.asarray(values, dtype=np.float64)
        if len(values) == 0 or len(values) != len(clusters):
            raise ConfigError(
                "an estimate needs one cluster per value",
                value=f"{len(values)}, {len(clusters)}",
                fix="pass as many clusters as values, at least one",
            )
        names, index = np.unique(np.asarray(clusters, dtype=object), return_inverse=True)
        return cls(values, index, names)

    def totals(self) -> tuple[Floats, Floats]:
        """Sum and number of the values of each cluster, both float64 [K]."""
        count = len(self.names)
        sizes = np.bincount(self.index, minlength=count).astype(np.float64)
        sums = np.bincount(self.index, weights=self.values, minlength=count).astype(np.float64)
        return sums, sizes

    def means_of(self, names: npt.NDArray[Any]) -> Floats:
        """Means of the clusters ``names``, all of which it has: float64, in their order."""
        sums, sizes = self.totals()
        chosen = np.searchsorted(self.names, names)
        return np.asarray(sums[chosen] / sizes[chosen])


def cluster_bootstrap(values: Floats, clusters: Sequence[str], *, seed: int = 0) -> Estimate:
    """Mean of ``values`` [N] with a 95 % bootstrap interval that resamples whole clusters, N names of subjects.

    Raises ConfigError as :meth:`Clustered.of` does. See :func:`mean_of`.
    """
    return mean_of(Clustered.of(values, clusters), seed=seed)


def mean_of(samples: Clustered, *, seed: int = 0) -> Estimate:
    """Mean of N samples, with a 95 % bootstrap interval that resamples whole clusters.

    Samples of one subject resemble each other, so resampling them one by one would make the interval too narrow. With
    fewer than two clusters the samples themselves are resampled: the interval then says nothing about other subjects.
    The method is BCa (bias-corrected and accelerated; Efron 1987), or percentile if BCa is undefined or the clusters
    are more than 5,000, both by ``scipy.stats.bootstrap``. NaN if a value is not finite.
    """
    count = len(samples.values)
    if not np.isfinite(samples.values).all():
        return undefined(count)
    mean = float(samples.values.mean())
    sums, sizes = samples.totals() if len(samples.names) > 1 else (samples.values, np.ones(count))
    if len(sums) < 2 or np.allclose(sums / sizes, mean, rtol=0, atol=1e-12):
        return Estimate(mean, mean, mean, count)
    return Estimate(mean, *interval((sums, sizes), ratio, seed, paired=True), count)


def share_of(samples: Clustered, *, seed: int = 0) -> Estimate:
    """Mean of N values that are shares, each 0 or 1 (or the share of a subject), with a conservative 95 % interval.

    No bootstrap can see what did not occur among N values: of 0 copies its interval is [0, 0]. So this is, at each end,
    the wider one of :func:`mean_of` and the exact interval of as many trials as there are clusters, as if all samples
    of a cluster had one value; of a single cluster there are N trials. NaN if a value is not finite.

    Raises ConfigError: a value is not between 0 and 1.
    """
    found = mean_of(samples, seed=seed)
    if math.isnan(found.mean):
        return found
    _check_shares(samples.values)
    low, high = _exact(found.mean, _trials(samples))
    return Estimate(found.mean, min(found.low, low), max(found.high, high), found.n)


def share_difference(ours: Clustered, theirs: Clustered, *, seed: int = 0) -> Estimate:
    """Mean of ``ours`` - ``theirs``, shares of the same N samples, with a conservative 95 % interval.

    It is, at each end, the wider one of the bootstrap of the differences (:func:`mean_of`) and of u - d, where u and d
    are the shares by which ``ours`` is higher and lower, each in its exact interval at 97.5 % (Bonferroni), of as many
    trials as in :func:`share_of`. NaN if a value is not finite.

    Raises ConfigError: a value is not between 0 and 1.
    """
    values = ours.values - theirs.values
    found = mean_of(Clustered(values, ours.index, ours.names), seed=seed)
    if math.isnan(found.mean):
        return found
    _check_shares(np.concatenate([ours.values, theirs.values]))
    trials = _trials(ours)
    up, down = (_exact(float(part.clip(0, 1).mean()), trials, 0.975) for part in (values, -values))
    return Estimate(found.mean, min(found.low, up[0] - down[1]), max(found.high, up[1] - down[0]), found.n)


def binomial_interval(successes: int, trials: int) -> tuple[float, float]:
    """Exact 95 % interval of a share (Clopper and Pearson 1934), 0 to 1.

    Raises ConfigError unless 0 <= successes <= trials and trials >= 1.
    """
    if not 0 <= successes <= trials or trials < 1:
        raise ConfigError("not a number of successes", value=f"{successes} of {trials}", fix="pass 0 to trials of them")
    return _exact(successes / trials, trials)


def _exact(share: float, trials: int, level: float = 0.95) -> tuple[float, float]:
    """Clopper and Pearson's interval by the beta distribution, also of a number of successes that is not whole."""
    tail = (1 - level) / 2
    successes, failures = share * trials, (1 - share) * trials
    low = stats.beta.ppf(tail, successes, failures + 1) if successes > 0 else 0.0
    high = stats.beta.ppf(1 - tail, successes + 1, failures) if failures > 0 else 1.0
    return float(low), float(high)


def _trials(samples: Clustered) -> int:
    return len(samples.names) if len(samples.names) > 1 else len(samples.values)


def _check_shares(values: Floats) -> None:
    outside = values[(values < 0) | (values > 1)]
    if len(outside):
        raise ConfigError("a share is not between 0 and 1", value=float(outside[0]), fix="evaluate the bundle again")


def subjects_needed(differences: Floats, clusters: Sequence[str], difference: float, power: float = 0.8) -> int | None:
    """:func:`needed_of` for ``differences`` [N] (case by case) and the names of their subjects.

    Raises ConfigError as that does, and as :meth:`Clustered.of` does.
    """
    return needed_of(Clustered.of(differences, clusters), difference, power)


def needed_of(differences: Clustered, difference: float, power: float = 0.8) -> int | None:
    """Number of subjects with which a paired comparison finds a mean ``difference`` with this ``power``.

    The test is the two-sided t test at 5 % on subjects. Its variance between subjects is that of the measured
    ``differences`` (case by case), linearised as a ratio estimator, so that subjects with more cases count more, as in
    the estimate (Cochran, Sampling Techniques, 6.3); it is at least 2 subjects. None if that variance is not known:
    fewer than two subjects, or a value that is not finite.

    Raises ConfigError: ``difference`` is 0 or not finite, or ``power`` is not between 0.05 and 1.
    """
    if not math.isfinite(difference) or difference == 0 or not 0.05 < power < 1:
        raise ConfigError(
            "no number of subjects finds this difference with this power",
            value=f"{difference}, {power}",
            fix="pass a difference other than 0, and a power between 0.05 and 1",
        )
    if len(differences.names) < 2 or not np.isfinite(differences.values).all():
        return None
    sums, sizes = differences.totals()
    deviation = float(np.std((sums - sizes * sums.sum() / sizes.sum()) / sizes.mean(), ddof=1))
    effect = abs(difference) / deviation if deviation > 0 else math.inf
    if effect == math.inf:
        return 2
    normal = float(stats.norm.ppf(0.975) + stats.norm.ppf(power)) / effect
    needed = max(2, math.ceil(normal**2))  # by the normal distribution; t needs a few more
    while _power(needed, effect) < power:
        needed += 1
    return needed


def _power(subjects: int, effect: float) -> float:
    """Power of a two-sided t test at 5 %; ``effect`` is the difference in standard deviations between subjects."""
    freedom, shift = subjects - 1, effect * math.sqrt(subjects)
    return float(stats.nct.sf(stats.t.ppf(0.975, freedom), freedom, shift))


def ratio(sums: Floats, sizes: Floats, axis: int = -1) -> Floats:
    """Σ sums / Σ sizes along ``axis``."""
    return np.asarray(sums.sum(axis=axis) / sizes.sum(axis=axis))


def interval(
    data: tuple[Floats, ...], statistic: Callable[..., Floats], seed: int, *, paired: bool
) -> tuple[float, float]:
    """The 95 % bootstrap interval of ``statistic``; percentile if BCa is undefined."""
    largest = max(map(len, data))
    for method in ("BCa", "percentile") if largest <= _MOST_BCA else ("percentile",):
        with alone_in_process(), warnings.catch_warnings(), np.errstate(divide="ignore", invalid="ignore"):
            warnings.simplefilter("ignore", stats.DegenerateDataWarning)
            found = stats.bootstrap(
                data,
                statistic,
                paired=paired,
                vectorized=True,
                n_resamples=RESAMPLES,
                batch=max(1, _BATCH // largest),
                confidence_level=0.95,
                method=method,
                rng=np.random.default_rng(seed),
            ).confidence_interval
        if np.isfinite([found.low, found.high]).all():
            break
    return float(found.low), float(found.high)


def finite_estimate(mean: float, ends: tuple[float, float], count: int) -> Estimate:
    """The estimate, or an undefined one if a number is not finite."""
    return Estimate(mean, *ends, count) if np.isfinite([mean, *ends]).all() else undefined(count)


def undefined(count: int) -> Estimate:
    """The estimate of ``count`` samples that has no value: NaN."""
    return Estimate(math.nan, math.nan, math.nan, count)
