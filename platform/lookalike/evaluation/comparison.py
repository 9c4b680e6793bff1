"""Evaluations of one suite side by side: estimates of each metric, paired differences, and what the suite can tell.

A difference is model minus the model that it is compared with, case by case on the cases that both have
(:mod:`~lookalike.evaluation.paired`); its 95 % interval resamples subjects. Each interval
stands alone: of twenty comparisons without any true difference, one excludes 0 by chance.
"""

import io
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lookalike.errors import ConfigError, InputError
from lookalike.evaluation.calibration import same_judge
from lookalike.evaluation.estimates import Estimate, needed_of
from lookalike.evaluation.measurements import POSITIONS, REAL, SCHEMA, is_position, measured, rows_of
from lookalike.evaluation.metrics import LABELS
from lookalike.evaluation.paired import difference_of, paired, paired_positions
from lookalike.evaluation.scores import Scores

STEPS = (0.005, 0.01, 0.02, 0.05, 0.1)
"""Differences of the power table, in the unit of a metric."""

_POWER = 0.8
_MUST_AGREE = ("seed", "split", "distractors", "prompts")
"""Settings that choose the cases, their noise and the other subjects: without them cases are not the same."""
_PLACES = ("bundle", "suite", "out", "base", "actors", "loss_batch_size", "image_batch_size", "prompts")
"""Settings that change no value, or are compared by their content."""
_FIRST = ("loss_right", "loss_shuffled", "loss_gap")


@dataclass(frozen=True)
class Evaluated:
    """A finished evaluation, under the name of its model."""

    name: str
    scores: Scores
    """With estimates computed again from the measurements (:meth:`Scores.proven`)."""
    measurements: bytes
    """``measurements.parquet``."""

    @cached_property
    def table(self) -> pa.Table:
        """Rows of the cases that were measured."""
        return measured(pq.read_table(io.BytesIO(self.measurements), schema=SCHEMA)).drop_columns("unit")

    def rows(self, metric: str) -> pa.Table:
        """The measurements of one metric."""
        return rows_of(self.table, metric)


@dataclass(frozen=True)
class Difference:
    """A model's paired difference to the one that it is compared with."""

    estimate: Estimate
    """Its ``n`` is the number of shared cases."""
    subjects: int
    """Number of shared subjects."""
    needed: int | None
    """Number of subjects that finds this difference with power .8 at 5 %; None if that is not known."""
    found_from: float | None
    """The smallest difference that the shared subjects find with this power; None if that is not known."""
    steps: tuple[int | None, ...]
    """Number of subjects that finds each difference of :data:`STEPS`."""

    @property
    def clear(self) -> bool:
        """Whether the interval excludes 0."""
        return self.estimate.low > 0 or self.estimate.high < 0


@dataclass(frozen=True)
class Row:
    """One metric of all models; a value is None for a model that lacks the metric."""

    metric: str
    estimates: tuple[Estimate | None, ...]
    differences: tuple[Difference | None, ...]
    """None also for the model that the others are compared with, and for real photos."""


