"""Tables in parts: rows by number and by span, in bounded memory, each byte checked."""

import dataclasses
import io
import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lookalike.data import parts
from lookalike.data.part_lists import GROUP_ROWS, Part, write_list
from lookalike.data.parts import PartedTable, open_table, write_part
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
    with pytest.raises(InputError, match="no train triplets"):
        open_table(version, "train", SCHEMA)


def written(store: Store, tables: list[pa.Table], change: Callable[[Part], Part] = lambda part: part) -> Store:
    """Publish the tables as the parts of an image table, with the rows that ``change`` makes of those of its list."""
    parts = [change(write_part(store, f"images/part-{i:05d}.parquet", table)) for i, table in enumerate(tables)]
    entry = write_list(store, "images", 0, parts)
    described = {"images": {"rows": sum(part.rows for part in parts), "lists": [entry["name"]]}}
    manifest = {"format": 2, "tables": described, "files": {entry["name"]: entry["sha256"]}}
    store.write("manifest.json", json.dumps(manifest).encode())
    return store


def test_empty_parts_and_hashes_of_62_bits_are_found(tmp_path: Path) -> None:
    """A null among the bounds must not turn the others into floats, which have 53 bits."""
    high = (1 << 62) - 1
    rows = [
        pa.table({"subject_hash": hashes, "text": ["x"] * len(hashes)}, SCHEMA)
        for hashes in ([], [0], [], [high - 1], [high], [])
    ]
    table = open_table(written(open_store(str(tmp_path)), rows), "images", SCHEMA)
    assert len(table) == 3
    assert table.take(np.array([2, 0]))["subject_hash"].to_pylist() == [high, 0]
    assert table.read_span((high, high + 1))["subject_hash"].to_pylist() == [high]
    assert table.read_span((0, high))["subject_hash"].to_pylist() == [0, high - 1]
    assert [len(part) for part in table.parts()] == [0, 1, 0, 1, 1, 0]


def test_a_span_of_a_table_without_bounds_is_searched(tmp_path: Path) -> None:
    rows = [pa.table({"subject_hash": [3, 4], "text": ["a", "b"]}, SCHEMA)]
    unknown = written(open_store(str(tmp_path)), rows, lambda part: dataclasses.replace(part, first_hash=None))
    assert open_table(unknown, "images", SCHEMA).read_span((4, 5))["text"].to_pylist() == ["b"]


def test_a_part_has_equal_bytes_whatever_its_chunks(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    whole = pa.table({"subject_hash": np.arange(3000), "text": ["long text" * 50] * 3000}, SCHEMA)
    pieces = pa.concat_tables([whole.slice(0, 7), whole.slice(7, 1500), whole.slice(1507)])
    assert write_part(store, "a.parquet", whole).sha256 == write_part(store, "b.parquet", pieces).sha256


def test_rows_of_many_groups_are_not_in_memory_together(version: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    taken = []
    group = PartedTable._decoded

    class Group:
        def __init__(self, table: pa.Table) -> None:
            self.table = table

        def take(self, rows: pa.Array) -> pa.Table:
            taken.append(len(rows))
            return self.table.take(rows)

    monkeypatch.setattr(PartedTable, "_decoded", lambda self, *at: Group(group(self, *at)))
    wanted = np.array([GROUP_ROWS, 1, GROUP_ROWS, 0, ROWS - 1])
    rows = open_table(version, "images", SCHEMA).take(wanted)
    assert rows["text"].to_pylist() == [f"row {i}" for i in wanted]
    assert sorted(taken) == [1, 2, 2]  # rows are copied out of each group, and the group can go


DAMAGED_LISTS: dict[str, Callable[[Part], Part]] = {
    "a part of 2^50 bytes": lambda part: dataclasses.replace(part, size=1 << 50),
    "no bytes": lambda part: dataclasses.replace(part, size=0),
    "2^62 rows": lambda part: dataclasses.replace(part, rows=1 << 62),
    "-1 rows": lambda part: dataclasses.replace(part, rows=-1),
    "fewer groups": lambda part: dataclasses.replace(part, group_ends=part.group_ends[:-1]),
    "fewer hashes": lambda part: dataclasses.replace(part, group_sha256s=part.group_sha256s[:-1]),
    "an end beyond the part": lambda part: dataclasses.replace(part, group_ends=(*part.group_ends[:-1], part.size + 1)),
    "ends that descend": lambda part: dataclasses.replace(part, group_ends=part.group_ends[::-1]),
    "a negative end": lambda part: dataclasses.replace(part, group_ends=(-5, *part.group_ends[1:])),
    "no name": lambda part: dataclasses.replace(part, name=None),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("damage", DAMAGED_LISTS)
def test_a_list_that_describes_no_parts_is_an_error_that_names_it(damage: str, tmp_path: Path) -> None:
    rows = pa.table({"subject_hash": np.arange(2 * GROUP_ROWS), "text": ["x"] * 2 * GROUP_ROWS}, SCHEMA)
    store = written(open_store(str(tmp_path)), [rows], DAMAGED_LISTS[damage])
    with pytest.raises(InputError, match=r"lists/images-00000\.parquet"):
        open_table(store, "images", SCHEMA)


def test_another_table_for_a_list_is_an_error_that_names_it(tmp_path: Path) -> None:
    store = written(open_store(str(tmp_path)), [pa.table({"subject_hash": [1], "text": ["x"]}, SCHEMA)])
    buffer = io.BytesIO()
    pq.write_table(pa.table({"name": ["x"]}), buffer)
    store.write("lists/images-00000.parquet", buffer.getvalue())
    manifest = json.loads(store.read("manifest.json"))
    del manifest["files"]
    store.write("manifest.json", json.dumps(manifest).encode())
    with pytest.raises(InputError, match=r"lists/images-00000\.parquet"):
        open_table(store, "images", SCHEMA)


def test_a_manifest_whose_rows_are_not_those_of_its_lists_is_an_error(version: Store) -> None:
    manifest = json.loads(version.read("manifest.json"))
    manifest["tables"]["images"]["rows"] += 1
    version.write("manifest.json", json.dumps(manifest).encode())
    with pytest.raises(InputError, match="have 5220 rows, and the manifest says 5221"):
        open_table(version, "images", SCHEMA)
    version.write("manifest.json", json.dumps({"format": 2, "tables": []}).encode())
    with pytest.raises(InputError, match="not the manifest of a snapshot with tables"):
        open_table(version, "images", SCHEMA)


def test_a_part_without_a_column_is_an_error_and_not_a_column_of_nulls(version: Store) -> None:
    table = open_table(version, "images", pa.schema([*SCHEMA, ("more", pa.int64())]))
    with pytest.raises(InputError, match="more"):
        next(table.parts())
    with pytest.raises(InputError, match="more"):
        table.take(np.array([0]))
