"""The gate decides whether a bundle may become champion: a pure function of scores, with a reason for each check."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from pydantic import ConfigDict

from lookalike.evaluation.calibration import same_judge
from lookalike.evaluation.estimates import Estimate
from lookalike.evaluation.gate_config import (
    BaseComparison,
    Bound,
    Ceiling,
    Comparison,
    Floor,
    GateConfig,
    Preset,
    checks_of,
    gate_identity,
)
from lookalike.evaluation.measurements import is_position, position_problem
from lookalike.evaluation.scores import Scores

__all__ = [
    "BaseComparison",
    "Ceiling",
    "Check",
    "Comparison",
    "Decision",
    "Floor",
    "GateConfig",
    "Preset",
    "decide",
    "gate_identity",
    "how_to_measure",
]

BEFORE = "before/"
"""Prefix of the metrics of the base of a personal model."""


@dataclass(frozen=True)
class Check:
    """One check of the gate, with its result."""

    __pydantic_config__ = ConfigDict(extra="forbid")  # where the checks of a JSON document are parsed

    name: str
    """``loss_gap.low``, ``loss_right vs base``, ``loss_right vs champion``, …"""
    value: float | str | None
    """The measured value; None if it was not measured."""
    threshold: float | str
    """The value that it was compared with."""
    passed: bool
    """Whether the check passed."""
    why: str
    """The reason in words."""

    @property
    def metric(self) -> str:
        """Name of the metric in ``scores.json``; that of the check if it is not about a metric."""
        return self.name.partition(" vs ")[0].rsplit(".", 1)[0]


@dataclass(frozen=True)
class Decision:
    """The checks of one bundle; it passes if all of them pass."""

    checks: tuple[Check, ...]

    @property
    def passed(self) -> bool:
        """Whether the bundle may become champion."""
        return all(check.passed for check in self.checks)


def decide(
    scores: Scores,
    champion: Scores | None,
    config: GateConfig,
    differences: Mapping[str, Estimate] | None = None,
) -> Decision:
    """Judge ``scores`` by floors, ceilings and the base, and against the ``champion``'s scores if there is a champion.

    A metric that was not measured, is not a finite number, or was measured on another suite never passes, unless its
    check is for measured values only. Scores with shuffled conditions never pass, whatever their values: they are a
    probe of the gate.

    Args:
        scores: of the bundle.
        champion: scores of the champion.
        config: the checks.
        differences: of metrics, the paired difference to the base
            (:func:`~lookalike.evaluation.against_base.differences_to_base`). Of others the ends of both intervals are
            compared, which refuses and accepts less.
    """
    wanted, differences = checks_of(config), differences or {}
    checks = [_conditions(scores), *_photos(scores, config)]
    checks += [_bound(scores, bound) for bound in wanted.bounds]
    checks += [_against_base(scores, each, differences) for each in wanted.against_base]
    if champion is not None:
        same = [_suite(scores, champion), _judge(scores, champion)]
        checks += same
        if all(check.passed for check in same):
            checks += [_comparison(scores, champion, comparison) for comparison in wanted.comparisons]
    return Decision(tuple(checks))


def how_to_measure(metric: str) -> str:
    """Say what has to be set so that an evaluation measures ``metric``, in words that follow "…: "."""
    leaf = metric.rpartition("/")[2]
    if metric.startswith(BEFORE):
        return "name the model before with --base"
    if leaf.startswith("clip_"):
        return "name a CLIP model with --clip (of a finetune: --evaluation '{clip: MODEL}')"
    if leaf.startswith("dino_"):
        return "name a DINO model with --dino (of a finetune: --evaluation '{dino: MODEL}')"
    if leaf == "safety":
        return "name a classifier with --metrics '{safety: {model: MODEL}}'"
    of_others = ("loss_gap", "loss_shuffled", "identity_margin")
    if leaf in of_others or is_position(metric):
        return "name a data set of other subjects with --distractors, or a suite of several subjects"
    return "evaluate the bundle again with this version"


def _conditions(scores: Scores) -> Check:
    passed = scores.conditions == "right"
    why = (
        "each sample had its own conditions" if passed else "the conditions were shuffled; evaluate with the right ones"
    )
    return Check("conditions", scores.conditions, "right", passed, why)


def _photos(scores: Scores, config: GateConfig) -> list[Check]:
    """A check of scores of photos that the model was trained on; none for others."""
    if scores.config.get("split") != "train":
        return []
    why = "the scores are of photos that the model was trained on, so that they say little about new images"
    why += "" if config.seen_photos else "; evaluate on held-out ones, or set --gate.seen_photos true"
    return [Check("photos", "train", "validation", config.seen_photos, why)]


def _bound(scores: Scores, bound: Floor | Ceiling) -> Check:
    name, estimate = f"{bound.metric}.{bound.bound}", scores.metrics.get(bound.metric)
    limit, side, sign = (bound.above, "above", 1) if isinstance(bound, Floor) else (bound.below, "below", -1)
    value = _finite_value(estimate, bound.bound)
    if value is None or estimate is None:
        check = _not_measured(name, bound.metric, limit, bound.if_measured and estimate is None)
        problem = position_problem(scores.metrics, bound.metric) if estimate is not None and is_position(name) else None
        return check if problem is None else replace(check, why=problem)
    passed = sign * value > sign * limit
    return Check(
        name, value, limit, passed, f"{value:.4g}{_ends(estimate)} is {'' if passed else 'not '}{side} {limit:.4g}"
    )


def _ends(estimate: Estimate) -> str:
    return f" [{estimate.low:.4g}, {estimate.high:.4g}]"


def _not_measured(name: str, metric: str, threshold: float | str, optional: bool) -> Check:
    if optional:
        return Check(name, None, threshold, True, f"{metric} was not measured, and is not needed")
    return Check(name, None, threshold, False, f"{metric} was not measured: {how_to_measure(metric)}")


def _against_base(scores: Scores, wanted: BaseComparison, differences: Mapping[str, Estimate]) -> Check:
    metric, worse_by = wanted.metric, wanted.tolerance
    if wanted.instead and metric not in scores.metrics and wanted.instead in scores.metrics:
        metric, worse_by = wanted.instead, wanted.instead_tolerance
    name, sign = f"{metric} vs base", 1.0 if wanted.better == "higher" else -1.0
    ours, base = scores.metrics.get(metric), scores.metrics.get(BEFORE + metric)
    value, before = _finite_value(ours, "mean"), _finite_value(base, "mean")
    if ours is None or base is None or value is None or before is None:
        missing = metric if value is None else BEFORE + metric
        return _not_measured(name, missing, "unknown", wanted.if_measured and missing not in scores.metrics)
    low, high, how = _better_by(ours, base, differences.get(metric), sign)
    least = low if wanted.require == "better" else high
    passed = least > 0 if wanted.require == "better" else least >= -worse_by
    if wanted.require == "better":
        verdict, tolerance = "is better than" if passed else "is not better than", ""
    else:
        verdict, tolerance = "is no worse than" if passed else "is worse than", f", tolerance {worse_by:.4g}"
    why = f"{value:.4g} {verdict} the base's {before:.4g} ({how} [{low:.4g}, {high:.4g}]{tolerance})"
    return Check(name, value, before, passed, why)


def _better_by(ours: Estimate, base: Estimate, paired: Estimate | None, sign: float) -> tuple[float, float, str]:
    """The interval of how much better ``ours`` is than ``base``, and how it was found."""
    if paired is not None and math.isfinite(paired.low) and math.isfinite(paired.high):
        low, high = sorted((sign * paired.low, sign * paired.high))
        return low, high, "better by, in pairs,"
    differences = sorted((sign * (ours.low - base.high), sign * (ours.high - base.low)))
    return differences[0], differences[1], "better by, from both intervals,"


def _suite(scores: Scores, champion: Scores) -> Check:
    ours, theirs = scores.suite.sha256, champion.suite.sha256
    if scores.prompts != champion.prompts:
        why = (
            f"its images are of the prompts {scores.prompts}, the champion's of {champion.prompts};"
            " evaluate both with one --prompts"
        )
        return Check("suite", ours, theirs, False, why)
    same = "the same as the champion's"
    why = same if ours == theirs else "the champion was measured on another; evaluate both on one suite"
    return Check("suite", ours, theirs, ours == theirs, why)


def _judge(scores: Scores, champion: Scores) -> Check:
    problem = same_judge(scores, champion)
    why = "the same as the champion's" if problem is None else problem
    return Check("judge", scores.embedder, champion.embedder, problem is None, why)


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
        return _not_measured(name, comparison.metric, threshold, optional=False)
    passed = sign * ours >= sign * threshold
    verdict = "no worse than" if passed else "worse than"
    why = f"{ours:.4g} is {verdict} the champion's {theirs:.4g} (tolerance {comparison.tolerance:.4g})"
    return Check(name, ours, threshold, passed, why)


def _finite_value(estimate: Estimate | None, bound: Bound) -> float | None:
    if estimate is None:
        return None
    value = float(getattr(estimate, bound))
    return value if math.isfinite(value) else None  # an infinite one would pass, or fail, whatever it is compared with
