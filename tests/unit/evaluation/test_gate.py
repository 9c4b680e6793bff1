import math
from dataclasses import asdict, replace
from typing import Any

import pytest

from lookalike.config import fingerprint
from lookalike.errors import ConfigError
from lookalike.evaluation.estimates import Estimate
from lookalike.evaluation.gate import (
    BaseComparison,
    Ceiling,
    Check,
    Comparison,
    Decision,
    Floor,
    GateConfig,
    decide,
    gate_identity,
    how_to_measure,
)
from lookalike.evaluation.gate_config import PRESETS
from lookalike.evaluation.scores import Calibration, Judge, Scores, Source


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


def test_comparison_needs_the_same_suite_and_judge() -> None:
    decision = decide(_scores(suite="other"), _scores(), GateConfig())
    assert [check.name for check in decision.checks if not check.passed] == ["suite"]
    assert "one suite" in next(check.why for check in decision.checks if check.name == "suite")
    assert _failed(replace(_scores(), embedder="e2"), _scores()) == ["judge"]


def test_champion_of_a_judge_with_another_calibration_is_not_compared() -> None:
    def judged(value: float) -> Scores:
        values = {"a": value, "b": 0.5}
        return replace(_scores(), judge=Judge("i" * 64, {"identity": Calibration(values, fingerprint(values))}))

    assert _failed(judged(0.5), judged(0.5001)) == []
    assert _failed(judged(0.5), judged(0.6)) == ["judge"]
    why = next(check.why for check in decide(judged(0.5), judged(0.6), GateConfig()).checks if check.name == "judge")
    assert "calibration images" in why


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


PERSONAL = GateConfig(preset="personal")
GOOD = {
    "loss_right": 0.5,
    "before/loss_right": 0.5,
    "identity": 0.7,
    "before/identity": 0.5,
    "clip_t": 0.3,
    "before/clip_t": 0.3,
    "position/identity": 0.6,
    "copying": 0.0,
}


def _personal(**changes: float | None) -> Scores:
    """Good scores of a personal model, with ``changes``; None: not measured. Names have ``_`` for ``/``."""
    means: dict[str, float] = dict(GOOD)
    for name, value in changes.items():
        metric = name.replace("before_", "before/").replace("position_", "position/")
        if value is None:
            del means[metric]
        else:
            means[metric] = value
    scores = _scores(**means)
    exact = {"copying": Estimate(means["copying"], means["copying"], means["copying"], 8)} if "copying" in means else {}
    return replace(scores, metrics=scores.metrics | exact)


def _paired(**differences: float) -> dict[str, Estimate]:
    return {name: Estimate(mean, mean - 0.01, mean + 0.01, 64) for name, mean in differences.items()}


def test_good_personal_model_passes() -> None:
    assert _failed(_personal(), gate=PERSONAL) == []


@pytest.mark.parametrize(
    ("changes", "failed"),
    [
        ({"position_identity": 0.1}, ["position/identity.mean"]),
        ({"position_identity": None}, ["position/identity.mean"]),
        ({"position_identity": 1.2}, ["position/identity.low"]),
        ({"copying": 0.6}, ["copying.mean"]),
        ({"copying": None}, ["copying.mean"]),
        ({"loss_right": 0.7}, []),  # of the background, mostly
        ({"before_identity": None}, ["identity vs base"]),
        ({"identity": 0.5}, ["identity vs base"]),
        ({"identity": 0.58}, ["identity vs base"]),  # the intervals overlap
        ({"clip_t": 0.19}, ["clip_t vs base"]),
        ({"clip_t": None}, ["clip_t vs base"]),
        ({"loss_gap": 0.0}, ["loss_gap.low"]),
    ],
)
def test_bad_personal_model_is_refused(changes: dict[str, float | None], failed: list[str]) -> None:
    assert _failed(_personal(**changes), gate=PERSONAL) == failed


def test_untrained_adapter_is_refused() -> None:
    """It equals its base to the last digit, so that its differences are exactly 0."""
    scores = _personal(identity=0.5, before_identity=0.5)
    nothing = {name: Estimate(0.0, 0.0, 0.0, 64) for name in ("identity", "clip_t")}
    decision = decide(scores, None, PERSONAL, nothing)
    assert [check.name for check in decision.checks if not check.passed] == ["identity vs base"]


def test_paired_differences_are_preferred_to_the_ends_of_both_intervals() -> None:
    scores = _personal(identity=0.55)  # the intervals overlap: 0.50 to 0.60, and 0.45 to 0.55

    def failed(**differences: float) -> list[str]:
        decision = decide(scores, None, PERSONAL, _paired(**differences))
        return [check.name for check in decision.checks if not check.passed]

    assert failed() == ["identity vs base"]
    assert failed(identity=0.05) == []
    assert failed(identity=-0.05) == ["identity vs base"]
    assert failed(identity=0.05, clip_t=-0.02) == ["clip_t vs base"]
    assert failed(identity=0.05, clip_t=-0.005) == []
    why = next(check.why for check in decide(scores, None, PERSONAL).checks if check.name == "identity vs base")
    assert "from both intervals" in why


def test_a_stand_in_is_compared_if_no_clip_was_named() -> None:
    scores = _personal(clip_t=None)
    both = {"variety_background": Estimate(0.5, 0.5, 0.5, 1), "before/variety_background": Estimate(0.5, 0.5, 0.5, 1)}
    assert _failed(replace(scores, metrics=scores.metrics | both), gate=PERSONAL) == []
    slightly = both | {"variety_background": Estimate(0.45, 0.45, 0.45, 1)}  # one value of the set, without an interval
    assert _failed(replace(scores, metrics=scores.metrics | slightly), gate=PERSONAL) == []
    less = both | {"variety_background": Estimate(0.1, 0.1, 0.1, 1)}
    scores = replace(scores, metrics=scores.metrics | less)
    assert _failed(scores, gate=PERSONAL) == ["variety_background vs base"]


