"""The gate decides whether a bundle may become champion: a pure function of scores, with a reason for each check."""

import math
from dataclasses import dataclass, field
from typing import Annotated, Literal

from annotated_types import Ge
from pydantic import ConfigDict

from lookalike.evaluation.estimates import Estimate
from lookalike.evaluation.scores import Scores
from lookalike.values import configuration

Bound = Literal["mean", "low", "high", "n"]


@configuration("gate.floors[]")
class Floor:
    """A fixed value that a metric has to exceed, independent of the champion."""

    metric: str
    """Name of the metric in ``scores.json``."""
    above: float
    """The value has to be greater than this."""
    bound: Bound = "low"
    """Which value of the estimate: ``low`` (lower end of the interval), ``mean``, ``high``, or ``n`` (samples)."""


@configuration("gate.comparisons[]")
class Comparison:
    """A mean that must not be worse than the champion's, on the same suite."""

    metric: str
    """Name of the metric in ``scores.json``."""
    better: Literal["higher", "lower"] = "higher"
    """Whether higher or lower values are better."""
    tolerance: Annotated[float, Ge(0)] = 0.0
    """How much worse it may be, in the metric's unit."""


@configuration("gate")
class GateConfig:
    """The checks that a bundle has to pass to become champion."""

    floors: list[Floor] = field(default_factory=lambda: [Floor("loss_gap", above=0.0)])
    """By default: the lower end of the 95 % interval of ``loss_gap`` is above 0."""
    comparisons: list[Comparison] = field(
        default_factory=lambda: [
            Comparison("loss_right", better="lower", tolerance=0.005),
            Comparison("identity_margin", tolerance=0.01),
        ]
    )
    """Comparisons with the current champion, if there is one."""


@dataclass(frozen=True)
class Check:
    """One check of the gate, with its result."""

    __pydantic_config__ = ConfigDict(extra="forbid")  # where the checks of a JSON document are parsed

    name: str
    """``loss_gap.low``, ``loss_right vs champion``, …"""
    value: float | str | None
    """The measured value; None if it was not measured."""
    threshold: float | str
    """The value that it was compared with."""
    passed: bool
    """Whether the check passed."""
    why: str
    """The reason in words."""


@dataclass(frozen=True)
class Decision:
    """The checks of one bundle; it passes if all of them pass."""

    checks: tuple[Check, ...]

    @property
    def passed(self) -> bool:
        """Whether the bundle may become champion."""
        return all(check.passed for check in self.checks)


def decide(scores: Scores, champion: Scores | None, config: GateConfig) -> Decision:
    """Judge ``scores`` by the floors, and against the ``champion``'s scores if there is a champion.

    A metric that was not measured, is not a finite number, or was measured on another suite never passes. Scores with
    shuffled conditions never pass, whatever their values: they are a probe of the gate.
    """
    checks = [_conditions(scores), *(_floor(scores, floor) for floor in config.floors)]
    if champion is not None:
        same = [_same("suite", scores.suite.sha256, champion.suite.sha256)]
        same += [_same("embedder", scores.embedder, champion.embedder)]
        checks += same
        if all(check.passed for check in same):
            checks += [_comparison(scores, champion, comparison) for comparison in config.comparisons]
    return Decision(tuple(checks))


def _conditions(scores: Scores) -> Check:
    passed = scores.conditions == "right"
    why = (
        "each sample had its own conditions" if passed else "the conditions were shuffled; evaluate with the right ones"
    )
    return Check("conditions", scores.conditions, "right", passed, why)


def _floor(scores: Scores, floor: Floor) -> Check:
    name = f"{floor.metric}.{floor.bound}"
    value = _finite_value(scores.metrics.get(floor.metric), floor.bound)
    if value is None:
        return Check(name, None, floor.above, False, f"{floor.metric} was not measured")
    passed = value > floor.above
    return Check(name, value, floor.above, passed, f"{value:.4g} is {'' if passed else 'not '}above {floor.above:.4g}")


def _same(name: str, ours: str, theirs: str) -> Check:
    passed = ours == theirs
    why = "the same as the champion's" if passed else "the champion was measured on another; evaluate both on one suite"
    return Check(name, ours, theirs, passed, why)


def _comparison(scores: Scores, champion: Scores, comparison: Comparison) -> Check:
    name = f"{comparison.metric} vs champion"
    ours = _finite_value(scores.metrics.get(comparison.metric), "mean")
    theirs = _finite_value(champion.metrics.get(comparison.metric), "mean")
    if theirs is None:
        why = f"{comparison.metric} of the champion was not measured; evaluate the champion again"
        return Check(name, ours, "unknown", False, why)
    sign = 1.0 if comparison.better == "higher" else -1.0
    threshold = theirs - sign * comparison.tolerance
    if ours is None:
        return Check(name, None, threshold, False, f"{comparison.metric} was not measured")
    passed = sign * ours >= sign * threshold
    verdict = "no worse than" if passed else "worse than"
    why = f"{ours:.4g} is {verdict} the champion's {theirs:.4g} (tolerance {comparison.tolerance:.4g})"
    return Check(name, ours, threshold, passed, why)


def _finite_value(estimate: Estimate | None, bound: Bound) -> float | None:
    if estimate is None:
        return None
    value = float(getattr(estimate, bound))
    return value if math.isfinite(value) else None  # an infinite one would pass, or fail, whatever it is compared with
