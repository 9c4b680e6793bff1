"""A mean with its confidence interval, by a bootstrap over subjects (numpy and scipy only)."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import stats

from lookalike.errors import ConfigError

Floats = npt.NDArray[np.floating]

RESAMPLES = 2000  # the ends of a 95 % interval then vary by about 3 % of its width between seeds


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


def cluster_bootstrap(values: Floats, clusters: Sequence[str], *, seed: int = 0) -> Estimate:
    """Mean of ``values`` [N] with a 95 % bootstrap interval that resamples whole clusters, N names of subjects.

    Samples of one subject resemble each other, so resampling them one by one would make the interval too narrow. With
    fewer than two clusters the samples themselves are resampled: the interval then says nothing about other subjects.
    The method is BCa (bias-corrected and accelerated; Efron 1987), or percentile if BCa is undefined, both by
    ``scipy.stats.bootstrap``.

    Raises ConfigError for no value, or if there is not one cluster per value.
    """
    values = np.asarray(values, dtype=np.float64)
    if len(values) == 0 or len(values) != len(clusters):
        raise ConfigError(
            "an estimate needs one cluster per value",
            value=f"{len(values)}, {len(clusters)}",
            fix="pass as many clusters as values, at least one",
        )
    mean, count = float(values.mean()), len(values)
    names, index = np.unique(np.asarray(clusters), return_inverse=True)
    if len(names) < 2:
        names, index = np.arange(count), np.arange(count)
    sums = np.bincount(index, weights=values, minlength=len(names))
    sizes = np.bincount(index, minlength=len(names)).astype(np.float64)
    if len(names) < 2 or np.allclose(sums / sizes, mean, rtol=0, atol=1e-12):
        return Estimate(mean, mean, mean, count)

    def ratio(sums: Floats, sizes: Floats, axis: int = -1) -> Floats:
        return np.asarray(sums.sum(axis=axis) / sizes.sum(axis=axis))

    for method in ("BCa", "percentile"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", stats.DegenerateDataWarning)
            found = stats.bootstrap(
                (sums, sizes),
                ratio,
                paired=True,
                vectorized=True,
                n_resamples=RESAMPLES,
                confidence_level=0.95,
                method=method,
                rng=np.random.default_rng(seed),
            ).confidence_interval
        if np.isfinite([found.low, found.high]).all():
            break
    return Estimate(mean, float(found.low), float(found.high), count)
