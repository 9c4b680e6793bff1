"""The results of human preference as Markdown, which also reads well in a terminal."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any


def to_text(result: Mapping[str, Any]) -> str:
    """Render the content of ``preference.json``."""
    return "\n".join(_lines(result))


def _lines(result: Mapping[str, Any]) -> Iterator[str]:
    models = [[name, str(model["bundle"])] for name, model in sorted(result["models"].items())]
    yield from ["# Human preference", "", *_table(["model", "bundle"], models)]
    for criterion, found in result["criteria"].items():
        yield from ["", f"## {criterion}", "", *_criterion(found)]
    yield from ["", "## Judges", "", *_judges(result["judges"], result["method"])]
    if result["left_out"]:
        rows = [[row["file"], row["reason"]] for row in result["left_out"]]
        yield from ["", "## Files that are left out", "", *_table(["file", "reason"], rows)]


def _criterion(found: Mapping[str, Any]) -> Iterator[str]:
    yield (
        f"{found['votes']} votes of {found['judges']} judges on {found['pairs']} pairs of {found['subjects']}"
        " subjects. Intervals (95 %) are over subjects and judges; a tie counts half."
    )
    rates = [
        [
            f"{rate['model']} over {rate['against']}",
            *(str(rate[name]) for name in ("wins", "ties", "losses")),
            _interval(rate["share"], rate["low"], rate["high"]),
            f"{rate['wilson_low']:.3f} to {rate['wilson_high']:.3f}",
        ]
        for rate in found["win_rates"]
    ]
    head = ["preferred", "wins", "ties", "losses", "share", "if votes were independent (Wilson)"]
    yield from ["", *_table(head, rates)]
    if found["strengths"]:
        rows = [[s["model"], _interval(s["strength"], s["low"], s["high"])] for s in found["strengths"]]
        yield from ["", *_table(["model", "Bradley-Terry strength (logits, mean 0)"], rows)]
    alpha = "undefined (one judge, or equal choices)" if found["alpha"] is None else f"{found['alpha']:.3f}"
    yield from ["", f"Agreement of the judges, Krippendorff's alpha: {alpha}."]
    if found["metrics"]:
        rows = [
            [
                metric["metric"],
                _interval(metric["share"]["mean"], metric["share"]["low"], metric["share"]["high"]),
                str(metric["share"]["n"]),
                "–" if metric["tau"] is None else f"{metric['tau']:.3f}",
            ]
            for metric in found["metrics"]
        ]
        yield from ["", *_table(["metric", "agrees with most judges", "pairs", "Kendall's tau"], rows)]


def _judges(judges: Sequence[Mapping[str, Any]], method: Mapping[str, Any]) -> Iterator[str]:
    yield (
        f"A judge counts with at least {method['min_right']:.0%} of the attention checks right and"
        f" {method['min_consistent']:.0%} of the repeated pairs consistent."
    )
    rows = [
        [
            judge["judge"],
            str(judge["choices"]),
            f"{judge['checks_right']} of {judge['checks']}",
            f"{judge['repeats_consistent']} of {judge['repeats']}",
            "–" if judge["left_share"] is None else f"{judge['left_share']:.2f}",
            f"{judge['median_s']:.1f}",
            "counts" if judge["kept"] else judge["reason"],
        ]
        for judge in judges
    ]
    head = ["judge", "choices", "checks right", "consistent", "left", "median s", "counts"]
    yield from ["", *_table(head, rows)]


def _interval(value: float, low: float, high: float) -> str:
    return f"{value:.3f} ({low:.3f} to {high:.3f})"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """A Markdown table with columns of equal width."""
    cells = [[_cell(value) for value in row] for row in (head, *rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(head))]
    for number, row in enumerate(cells):
        yield "| " + " | ".join(value.ljust(width) for value, width in zip(row, widths, strict=True)) + " |"
        if number == 0:
            yield "|" + "|".join("-" * (width + 2) for width in widths) + "|"


def _cell(value: str) -> str:
    """A text on one line, without marks that end a cell."""
    return " ".join(value.split()).replace("|", "\\|")
