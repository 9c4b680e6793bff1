"""The memory of expensive results."""

import pytest

from lookalike.recent import Recent


def test_the_results_that_were_used_last_are_kept() -> None:
    made: list[str] = []

    def make(name: str) -> str:
        made.append(name)
        return name.upper()

    recent = Recent[str](2)
    for name in ("a", "b", "a", "c", "a", "b"):  # b is the one that was not used for longest when c comes
        assert recent.get(name, lambda name=name: make(name)) == name.upper()  # type: ignore[misc]
    assert made == ["a", "b", "c", "b"]


def test_an_error_is_not_kept() -> None:
    recent = Recent[int](1)
    with pytest.raises(ZeroDivisionError):
        recent.get("a", lambda: 1 // 0)
    assert recent.get("a", lambda: 1) == 1
