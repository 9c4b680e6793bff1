"""Read the tables of a snapshot as streams: one row group or subject is in memory at a time."""

import heapq
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby, repeat
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lookalike.data.shards import open_object
from lookalike.documents import decoding
from lookalike.errors import InputError
from lookalike.storage import Store
from pipelines.curate.rows import subject_hash

_READ_AHEAD = 1 << 20  # bytes

Rows = list[dict[str, Any]]


def open_table(version: Store, name: str) -> pq.ParquetFile:
    """Open a Parquet table of a snapshot; only the parts that are used are read, by range."""
    info = next((info for info in version.list(name) if info.key == name), None)
    if info is None:
        raise InputError(f"the snapshot has no {name}", value=version.uri, fix="use a complete version")
    with decoding("a Parquet table", version.uri_of(name)):
        return pq.ParquetFile(open_object(version, info, _READ_AHEAD))


def find_rows(
    table: pq.ParquetFile, columns: Sequence[str], matches: Callable[[pa.Table], np.ndarray]
) -> Iterator[Rows]:
    """Yield the matching rows of each row group; ``matches`` returns bool [N] for a table of ``columns``."""
    for group in range(table.num_row_groups):
        mask = matches(table.read_row_group(group, columns=list(columns)))
        if mask.any():
            yield table.read_row_group(group).filter(pa.array(mask)).to_pylist()


def by_subject(
    table: pq.ParquetFile, columns: Sequence[str], split: str | None = None
) -> Iterator[tuple[tuple[int, str], Rows]]:
    """Yield ((hash, name) of a subject, its rows) in the order of hashes, which is that of the image table.

    The triplet table has this order within each ``split``.
    """
    batches = table.iter_batches(batch_size=8192, columns=["subject", *columns])
    rows = (row for batch in batches for row in batch.to_pylist() if split is None or row["split"] == split)
    for subject, group in groupby(rows, key=lambda row: str(row["subject"])):
        yield (subject_hash(subject), subject), list(group)


def side_by_side(
    left: Iterator[tuple[tuple[int, str], Rows]], right: Iterator[tuple[tuple[int, str], Rows]]
) -> Iterator[tuple[str, Rows, Rows]]:
    """Yield (subject, its rows on the left, its rows on the right) for each subject of either."""
    numbered = [zip(repeat(side), stream, strict=False) for side, stream in enumerate((left, right))]
    for key, group in groupby(heapq.merge(*numbered, key=lambda item: item[1][0]), key=lambda item: item[1][0]):
        sides: tuple[Rows, Rows] = [], []
        for side, (_, rows) in group:
            sides[side].extend(rows)
        yield key[1], *sides
