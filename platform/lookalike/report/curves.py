"""Plots of a training run as SVG; text stays text, in the font of the page."""

import io
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

import numpy as np

INK, QUIET, LINE = "#1c1e21", "#8a8f96", "#e3e5e8"
RIGHT, WRONG = "#2f6db5", "#d1622b"  # distinguishable with colour blindness

Record = Mapping[str, Any]


def loss_curve(records: Sequence[Record]) -> str:
    """Plot the training loss by step, raw and smoothed, with the boundaries of the phases."""
    points = [record for record in records if "loss" in record]
    steps = np.array([record["step"] for record in points])
    losses = np.array([record["loss"] for record in points])
    figure, axes = _axes("training loss")
    axes.plot(steps, losses, color=RIGHT, alpha=0.25, linewidth=0.8)
    for phase, part in _phases(points):
        chosen = np.isin(steps, [record["step"] for record in part])
        axes.plot(steps[chosen], smooth(losses[chosen]), color=RIGHT, linewidth=1.8)
        _mark_phase(axes, part[0]["step"], phase, first=part[0]["step"] == steps[0])
    low, high = losses.min(), np.quantile(losses, 0.995)
    axes.set_ylim(max(0, low - 0.1 * (high - low)), high + 0.15 * (high - low) + 1e-9)
    return _svg(figure)


def held_out_curve(records: Sequence[Record]) -> str:
    """Plot the held-out loss by step, with the samples' own conditions and with another subject's."""
    points = [record for record in records if "validation" in record]
    figure, axes = _axes("held-out loss")
    names = {"loss_right": ("own conditions", RIGHT), "loss_shuffled": ("another subject's", WRONG)}
    for _, part in _phases(points):
        steps = [record["step"] + 1 for record in part]
        for name, (_, colour) in names.items():
            values = [record["validation"][name] for record in part]
            axes.plot(steps, values, color=colour, linewidth=1.8, marker="o", markersize=3)
    for phase, part in _phases([record for record in records if "loss" in record])[1:]:
        _mark_phase(axes, part[0]["step"], phase, first=False)
    for (label, colour), place in zip(names.values(), (0.66, 1.0), strict=True):
        _label(axes, label, place, colour)
    axes.margins(x=0.03, y=0.2)
    return _svg(figure)


def layer_curve(weights: Mapping[str, Sequence[float]]) -> str:
    """Plot the learned weight of each layer of the MLLM by branch of the aggregator; layer 0 is the embedding."""
    figure, axes = _axes("weight of each layer, by token", "layer of the multimodal model")
    axes.axhline(0, color=QUIET, linewidth=0.8)
    for place, (name, colour) in enumerate(zip(weights, (RIGHT, WRONG), strict=False)):
        axes.plot(range(len(weights[name])), weights[name], color=colour, linewidth=1.8, marker="o", markersize=3)
        _label(axes, name, 0.8 + 0.2 * place, colour)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.margins(x=0.03, y=0.2)
    return _svg(figure)


def smooth(values: np.ndarray, share: float = 0.08) -> np.ndarray:
    """Compute a centred mean over about ``share`` of the points; the window shrinks at the ends."""
    half = max(1, round(len(values) * share / 2))
    sums = np.concatenate([[0.0], np.cumsum(values)])
    index = np.arange(len(values))
    low, high = np.maximum(0, index - half), np.minimum(len(values), index + half + 1)
    return np.asarray((sums[high] - sums[low]) / (high - low))


def _phases(points: Sequence[Record]) -> list[tuple[str, list[Record]]]:
    return [(phase, list(part)) for phase, part in groupby(points, key=lambda record: str(record["stage"]))]


def _label(axes: Any, text: str, place: float, colour: str) -> None:
    """Write a legend entry above the plot; it ends at ``place``, a fraction of the width."""
    offset = (0, 7)
    axes.annotate(
        text, (place, 1), xycoords="axes fraction", xytext=offset, textcoords="offset points", ha="right", color=colour
    )


def _mark_phase(axes: Any, step: float, name: str, *, first: bool) -> None:
    if not first:
        axes.axvline(step, color=QUIET, linewidth=0.8, linestyle=(0, (3, 3)))
    left, right = axes.get_xlim()
    late = step > left + 0.7 * (right - left)  # then the name is left of its line, inside the plot
    axes.annotate(
        name,
        (step, 1),
        xycoords=("data", "axes fraction"),
        xytext=(-4 if late else 4, -10),
        textcoords="offset points",
        ha="right" if late else "left",
        color=QUIET,
        fontsize=9,
    )


def _axes(label: str, below: str = "step") -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.6, 2.9))
    axes = figure.add_subplot()
    axes.set_title(label, loc="left", fontsize=10, color=INK)
    axes.set_xlabel(below, fontsize=9, color=QUIET)
    axes.tick_params(colors=QUIET, labelsize=9, length=0)
    axes.grid(axis="y", color=LINE, linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(LINE)
    return figure, axes


def _svg(figure: Any) -> str:
    import matplotlib

    buffer = io.StringIO()
    settings = {"svg.fonttype": "none", "font.family": "sans-serif", "svg.hashsalt": "lookalike"}
    with matplotlib.rc_context(settings):
        figure.tight_layout()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]  # without the XML prologue, for HTML
