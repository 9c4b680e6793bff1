"""Tables of a snapshot in parts: Parquet files of a few thousand rows, which lists name with their hashes.

A row is read and checked by one range request for its row group, whatever the size of the table; a reader holds the
lists (:mod:`lookalike.data.part_lists`) and a bounded cache.
"""

import hashlib
import io
import mmap
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Lock
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from lookalike.data.part_lists import BEFORE_GROUPS, GROUP_ROWS, LIST_FIX, Kind, Part, check_format, read_lists
from lookalike.documents import decoding
from lookalike.errors import InputError
from lookalike.storage import Store, manifest_of
from lookalike.storage.snapshot import MANIFEST

_CACHE_BYTES = 16 << 20  # of decoded row groups
_FOOTERS = 64  # maximum footers in memory
_AT_ONCE = 16  # requests


def write_part(version: Store, name: str, table: pa.Table) -> Part:
    """Write ``table`` as one Parquet file in one put; equal tables give equal bytes, also if their chunks differ.

    With a column ``subject_hash`` readers of a span of hashes skip the part if it has none of them.
    """
    buffer = io.BytesIO()
    pq.write_table(table.combine_chunks(), buffer, row_group_size=GROUP_ROWS, compression="zstd")
    data = buffer.getvalue()
    footer = pq.read_metadata(pa.BufferReader(data))
    groups = [
        footer.row_group(i) for i in range(footer.num_row_groups) if len(table)
    ]  # no rows are one group for Arrow
    ends = [max(map(_end_of_chunk, (group.column(i) for i in range(group.num_columns)))) for group in groups]
    starts = [BEFORE_GROUPS, *ends]
    hashes = pc.min_max(table["subject_hash"]).as_py() if "subject_hash" in table.column_names else {}
    version.write(name, data)
    return Part(
        name=name,
        rows=len(table),
        size=len(data),
        sha256=hashlib.sha256(data).hexdigest(),
        first_hash=hashes.get("min"),
        last_hash=hashes.get("max"),
        group_ends=tuple(ends),
        group_sha256s=tuple(hashlib.sha256(data[a:b]).hexdigest() for a, b in zip(starts, ends, strict=False)),
        footer_sha256=hashlib.sha256(data[starts[-1] :]).hexdigest(),
    )


def open_table(version: Store, kind: Kind, schema: pa.Schema, manifest_sha256: str | None = None) -> "PartedTable":
    """Open a table of a snapshot version.

    Raises:
        InputError: the version has another format, has no rows of this kind, or a list or the manifest is damaged or
            has changed (with ``manifest_sha256`` the manifest must have this fingerprint).
    """
    manifest = manifest_of(version, manifest_sha256)
    check_format(version, manifest)
    with decoding("the manifest of a snapshot with tables", version.uri_of(MANIFEST), fix=LIST_FIX):
        lists, rows = list(manifest["tables"][kind]["lists"]), int(manifest["tables"][kind]["rows"])
    if not lists:
        what = "images" if kind == "images" else f"{kind} triplets"
        raise InputError(f"the snapshot has no {what}", value=version.uri, fix="curate more subjects")
    parts = read_lists(version, lists, manifest)
    if (found := pc.sum(parts["rows"]).as_py() or 0) != rows:
        what = f"the lists of the {kind} table have {found} rows, and the manifest says {rows}"
        raise InputError(what, value=version.uri, fix=LIST_FIX)
    return PartedTable(version, parts, schema)


