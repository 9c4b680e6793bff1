"""The external shuffle: exact order, whatever the grouping and the levels, and nothing done twice."""

import random
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lookalike.data.shuffle import KEY_BITS, Shuffle
from lookalike.errors import InputError
from lookalike.storage import open_store

SCHEMA = pa.schema([("place", pa.int64()), ("input", pa.int64()), ("position", pa.int64()), ("text", pa.string())])


def inputs(sizes: list[int], distinct: int, seed: int = 0) -> list[pa.Table]:
    rng = np.random.default_rng(seed)
    keys = rng.integers(0, 1 << KEY_BITS, max(1, distinct))
    tables = []
    for number, size in enumerate(sizes):
        place = rng.choice(keys, size)
        rows = {
            "place": place,
            "input": [number] * size,
            "position": list(range(size)),
            "text": [str(p) for p in place],
        }
        tables.append(pa.table(rows, SCHEMA))
    return tables


def run(shuffle: Shuffle, tables: list[pa.Table], order: random.Random | None = None) -> pa.Table:
    """All levels, each one's units in a random order; the final ranges in theirs."""
    per_unit = -(-len(tables) // shuffle.width)
    for level in range(1, len(shuffle.bits) + 1):
        units = list(range(shuffle.units(level)))
        (order or random).shuffle(units)
        for unit in units:
            if level == 1:
                own = tables[unit * per_unit : (unit + 1) * per_unit]
                shuffle.write(unit, pa.concat_tables(own) if own else SCHEMA.empty_table())
            else:
                shuffle.merge(level, unit)
        for parent in range(shuffle.indices(level)):
            shuffle.write_index(level, parent)
    return pa.concat_tables([shuffle.read(partition) for partition in range(shuffle.partitions)])


def expected(tables: list[pa.Table]) -> pa.Table:
    return pa.concat_tables(tables).sort_by([(name, "ascending") for name in ("place", "input", "position")])


@settings(deadline=None)
@given(
    sizes=st.lists(st.integers(0, 30), min_size=1, max_size=12),
    distinct=st.integers(1, 40),
    units=st.integers(1, 12),
    bits=st.lists(st.integers(0, 3), min_size=1, max_size=3),
    group=st.integers(1, 5),
)
def test_rows_are_ordered_by_key_input_and_position(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int], distinct: int, units: int, bits: list[int], group: int
) -> None:
    store = open_store(str(tmp_path_factory.mktemp("shuffle")))
    tables = inputs(sizes, distinct)
    shuffle = Shuffle(store, "work/shuffle", SCHEMA, "place", min(units, len(sizes)), tuple(bits), group)
    assert run(shuffle, tables).equals(expected(tables))


def test_each_range_holds_its_keys_only(tmp_path: Path) -> None:
    tables = inputs([50] * 4, 100)
    shuffle = Shuffle(open_store(str(tmp_path)), "s", SCHEMA, "place", 4, (2, 1), 2)
    run(shuffle, tables)
    for partition in range(shuffle.partitions):
        low, high = shuffle.span(partition)
        keys = shuffle.read(partition)["place"].to_numpy()
        assert ((keys >= low) & (keys < high)).all()


def test_finished_units_are_not_merged_again(tmp_path: Path) -> None:
    tables = inputs([20] * 6, 30)
    shuffle = Shuffle(open_store(str(tmp_path)), "s", SCHEMA, "place", 6, (2, 2), 3)
    first = run(shuffle, tables)
    times = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    for unit in range(shuffle.units(2)):
        shuffle.merge(2, unit)
    assert times == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    assert first.equals(expected(tables))