@pytest.mark.parametrize("bound", [Floor("speed", 0.0), Ceiling("speed", 1.0), BaseComparison("speed")])
def test_only_an_unmeasured_metric_is_passed_over(bound: Any) -> None:
    """One that was measured and has no value never passes."""
    for optional, metric, passed in (
        (False, None, False),
        (True, None, True),
        (True, Estimate(math.nan, math.nan, math.nan, 3), False),
    ):
        wanted = replace(bound, if_measured=optional)
        gate = GateConfig(floors=[], ceilings=[], against_base=[])
        name = {Floor: "floors", Ceiling: "ceilings", BaseComparison: "against_base"}[type(bound)]
        scores = _scores()
        if metric is not None:
            scores = replace(scores, metrics=scores.metrics | {"speed": metric, "before/speed": metric})
        checks = decide(scores, None, replace(gate, **{name: [wanted]})).checks
        check = next(check for check in checks if check.name.startswith("speed"))
        assert check.passed is passed
        assert "not measured" in check.why


@pytest.mark.parametrize(
    ("metric", "flag"),
    [
        ("position/identity", "--distractors"),
        ("before/position/identity", "--base"),
        ("loss_gap", "--distractors"),
        ("clip_t", "--clip"),
        ("both/dino_i", "--dino"),
        ("safety", "--metrics"),
        ("copying", "evaluate the bundle again"),
    ],
)
def test_unmeasured_metric_names_what_would_measure_it(metric: str, flag: str) -> None:
    assert flag in how_to_measure(metric)
    empty = GateConfig(floors=[Floor(metric, 0.0)], ceilings=[], comparisons=[])
    check = decide(replace(_scores(), metrics={}), None, empty).checks[-1]
    assert (check.passed, check.value) == (False, None)
    assert flag in check.why


def test_position_without_a_value_says_why() -> None:
    parts = {"ceiling/identity": Estimate(0.5, 0.3, 0.7, 8), "floor/identity": Estimate(0.5, 0.3, 0.7, 8)}
    nothing = Estimate(math.nan, math.nan, math.nan, 8)
    scores = _personal()
    scores = replace(scores, metrics=scores.metrics | parts | {"position/identity": nothing})
    why = next(check.why for check in decide(scores, None, PERSONAL).checks if check.name == "position/identity.mean")
    assert "not clearly more alike" in why


def test_scores_of_photos_that_training_saw_are_refused_unless_allowed() -> None:
    seen = replace(_personal(), config={"split": "train"})
    assert _failed(seen, gate=PERSONAL) == ["photos"]
    decision = decide(seen, None, replace(PERSONAL, seen_photos=True))
    assert decision.passed
    assert "trained on" in next(check.why for check in decision.checks if check.name == "photos")
    assert "photos" not in [check.name for check in decide(_personal(), None, PERSONAL).checks]


def test_given_lists_replace_those_of_the_preset() -> None:
    gate = replace(PERSONAL, floors=[], ceilings=[])
    assert _failed(_personal(copying=1.0, position_identity=0.0), gate=gate) == []
    assert _failed(_personal(copying=1.0, identity=0.1), gate=gate) == ["identity vs base"]


OF_THEN = {  # what run.json has of a promotion by the default gate before there were presets
    "floors": [{"metric": "loss_gap", "above": 0.0, "bound": "low"}],
    "comparisons": [
        {"metric": "loss_right", "better": "lower", "tolerance": 0.005},
        {"metric": "identity_margin", "better": "higher", "tolerance": 0.01},
    ],
}


def test_default_gate_of_a_job_has_the_identity_of_the_default_gate_of_then() -> None:
    assert gate_identity(GateConfig(), "base") == OF_THEN
    assert gate_identity(PERSONAL, "personal") == OF_THEN
    floors = [Floor("loss_gap", 0.1, "mean")]
    then = OF_THEN | {"floors": [{"metric": "loss_gap", "above": 0.1, "bound": "mean"}]}
    assert gate_identity(GateConfig(floors=floors), "base") == then


def test_different_gates_have_different_identities() -> None:
    gates = [
        GateConfig(),
        PERSONAL,
        GateConfig(seen_photos=True),
        *(GateConfig(**{name: getattr(PRESETS["base"], name)}) for name in asdict(PRESETS["base"])),
        GateConfig(floors=[]),
        GateConfig(floors=[Floor("loss_gap", 0.0)]),
        GateConfig(floors=[Floor("loss_gap", 0.0, if_measured=True)]),
        GateConfig(ceilings=[]),
        GateConfig(against_base=[BaseComparison("identity")]),
        GateConfig(comparisons=[]),
    ]
    identities = [gate_identity(gate, "base") for gate in gates]
    assert all(a != b for number, a in enumerate(identities) for b in identities[:number])


def test_the_metric_of_a_check_is_found_in_its_name() -> None:
    names = ("loss_gap.low", "position/identity.mean", "loss_right vs base", "identity vs champion", "conditions")
    metrics = [Check(name, 0.0, 0.0, True, "why").metric for name in names]
    assert metrics == ["loss_gap", "position/identity", "loss_right", "identity", "conditions"]
    assert Decision(()).passed
