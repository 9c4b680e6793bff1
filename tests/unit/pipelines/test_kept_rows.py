"""Rows and images that an evaluation keeps: only those of the same run are used again."""

from pathlib import Path

import numpy as np
import pytest

from lookalike.data.images import encode_png
from lookalike.evaluation.measurements import UNREADABLE, Measurement
from lookalike.storage import open_store
from pipelines.evaluate.kept import read_image, read_rows, remove_rows, write_image, write_rows

ROWS = [Measurement("a", "s", "identity", 0.1), Measurement("b", "s", UNREADABLE + "broken", float("nan"))]


def test_rows_are_read_as_they_were_kept(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    write_rows(store, "run", 3, "cases", ROWS)
    write_rows(store, "run", 4, "others", [])
    kept = dict(read_rows(store, "run", [(2, "none"), (3, "cases"), (4, "others")]))
    assert kept.keys() == {3, 4}
    assert kept[3].to_pylist()[0] == {"case": "a", "subject": "s", "metric": "identity", "value": 0.1}
    assert len(kept[4]) == 0
    remove_rows(store, [3])
    assert dict(read_rows(store, "run", [(3, "cases"), (4, "others")])).keys() == {4}
    remove_rows(store)
    assert not list(store.list())


@pytest.mark.parametrize(("run", "unit", "cases"), [("other", 3, "cases"), ("run", 4, "cases"), ("run", 3, "others")])
def test_rows_of_another_run_unit_or_cases_are_not_read(
    tmp_path: Path, run: str, unit: int, cases: str, caplog: pytest.LogCaptureFixture
) -> None:
    store = open_store(str(tmp_path))
    write_rows(store, "run", 3, "cases", ROWS)
    store.write(f"units/{unit:06d}.parquet", store.read("units/000003.parquet"))
    assert not list(read_rows(store, run, [(unit, cases)]))
    assert "is of another run, or was changed" in caplog.text


def test_changed_rows_are_not_read(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = open_store(str(tmp_path))
    write_rows(store, "run", 3, "cases", ROWS)
    data = store.read("units/000003.parquet")
    for damaged in (data[:-30], b"", data.replace(b"identity", b"Identity")):
        store.write("units/000003.parquet", damaged)
        assert not list(read_rows(store, "run", [(3, "cases")]))
    assert caplog.text.count("a unit is measured again") == 3


def test_an_image_is_read_if_this_run_made_it(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = open_store(str(tmp_path))
    image = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    write_image(store, "run", "images/a.png", image)
    assert np.array_equal(read_image(store, "run", "images/a.png"), image)  # type: ignore[arg-type]
    assert read_image(store, "other", "images/a.png") is None
    assert read_image(store, "run", "images/b.png") is None
    store.write("images/c.png", encode_png(image))
    assert read_image(store, "run", "images/c.png") is None
    store.write("images/a.png", store.read("images/a.png")[:-100])
    assert read_image(store, "run", "images/a.png") is None
    assert "is generated again" in caplog.text
