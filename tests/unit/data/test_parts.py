"""Tables in parts: rows by number and by span, in bounded memory, each byte checked."""

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lookalike.data import parts
from lookalike.data.parts import GROUP_ROWS, PartedTable, open_table, write_list, write_part
from lookalike.errors import InputError
from lookalike.storage import Store, open_store

ROWS = 5 * GROUP_ROWS + 100
SCHEMA = pa.schema([("subject_hash", pa.int64()), ("text", pa.string())])


@pytest.fixture
def version(tmp_path: Path) -> Store:
    """A version with an image table of three parts, whose second one has no whole row group."""
    store = open_store(str(tmp_path / "v0001"))
    whole = pa.table({"subject_hash": np.arange(ROWS) // 3, "text": [f"row {i}" for i in range(ROWS)]}, SCHEMA)
    cuts = [0, 3 * GROUP_ROWS, 3 * GROUP_ROWS + 40, ROWS]
    written = [
        write_part(store, f"images/part-{i:05d}.parquet", whole.slice(a, b - a))
        for i, (a, b) in enumerate(pairwise(cuts))
    ]
    lists = [write_list(store, "images", 0, written[:2]), write_list(store, "images", 1, written[2:])]
    tables = {"images": {"rows": ROWS, "lists": [each["name"] for each in lists]}, "train": {"rows": 0, "lists": []}}
    files = {each["name"]: each["sha256"] for each in lists}
    store.write("manifest.json", json.dumps({"format": 2, "tables": tables, "files": files}).encode())
    return store


def test_rows_are_taken_by_number_in_the_given_order(version: Store) -> None:
    table = open_table(version, "images", SCHEMA)
    assert len(table) == ROWS
    indices = np.random.default_rng(0).integers(0, ROWS, 3000)
    for some in (indices, indices[:1], np.array([0, ROWS - 1, 3 * GROUP_ROWS, 3 * GROUP_ROWS + 39, 0])):
        rows = table.take(some)
        assert rows.schema == SCHEMA
        assert rows["text"].to_pylist() == [f"row {i}" for i in some]
    with pytest.raises(IndexError):
        table.take(np.array([ROWS]))
    assert len(table.take(np.array([], np.int64))) == 0


def test_parts_are_plain_parquet(version: Store, tmp_path: Path) -> None:
    plain = pq.read_table(tmp_path / "v0001" / "images")
    assert plain == pa.concat_tables(open_table(version, "images", SCHEMA).parts())
    assert len(plain) == ROWS


def test_a_span_reads_its_row_groups_only(version: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    table = open_table(version, "images", SCHEMA)
    read = []
    group = PartedTable._group
    monkeypatch.setattr(PartedTable, "_group", lambda self, *at: read.append(at) or group(self, *at))
    span = (GROUP_ROWS // 3 + 10, GROUP_ROWS // 3 + 20)
    assert table.read_span(span)["subject_hash"].to_pylist() == [h for h in range(*span) for _ in range(3)]
    assert read == [(0, 1)]
    assert len(table.read_span((ROWS, ROWS + 5))) == 0
    assert len(table.read_span((0, ROWS), ["text"])) == ROWS


def test_a_row_costs_two_requests_and_a_cached_one_none(version: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    requests: list[tuple[int, int]] = []
    read_range = type(version).read_range

    def counting(self: Store, key: str, offset: int, length: int) -> bytes:
        requests.append((offset, length))
        return read_range(self, key, offset, length)

    monkeypatch.setattr(type(version), "read_range", counting)
    table = open_table(version, "images", SCHEMA)
    table.take(np.array([5]))
    assert len(requests) == 2  # the footer and the row group
    table.take(np.array([6, 7]))
    assert len(requests) == 2
    table.take(np.array([GROUP_ROWS]))
    assert len(requests) == 3


def test_memory_is_bounded(version: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "_CACHE_BYTES", 60_000)
    monkeypatch.setattr(parts, "_FOOTERS", 1)
    table = open_table(version, "images", SCHEMA)
    for index in np.random.default_rng(1).integers(0, ROWS, 200):
        assert table.take(np.array([index]))["text"][0].as_py() == f"row {index}"
        assert sum(group.nbytes for group in table._cache.values()) == table._cached <= 60_000
        assert len(table._footers) == 1


@pytest.mark.parametrize("where", ["group", "footer"])
def test_a_changed_byte_is_an_error_that_names_the_part(version: Store, where: str) -> None:
    name = "images/part-00000.parquet"
    data = bytearray(version.read(name))
    data[100 if where == "group" else len(data) - 20] ^= 1
    version.write(name, bytes(data))
    table = open_table(version, "images", SCHEMA)
    with pytest.raises(InputError, match=r"has changed: its hash is not the one in its list .*part-00000\.parquet"):
        table.take(np.array([3]))
    with pytest.raises(InputError, match="has changed"):
        list(table.parts())
    assert table.take(np.array([ROWS - 1]))["text"][0].as_py() == f"row {ROWS - 1}"


def test_an_earlier_format_is_refused_with_the_command(version: Store) -> None:
    version.write("manifest.json", json.dumps({"files": {}}).encode())
    with pytest.raises(InputError, match=r"format 1, and .* reads format 2 .*jobs/curate\.py run"):
        open_table(version, "images", SCHEMA)


def test_a_table_without_rows_is_an_error(version: Store) -> None:
    with pytest.raises(InputError, match="no train rows"):
        open_table(version, "train", SCHEMA)
