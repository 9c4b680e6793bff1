import math
from dataclasses import replace

import pytest

from lookalike.errors import ConfigError
from lookalike.evaluation.estimates import Estimate
from lookalike.evaluation.gate import Comparison, Floor, GateConfig, decide
from lookalike.evaluation.scores import Scores, Source


def _scores(suite: str = "suite", **means: float) -> Scores:
    figures = {"loss_gap": 0.1, "loss_right": 0.5, "identity_margin": 0.2} | means
    return Scores(
        bundle=Source("file:///bundle", "b" * 64),
        suite=Source("file:///suite", suite, 1),
        conditions="right",
        metrics={name: Estimate(mean, mean - 0.05, mean + 0.05, 256) for name, mean in figures.items()},
        embedder="e1",
    )


def _failed(scores: Scores, champion: Scores | None = None, gate: GateConfig | None = None) -> list[str]:
    decision = decide(scores, champion, gate or GateConfig())
    failed = [check.name for check in decision.checks if not check.passed]
    assert decision.passed is (not failed)
    assert all(check.why for check in decision.checks)
    return failed


def test_the_first_champion_meets_the_floors_only() -> None:
    assert _failed(_scores()) == []
    assert _failed(_scores(loss_right=9.0, identity_margin=-1.0)) == []


@pytest.mark.parametrize("gap", [0.05, 0.0, -0.1])
def test_loss_gap_with_interval_at_zero_is_refused(gap: float) -> None:
    assert _failed(_scores(loss_gap=gap)) == ["loss_gap.low"]


def test_missing_or_nan_metric_is_refused() -> None:
    scores = _scores()
    missing = replace(scores, metrics={})
    nan = replace(scores, metrics=scores.metrics | {"loss_gap": Estimate(math.nan, math.nan, math.nan, 0)})
    for broken in (missing, nan):
        assert _failed(broken) == ["loss_gap.low"]
        check = decide(broken, None, GateConfig()).checks[1]
        assert check.value is None
        assert "not measured" in check.why


def test_shuffled_conditions_are_refused_by_mode_and_by_gap() -> None:
    shuffled = replace(_scores(loss_gap=0.0), conditions="shuffled")
    assert _failed(shuffled) == ["conditions", "loss_gap.low"]
    assert _failed(replace(shuffled, conditions="right")) == ["loss_gap.low"]  # the figures alone are enough
    assert _failed(replace(_scores(), conditions="shuffled")) == ["conditions"]


def test_floor_uses_the_named_bound() -> None:
    floors = [Floor("loss_gap", 0.1, "mean"), Floor("loss_gap", 0.14, "high"), Floor("loss_gap", 255, "n")]
    assert _failed(_scores(), gate=GateConfig(floors=floors)) == ["loss_gap.mean"]
    assert _failed(_scores(), gate=GateConfig(floors=[Floor("loss_gap", 256, "n")])) == ["loss_gap.n"]


@pytest.mark.parametrize(
    ("means", "failed"),
    [
        ({}, []),
        ({"loss_right": 0.504}, []),
        ({"loss_right": 0.506}, ["loss_right vs champion"]),
        ({"loss_right": 0.1, "identity_margin": 0.5}, []),
        ({"identity_margin": 0.195}, []),
        ({"identity_margin": 0.1, "loss_right": 0.6}, ["loss_right vs champion", "identity_margin vs champion"]),
    ],
)
def test_challenger_is_compared_with_the_champion(means: dict[str, float], failed: list[str]) -> None:
    assert _failed(_scores(**means), _scores()) == failed


def test_comparison_needs_the_same_suite_and_embedder() -> None:
    decision = decide(_scores(suite="other"), _scores(), GateConfig())
    assert [check.name for check in decision.checks if not check.passed] == ["suite"]
    assert "one suite" in decision.checks[2].why
    assert _failed(replace(_scores(), embedder="e2"), _scores()) == ["embedder"]


def test_metric_missing_on_one_side_is_refused() -> None:
    without = replace(_scores(), metrics={"loss_gap": Estimate(0.1, 0.05, 0.15, 256)})
    both = ["loss_right vs champion", "identity_margin vs champion"]
    assert _failed(without, _scores()) == both
    assert _failed(_scores(), without) == both
    gate = GateConfig(comparisons=[Comparison("loss_right", "lower")])
    nan = replace(_scores(), metrics=_scores().metrics | {"loss_right": Estimate(math.nan, 0, 0, 0)})
    assert _failed(nan, _scores(), gate) == ["loss_right vs champion"]


def test_a_negative_tolerance_is_refused() -> None:
    for tolerance in (-0.1, math.nan):
        with pytest.raises(ConfigError, match="tolerance"):
            Comparison("loss_right", tolerance=tolerance)
