"""Grids of small plots: means with their intervals over settings, as PNG."""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lookalike.report.curves import INK, LINE, QUIET, RIGHT, WRONG

Interval = Sequence[float]
"""Mean, lower and upper end."""

_COLOURS = (RIGHT, WRONG, "#4a8f5c", "#7a5ba8")
_WIDTH, _HEIGHT, _DPI = 3.6, 2.5, 110  # of a plot, inches
_APART = 0.12  # between the series of a setting, of the distance of two settings


@dataclass(frozen=True)
class Panel:
    """One plot."""

    title: str
    settings: Sequence[str]
    """Labels of the horizontal axis, from left to right."""
    series: Mapping[str, Sequence[Interval]]
    """Name → an interval for each setting; up to four."""
    label: str = ""
    """Of the horizontal axis."""
    levels: Mapping[str, float] = field(default_factory=dict)
    """Horizontal lines, by their names."""


def draw_panels(rows: Sequence[Sequence[Panel]], title: str = "") -> bytes:
    """Draw a grid of plots and return it as PNG. Equal input gives equal bytes.

    The plots of a row share their vertical axis, and the legend of the first one.
    """
    from matplotlib.figure import Figure

    columns = max(map(len, rows))
    figure = Figure(figsize=(_WIDTH * columns, _HEIGHT * len(rows) + 0.4), dpi=_DPI, facecolor="white")
    grid = figure.subplots(len(rows), columns, squeeze=False, sharey="row")
    for axes_of_row, panels in zip(grid, rows, strict=True):
        for axes in axes_of_row[len(panels) :]:
            axes.set_visible(False)
        for axes, panel in zip(axes_of_row, panels, strict=False):
            _draw(axes, panel)
        if len(panels[0].series) > 1:
            axes_of_row[0].legend(fontsize=7, frameon=False, labelcolor=QUIET)
    if title:
        figure.suptitle(title, fontsize=10, color=INK, x=0.01, ha="left")
    figure.tight_layout()
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def _draw(axes: Any, panel: Panel) -> None:
    places = range(len(panel.settings))
    for name, level in panel.levels.items():
        axes.axhline(level, color=QUIET, linewidth=0.9, linestyle=(0, (3, 3)))
        axes.annotate(name, (0, level), xytext=(0, 3), textcoords="offset points", fontsize=7, color=QUIET)
    for number, (name, intervals) in enumerate(panel.series.items()):
        shift = _APART * (number - (len(panel.series) - 1) / 2)
        means = [each[0] for each in intervals]
        errors = [[each[0] - each[1] for each in intervals], [each[2] - each[0] for each in intervals]]
        axes.errorbar(
            [place + shift for place in places],
            means,
            yerr=errors,
            color=_COLOURS[number],
            linewidth=1.4,
            elinewidth=0.9,
            marker="o",
            markersize=3.5,
            capsize=2,
            label=name,
        )
    axes.set_xticks(list(places), panel.settings)
    axes.set_title(panel.title, loc="left", fontsize=9, color=INK)
    axes.set_xlabel(panel.label, fontsize=8, color=QUIET)
    axes.tick_params(colors=QUIET, labelsize=7.5, length=0, labelleft=True)
    axes.grid(axis="y", color=LINE, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.margins(x=0.08, y=0.15)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(LINE)
