"""Read tables of snapshots of any format in pieces: by their number, or by a range of subject hashes.

A piece is a part of format 2, all of whose bytes are compared with the hash in its list; or a row group of the one file
that a table has in format 1, which is hashed whole once in a process. Pieces are in the order of subject hashes.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from lookalike.config import fingerprint
from lookalike.data.part_lists import Kind
from lookalike.data.parts import PartedTable, open_table
from lookalike.data.shards import open_object
from lookalike.documents import decoding
from lookalike.errors import InputError
from lookalike.storage import Store, check_file, manifest_of, open_store, read_manifest, version_store
from pipelines.curate.rows import IMAGE_HASHED, SUBJECT_BITS, image_hashes, subject_hashes
from pipelines.curate.workspace import FORMAT_1_TABLES

FEW = 4
"""Units of tables that the job's own process reads: Ray takes longer to start."""
_ROWS_OF_A_UNIT = 200_000
_READ_AHEAD = 1 << 20  # bytes
_FIX = "restore it from a copy, or use another version"


@dataclass(frozen=True)
class Snapshot:
    """A small reference to a snapshot version, for tasks; each process opens a table of it once."""

    uri: str
    """Of the version."""
    manifest_sha256: str
    """Fingerprint of its manifest."""

    @classmethod
    def of(cls, dataset: Store, version: int) -> "Snapshot":
        """A version of a dataset. Raises InputError if its manifest is missing or not the one that was published."""
        return cls(version_store(dataset, version).uri, fingerprint(read_manifest(dataset, version)))

    def table(self, kind: Kind) -> "SnapshotTable":
        """Open a table. Raises InputError if its lists, the manifest or, of format 1, the table have changed."""
        return _opened(self, kind)


@lru_cache(maxsize=16)
def _opened(snapshot: Snapshot, kind: Kind) -> "SnapshotTable":
    version = open_store(snapshot.uri)
    manifest = manifest_of(version, snapshot.manifest_sha256)
    with decoding("the manifest of a snapshot", snapshot.uri, fix=_FIX):
        if manifest.get("format", 1) == 1:
            return _OfFile(version, kind)
        if not manifest["tables"][kind]["lists"]:
            return SnapshotTable(np.zeros(0, np.int64), np.zeros((0, 2), np.int64))
    return _OfParts(open_table(version, kind, pa.schema([]), snapshot.manifest_sha256))


def _hashes(rows: pa.Table) -> np.ndarray:
    """Return the hash of each row from the columns that :class:`SnapshotTable` names for it, int64 [N]."""
    if "subject_hash" in rows.column_names:
        return np.asarray(rows["subject_hash"].to_numpy())
    return image_hashes(rows) if "offset" in rows.column_names else subject_hashes(rows["subject"])


class SnapshotTable:
    """A table of a snapshot. This class has no rows."""

    def __init__(self, rows: np.ndarray, bounds: np.ndarray) -> None:
        self.rows = rows
        """Maximum rows of each piece: int64 [P]."""
        self.bounds = bounds
        """Lowest and highest subject hash of each piece: int64 [P, 2]."""

    def read(self, piece: int, columns: Sequence[str]) -> pa.Table:
        """Return columns of the rows of a piece."""
        raise IndexError(piece)

    @property
    def columns(self) -> list[str]:
        """The names of all columns."""
        return []

    @property
    def _hashed(self) -> list[str]:
        """The columns that the hash of a row follows from."""
        names = ("subject_hash",), IMAGE_HASHED, ("subject",)
        return next((list(some) for some in names if set(some) <= set(self.columns)), [])

    def read_span(self, span: tuple[int, int], columns: Sequence[str]) -> pa.Table | None:
        """Return columns of the rows whose subject hash is in the half-open ``span``; None if it touches no piece."""
        low, high = self.bounds.T
        by = self._hashed
        tables = []
        for piece in np.flatnonzero((high >= span[0]) & (low < span[1])):
            rows = self.read(int(piece), list(dict.fromkeys([*columns, *by])))
            hashes = _hashes(rows.select(by))
            tables.append(rows.filter(pa.array((hashes >= span[0]) & (hashes < span[1]))).select(list(columns)))
        return pa.concat_tables(tables) if tables else None

    def units(self) -> list[tuple[int, int]]:
        """Return the half-open ranges of pieces that tasks read: few rows each, so that memory is bounded."""
        unit = (np.cumsum(self.rows) - self.rows) // _ROWS_OF_A_UNIT
        cuts = [0, *(np.flatnonzero(np.diff(unit)) + 1).tolist(), len(unit)]
        return [(first, stop) for first, stop in pairwise(cuts) if first < stop]


class _OfParts(SnapshotTable):
    def __init__(self, table: PartedTable) -> None:
        super().__init__(table.rows, table.bounds)
        self._table = table

    def read(self, piece: int, columns: Sequence[str]) -> pa.Table:
        return self._table.read_part(piece, columns)

    @property
    def columns(self) -> list[str]:
        return self._table.columns


class _OfFile(SnapshotTable):
    """The one file of triplets has the rows of both splits."""

    def __init__(self, version: Store, kind: Kind) -> None:
        self._name, self._kind, self._version = FORMAT_1_TABLES[kind], kind, version
        info = next((info for info in version.list(self._name) if info.key == self._name), None)
        if info is None:
            raise InputError(f"the snapshot has no {self._name}", value=version.uri, fix="use a complete version")
        check_file(version, self._name)
        with self._decoding():
            self._file = pq.ParquetFile(open_object(version, info, _READ_AHEAD))
        groups = range(self._file.num_row_groups)
        rows = np.array([self._file.metadata.row_group(group).num_rows for group in groups], np.int64)
        super().__init__(rows, np.array([self._bounds(group) for group in groups], np.int64).reshape(-1, 2))

    def _bounds(self, group: int) -> tuple[int, int]:
        hashes = _hashes(self.read(group, self._hashed))
        return (int(hashes.min()), int(hashes.max())) if len(hashes) else (1 << SUBJECT_BITS, -1)

    def read(self, piece: int, columns: Sequence[str]) -> pa.Table:
        of_splits = self._kind != "images"
        with self._decoding():
            wanted = list(dict.fromkeys([*columns, "split"])) if of_splits else list(columns)
            rows = self._file.read_row_group(piece, columns=wanted)
            if of_splits:
                rows = rows.filter(pc.equal(rows["split"], self._kind))
            return rows.select(list(columns))

    @property
    def columns(self) -> list[str]:
        return list(self._file.schema_arrow.names)

    def _decoding(self) -> AbstractContextManager[None]:
        return decoding("a Parquet table", self._version.uri_of(self._name), fix=_FIX)


def ranges_of_subjects(sides: Sequence[Sequence[SnapshotTable]]) -> int:
    """Return how many equal ranges of subject hashes tables that are read side by side are divided into."""
    rows = max(sum(int(table.rows.sum()) for table in tables) for tables in sides)
    return max(1, -(-rows // _ROWS_OF_A_UNIT))
