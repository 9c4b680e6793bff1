"""``ahead``: a thread computes one item ahead of its consumer."""

import threading
from collections.abc import Iterator

import pytest

from pipelines.train.in_memory import ahead


def test_items_keep_their_order_and_are_made_one_ahead_in_a_thread() -> None:
    made: list[int] = []

    def items() -> Iterator[int]:
        for number in range(4):
            assert threading.current_thread() is not threading.main_thread()
            made.append(number)
            yield number

    found = ahead(items())
    assert made == []
    assert next(found) == 0
    assert list(found) == [1, 2, 3]
    assert made == [0, 1, 2, 3]


def test_an_error_of_the_producer_reaches_the_consumer_in_order() -> None:
    def items() -> Iterator[int]:
        yield 0
        raise OSError("gone")

    found = ahead(items())
    assert next(found) == 0
    with pytest.raises(OSError, match="gone"):
        next(found)


def test_an_abandoned_iterator_leaves_no_thread() -> None:
    threads = threading.active_count()
    found = ahead(iter(range(10)))
    assert next(found) == 0
    found.close()  # type: ignore[attr-defined]
    assert threading.active_count() == threads