@dataclass(frozen=True)
class Comparison:
    """Evaluations side by side."""

    names: tuple[str, ...]
    against: int
    """Index of the model that the others are compared with."""
    rows: tuple[Row, ...]
    settings: dict[str, tuple[Any, ...]]
    """Settings in which the evaluations differ, with the value of each."""
    notes: tuple[str, ...]
    """What a reader has to know, in sentences."""

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON values; numbers that are not finite are null."""
        return dict(_finite({**asdict(self), "steps": STEPS}))


def compare(evaluations: Sequence[Evaluated], against: int = 0) -> Comparison:
    """Compare evaluations with the one at the index ``against``.

    Raises:
        ConfigError: fewer than two evaluations, or two with one name.
        InputError: two evaluations have other suites, conditions, judges, protocols or cases; both are named.
    """
    check_comparable(evaluations, against)
    reference = evaluations[against]
    names = sorted({name for each in evaluations for name in each.scores.metrics}, key=_order)
    rows = []
    for name in names:
        estimates = tuple(each.scores.metrics.get(name) for each in evaluations)
        differences = tuple(
            None if each is reference or _is_real(name) else _difference(each, reference, name) for each in evaluations
        )
        rows.append(Row(name, estimates, differences))
    settings = _settings(evaluations)
    return Comparison(
        tuple(each.name for each in evaluations), against, tuple(rows), settings, tuple(_notes(rows, settings))
    )


def check_comparable(evaluations: Sequence[Evaluated], against: int = 0) -> None:
    """Check that evaluations can be compared with the one at the index ``against``; raises as :func:`compare` does."""
    twice = [name for name, count in Counter(each.name for each in evaluations).items() if count > 1]
    if len(evaluations) < 2 or twice:
        what = f"two models have the name {twice[0]!r}" if twice else "a comparison needs two models or more"
        raise ConfigError(what, value=len(evaluations), fix="give each model its own --names")
    ours = evaluations[against]
    for each in evaluations:
        if reason := _not_comparable(ours.scores, each.scores):
            what, _, fix = reason.rpartition("; ")
            raise InputError(
                f"{each.name} cannot be compared with {ours.name}: {what}", value=each.scores.bundle.uri, fix=fix
            )


def lines(comparison: Comparison) -> list[str]:
    """The comparison as lines of text for a terminal: each metric with its values and paired differences."""
    width = max(len(row.metric) for row in comparison.rows) if comparison.rows else 0
    shown = []
    for row in comparison.rows:
        shown.append(row.metric)
        for name, estimate, difference in zip(comparison.names, row.estimates, row.differences, strict=True):
            if estimate is None:
                continue
            text = f"  {name:{max(12, width)}} {_interval(estimate)}  n={estimate.n}"
            if difference is not None:
                mark = "" if difference.clear else ", not clear"
                needed = f"; {difference.needed} subjects find it" if difference.needed else ""
                text += f"   difference {_interval(difference.estimate, '+')}{mark}{needed}"
            shown.append(text)
    return shown


def _not_comparable(ours: Scores, theirs: Scores) -> str | None:
    """The reason, and after the last semicolon its fix, as of :func:`same_judge`."""
    if ours.suite.sha256 != theirs.suite.sha256:
        return f"their suites differ: {_place(ours)}; {_place(theirs)}; evaluate both on one suite"
    if ours.conditions != theirs.conditions:
        return f"their conditions differ: {ours.conditions}; {theirs.conditions}; evaluate both with --conditions right"
    for name in _MUST_AGREE:
        one, other = ours.config.get(name), theirs.config.get(name)
        if name == "prompts":
            one, other = ours.prompts, theirs.prompts
        if one != other:
            return f"their {name} differs: {one}; {other}; evaluate both with one --{name}"
    return same_judge(ours, theirs)


def _place(scores: Scores) -> str:
    version = "" if scores.suite.version is None else f" v{scores.suite.version:04d}"
    return f"{scores.suite.uri}{version} ({scores.suite.sha256[:12]})"


def _difference(theirs: Evaluated, ours: Evaluated, metric: str) -> Difference | None:
    """``theirs`` minus ``ours``; None if one lacks the metric, or no case is shared."""
    if metric not in theirs.scores.metrics or metric not in ours.scores.metrics:
        return None
    if is_position(metric):
        found = paired_positions(theirs.table, ours.table, metric)
        if found is None or math.isnan(found[0].mean):
            return None
        return Difference(*found, needed=None, found_from=None, steps=(None,) * len(STEPS))
    values = paired(theirs.rows(metric), ours.rows(metric))
    if values is None:
        return None
    estimate, differences = difference_of(values, metric), values.differences

    def needed(difference: float) -> int | None:
        return needed_of(differences, difference, _POWER)

    count, spread = len(differences.names), float(np.ptp(differences.values))
    known = spread > 0 and needed(1.0) is not None
    return Difference(
        estimate,
        count,
        needed(estimate.mean) if known and estimate.mean else None,
        _found_from(needed, count, spread) if known else None,
        tuple(needed(step) if known else None for step in STEPS),
    )


def _found_from(needed: Any, subjects: int, spread: float) -> float | None:
    """The smallest difference that ``subjects`` find, to 1 %: ``needed`` falls with the difference.

    ``spread`` is the range of the measured differences, above 0. None if not even a thousand times that is found.
    """
    low, high = spread * 1e-6, spread * 1e3
    if needed(high) > subjects:
        return None
    while high > low * 1.01:
        middle = math.sqrt(low * high)
        low, high = (low, middle) if needed(middle) <= subjects else (middle, high)
    return high


def _settings(evaluations: Sequence[Evaluated]) -> dict[str, tuple[Any, ...]]:
    configs = [each.scores.config for each in evaluations]
    names = sorted({name for config in configs for name in config} - set(_PLACES))
    values = {name: tuple(config.get(name) for config in configs) for name in names}
    return {name: found for name, found in values.items() if any(value != found[0] for value in found)}


def _notes(rows: Sequence[Row], settings: Mapping[str, Sequence[Any]]) -> list[str]:
    """Sentences on what the numbers cannot say."""
    notes = [f"The evaluations differ in {name}: {'; '.join(map(str, values))}." for name, values in settings.items()]
    cases = [difference for row in rows for difference in row.differences if difference is not None]
    fewest = min((difference.subjects for difference in cases), default=0)
    if 0 < fewest < 10:
        notes.append(
            f"Some differences are of {fewest} subjects only; with fewer than about ten the intervals are a little too"
            " narrow, and say little about other subjects."
        )
    unequal = [
        row.metric
        for row in rows
        for estimate, difference in zip(row.estimates, row.differences, strict=True)
        if estimate and difference and difference.estimate.n < estimate.n
    ]
    if unequal:
        notes.append(f"The models do not share all cases of {', '.join(sorted(set(unequal)))}.")
    return notes


def _order(name: str) -> tuple[Any, ...]:
    """The main metrics first, in the order of the report; then other denoising schedules, the base, and real photos."""
    prefix, _, leaf = name.rpartition("/")
    kinds = [*_FIRST, *LABELS]
    rank = kinds.index(leaf) if leaf in kinds else len(kinds)
    parts = [part for part in prefix.split("/") if part and part not in POSITIONS]
    return (_is_real(name), parts[:1] == ["before"], "/".join(parts), rank, leaf, is_position(name), name)


def _is_real(name: str) -> bool:
    return name.partition("/")[0] in REAL


def _interval(estimate: Estimate, sign: str = "") -> str:
    if math.isnan(estimate.mean):
        return "undefined"
    return f"{estimate.mean:{sign}.4f} [{estimate.low:{sign}.4f}, {estimate.high:{sign}.4f}]"


def _finite(value: Any) -> Any:
    """``value`` with None in place of numbers that JSON cannot hold."""
    if isinstance(value, Mapping):
        return {name: _finite(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
