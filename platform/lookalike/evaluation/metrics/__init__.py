"""Metrics of generated images, one file each. ``METRICS`` is the list; ``pipelines/README.md`` says how to add one."""

from collections.abc import Sequence

from lookalike.evaluation.measurements import Measurement
from lookalike.evaluation.metrics.aesthetic import Aesthetic
from lookalike.evaluation.metrics.base import Metric, Pixels, SetMetric, Settings, Task
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
    "Metric",
    "Pixels",
    "SetMetric",
    "Settings",
    "Task",
    "measure",
    "metrics_of",
]

METRICS: tuple[type[Metric], ...] = (Identity, Dino, Clip, Copying, Memorisation, Quality, Aesthetic, Safety)
"""All metrics of single images, in the order of the report."""
SET_METRICS: tuple[type[SetMetric], ...] = (Variety,)
"""All metrics of the images of one subject together."""
LABELS: dict[str, str] = {
    name: label
    for labels in (*(metric.labels for metric in METRICS), *(metric.labels for metric in SET_METRICS))
    for name, label in labels.items()
}
"""Name in ``scores.json`` -> heading in the report."""


def metrics_of(settings: Settings, device: str = "cpu") -> list[Metric]:
    """Create the metrics that ``settings`` turn on, with their models on ``device``."""
    return [metric for kind in METRICS if (metric := kind.create(settings, device)) is not None]


def measure(metrics: Sequence[Metric], images: Sequence[Pixels], tasks: Sequence[Task]) -> list[Measurement]:
    """Measure each of ``images`` (uint8 [H, W, 3]), generated for the task of the same index, with all ``metrics``."""
    return [
        Measurement(task.case, task.subject, name, value)
        for metric in metrics
        for task, values in zip(tasks, metric(images, tasks), strict=True)
        for name, value in values.items()
    ]
