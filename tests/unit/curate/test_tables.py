from pathlib import Path

import numpy as np
import pyarrow as pa

from lookalike.storage import ObjectInfo, Store, open_store
from pipelines.curate.tables import read_footer, read_part, read_table, vectors_array, vectors_of, write_table


class Counting:
    """A store that counts the bytes that are read by range."""

    def __init__(self, store: Store) -> None:
        self._store, self.bytes = store, 0

    def uri_of(self, key: str) -> str:
        return self._store.uri_of(key)

    def read_range(self, key: str, offset: int, length: int) -> bytes:
        self.bytes += length
        return self._store.read_range(key, offset, length)


def written(folder: Path, rows: int = 200_000, dim: int = 16) -> tuple[Store, ObjectInfo, pa.Table]:
    random = np.random.default_rng(0)
    vectors = random.normal(size=(rows, dim)).astype(np.float16)
    table = pa.table({"subject_hash": np.sort(random.integers(0, 1 << 62, rows)), "vector": vectors_array(vectors)})
    store = open_store(str(folder))
    write_table(store, "table.parquet", table)
    return store, next(iter(store.list())), table


def test_only_the_row_groups_of_a_span_are_read(tmp_path: Path) -> None:
    store, info, table = written(tmp_path)
    counting = Counting(store)
    span = (1 << 60, (1 << 60) + (1 << 57))  # 1 of 32
    rows = read_part(counting, info, span)  # type: ignore[arg-type]
    hashes = table["subject_hash"].to_numpy()
    assert rows.equals(table.filter(pa.array((hashes >= span[0]) & (hashes < span[1]))))
    assert 4_000 < len(rows) < 9_000
    assert counting.bytes < info.size / 5
    assert read_table(store, info.key, span).equals(rows)


def test_rows_are_counted_by_the_footer(tmp_path: Path) -> None:
    store, info, _ = written(tmp_path)
    counting = Counting(store)
    assert read_footer(counting, info)[0] == 200_000  # type: ignore[arg-type]
    assert counting.bytes < info.size / 10


def test_vectors_are_read_with_unit_norm(tmp_path: Path) -> None:
    vectors = np.random.default_rng(0).normal(size=(5, 8)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    column = pa.chunked_array([vectors_array(vectors[:2]), vectors_array(vectors[2:])])
    back = vectors_of(column)
    np.testing.assert_allclose(back, vectors, atol=1e-3)
    np.testing.assert_allclose(np.linalg.norm(back, axis=1), 1, atol=1e-6)
