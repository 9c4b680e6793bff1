"""External shuffle: group the rows of many tables by a key, through a store, in units that run anywhere and resume.

A unit of the first level holds the rows of a few inputs. It sorts them by the key and writes one object: a segment for
each of the 2^bits ranges of the key. A unit of the next level reads one range from a group of such objects and splits
it further. A reader of a final range reads its segment from each object of the last level. So an object is written and
read once per level, whatever the number of inputs; see :meth:`Shuffle.for_size` for the levels.

Rows of a final range come in the order of (key, input, position in the input): the order does not depend on how inputs
are grouped into units, nor on the order in which units run.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from zlib import crc32

import numpy as np
import pyarrow as pa

from lookalike.documents import decoding
from lookalike.errors import InputError
from lookalike.storage import Store

KEY_BITS = 62
_FAN_OUT_BITS = 7
_MAX_WIDTH = 2_000  # objects that a reader opens
_AT_ONCE = 16  # requests of a reader
_WITHOUT_INDEX = 16  # objects whose own tables a reader reads instead of an index
_ENTRY = 3 * 8  # bytes of a segment in an index: its first byte, the byte after it, and its CRC-32, each an int64


@dataclass(frozen=True)
class Shuffle:
    """One shuffle below ``prefix`` of ``store``.

    The key is an int64 column in [0, 2^62). Final ranges are numbered by its leading bits.
    """

    store: Store
    prefix: str
    """Names the content of the inputs: what lies below it counts as done."""
    schema: pa.Schema
    """Of the rows; includes ``key``."""
    key: str
    """The column to group by."""
    width: int
    """Units of the first level."""
    bits: tuple[int, ...]
    """For each level, the bits of the key that it splits by: a range becomes 2^bits ranges."""
    group: int = 128
    """Objects of one level that a unit of the next level reads."""

    @classmethod
    def for_size(cls, store: Store, prefix: str, schema: pa.Schema, key: str, width: int, partitions: int) -> "Shuffle":
        """A shuffle into at least ``partitions`` ranges (rounded up to a power of two).

        One level as long as a range opens at most 2,000 objects and a unit writes at most 2,000 segments; else levels
        of 128 ranges each.
        """
        total = max(0, (partitions - 1).bit_length())
        if width <= _MAX_WIDTH and 1 << total <= _MAX_WIDTH:
            return cls(store, prefix, schema, key, width, (total,))
        levels = max(2, -(-total // _FAN_OUT_BITS))
        bits = tuple(total // levels + (level < total % levels) for level in range(levels))
        return cls(store, prefix, schema, key, width, bits)

    @property
    def partitions(self) -> int:
        """Final ranges of the key."""
        return 1 << sum(self.bits)

    def span(self, partition: int) -> tuple[int, int]:
        """The half-open range of keys that is the final range ``partition``."""
        shift = KEY_BITS - sum(self.bits)
        return partition << shift, (partition + 1) << shift

    def units(self, level: int) -> int:
        """Units of ``level``, from 1: as many groups as there are for each range of the level before."""
        return self._ranges(level - 1) * self._width(level)

    def indices(self, level: int) -> int:
        """Units of :meth:`write_index` after ``level``; none if there are so few objects that readers need no index."""
        return self._ranges(level - 1) if self._width(level) > _WITHOUT_INDEX else 0

    def is_written(self, level: int, unit: int) -> bool:
        """Whether the unit is done."""
        return self.store.exists(self._data_key(level, unit))

    def write(self, unit: int, rows: pa.Table) -> None:
        """Write a unit of the first level: its inputs' rows, in the order of the inputs."""
        self._write(1, unit, rows)

    def merge(self, level: int, unit: int) -> None:
        """Write a unit of ``level`` ≥ 2: one range of a group of objects of the level before."""
        if not self.is_written(level, unit):
            parent, group = divmod(unit, self._width(level))
            first = group * self.group
            self._write(level, unit, self._read(level - 1, parent, first, first + self.group))

    def write_index(self, level: int, parent: int) -> None:
        """Collect where each range lies in the objects of ``level`` that split the range ``parent``."""
        width, key = self._width(level), self._index_key(level, parent)
        if self.store.exists(key):
            return
        segments_WR3 = self._segments(level, range(parent * width, (parent + 1) * width))
        self.store.write(key, segments_WR3.swapaxes(0, 1).tobytes())

    def read(self, partition: int, reduce: Callable[[pa.Table], pa.Table] | None = None) -> pa.Table:
        """The rows of a final range, by (key, input, position in the input).

        ``reduce`` is called with the rows of each object, in the order of objects, and returns those to keep, of any
        columns that include the key. So a range is read that would not fit into memory.
        """
        return self._read(len(self.bits), partition, 0, self._width(len(self.bits)), reduce)

    def size(self, partition: int) -> int:
        """The bytes of a final range."""
        level = len(self.bits)
        return sum(end - begin for _, begin, end, _ in self._bounds(level, partition, 0, self._width(level)))

    def _write(self, level: int, unit: int, rows: pa.Table) -> None:
        rows = _sorted(rows.select(self.schema.names).cast(self.schema), self.key)
        done = sum(self.bits[: level - 1])
        shift = KEY_BITS - done - self.bits[level - 1]
        ranges = 1 << self.bits[level - 1]
        prefix = unit // self._width(level) << self.bits[level - 1]
        bounds = [(prefix + i) << shift for i in range(ranges + 1)]
        cuts = np.searchsorted(rows[self.key].to_numpy(), bounds)
        assert (cuts[0], cuts[-1]) == (0, len(rows)), "keys are outside of [0, 2^62), or of another range"
        segments = [_encoded(rows.slice(start, stop - start)) for start, stop in pairwise(cuts)]
        ends = np.cumsum([0, *(len(segment) for segment in segments)], dtype=np.int64)
        segments_R3 = np.stack([ends[:-1], ends[1:], [crc32(segment) for segment in segments]], axis=1)
        self.store.write(self._segments_key(level, unit), segments_R3.astype(np.int64).tobytes())
        self.store.write(self._data_key(level, unit), b"".join(segments))  # last: it says that the unit is done

    def _read(
        self,
        level: int,
        range_number: int,
        first: int,
        stop: int,
        reduce: Callable[[pa.Table], pa.Table] | None = None,
    ) -> pa.Table:
        """The rows of a range from the objects ``first`` to ``stop`` - 1 of those that split its parent, sorted."""
        wanted = self._bounds(level, range_number, first, stop)
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            parts = []
            for begin in range(0, len(wanted), _AT_ONCE):  # so that no more are in memory than are reduced next
                for part in pool.map(lambda item: self._segment(level, *item), wanted[begin : begin + _AT_ONCE]):
                    parts.append(part if reduce is None else reduce(part))
        if not parts:
            empty = self.schema.empty_table()
            return empty if reduce is None else reduce(empty)
        return _sorted(pa.concat_tables(parts), self.key)

    def _bounds(self, level: int, range_number: int, first: int, stop: int) -> list[tuple[int, int, int, int]]:
        """(unit, first byte, end, checksum) of each segment of :meth:`_read` that is not empty."""
        parent, child = divmod(range_number, 1 << self.bits[level - 1])
        width = self._width(level)
        stop = min(stop, width)
        units = range(parent * width + first, parent * width + stop)
        if self.indices(level):
            index = self._index_key(level, parent)
            data = self.store.read_range(index, _ENTRY * (child * width + first), _ENTRY * (stop - first))
            segments_W3 = self._array(data, (stop - first, 3), index)
        else:
            segments_W3 = self._segments(level, units)[:, child]
        return [
            (unit, a, b, crc) for unit, (a, b, crc) in zip(units, segments_W3.tolist(), strict=True) if a != b or crc
        ]

    def _segments(self, level: int, units: range) -> np.ndarray:
        """First byte, end and checksum of each segment of some objects, int64 [W, R, 3]."""
        shape = (1 << self.bits[level - 1], 3)
        keys = [self._segments_key(level, unit) for unit in units]
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            read = zip(keys, pool.map(self.store.read, keys), strict=True)
            arrays = [self._array(data, shape, key) for key, data in read]
        return np.stack(arrays) if arrays else np.zeros((0, *shape), np.int64)

    def _segment(self, level: int, unit: int, start: int, stop: int, checksum: int) -> pa.Table:
        key = self._data_key(level, unit)
        data = self.store.read_range(key, start, stop - start)
        if crc32(data) != checksum:
            what = f"bytes {start} to {stop} of a unit of a shuffle have not the checksum in its index"
            raise InputError(what, value=self.store.uri_of(key), fix=f"remove {self.prefix}/ and run the job again")
        with decoding("a segment of a shuffle", self.store.uri_of(key)):
            return pa.Table.from_batches(list(_decoded(data, self.schema)), self.schema)

    def _array(self, data: bytes, shape: tuple[int, ...], key: str) -> np.ndarray:
        with decoding("an index of a shuffle", self.store.uri_of(key)):
            return np.frombuffer(data, np.int64).reshape(shape)

    def _ranges(self, level: int) -> int:
        """Ranges after ``level``."""
        return 1 << sum(self.bits[:level])

    def _width(self, level: int) -> int:
        """Objects of ``level`` that hold rows of one range of the level before."""
        width = self.width
        for _ in range(level - 1):
            width = -(-width // self.group)
        return width

    def _data_key(self, level: int, unit: int) -> str:
        return f"{self.prefix}/level-{level}/{unit:08d}.arrow"

    def _segments_key(self, level: int, unit: int) -> str:
        return f"{self.prefix}/level-{level}/{unit:08d}.segments"

    def _index_key(self, level: int, parent: int) -> str:
        return f"{self.prefix}/level-{level}/index-{parent:08d}"


def _sorted(rows: pa.Table, key: str) -> pa.Table:
    """The rows by their key; rows of equal keys keep their order."""
    keys = rows[key].to_numpy()
    if (keys[1:] >= keys[:-1]).all():
        return rows
    return rows.take(pa.array(np.argsort(keys, kind="stable")))


def _encoded(rows: pa.Table) -> bytes:
    """Rows as messages of Arrow IPC without their schema; no rows are no bytes."""
    return b"".join(batch.serialize() for batch in rows.combine_chunks().to_batches() if len(batch))


def _decoded(data: bytes, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    reader = pa.BufferReader(data)
    while reader.tell() < len(data):
        batch = pa.ipc.read_record_batch(pa.ipc.read_message(reader), schema)
        batch.validate(full=True)  # Arrow trusts the offsets of texts and lists, and reads outside of its buffers
        yield batch
