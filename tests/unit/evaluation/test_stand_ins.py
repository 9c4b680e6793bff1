"""Real photos in place of generated images: which ones, against which."""

import hashlib
import random

from lookalike.evaluation.suites import Photo, Sample, Suite, stand_ins


def photo(name: str, content: str = "") -> Photo:
    """A photo with bytes of its own, or those of ``content``."""
    return Photo(name, "file:///suite", name, hashlib.sha256((content or name).encode()).hexdigest())


def suite_of(seed: int = 0, views: int = 5) -> Suite:
    """Six subjects of three classes with five photos each; the samples of a subject have one fixed reference."""
    samples, photos = [], {}
    for number in range(6):
        name = f"s{number}"
        photos[name] = tuple(photo(f"{name}/{view}") for view in range(views))
        samples += [
            Sample(f"{name}-{prompt}", name, f"class{number // 2}", f"prompt {prompt}", (photos[name][0],))
            for prompt in range(3)
        ]
    return Suite(random.Random(seed).sample(samples, len(samples)), seed=seed, photos=photos)


def test_a_photo_is_never_compared_with_itself() -> None:
    suite = suite_of()
    listed = stand_ins(suite, suite.images(6, 3, "right"), 9)
    assert {each.kind for each in listed} == {"ceiling", "floor", "hard_floor"}
    for each in listed:
        compared = {other.sha256 for other in (*each.references, *each.photos)}
        assert each.photo.sha256 not in compared
        assert compared
    assert len({(each.kind, each.case_id) for each in listed}) == len(listed)


def test_files_of_equal_bytes_count_as_one_photo() -> None:
    twice = (photo("a/0", "same"), photo("a/1", "same"))
    samples = [Sample("a-0", "a", "", "p", (twice[0],)), Sample("b-0", "b", "", "p", (photo("b/0"),))]
    suite = Suite(samples, photos={"a": twice, "b": (photo("b/0", "same"), photo("b/1"))})
    listed = stand_ins(suite, suite.images(2, 1, "right"), 4)
    assert [(each.kind, each.photo.key) for each in listed if suite.pool[each.sample].subject == "a"] == [
        ("floor", "b/1")  # a has no second photo, and b/0 has the bytes of a's photo
    ]


def test_ceiling_and_floors_are_of_the_right_subjects() -> None:
    suite = suite_of()
    for each in stand_ins(suite, suite.images(6, 3, "right"), 4):
        subject, shown = suite.pool[each.sample].subject, each.photo.key.partition("/")[0]
        if each.kind == "ceiling":
            assert shown == subject
            assert each.references == (
                suite.pool[each.sample].references[0],
            )  # photos that are no reference come first
        else:
            assert shown != subject
            assert len(each.photos) == 5
        if each.kind == "hard_floor":
            assert int(shown[1]) // 2 == int(subject[1]) // 2


def test_the_reference_as_a_ceiling_is_compared_with_the_other_photos() -> None:
    suite = suite_of()
    ceilings = [each for each in stand_ins(suite, suite.images(1, 1, "right"), 5) if each.kind == "ceiling"]
    assert len(ceilings) == 5
    last = ceilings[-1]
    assert last.photo.key == "s0/0"
    assert {other.key for other in last.references} == {f"s0/{view}" for view in range(1, 5)}


def test_the_number_is_bounded_and_the_choice_is_the_seeds() -> None:
    suite, again, other = suite_of(), suite_of(), suite_of(seed=1)
    cases = suite.images(2, 1, "right")
    listed = stand_ins(suite, cases, 2)
    assert listed == stand_ins(again, again.images(2, 1, "right"), 2)
    assert listed != stand_ins(other, other.images(2, 1, "right"), 2)
    assert len(listed) == 2 * 3 * 2
    floors = [each.photo.key.partition("/")[0] for each in listed if each.kind == "floor"][:2]
    assert len(set(floors)) == 2, "photos of different subjects first"


def test_no_class_gives_no_hard_floor_and_several_subjects_no_stand_in() -> None:
    samples = [Sample(f"{name}-0", name, "", "p", (photo(f"{name}/0"), photo(f"{name}/1"))) for name in "abc"]
    suite = Suite(samples)
    kinds = {each.kind for each in stand_ins(suite, suite.images(3, 1, "right"), 2)}
    assert kinds == {"ceiling", "floor"}
    both = Sample("x", "a+b", "", "p", (photo("a/0"), photo("b/0")), subjects=("a", "b"))
    pair = Suite([both, samples[2]])
    assert {pair.pool[each.sample].subject for each in stand_ins(pair, pair.images(2, 1, "right"), 2)} == {"c"}


def test_several_images_of_a_prompt_differ_in_their_case_only() -> None:
    suite = suite_of()
    once, often = suite.images(2, 2, "right"), suite.images(2, 2, "right", per_prompt=4)
    assert [case.case_id for case in often[:4]] == [f"{once[0].case_id}#{number}" for number in range(4)]
    assert {(case.target, case.other) for case in often} == {(case.target, case.other) for case in once}
    assert len({case.case_id for case in often}) == 16


def test_at_most_sixteen_photos_of_a_subject_are_used() -> None:
    suite = suite_of(views=40)
    assert len(suite.photos_of("s0")) == 16
    assert suite.photos_of("s0") == suite_of(seed=5, views=40).photos_of("s0")
