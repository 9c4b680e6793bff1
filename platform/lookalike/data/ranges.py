"""Read many ranges of objects at once: neighbours are joined to one request, and requests run in parallel."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from lookalike.errors import InputError
from lookalike.storage import Store

_GAP = 64 << 10  # bytes between two ranges that cost less than another request
_MOST = 16 << 20  # bytes of a joined request
_AT_ONCE = 16  # requests


@dataclass(frozen=True, order=True)
class ByteRange:
    """The bytes from ``offset`` to ``offset + length`` of the object ``key``."""

    key: str
    offset: int
    length: int


def read_ranges(store: Store, ranges: Sequence[ByteRange]) -> list[bytes | InputError]:
    """Return the bytes of each range, in the given order; equal ranges are read once.

    A range that cannot be read is the InputError of its own request, so that its neighbours are not lost with it.
    """
    spans = list(_joined(sorted(set(ranges))))
    found: dict[ByteRange, bytes | InputError] = {}
    if spans:
        with ThreadPoolExecutor(min(_AT_ONCE, len(spans))) as pool:
            for part in pool.map(lambda span: _read(store, span), spans):
                found.update(part)
    return [found[each] for each in ranges]


def _joined(ranges: list[ByteRange]) -> Iterator[list[ByteRange]]:
    """Yield the sorted ranges by request."""
    span: list[ByteRange] = []
    end = 0
    for each in ranges:
        near = span and each.key == span[0].key and each.offset <= end + _GAP
        if span and not (near and max(end, each.offset + each.length) - span[0].offset <= _MOST):
            yield span
            span = []
        end = max(end, each.offset + each.length) if span else each.offset + each.length
        span.append(each)
    if span:
        yield span


def _read(store: Store, span: list[ByteRange]) -> dict[ByteRange, bytes | InputError]:
    start, end = span[0].offset, max(each.offset + each.length for each in span)
    try:
        data = store.read_range(span[0].key, start, end - start)
        return {each: data[each.offset - start : each.offset - start + each.length] for each in span}
    except InputError as error:
        if len(span) == 1:
            return {span[0]: error}
    found: dict[ByteRange, bytes | InputError] = {}
    for each in span:
        found |= _read(store, [each])
    return found
