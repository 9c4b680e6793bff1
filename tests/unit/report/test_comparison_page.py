import re
from dataclasses import replace

import numpy as np
import pytest

from lookalike.data.images import encode_png
from lookalike.errors import InputError
from lookalike.evaluation.comparison import compare
from lookalike.evaluation.measurements import Measurement
from lookalike.report.comparison import ComparisonPage, render_comparison
from lookalike.report.examples import Examples, example_of, pixels_of
from tests.unit.evaluation.test_comparison import SUBJECTS, _rows, evaluated
from tests.unit.report.test_page import _Audit

GRID = encode_png(np.full((40, 80, 3), 128, np.uint8))


def _page(shift: float = 0.01, grid: bytes | None = GRID, name: str = "b <script>") -> ComparisonPage:
    more = [Measurement(f"{s}-0", s, "mllm_only/identity", 0.3) for s in SUBJECTS]
    both = [evaluated("a", [*_rows(0.0), *more]), evaluated(name, [*_rows(shift), *more])]
    return ComparisonPage(compare(both), tuple(each.scores for each in both), grid, "0.1.0")


def test_page_is_valid_html_and_loads_no_other_files() -> None:
    html = render_comparison(_page())
    audit = _Audit()
    audit.feed(html)
    assert audit.open == []
    assert all(source.startswith(("data:", "#")) for source in audit.sources)
    assert not re.search(r"@import|<script|url\((?!#)", html)
    assert "b &lt;script&gt;" in html


def test_equal_inputs_give_equal_bytes() -> None:
    assert render_comparison(_page()) == render_comparison(_page())


def test_page_shows_values_differences_positions_and_power() -> None:
    html = render_comparison(_page())
    assert "+0.010" in html
    assert 'class="difference clear"' in html
    assert "position of identity" in html
    assert "MLLM only" in html
    for section in ("images", "positions", "metrics", "power", "judge"):
        assert f'id="{section}"' in html
    assert "ceiling" in html
    assert "an embedder" in html
    assert "nan" not in re.sub(r"base64,[^\"]*", "", html)


def test_model_above_the_ceiling_is_marked() -> None:
    assert 'class="bar above"' not in render_comparison(_page())
    assert 'class="bar above"' in render_comparison(_page(shift=0.6))


def test_undefined_position_is_said_and_page_without_images_renders() -> None:
    same = [replace(row, value=0.5) if "/" in row.metric else row for row in _rows(0.0)]  # floor = ceiling
    both = [evaluated(name, same) for name in "ab"]
    page = ComparisonPage(compare(both), tuple(each.scores for each in both), None, "0.1.0")
    html = render_comparison(page)
    assert "undefined" in html
    assert 'id="positions"' not in html
    assert 'id="images"' not in html


def test_difference_that_is_not_finite_is_undefined() -> None:
    both = [
        evaluated(n, [*_rows(0.0), Measurement("s00-0", "s00", "clip_i", v)]) for n, v in (("a", 0.5), ("b", np.nan))
    ]
    page = ComparisonPage(compare(both), tuple(each.scores for each in both), None, "0.1.0")
    html = render_comparison(page)
    assert "undefined" in html
    assert not re.search(r"\bnan\b", html)


def test_examples_round_trip_as_thumbnails() -> None:
    photo = np.random.default_rng(0).integers(0, 256, (600, 300, 3), np.uint8)
    small = np.full((8, 8, 3), 7, np.uint8)
    example = example_of("case", "subject", "a prompt", "images/preset/case.png", [photo, small] * 3, None)
    document = Examples([example])
    assert Examples.from_json(document.to_json(), "here") == document
    assert len(example.references) == 4
    assert pixels_of(example.references[0], "here").shape == (168, 84, 3)
    assert np.array_equal(pixels_of(example.references[1], "here"), small)
    assert example.photo == ""


@pytest.mark.parametrize("data", [b"", b"[]", b'{"examples": [{"case": "c"}]}', b'{"examples": 3}'])
def test_damaged_examples_are_named(data: bytes) -> None:
    with pytest.raises(InputError, match="here"):
        Examples.from_json(data, "here")


@pytest.mark.parametrize("thumbnail", ["", "!!!", "aGVsbG8=", "é"])
def test_damaged_thumbnail_is_named(thumbnail: str) -> None:
    with pytest.raises(InputError, match="thumbnail") as error:
        pixels_of(thumbnail, "here")
    assert error.value.value == "here"
