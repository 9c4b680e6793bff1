"""Ranges of objects that are read at once."""

from pathlib import Path

import pytest

from lookalike.data import ranges
from lookalike.data.ranges import ByteRange, read_ranges
from lookalike.errors import InputError
from lookalike.storage import open_store


def test_neighbours_are_joined_and_the_order_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_store(str(tmp_path))
    data = bytes(i % 251 for i in range(400_000))
    store.write("a", data)
    store.write("b", data[::-1])
    requests = []
    read = ranges._read
    monkeypatch.setattr(ranges, "_read", lambda store, span: requests.append(span) or read(store, span))
    wanted = [ByteRange("b", 5, 10), ByteRange("a", 1000, 50), ByteRange("a", 0, 7), ByteRange("a", 350_000, 9)]
    wanted += [ByteRange("a", 1010, 5), ByteRange("a", 0, 7)]
    found = read_ranges(store, wanted)
    bytes_of = {"a": data, "b": data[::-1]}
    assert found == [bytes_of[each.key][each.offset : each.offset + each.length] for each in wanted]
    assert len(requests) == 3  # the far end of a is a request of its own
    assert read_ranges(store, []) == []


def test_a_range_that_cannot_be_read_loses_no_neighbour(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    store.write("a", b"0123456789")
    good, beyond, missing = read_ranges(store, [ByteRange("a", 2, 3), ByteRange("a", 8, 9), ByteRange("c", 0, 1)])
    assert good == b"234"
    assert isinstance(beyond, InputError)
    assert isinstance(missing, InputError)


def test_a_joined_request_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranges, "_MOST", 100)
    wanted = [ByteRange("a", 40 * i, 40) for i in range(10)]
    assert [len(span) for span in ranges._joined(wanted)] == [2] * 5
