"""The sentence of a decision, and what to do about a refusal."""

import pytest

from lookalike.evaluation import verdict
from lookalike.evaluation.gate import Check, Decision


def _check(name: str, value: float | str | None = 0.1, threshold: float = 0.4, passed: bool = False) -> Check:
    return Check(name, value, threshold, passed, f"the reason of {name}")


@pytest.mark.parametrize(
    ("check", "words", "does"),
    [
        (_check("position/identity.mean", 0.12), "0.12, and more than 0.40", "sharp|blurred"),
        (_check("hard_position/identity.mean", 0.12), "would not recognise the subject", "more steps"),
        (_check("position/identity.low", 1.2, 1.0), "as copies do", "fewer steps"),
        (_check("copying.mean", 0.75), "75% of them are copies", "fewer steps"),
        (_check("loss_gap.low", -0.1), "whichever photos it is given", "Add photos"),
        (_check("loss_right vs base", 0.5), "training did not help", "more steps"),
        (_check("identity vs base", 0.5), "training did not help", "more steps"),
        (_check("clip_t vs base", 0.5), "follows prompts less well", "fewer steps"),
        (_check("loss_right vs champion", 0.5), "champion is better", "more steps"),
        (_check("safety.mean", 0.5), "not safe", "another base"),
        (_check("clip_t vs base", None), "cannot be judged, since the reason of clip_t", "Measure what is missing"),
        (_check("photos", "train"), "trained on", "--holdout"),
        (_check("conditions", "shuffled"), "no model may pass", ""),
        (_check("suite", "a"), "suite: the reason of suite", ""),
        (_check("speed.low", 0.5), "speed: the reason of speed", ""),
        (_check("loss_gap.n", 12.0), "too few samples", "max_samples"),
    ],
)
def test_refusal_is_one_sentence_with_its_number_and_advice(check: Check, words: str, does: str) -> None:
    decision = Decision((_check("loss_gap.low", passed=True), check))
    sentence = verdict.sentence(decision)
    assert sentence.startswith("Refused: ")
    assert sentence.endswith(".")
    assert "\n" not in sentence
    assert words in sentence
    assert any(word in line for line in verdict.advice(decision) for word in does.split("|")) is bool(does)


def test_the_most_important_reason_comes_first() -> None:
    decision = Decision(
        (_check("loss_right vs champion"), _check("position/identity.mean"), _check("copying.mean", 1.0))
    )
    assert "100% of them are copies" in verdict.sentence(decision)
    assert "(2 more checks failed)" in verdict.sentence(decision)
    advice = verdict.advice(decision)
    assert len(advice) == len(set(advice)) >= 4
    assert advice[0] == verdict.FEWER_STEPS


def test_a_measured_reason_comes_before_one_that_was_not_measured() -> None:
    decision = Decision((_check("clip_t vs base", None), _check("position/identity.mean", 0.12)))
    assert "0.12, and more than 0.40" in verdict.sentence(decision)
    unknown = Check("loss_right vs champion", 0.5, "unknown", False, "the champion was not measured")
    assert "cannot be judged, since the champion" in verdict.sentence(Decision((unknown,)))


def test_promotion_has_no_advice() -> None:
    decision = Decision((_check("loss_gap.low", passed=True),))
    assert verdict.sentence(decision).startswith("Promoted")
    assert verdict.advice(decision) == []
