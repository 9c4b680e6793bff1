"""The page of a comparison: images, positions between floor and ceiling, metrics, paired differences, their power."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from lookalike.diffusion.schedule import SCHEDULE_TITLES
from lookalike.evaluation.comparison import STEPS, Comparison, Difference, Row
from lookalike.evaluation.estimates import Estimate
from lookalike.evaluation.measurements import POSITIONS, REAL
from lookalike.evaluation.metrics import LABELS
from lookalike.evaluation.scores import Scores
from lookalike.report.page import data_uri, environment

_LOSSES = {
    "loss_right": "held-out loss, own conditions (lower is better)",
    "loss_shuffled": "held-out loss, another subject's conditions",
    "loss_gap": "loss gap",
}
_REAL = {"ceiling": "ceiling", "floor": "floor", "hard_floor": "hard floor"}
_TRACK = (-0.25, 1.5)  # positions at the ends of the chart


@dataclass(frozen=True)
class Bar:
    """A position in the chart; ends are percentages of its width."""

    name: str
    """Name of the model."""
    estimate: Estimate
    left: float
    width: float
    dot: float
    above: bool
    """Whether the whole interval is above the ceiling."""


@dataclass(frozen=True)
class ComparisonPage:
    """Everything on the page."""

    comparison: Comparison
    scores: Sequence[Scores]
    grid: bytes | None
    """PNG; None if no images can be shown."""
    code_version: str

    @property
    def reference(self) -> str:
        """Name of the model that the others are compared with."""
        return self.comparison.names[self.comparison.against]

    @property
    def sheet(self) -> str | None:
        """The grid as a ``data:`` URI."""
        return None if self.grid is None else data_uri(self.grid)

    @property
    def facts(self) -> dict[str, str]:
        """The numbers at the top of the page, by label."""
        found = [difference for row in self.comparison.rows for difference in row.differences if difference is not None]
        return {
            "models": str(len(self.comparison.names)),
            "subjects that all share": str(min((each.subjects for each in found), default=0)),
            "paired differences": str(len(found)),
            "of them with an interval that excludes 0": str(sum(each.clear for each in found)),
        }

    @property
    def groups(self) -> list[tuple[str, list[tuple[str, Row]]]]:
        """(heading, rows with their label) of what was measured of models, the main denoising schedule first."""
        groups: dict[str, list[tuple[str, Row]]] = {}
        for row in self.comparison.rows:
            if row.metric.partition("/")[0] in REAL:
                continue
            label, setting = _named(row.metric)
            groups.setdefault(self._heading(setting), []).append((label, row))
        return list(groups.items())

    @property
    def real(self) -> list[tuple[str, str, Estimate]]:
        """(metric, what the photos show, estimate) of real photos in place of images, of the first that has them."""
        rows = [(row.metric.partition("/"), row) for row in self.comparison.rows]
        return [
            (_label(leaf), _REAL[kind], next(each for each in row.estimates if each is not None))
            for (kind, _, leaf), row in rows
            if kind in REAL
        ]

    @property
    def positions(self) -> list[tuple[str, list[Bar]]]:
        """(title, bars) of each position of a model's images between floor and ceiling, where it is known."""
        charts = []
        for row in self.comparison.rows:
            parts = row.metric.split("/")
            kinds = [part for part in parts[:-1] if part in POSITIONS]
            if not kinds:
                continue
            pairs = zip(self.comparison.names, row.estimates, strict=True)
            bars = [_bar(name, each) for name, each in pairs if each is not None and math.isfinite(each.mean)]
            setting = "/".join(part for part in parts[:-1] if part not in POSITIONS)
            floor = "" if kinds == ["position"] else ", hard floor"
            if bars:
                charts.append((f"{_label(parts[-1])}{floor} · {self._heading(setting)}", bars))
        return charts

    @property
    def pairs(self) -> list[tuple[str, list[tuple[str, Difference]]]]:
        """(model, its differences by metric) of each model but the one that it is compared with."""
        found = []
        for index, name in enumerate(self.comparison.names):
            differences = [
                (f"{label}{f' · {self._heading(setting)}' if setting else ''}", difference)
                for row in self.comparison.rows
                for label, setting in [_named(row.metric)]
                if (difference := row.differences[index]) is not None
            ]
            if differences:
                found.append((name, differences))
        return found

    @property
    def judges(self) -> list[tuple[str, str, str]]:
        """(metric, revision of its model, hash of its calibration) of the evaluation that others are compared with."""
        scores = self.scores[self.comparison.against]
        if scores.judge is None:
            return [("identity", scores.embedder, "not calibrated: scores of an earlier version")]
        return [
            (_label(name), each.revision or (scores.embedder if name.startswith("identity") else ""), each.sha256[:12])
            for name, each in scores.judge.metrics.items()
        ]

    def _heading(self, setting: str) -> str:
        """``"before/mllm_only"`` → ``"base: MLLM only"``."""
        before = setting.partition("/")[0] == "before"
        name = setting.removeprefix("before").strip("/")
        if not name:
            stages = self.scores[self.comparison.against].config.get("stages") or ["preset"]
            name = str(stages[0])
        return ("base: " if before else "") + SCHEDULE_TITLES.get(name, name)


def render_comparison(page: ComparisonPage) -> str:
    """Render the page as one HTML document that loads nothing from other places."""
    return environment().get_template("comparison.html.j2").render(page=page, steps=STEPS)


def _named(metric: str) -> tuple[str, str]:
    """The label of a metric, and the setting that it was measured in: ``before/position/identity`` is in ``before``."""
    *parts, leaf = metric.split("/")
    kinds = [part for part in parts if part in POSITIONS]
    setting = "/".join(part for part in parts if part not in POSITIONS)
    return "".join(f"{kind.replace('_', ' ')} of " for kind in kinds) + _label(leaf), setting


def _label(leaf: str) -> str:
    return _LOSSES.get(leaf) or LABELS.get(leaf) or leaf.replace("_", " ")


def _bar(name: str, estimate: Estimate) -> Bar:
    low, dot, high = (_percent(value) for value in (estimate.low, estimate.mean, estimate.high))
    return Bar(name, estimate, low, max(0.5, high - low), dot, estimate.low > 1)


def _percent(position: float) -> float:
    first, last = _TRACK
    return round(100 * min(1.0, max(0.0, (position - first) / (last - first))), 2)