class PartedTable:
    """The rows of a table in parts, by their number, in bounded memory. Threads may share it."""

    def __init__(self, version: Store, parts: pa.Table, schema: pa.Schema) -> None:
        self.schema = schema
        self._version, self._parts = version, parts
        self._ends = np.cumsum(parts["rows"].to_numpy())
        self._cache: OrderedDict[tuple[int, int], pa.Table] = OrderedDict()
        self._cached = 0
        self._footers: OrderedDict[int, bytes] = OrderedDict()
        self._lock = Lock()

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    @property
    def names(self) -> list[str]:
        """Keys of the parts below the version's prefix."""
        return list(self._parts["name"].to_pylist())

    def take(self, indices: npt.NDArray[np.int64]) -> pa.Table:
        """Return the rows with these numbers, in this order; each row group is read once."""
        if len(indices) == 0:
            return self.schema.empty_table()
        places, within = self._places(indices)
        wanted, of_row = np.unique(places, axis=0, return_inverse=True)
        rows = []
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            for first in range(0, len(wanted), _AT_ONCE):
                some = wanted[first : first + _AT_ONCE].tolist()
                read = pool.map(lambda place: self._fetch(*place), some)
                # Requests are made at once, row groups are decoded in turn: one is in memory beside the cache.
                for number, ((part, group), fetched) in enumerate(zip(some, read, strict=True), first):
                    table = self._decoded(part, group, fetched)
                    rows.append(table.take(pa.array(within[of_row == number])))
        return pa.concat_tables(rows).take(pa.array(np.argsort(np.argsort(of_row, kind="stable"))))

    @property
    def columns(self) -> list[str]:
        """Columns of the first part; the table's schema may have fewer."""
        return list(self._open(0, self._footer(0), {}).schema_arrow.names)

    @property
    def rows(self) -> npt.NDArray[np.int64]:
        """Rows of each part, [P]."""
        return np.asarray(self._parts["rows"].to_numpy())

    @property
    def bounds(self) -> npt.NDArray[np.int64]:
        """Lowest and highest subject hash of each part, [P, 2]; the whole range where its list has none."""
        limits = np.iinfo(np.int64)
        sides = zip(("first_hash", "last_hash"), (limits.min, limits.max), strict=True)
        return np.stack([self._parts[name].fill_null(limit).to_numpy() for name, limit in sides], axis=1)

    def read_span(self, span: tuple[int, int], columns: list[str] | None = None) -> pa.Table:
        """Return the rows whose ``subject_hash`` (a column) is in the half-open ``span``, in their order."""
        low, high = self.bounds.T
        tables = []
        for part in np.flatnonzero((high >= span[0]) & (low < span[1])):
            footer = self._open(int(part), self._footer(int(part)), {}).metadata
            at = footer.schema.to_arrow_schema().get_field_index("subject_hash")
            for group in range(footer.num_row_groups if footer.num_rows else 0):
                bounds = footer.row_group(group).column(at).statistics
                known = bounds is not None and bounds.has_min_max
                if not known or (bounds.max >= span[0] and bounds.min < span[1]):
                    table = self._group(int(part), group)
                    places = table["subject_hash"].to_numpy()
                    tables.append(table.filter(pa.array((places >= span[0]) & (places < span[1]))))
        rows = pa.concat_tables(tables) if tables else self.schema.empty_table()
        return rows if columns is None else rows.select(columns)

    def parts(self) -> Iterator[pa.Table]:
        """Yield the parts in their order; one is in memory at a time, and read whole."""
        for number in range(len(self._parts)):
            table = self.read_part(number, self.schema.names)
            with decoding("a part of a table", self._version.uri_of(str(self._parts["name"][number])), fix=LIST_FIX):
                table = table.cast(self.schema)
            yield table

    def read_part(self, number: int, columns: Sequence[str]) -> pa.Table:
        """Return columns of one part. All of its bytes are read and checked; only these columns are decoded."""
        name = str(self._parts["name"][number])
        data = self._version.read(name)
        with decoding("a list of the parts of a table", self._version.uri_of(name), fix=LIST_FIX):
            sha256 = bytes.fromhex(self._parts["sha256"][number].as_py())
        self._check(name, data, sha256)
        with decoding("a part of a table", self._version.uri_of(name), fix=LIST_FIX):
            return pq.read_table(io.BytesIO(data), columns=list(columns)).select(list(columns))

    def _places(self, indices: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """The (part, row group) of each row, int64 ``[N, 2]``, and its place in the row group, int64 ``[N]``."""
        if indices.min() < 0 or indices.max() >= len(self):
            raise IndexError(f"rows {indices.min()} to {indices.max()} of {len(self)}")
        part = np.searchsorted(self._ends, indices, side="right")
        group, within = np.divmod(indices - np.concatenate([[0], self._ends])[part], GROUP_ROWS)
        return np.stack([part, group], axis=1), within

    def _group(self, part: int, group: int) -> pa.Table:
        return self._decoded(part, group, self._fetch(part, group))

    def _fetch(self, part: int, group: int) -> "pa.Table | tuple[bytes, bytes]":
        """The row group if it is in the cache, otherwise its bytes and those of the part's footer."""
        with self._lock:
            if (part, group) in self._cache:
                self._cache.move_to_end((part, group))
                return self._cache[part, group]
        ends = [BEFORE_GROUPS, *self._parts["group_ends"][part].as_py()]
        data = self._checked(part, ends[group], ends[group + 1], self._parts["group_sha256s"][part][group].as_py())
        return data, self._footer(part)

    def _decoded(self, part: int, group: int, fetched: "pa.Table | tuple[bytes, bytes]") -> pa.Table:
        if isinstance(fetched, pa.Table):
            return fetched
        data, footer = fetched
        start = [BEFORE_GROUPS, *self._parts["group_ends"][part].as_py()][group]
        with decoding("a part of a table", self._version.uri_of(str(self._parts["name"][part])), fix=LIST_FIX):
            file = self._open(part, footer, {start: data})
            table = file.read_row_group(group, columns=self.schema.names, use_threads=False)
            table = table.select(self.schema.names).cast(self.schema)
            if len(table) != min(GROUP_ROWS, self._parts["rows"][part].as_py() - group * GROUP_ROWS):
                raise ValueError(f"row group {group} has {len(table)} rows")
        with self._lock:
            self._cached += 0 if (part, group) in self._cache else table.nbytes
            self._cache[part, group] = table
            while self._cached > _CACHE_BYTES and len(self._cache) > 1:
                self._cached -= self._cache.popitem(last=False)[1].nbytes
        return table

    def _footer(self, part: int) -> bytes:
        with self._lock:
            footer = self._footers.get(part)
        if footer is None:
            size, end = self._parts["size"][part].as_py(), [BEFORE_GROUPS, *self._parts["group_ends"][part].as_py()][-1]
            footer = self._checked(part, end, size, self._parts["footer_sha256"][part].as_py())
            with self._lock:
                self._footers[part] = footer
                while len(self._footers) > _FOOTERS:
                    self._footers.popitem(last=False)
        return footer

    def _open(self, part: int, footer: bytes, ranges: dict[int, bytes]) -> pq.ParquetFile:
        """The part, of which only the footer and the ``ranges`` (bytes by their offset) are there."""
        size = self._parts["size"][part].as_py()
        data = mmap.mmap(-1, size)  # pages that nothing is written to take no memory, and none stays with the process
        for offset, held in {**ranges, size - len(footer): footer}.items():
            data[offset : offset + len(held)] = held
        with decoding("a part of a table", self._version.uri_of(str(self._parts["name"][part])), fix=LIST_FIX):
            return pq.ParquetFile(pa.BufferReader(pa.py_buffer(data)))

    def _checked(self, part: int, start: int, end: int, sha256: bytes) -> bytes:
        name = str(self._parts["name"][part])
        data = self._version.read_range(name, start, end - start)
        self._check(name, data, sha256)
        return data

    def _check(self, name: str, data: bytes, sha256: bytes) -> None:
        if hashlib.sha256(data).digest() != sha256:
            what = "a part of a table of the snapshot has changed: its hash is not the one in its list"
            raise InputError(what, value=self._version.uri_of(name), fix=LIST_FIX)


def _end_of_chunk(chunk: Any) -> int:
    start = chunk.dictionary_page_offset if chunk.has_dictionary_page else chunk.data_page_offset
    return int(start + chunk.total_compressed_size)
