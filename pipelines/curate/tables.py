"""Read and write Parquet tables in a store. A table is written in one put, so one that exists is complete."""

import io
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from lookalike.config import canonical_json
from lookalike.data.shards import open_object
from lookalike.documents import decoding
from lookalike.storage import ObjectInfo, Store

_READ_AHEAD = 64 << 10  # bytes; reads of a table are small, or large and requested at once
_NOTES = b"lookalike"  # key in the footer
_ROWS_PER_GROUP = 4096  # a unit of materialise reads the row groups that overlap its range of subject hashes
_NORMALISED = 1024  # vectors at a time, so that no second copy of all is made
_UNIQUE = ("key", "sha256")  # texts that hardly repeat: a dictionary of them is larger than they are


def write_table(store: Store, key: str, table: pa.Table) -> None:
    """Write ``table`` in one put; equal tables give equal bytes."""
    texts = [field.name for field in table.schema if pa.types.is_string(field.type) and field.name not in _UNIQUE]
    buffer = io.BytesIO()
    pq.write_table(table, buffer, row_group_size=_ROWS_PER_GROUP, compression="zstd", use_dictionary=texts)
    store.write(key, buffer.getvalue())


def read_table(
    store: Store,
    key: str,
    span: tuple[int, int] | None = None,
    columns: list[str] | None = None,
    by: str = "subject_hash",
) -> pa.Table:
    """Read some columns of a table, by default all, or of its rows whose ``by`` is in the half-open ``span``."""
    data = store.read(key)
    with decoding("a Parquet table", store.uri_of(key)):
        return pq.read_table(io.BytesIO(data), filters=_within(span, by), columns=columns)


def read_part(
    store: Store,
    info: ObjectInfo,
    span: tuple[int, int] | None = None,
    columns: list[str] | None = None,
    by: str = "subject_hash",
) -> pa.Table:
    """Read as :func:`read_table` does, but by range: other row groups and columns are not read."""
    with decoding("a Parquet table", store.uri_of(info.key)):
        return pq.read_table(open_object(store, info, _READ_AHEAD), filters=_within(span, by), columns=columns)


def read_first(
    store: Store, info: ObjectInfo, value: int, limit: int, by: str = "subject_hash"
) -> tuple[int, pa.Table]:
    """Return how many rows of a table have this value of ``by``, and the first ``limit`` of them.

    The table is sorted by ``by``. Other row groups are not read, and of the remaining ones that column at most.
    """
    count, parts = 0, []
    with decoding("a Parquet table", store.uri_of(info.key)):
        file = pq.ParquetFile(open_object(store, info, _READ_AHEAD))
        column = file.schema.names.index(by)
        for number in range(file.num_row_groups):
            group = file.metadata.row_group(number)
            if group.num_rows == 0:  # of an empty table
                continue
            low, high = group.column(column).statistics.min, group.column(column).statistics.max
            if low <= value <= high:
                wanted = count < limit
                if wanted or low < high:
                    rows = file.read_row_group(number, None if wanted else [by])
                    rows = rows.filter(pc.equal(rows[by], value))
                    parts += [rows] if wanted else []
                count += len(rows) if wanted or low < high else group.num_rows
        first = pa.concat_tables(parts) if parts else file.schema_arrow.empty_table()
    return count, first.slice(0, limit)


def with_notes(table: pa.Table, notes: Mapping[str, Any]) -> pa.Table:
    """Return the table with ``notes`` (JSON values) for its footer."""
    return table.replace_schema_metadata({_NOTES: canonical_json(notes)})


def notes_of(table: pa.Table) -> dict[str, Any]:
    """Return the notes of a table that was read whole."""
    return dict(json.loads((table.schema.metadata or {}).get(_NOTES, b"{}")))


def read_footer(store: Store, info: ObjectInfo) -> tuple[int, dict[str, Any]]:
    """Return the number of rows of a table, and its notes."""
    with decoding("a Parquet table", store.uri_of(info.key)):
        footer = pq.read_metadata(open_object(store, info, _READ_AHEAD))
        return int(footer.num_rows), json.loads((footer.metadata or {}).get(_NOTES, b"{}"))


def _within(span: tuple[int, int] | None, by: str) -> list[tuple[str, str, int]] | None:
    return None if span is None else [(by, ">=", span[0]), (by, "<", span[1])]


def vectors_array(vectors_ND: np.ndarray) -> pa.FixedSizeListArray:
    """Return vectors [N, D] as an Arrow column of float16."""
    flat = pa.array(np.ascontiguousarray(vectors_ND, np.float16).reshape(-1))
    return pa.FixedSizeListArray.from_arrays(flat, vectors_ND.shape[1])


def vectors_of(column: pa.ChunkedArray) -> np.ndarray:
    """Return the vectors of a column, float32 [N, D], normalised to unit norm; zero vectors stay zero."""
    flat = column.combine_chunks().flatten().to_numpy(zero_copy_only=False)
    vectors_ND = flat.astype(np.float32).reshape(-1, column.type.list_size)
    for first in range(0, len(vectors_ND), _NORMALISED):
        block_BD = vectors_ND[first : first + _NORMALISED]
        norms_B1 = np.linalg.norm(block_BD, axis=1, keepdims=True)
        block_BD /= np.where(norms_B1 == 0, 1, norms_B1)
    return np.asarray(vectors_ND)
