"""Each registered metric is documented: formula, source, range, model, and what it cannot see."""

import re
import sys
from pathlib import Path

import pytest

from lookalike.evaluation import metrics

README = Path(metrics.__file__).with_name("README.md")
COLUMNS = ("formula", "source", "range, better", "model", "cannot see")


def documented(text: str) -> dict[str, dict[str, str]]:
    """Name -> column -> cell, of the table of metrics."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    head = next(number for number, line in enumerate(lines) if line.startswith("| name | formula"))
    columns = [cell.strip() for cell in lines[head].strip("|").split("|")]
    found: dict[str, dict[str, str]] = {}
    for line in lines[head + 2 :]:
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) != len(columns):
            break
        for name in re.findall(r"`(\w+)`", cells[0]):
            found[name] = dict(zip(columns, cells, strict=True))
    return found


def incomplete(text: str) -> list[str]:
    table = documented(text)
    return [
        f"{name}: {column}"
        for name in metrics.LABELS
        for column in COLUMNS
        if len(re.sub(r"\W", "", table.get(name, {}).get(column, ""))) < 3
    ]


def test_readme_says_the_five_things_of_each_metric_and_names_no_other() -> None:
    text = README.read_text()
    assert incomplete(text) == []
    assert set(documented(text)) == set(metrics.LABELS)


@pytest.mark.parametrize("column", range(1, 6))
def test_a_metric_without_one_of_the_five_is_found(column: int) -> None:
    """The check itself: an empty cell in the row of ``safety``."""
    lines = README.read_text().splitlines()
    at = next(number for number, line in enumerate(lines) if line.startswith("| `safety`"))
    cells = lines[at].strip("|").split("|")
    cells[column] = " - "
    lines[at] = f"|{'|'.join(cells)}|"
    assert incomplete("\n".join(lines)) == [f"safety: {COLUMNS[column - 1]}"]


@pytest.mark.parametrize("kind", [*metrics.METRICS, *metrics.SET_METRICS])
def test_docstring_of_each_file_says_them_too(kind: type) -> None:
    text = (sys.modules[kind.__module__].__doc__ or "").casefold()
    assert [word for word in ("formula", "source", "range", "model", "cannot see") if word not in text] == []
    assert all(f"``{name}``" in text for name in kind.labels)  # type: ignore[attr-defined]