def test_many_inputs_get_more_levels(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    assert Shuffle.for_size(store, "s", SCHEMA, "place", 10, 16).bits == (4,)
    assert Shuffle.for_size(store, "s", SCHEMA, "place", 2_000, 10_000).bits == (7, 7)
    assert Shuffle.for_size(store, "s", SCHEMA, "place", 5, 1).partitions == 1


def test_a_damaged_segment_is_named(tmp_path: Path) -> None:
    shuffle = Shuffle(open_store(str(tmp_path)), "s", SCHEMA, "place", 1, (0,))
    run(shuffle, inputs([20], 5))
    file = tmp_path / "s/level-1/00000000.arrow"
    file.write_bytes(b"\xff" * file.stat().st_size)
    with pytest.raises(InputError, match=r"00000000\.arrow"):
        shuffle.read(0)


@pytest.mark.parametrize("index", ["index-00000000", "00000000.segments"])
def test_every_damaged_byte_is_an_error_that_names_its_object(
    tmp_path: Path, index: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lookalike.data.shuffle._WITHOUT_INDEX", 0 if index.startswith("index") else 16)
    shuffle = Shuffle(open_store(str(tmp_path)), "s", SCHEMA, "place", 3, (2,))
    run(shuffle, inputs([9, 0, 4], 5))
    whole = [shuffle.read(partition) for partition in range(shuffle.partitions)]
    for name in (index, "00000000.arrow", "00000002.arrow"):
        file = tmp_path / "s/level-1" / name
        data = file.read_bytes()
        for at in range(len(data)):
            for bit in (0, 7):
                file.write_bytes(data[:at] + bytes([data[at] ^ 1 << bit]) + data[at + 1 :])
                errors = []
                for partition, rows in enumerate(whole):
                    try:
                        assert shuffle.read(partition).equals(rows)
                    except InputError as error:
                        errors.append(str(error))
                assert len(errors) == 1, (name, at)  # one segment has the byte, or is where the entry says
                assert "s/level-1/" in errors[0]
        file.write_bytes(data)


def test_segments_beyond_their_object_are_errors_that_reserve_no_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lookalike.data.shuffle._WITHOUT_INDEX", 0)
    shuffle = Shuffle(open_store(str(tmp_path)), "s", SCHEMA, "place", 1, (0,))
    run(shuffle, inputs([20], 5))
    index = tmp_path / "s/level-1/index-00000000"
    for start, stop in [(0, 1 << 60), (0, 1 << 36), (1 << 62, (1 << 62) + 1), (-9, 5), (7, 3), (-(1 << 63), 1)]:
        index.write_bytes(np.array([start, stop, 5], np.int64).tobytes())
        with pytest.raises(InputError):
            shuffle.read(0)
    index.write_bytes(b"")
    with pytest.raises(InputError, match="index-00000000"):
        shuffle.read(0)
    (tmp_path / "s/level-1/00000000.segments").write_bytes(b"short")
    index.unlink()
    with pytest.raises(InputError, match=r"00000000\.segments"):
        shuffle.write_index(1, 0)


def test_rows_of_another_schema_are_an_error(tmp_path: Path) -> None:
    """Segments have no schema: offsets of another column would be read as those of a text."""
    store = open_store(str(tmp_path))
    other = pa.schema([("place", pa.int64()), ("text", pa.int64()), ("input", pa.binary()), ("position", pa.int32())])
    rows = pa.table({"place": [1, 2], "text": [1 << 40, -1], "input": [b"\xff", b"\xfe"], "position": [1, 2]}, other)
    run_of_other = Shuffle(store, "s", other, "place", 1, (0,))
    run_of_other.write(0, rows)
    run_of_other.write_index(1, 0)
    mine = pa.schema([("place", pa.int64()), ("text", pa.string()), ("input", pa.string()), ("position", pa.int32())])
    with pytest.raises(InputError, match=r"00000000\.arrow"):
        Shuffle(store, "s", mine, "place", 1, (0,)).read(0)


def test_keys_at_the_ends_of_their_range_and_no_rows(tmp_path: Path) -> None:
    top = (1 << KEY_BITS) - 1
    rows = pa.table({"place": [top, 0, top], "input": [0] * 3, "position": [0, 1, 2], "text": ["a", "b", "c"]}, SCHEMA)
    for bits in ((0,), (10,), (3, 4), (0, 0)):
        shuffle = Shuffle(open_store(str(tmp_path / str(bits))), "s", SCHEMA, "place", 2, bits)
        assert run(shuffle, [rows, SCHEMA.empty_table()])["text"].to_pylist() == ["b", "a", "c"]
        assert shuffle.span(shuffle.partitions - 1)[1] == 1 << KEY_BITS
        empty = Shuffle(open_store(str(tmp_path / str(bits))), "none", SCHEMA, "place", 1, bits)
        assert len(run(empty, [SCHEMA.empty_table()])) == 0


def test_two_processes_may_write_the_same_unit(tmp_path: Path) -> None:
    """Their objects are equal, so that a reader may see those of either."""
    tables = inputs([30] * 2, 20)
    files = []
    for name in ("one", "two"):
        shuffle = Shuffle(open_store(str(tmp_path / name)), "s", SCHEMA, "place", 2, (3,))
        run(shuffle, [pa.concat_tables([table.slice(0, 11), table.slice(11)]) for table in tables])
        files.append({p.name: p.read_bytes() for p in (tmp_path / name).rglob("*") if p.is_file()})
    assert files[0] == files[1]
    for unit, table in enumerate(tables):  # in one chunk
        Shuffle(open_store(str(tmp_path / "one")), "s", SCHEMA, "place", 2, (3,)).write(unit, table)
    assert files[0] == {p.name: p.read_bytes() for p in (tmp_path / "one").rglob("*") if p.is_file()}
