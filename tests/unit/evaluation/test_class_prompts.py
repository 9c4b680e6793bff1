"""DreamBench's prompts in place of captions: which ones, in which order, with which photos."""

import hashlib
from collections import Counter

import pytest

from lookalike.config import fingerprint
from lookalike.evaluation.suites import Photo, Sample, Suite, with_class_prompts
from lookalike.evaluation.suites.class_prompts import templates_of
from lookalike.evaluation.suites.templates import kind_of


def _photo(name: str) -> Photo:
    return Photo(name, "file:///suite", name, hashlib.sha256(name.encode()).hexdigest())


def _sample(subject: str, view: int, class_name: str = "mug", damage: str = "") -> Sample:
    return Sample(
        f"{subject}-{view}",
        subject,
        class_name,
        f"a photo of {subject} on a table",
        references=(_photo(f"{subject}/train{view}"),),
        target=_photo(f"{subject}/held-out{view}"),
        damage=damage,
    )


def test_published_prompts_are_unchanged() -> None:
    """Cases of two evaluations are paired by the number of the prompt, so that a change needs another name."""
    assert {name: fingerprint(list(templates_of(name)))[:12] for name in ("mug", "dog")} == {
        "mug": "121723ed02ca",  # pragma: allowlist secret
        "dog": "a9c9ea64a3f9",
    }
    kinds = {name: Counter(kind_of(template) for template in templates_of(name)) for name in ("mug", "dog")}
    assert kinds["mug"] == {"place": 20, "recolouring": 2, "style": 3}
    assert kinds["dog"] == {"place": 10, "accessory": 10, "recolouring": 2, "style": 3}


@pytest.mark.parametrize(
    ("class_name", "live"),
    [
        ("Golden Retriever dog", True),
        ("woman", True),
        ("dog toy", False),
        ("stuffed animal", False),
        ("toy robot", False),
        ("", False),
        ("{0} dog {x}", False),
    ],
)
def test_accessories_are_of_live_subjects(class_name: str, live: bool) -> None:
    assert any("santa hat" in template for template in templates_of(class_name)) == live


def test_eight_prompts_have_every_kind_in_about_the_published_mix() -> None:
    objects, live = (Counter(map(kind_of, templates_of(name)[:8])) for name in ("mug", "dog"))
    assert objects == {"place": 6, "recolouring": 1, "style": 1}
    assert live == {"place": 3, "accessory": 3, "recolouring": 1, "style": 1}


def test_prompts_take_turns_among_the_photos_of_a_subject() -> None:
    samples = [_sample("a", 0), _sample("b", 1), _sample("b", 0), _sample("b", 2, damage="cut off")]
    made = with_class_prompts(samples, 2)
    assert Counter(sample.subject for sample in made) == {"a": 25, "b": 25}
    of_b = [sample for sample in made if sample.subject == "b"]
    assert [sample.sample_id for sample in of_b[:3]] == ["b-0-p00", "b-1-p01", "b-0-p02"]
    assert [sample.references for sample in of_b[:2]] == [samples[2].references, samples[1].references]
    assert all(sample.prompt == sample.plain_prompt and "mug" in sample.prompt for sample in made)
    assert not any("{" in sample.prompt for sample in made)
    assert with_class_prompts(samples[::-1], 2) == made
    assert {sample.subject for sample in with_class_prompts(samples, 1)} == {"a"}


def test_a_subject_without_a_class_has_the_neutral_word() -> None:
    made = with_class_prompts([_sample("a", 0, class_name=" ")], 1)
    assert made[0].prompt == "a subject in the jungle"
    assert {sample.class_name for sample in made} == {"subject"}
    mixed = with_class_prompts([_sample("a", 0, class_name=""), _sample("a", 1, class_name="mug")], 1)
    assert {sample.class_name for sample in mixed} == {"mug"}


def test_a_class_with_braces_is_text() -> None:
    prompts = [sample.prompt for sample in with_class_prompts([_sample("a", 0, class_name="{0} {1}")], 1)]
    assert "a {0} {1} in the jungle" in prompts


def test_losses_keep_captions_and_images_have_the_prompts() -> None:
    samples = [_sample(subject, view) for subject in "ab" for view in range(2)]
    plain, prompted = Suite(samples), Suite(samples, prompted=with_class_prompts(samples, 9))
    assert prompted.losses(12, "right") == plain.losses(12, "right")
    assert prompted.photos_of("a") == plain.photos_of("a")
    cases = prompted.images(2, 8, "right")
    assert len(cases) == len({case.case_id for case in cases}) == 16
    for case in cases:
        sample, other = prompted.pool[case.target], prompted.pool[case.other or 0]
        assert "on a table" not in sample.prompt
        assert case.conditions == case.target
        assert other.subject != sample.subject
        assert {photo.key for photo in prompted.targets_for(sample)} == {
            f"{sample.subject}/held-out{v}" for v in (0, 1)
        }
    assert len(prompted.images(9, 99, "right")) == 50
    shuffled = prompted.images(2, 8, "shuffled")
    assert [case.case_id for case in shuffled] == [case.case_id for case in cases]
    assert all(prompted.pool[c.conditions].subject != prompted.pool[c.target].subject for c in shuffled)
