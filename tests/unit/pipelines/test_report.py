"""The report job on complete and damaged results of other jobs."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lookalike.errors import InputError
from pipelines.report import ReportConfig, report


@pytest.fixture
def generation(tmp_path: Path) -> Path:
    """A finished generation job's folder, as far as the report reads it."""
    folder = tmp_path / "images"
    folder.mkdir()
    model = {"name": "base", "version": "1", "bundle_uri": "file:///runs/toys/bundle"}
    (folder / "generations.json").write_text(json.dumps({"model": model, "images": [{}]}))
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)).save(buffer, "PNG")
    (folder / "contact_sheet.png").write_bytes(buffer.getvalue())
    return folder


def _report(folder: Path) -> str:
    out = folder.parent / "report.html"
    report(ReportConfig(out=str(out), generation=str(folder)))
    return out.read_text()


def test_page_shows_the_contact_sheet(generation: Path) -> None:
    assert "data:image/png;base64," in _report(generation)


@pytest.mark.parametrize("damage", [lambda d: b"", lambda d: d[: len(d) // 2], lambda d: b"[]", lambda d: b"GIF89a"])
def test_damaged_grid_is_an_error_that_names_it(generation: Path, damage) -> None:  # type: ignore[no-untyped-def]
    sheet = generation / "contact_sheet.png"
    sheet.write_bytes(damage(sheet.read_bytes()))
    with pytest.raises(InputError, match=r"not a readable image.*contact_sheet\.png"):
        _report(generation)


@pytest.mark.parametrize("content", ["", "[]", "null", "1e400", '{"model": 1}', "[" * 100_000, '{"a": "\udce9"}'])
def test_damaged_record_is_an_error_that_names_it(generation: Path, content: str) -> None:
    (generation / "generations.json").write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(InputError, match=r"generations\.json"):
        _report(generation)
