"""What measured intervals say about a claim: confirmed, refuted or undecided."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import stats

from lookalike.evaluation.estimates import Estimate

CONFIRMED, REFUTED, UNDECIDED = "confirmed", "refuted", "undecided"


def verdict(differences: Sequence[Estimate], sign: int) -> str:
    """The verdict on the claim that all ``differences`` have this ``sign``, 1 or -1, by their whole intervals."""
    ends = [sorted((sign * each.low, sign * each.high)) for each in differences]
    if not ends or not np.isfinite(ends).all():
        return UNDECIDED
    if all(low > 0 for low, _ in ends):
        return CONFIRMED
    return REFUTED if any(high < 0 for _, high in ends) else UNDECIDED


def crossed_mean(values: Any) -> Estimate:
    """Mean of ``values`` float ``[R runs, S subjects]`` with a 95 % interval over other runs and other subjects.

    The runs are trained from different seeds and measured on the same subjects: a crossed design. The variance of the
    mean is that of its random effects, (MS_runs + MS_subjects) / (R S); leaving out their interaction, which would be
    subtracted, makes the interval a little too wide. Its degrees of freedom are Satterthwaite's (Biometrics Bulletin 2,
    1946), so that few runs give a wide interval. With one run it resamples nothing of the runs: the interval then
    says nothing about other seeds. NaN for fewer than two subjects, or a value that is not finite.
    """
    table = np.asarray(values, dtype=np.float64)
    runs, subjects = table.shape
    mean = float(table.mean())
    if subjects < 2 or not np.isfinite(table).all():
        return Estimate(np.nan, np.nan, np.nan, table.size)
    squares = [(runs * float(table.mean(0).var(ddof=1)), subjects - 1)]  # mean square of subjects, its degrees
    if runs > 1:
        squares.append((subjects * float(table.mean(1).var(ddof=1)), runs - 1))
    total = sum(square for square, _ in squares)
    if total == 0:
        return Estimate(mean, mean, mean, table.size)
    degrees = total**2 / sum(square**2 / freedom for square, freedom in squares)
    half = float(stats.t.ppf(0.975, degrees)) * (total / table.size) ** 0.5
    return Estimate(mean, mean - half, mean + half, table.size)
