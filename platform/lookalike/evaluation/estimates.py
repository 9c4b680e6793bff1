"""Means, positions and shares with their 95 % intervals; the intervals of samples resample subjects (numpy and scipy).

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
        return _undefined(count)
    mean = float(samples.values.mean())
    sums, sizes = samples.totals() if len(samples.names) > 1 else (samples.values, np.ones(count))
    if len(sums) < 2 or np.allclose(sums / sizes, mean, rtol=0, atol=1e-12):
        return Estimate(mean, mean, mean, count)
    return Estimate(mean, *_interval((sums, sizes), _ratio, seed, paired=True), count)


def position(images: Clustered, ceiling: Clustered, floor: Clustered, *, seed: int = 0) -> Estimate:
    """Position of images between what real photos of other subjects (0) and of the same subject (1) reach.

    With i, c, f the means of a subject's images, ceiling and floor, and w its number of images, it is
    Σ w (i - f) / Σ w (c - f) over the subjects that have all three: each mean is of the same mix of subjects, whatever
    the number of their photos. The interval resamples subjects, each with its images, ceiling and floor together; of
    one subject it resamples the samples of each of the three, and says nothing about other subjects. Methods are those
    of :func:`mean_of`. ``n`` is the number of images.

    NaN, if the lower end of the 95 % interval of the denominator is not above 0: the ratio could then be anything
    (Fieller 1954). NaN with ``n`` = 0, if no subject has all three; NaN, if a value is not finite.
    """
    names = np.intersect1d(np.intersect1d(images.names, ceiling.names), floor.names)
    if len(names) == 0:
        return _undefined(0)
    sums, sizes = images.totals()
    chosen = np.searchsorted(images.names, names)
    count = int(sizes[chosen].sum())
    if not all(np.isfinite(part.values).all() for part in (images, ceiling, floor)):
        return _undefined(count)
    if len(names) == 1:
        return _position_of_one(*(_own(part, names[0]) for part in (images, ceiling, floor)), count=count, seed=seed)
    weights, floors = sizes[chosen], floor.means_of(names)
    above, span = sums[chosen] - weights * floors, weights * (ceiling.means_of(names) - floors)
    if not _interval((span, weights), _ratio, seed, paired=True)[0] > 0:
        return _undefined(count)
    return _finite(float(above.sum() / span.sum()), _interval((above, span), _ratio, seed, paired=True), count)


def binomial_interval(successes: int, trials: int) -> tuple[float, float]:
    """Exact 95 % interval of a share (Clopper and Pearson 1934, by ``scipy.stats.binomtest``), 0 to 1.

    Raises ConfigError unless 0 <= successes <= trials and trials >= 1.
    """
    if not 0 <= successes <= trials or trials < 1:
        raise ConfigError("not a number of successes", value=f"{successes} of {trials}", fix="pass 0 to trials of them")
    found = stats.binomtest(successes, trials).proportion_ci(0.95, method="exact")
    return float(found.low), float(found.high)


def subjects_needed(differences: Floats, clusters: Sequence[str], difference: float, power: float = 0.8) -> int | None:
    """Number of subjects with which a paired comparison finds a mean ``difference`` with this ``power``.

    The test is the two-sided t test at 5 % on subjects. Its variance between subjects is that of the measured
    ``differences`` [N] (case by case, of subjects ``clusters``), linearised as a ratio estimator, so that subjects with
    more cases count more, as in the estimate (Cochran, Sampling Techniques, 6.3); it is at least 2 subjects. None if
    that variance is not known: fewer than two subjects, or a value that is not finite.

    Raises ConfigError: ``difference`` is 0 or not finite, or ``power`` is not between 0.05 and 1.
    """
    if not math.isfinite(difference) or difference == 0 or not 0.05 < power < 1:
        raise ConfigError(
            "no number of subjects finds this difference with this power",
            value=f"{difference}, {power}",
            fix="pass a difference other than 0, and a power between 0.05 and 1",
        )
    samples = Clustered.of(differences, clusters)
    if len(samples.names) < 2 or not np.isfinite(samples.values).all():
        return None
    sums, sizes = samples.totals()
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


def _position_of_one(images: Floats, ceiling: Floats, floor: Floats, *, count: int, seed: int) -> Estimate:
    parts = tuple(np.repeat(part, 2) if len(part) == 1 else part for part in (images, ceiling, floor))  # scipy needs 2

    def span(ceiling: Floats, floor: Floats, axis: int = -1) -> Floats:
        return np.asarray(ceiling.mean(axis=axis) - floor.mean(axis=axis))

    def share(images: Floats, ceiling: Floats, floor: Floats, axis: int = -1) -> Floats:
        return span(images, floor, axis) / span(ceiling, floor, axis)

    if not _interval(parts[1:], span, seed, paired=False)[0] > 0:
        return _undefined(count)
    return _finite(float(share(images, ceiling, floor)), _interval(parts, share, seed, paired=False), count)


def _own(samples: Clustered, name: str) -> Floats:
    return np.asarray(samples.values[samples.index == np.searchsorted(samples.names, name)])


def _ratio(sums: Floats, sizes: Floats, axis: int = -1) -> Floats:
    return np.asarray(sums.sum(axis=axis) / sizes.sum(axis=axis))


def _interval(
    data: tuple[Floats, ...], statistic: Callable[..., Floats], seed: int, *, paired: bool
) -> tuple[float, float]:
    """The 95 % bootstrap interval of ``statistic``; percentile if BCa is undefined."""
    largest = max(map(len, data))
    for method in ("BCa", "percentile") if largest <= _MOST_BCA else ("percentile",):
        with warnings.catch_warnings(), np.errstate(divide="ignore", invalid="ignore"):
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


def _finite(mean: float, ends: tuple[float, float], count: int) -> Estimate:
    return Estimate(mean, *ends, count) if np.isfinite([mean, *ends]).all() else _undefined(count)


def _undefined(count: int) -> Estimate:
    return Estimate(math.nan, math.nan, math.nan, count)
