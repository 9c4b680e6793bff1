import hashlib
import random

import numpy as np
import pytest

from lookalike.errors import InputError
from lookalike.evaluation.suites import Photo, Sample, Suite, chosen_rows


def _photo(name: str) -> Photo:
    return Photo(name, "file:///suite", name, hashlib.sha256(name.encode()).hexdigest())


def _sample(subject: str, view: int, prompts: int = 3, class_name: str = "blob", views: int = 4) -> Sample:
    return Sample(
        f"{subject}-{view}",
        subject,
        class_name,
        f"a {subject} in place {view % prompts}",
        references=(_photo(f"{subject}/{(view + 1) % views}"),),
        target=_photo(f"{subject}/{view}"),
    )


SAMPLES = [_sample(f"s{s}", view) for s in range(5) for view in range(4)]


def test_loss_sample_has_right_and_shuffled_conditions() -> None:
    suite = Suite(SAMPLES)
    samples = suite.losses(50, "right")
    assert len(samples) == len({s.case_id for s in samples}) == 50
    assert {s.target for s in samples[:20]} == set(range(20))  # each triplet once before any comes again
    for sample in samples:
        assert sample.conditions == sample.target
        assert sample.other is not None
        assert suite.pool[sample.other].subject != suite.pool[sample.target].subject


def test_shuffled_mode_gives_wrong_conditions_on_the_same_noise() -> None:
    suite = Suite(SAMPLES)
    right, probe = suite.losses(40, "right"), suite.losses(40, "shuffled")
    assert [s.case_id for s in right] == [s.case_id for s in probe]
    for sample in probe:
        subjects = [suite.pool[index].subject for index in (sample.target, sample.conditions, sample.other or 0)]
        assert len(set(subjects)) == 3


def test_suite_depends_on_ids_and_seed_only() -> None:
    mixed = random.Random(0).sample(SAMPLES, len(SAMPLES))
    assert Suite(mixed, seed=3).losses(30, "right") == Suite(SAMPLES, seed=3).losses(30, "right")
    assert Suite(SAMPLES, seed=4).losses(30, "right") != Suite(SAMPLES, seed=3).losses(30, "right")


def test_images_cover_subjects_first_and_take_different_prompts() -> None:
    suite = Suite(SAMPLES)
    cases = suite.images(subjects=3, prompts=2, conditions="right")
    assert [suite.pool[c.target].subject for c in cases] == ["s0", "s0", "s1", "s1", "s2", "s2"]
    for one, two in zip(cases[::2], cases[1::2], strict=True):
        assert suite.pool[one.target].prompt != suite.pool[two.target].prompt
        assert one.conditions == one.target
        assert one.other is not None
        assert suite.pool[one.other].subject != suite.pool[one.target].subject
    for case in suite.images(3, 2, "shuffled"):
        assert suite.pool[case.conditions].subject != suite.pool[case.target].subject


def test_one_subject_takes_wrong_conditions_from_distractors() -> None:
    alone = [_sample("mine", view) for view in range(3)]
    assert all(s.other is None for s in Suite(alone).losses(3, "right"))
    assert all(c.other is None for c in Suite(alone).images(1, 3, "right"))
    suite = Suite(alone, distractors=SAMPLES)
    assert suite.count == 3
    assert all(s.target < 3 and s.other is not None and s.other >= 3 for s in suite.losses(9, "right"))
    assert {suite.pool[c.target].subject for c in suite.images(9, 2, "right")} == {"mine"}


def test_rows_of_a_large_table_are_chosen_in_runs_spread_over_it() -> None:
    assert chosen_rows(1000, 1000, seed=0).tolist() == list(range(1000))
    rows = chosen_rows(100_000_001, 6400, seed=3)
    assert 6400 - 64 < len(rows) <= 6400
    assert (np.diff(rows) > 0).all()
    assert rows[-1] < 100_000_001
    starts = rows[::64]
    assert (starts % 64 == 0).all()
    assert np.histogram(starts, bins=4, range=(0, 10**8))[0].min() > 10
    assert chosen_rows(100_000_001, 6400, seed=4).tolist() != rows.tolist()
    assert chosen_rows(10**8, 6400, seed=3)[:5].tolist() == [152640, 152641, 152642, 152643, 152644]


def test_an_empty_suite_is_an_error() -> None:
    with pytest.raises(InputError, match="no triplets"):
        Suite([])


def test_other_subjects_are_chosen_in_constant_time_among_many(monkeypatch: pytest.MonkeyPatch) -> None:
    few = Suite(SAMPLES).losses(40, "right")
    monkeypatch.setattr("lookalike.evaluation.suites.cases._SHUFFLED", 2)
    suite = Suite(SAMPLES)
    many = suite.losses(200, "shuffled")
    for case in many:
        assert case.other is not None
        assert len({suite.pool[index].subject for index in (case.target, case.conditions, case.other)}) == 3
    assert {suite.pool[case.conditions].subject for case in many} == {f"s{s}" for s in range(5)}
    assert Suite(SAMPLES[::-1]).losses(200, "shuffled") == many
    assert [case.case_id for case in few] == [case.case_id for case in many[:40]]
