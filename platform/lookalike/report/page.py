"""The content of a page, and its rendering. Every section is optional; images are ``data:`` URIs."""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from lookalike.diffusion.schedule import SCHEDULE_TITLES
from lookalike.evaluation.estimates import Estimate
from lookalike.evaluation.metrics import LABELS
from lookalike.evaluation.scores import Scores

if TYPE_CHECKING:
    from jinja2 import Environment


@dataclass(frozen=True)
class Reason:
    """A reason for which photos were dropped."""

    name: str
    """Name in the table of photos."""
    count: int
    """Number of photos."""
    what: str = ""
    """What the filter checks."""
    rejects: Sequence[tuple[str, Sequence[str]]] = ()
    """Some of the photos that can be decoded, each with kept photos of its subject if the reason compares photos."""


@dataclass(frozen=True)
class Curation:
    """A curation run: photos in, kept and dropped."""

    images_in: int
    images_kept: int
    subjects: int
    triplets: Mapping[str, int]
    """By split."""
    reasons: Sequence[Reason]
    """In the order of the funnel."""
    samples: Sequence[tuple[Sequence[str], str, str]] = ()
    """References, target and prompt of some triplets."""


@dataclass(frozen=True)
class Training:
    """A training run."""

    loss_svg: str
    held_out_svg: str | None
    stages: Sequence[Mapping[str, Any]]
    """Phases, as in the run's result: stage, loss_first, loss_last, validation."""
    facts: Mapping[str, str] = field(default_factory=dict)
    layers_svg: str | None = None
    """Weights of the MLLM's layers, if the aggregator learns them."""


@dataclass(frozen=True)
class Evaluation:
    """An evaluation: one ``scores.json`` and its grid."""

    scores: Scores
    grid: str

    @property
    def losses(self) -> list[tuple[str, Estimate, Estimate, Estimate]]:
        """(mode, own conditions, another subject's, gap), if there was another subject."""
        found, metrics = [], self.scores.metrics
        for prefix, mode in (("", "MLLM + references"), ("mllm_only/", "MLLM only")):
            names = [f"{prefix}loss_{arm}" for arm in ("right", "shuffled", "gap")]
            if all(name in metrics for name in names):
                right, shuffled, gap = (metrics[name] for name in names)
                found.append((mode, right, shuffled, gap))
        return found

    @property
    def images(self) -> list[tuple[str, dict[str, Estimate]]]:
        """(denoising schedule, metric → estimate) of the generated images, the main one first."""
        stages: dict[str, dict[str, Estimate]] = {}
        for name, estimate in self.scores.metrics.items():
            setting, _, metric = name.rpartition("/")
            if metric in LABELS:
                stages.setdefault(setting, {})[metric] = estimate
        main = str(self.scores.config.get("stages", ["paper"])[0])
        order = sorted(stages, key=lambda setting: (setting.startswith("before"), setting != "", setting))
        return [(_schedule_label(setting, main), stages[setting]) for setting in order]


@dataclass(frozen=True)
class Finetune:
    """A customer's subject before and after: evaluations of the personal bundle and of its base."""

    customer: str
    subject: str
    grid: str
    scores: Scores
    decision: Mapping[str, Any] | None = None
    """The gate's decision: promoted, checks, verdict, advice. None in results of earlier versions."""
    held_out: int = 0
    """Number of held-out photos, which the evaluations are of; 0: they are of photos that training saw."""

    @property
    def numbers(self) -> list[Mapping[str, Any]]:
        """The failed checks of the decision that have a measured value."""
        checks = [] if self.decision is None else self.decision["checks"]
        return [check for check in checks if not check["passed"] and isinstance(check["value"], float)]

    @property
    def rows(self) -> list[tuple[str, Estimate, Estimate]]:
        """(label of a metric, before, after)."""
        labels = {"loss_right": "loss on the subject's photos", **LABELS}
        metrics = self.scores.metrics
        return [
            (label, metrics[f"before/{name}"], metrics[name])
            for name, label in labels.items()
            if name in metrics and f"before/{name}" in metrics
        ]


@dataclass(frozen=True)
class Page:
    """All sections of a page."""

    title: str
    curation: Curation | None = None
    training: Training | None = None
    evaluations: Sequence[Evaluation] = ()
    decisions: Sequence[Mapping[str, Any]] = ()
    """Decisions of the gate: model, version, promoted, checks (name, value, threshold, passed, why)."""
    finetune: Finetune | None = None
    generation: tuple[str, str] | None = None
    """Name of the model, and the contact sheet of its images."""
    timings: Sequence[Mapping[str, Any]] = ()
    """step, seconds, peak_memory_gib, outcome."""
    code_version: str = ""

    @property
    def headline(self) -> dict[str, str]:
        """The numbers at the top of the page, by label."""
        found = {}
        if self.curation:
            found["photos ingested; each dropped one has a reason"] = number(self.curation.images_in)
            found["training samples"] = number(self.curation.triplets.get("train", 0))
        if self.training and self.training.stages:
            first, last = self.training.stages[0]["loss_first"], self.training.stages[-1]["loss_last"]
            found["training loss, first and last"] = f"{first:.2f} → {last:.2f}"
        if self.evaluations and (losses := self.evaluations[0].losses):
            gap = losses[0][3]
            found["held-out loss gap, another subject's conditions minus the subject's own"] = f"{gap.mean:+.4f}"
        if self.decisions:
            found["decision of the gate"] = "promoted" if self.decisions[0]["promoted"] else "refused"
        if self.timings:
            found["for all jobs together, on one machine"] = duration(sum(row["seconds"] for row in self.timings))
        return found


def render(page: Page) -> str:
    """Render a page as one HTML document that loads nothing from other places."""
    return environment().get_template("page.html.j2").render(page=page)


def environment() -> "Environment":
    """Templates of this package, with their filters; text from outside is escaped."""
    from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

    environment = Environment(
        loader=PackageLoader("lookalike.report"),
        autoescape=select_autoescape(["html", "j2"], default=True),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": number, "check_value": check_value, "duration": duration}
    environment.globals["image_metrics"] = LABELS
    return environment


def _schedule_label(setting: str, main: str) -> str:
    """``"before/mllm_only"`` → ``"before: MLLM only"``."""
    before, name = setting.startswith("before"), setting.removeprefix("before").strip("/") or main
    return ("before: " if before else "") + SCHEDULE_TITLES.get(name, name)


def number(value: int) -> str:
    """Format with thin spaces between thousands: ``12345`` → ``"12 345"``."""
    return f"{value:,}".replace(",", "\u2009")


def check_value(value: object) -> str:
    """Format the value or threshold of a check: floats with four digits, None as a dash."""
    if value is None:
        return "–"
    return f"{value:.4f}" if isinstance(value, float) else str(value)


def duration(seconds: float) -> str:
    """Format seconds: ``83.2`` → ``"1 min 23 s"``."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def data_uri(data: bytes, kind: str = "image/png") -> str:
    """Encode bytes as a ``data:`` URI."""
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"
