"""Marks: which checkpoints and ledger parts of several attempts are valid."""

from hypothesis import given
from hypothesis import strategies as st

from lookalike.training.marks import Mark, current, parse_mark

MARKS = st.builds(Mark, st.integers(1, 12), st.integers(1, 4))


@given(MARKS)
def test_a_mark_is_parsed_from_its_name(mark: Mark) -> None:
    assert parse_mark(str(mark)) == mark


def test_first_lease_and_earlier_versions_write_no_number() -> None:
    assert str(Mark(120)) == str(Mark(120, 1)) == "step-00000120"
    assert parse_mark("step-00000120") == Mark(120, 1)


def test_other_names_are_not_marks() -> None:
    for name in ("step-1", "step-00000001.", "step-00000001.x", "step-00000001.1.2", "xstep-00000001", ""):
        assert parse_mark(name) is None


@given(st.lists(MARKS))
def test_leases_never_decrease_with_the_step_and_each_step_counts_once(marks: list[Mark]) -> None:
    result = current(marks)
    assert set(result) <= set(marks)
    assert [mark.lease for mark in result] == sorted(mark.lease for mark in result)
    assert len({mark.step for mark in result}) == len(result)
    assert bool(result) == bool(marks)
