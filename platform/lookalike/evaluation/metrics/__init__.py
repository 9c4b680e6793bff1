"""Metrics of generated images, one file each. ``METRICS`` is the list; ``pipelines/README.md`` says how to add one."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from lookalike.errors import ConfigError
from lookalike.evaluation.measurements import Measurement
from lookalike.evaluation.metrics.aesthetic import Aesthetic
from lookalike.evaluation.metrics.base import Metric, Pixels, SetMetric, Settings, Task, settings_of
from lookalike.evaluation.metrics.clip import Clip
from lookalike.evaluation.metrics.copying import Copying
from lookalike.evaluation.metrics.dino import Dino
from lookalike.evaluation.metrics.identity import Identity
from lookalike.evaluation.metrics.memorisation import Memorisation
from lookalike.evaluation.metrics.quality import Quality
from lookalike.evaluation.metrics.safety import Safety
from lookalike.evaluation.metrics.variety import Variety

__all__ = [
    "LABELS",
    "METRICS",
    "SET_METRICS",
    "SHARES",
    "Metric",
    "Pixels",
    "SetMetric",
    "Settings",
    "Task",
    "check_settings",
    "measure",
    "metrics_of",
    "protocols",
]

METRICS: tuple[type[Metric], ...] = (Identity, Dino, Clip, Copying, Memorisation, Quality, Aesthetic, Safety)
"""All metrics of single images, in the order of the report."""
SET_METRICS: tuple[type[SetMetric], ...] = (Variety,)
"""All metrics of the images of one subject together."""
_ALL: tuple[type[Metric] | type[SetMetric], ...] = (*METRICS, *SET_METRICS)
LABELS: dict[str, str] = {name: label for metric in _ALL for name, label in metric.labels.items()}
"""Name in ``scores.json`` -> heading in the report."""
SHARES: frozenset[str] = frozenset(name for metric in _ALL for name in getattr(metric, "shares", ()))
"""Names of the values that are shares: their intervals are exact, or wider."""


def metrics_of(settings: Settings, device: str = "cpu") -> list[Metric]:
    """Create the metrics that ``settings`` turn on, with their models on ``device``."""
    return [metric for kind in METRICS if (metric := kind.create(settings, device)) is not None]


def check_settings(settings: Settings) -> None:
    """Check the settings of all metrics, before any model is loaded.

    Raises ConfigError: a name that is not a metric's, an unknown setting, a value that is not valid, settings of a name
    that has none, or of a metric that is not turned on.
    """
    for name in settings.metrics:
        if name not in LABELS:
            raise ConfigError("metrics: not a metric of images", value=name, fix=f"choose from {list(LABELS)}")
    for kind in _ALL:
        configurations: Mapping[str, type] | None = getattr(kind, "configurations", None)
        if configurations is None:  # it reads its settings itself
            continue
        for name in settings.metrics.keys() & kind.labels.keys():
            if settings.metrics[name] is False and name == getattr(kind, "switch", ""):
                continue  # turned off
            if name not in configurations:
                fix = (
                    f"choose from {list(configurations)}" if configurations else f"use {{{name}: false}} to turn it off"
                )
                raise ConfigError(f"metrics.{name} has no settings", value=settings.metrics[name], fix=fix)
            settings_of(settings, name, configurations[name], flag=getattr(kind, "flag", ""))


def protocols(metrics: Sequence[Metric | SetMetric]) -> dict[str, dict[str, Any]]:
    """Every choice behind the values of ``metrics``: for the first name of each its models and resolved settings.

    The values are those of JSON, so that they are equal after they were written and read. Metrics without a
    ``protocol()`` are left out.
    """
    stated = {next(iter(metric.labels)): getattr(metric, "protocol", None) for metric in metrics}
    return {name: json.loads(json.dumps(protocol())) for name, protocol in stated.items() if protocol}


def measure(metrics: Sequence[Metric], images: Sequence[Pixels], tasks: Sequence[Task]) -> list[Measurement]:
    """Measure each of ``images`` (uint8 [H, W, 3]), generated for the task of the same index, with all ``metrics``."""
    return [
        Measurement(task.case, task.subject, name, value)
        for metric in metrics
        for task, values in zip(tasks, metric(images, tasks), strict=True)
        for name, value in values.items()
    ]
