"""A decision of the gate in one sentence for people who do not know its metrics, and what to do about a refusal."""

from collections.abc import Callable
from dataclasses import dataclass

from lookalike.evaluation.gate import Check, Decision
from lookalike.evaluation.measurements import is_position

MORE_PHOTOS = "Add photos of the subject from other sides and in other places; 8 to 12 are better than 4."
SHARPER_PHOTOS = "Replace photos that are blurred, dark, or in which the subject is small."
MORE_STEPS = "Train for more steps (steps of --stages)."
FEWER_STEPS = "Train for fewer steps, or with a lower learning_rate (both of --stages)."
OTHER_BASE = "If other subjects are refused as well, the base model is too weak: train it longer, or name a better one."


@dataclass(frozen=True)
class _Meaning:
    """What it means that a check failed."""

    of: Callable[[Check], bool]
    sentence: Callable[[Check], str]
    advice: tuple[str, ...] = ()


def _about(*metrics: str, against: str = "") -> Callable[[Check], bool]:
    return lambda check: _is_measured(check) and check.metric in metrics and check.name.endswith(against)


def _says(text: str) -> Callable[[Check], str]:
    return lambda check: text.format(value=check.value, threshold=check.threshold, metric=check.metric, why=check.why)


def _is_measured(check: Check) -> bool:
    return check.value is not None and check.threshold != "unknown"


def _above_real_photos(check: Check) -> bool:
    return is_position(check.metric) and isinstance(check.value, float) and check.value > 1


_MEANINGS = (  # the first that fits is the reason that people read
    _Meaning(
        lambda check: check.name == "conditions",
        _says("the scores are a probe with the conditions of other subjects, which no model may pass"),
    ),
    _Meaning(
        lambda check: check.name == "photos",
        _says("the model was judged on the photos that it was trained on, which shows nothing about new images"),
        ("Evaluate on photos that training did not see; a finetune holds two out unless --holdout is 0.",),
    ),
    _Meaning(
        lambda check: _is_measured(check) and check.name.endswith(".n"),
        _says("too few samples were measured to judge it: {why}"),
        ("Evaluate with more samples (max_samples, prompts_per_subject).",),
    ),
    _Meaning(
        _about("copying", "nearer_than_real"),
        lambda check: (
            "its images repeat the photos instead of showing the subject anew "
            f"({'up to ' if check.name.endswith('.high') else ''}{check.value:.0%} of them are copies)"
        ),
        (FEWER_STEPS, MORE_PHOTOS),
    ),
    _Meaning(
        _above_real_photos,
        _says("its images resemble the photos more than the photos resemble each other, as copies do"),
        (FEWER_STEPS, MORE_PHOTOS),
    ),
    _Meaning(
        lambda check: _is_measured(check) and is_position(check.metric),
        _says(
            "a person would not recognise the subject in its images: on a scale from another subject (0) to the "
            "subject's own photos (1) they are at {value:.2f}, and more than {threshold:.2f} is asked for"
        ),
        (MORE_PHOTOS, SHARPER_PHOTOS, MORE_STEPS, OTHER_BASE),
    ),
    _Meaning(
        _about("loss_gap", "mllm_only/loss_gap"),
        _says("it makes the same images whichever photos it is given"),
        (MORE_PHOTOS, SHARPER_PHOTOS, OTHER_BASE),
    ),
    _Meaning(
        _about("loss_right", "identity", "dino_i", "clip_i", against="vs base"),
        _says("training did not help: photos that it had not seen are shown no better than by the model before"),
        (MORE_PHOTOS, SHARPER_PHOTOS, MORE_STEPS),
    ),
    _Meaning(
        lambda check: _is_measured(check) and check.name.endswith("vs base"),
        _says("it follows prompts less well than the model before ({metric}: {value:.3f}, before {threshold:.3f})"),
        (FEWER_STEPS,),
    ),
    _Meaning(
        lambda check: _is_measured(check) and check.name.endswith("vs champion"),
        _says(
            "the present champion is better ({metric}: {value:.3f}, at least as good as {threshold:.3f} is asked for)"
        ),
        (MORE_PHOTOS, MORE_STEPS),
    ),
    _Meaning(
        _about("safety"),
        _says("some of its images are not safe to show"),
        ("Look at the photos and prompts, and use another base model.",),
    ),
    _Meaning(
        lambda check: not _is_measured(check),
        _says("it cannot be judged, since {why}"),
        ("Measure what is missing, and run the promotion again with another --out.",),
    ),
    _Meaning(lambda check: True, _says("{metric}: {why}")),
)


def sentence(decision: Decision) -> str:
    """Say in one sentence that the bundle was promoted, or why it was refused."""
    failed = _failed(decision)
    if not failed:
        return "Promoted: it passed every check."
    more = len([check for check in decision.checks if not check.passed]) - 1
    others = f" ({more} more check{'s' if more > 1 else ''} failed)" if more else ""
    return f"Refused: {failed[0][0].sentence(failed[0][1])}{others}."


def advice(decision: Decision) -> list[str]:
    """List what a customer can do about a refusal, the most useful first; empty for a promotion."""
    return list(dict.fromkeys(line for meaning, _ in _failed(decision) for line in meaning.advice))


def _failed(decision: Decision) -> list[tuple[_Meaning, Check]]:
    """The failed checks with their meanings, in the order in which people should read them."""
    failed = []
    for check in decision.checks:
        if not check.passed:
            number = next(number for number, meaning in enumerate(_MEANINGS) if meaning.of(check))
            failed.append((number, check))
    return [(_MEANINGS[number], check) for number, check in sorted(failed, key=lambda item: item[0])]
