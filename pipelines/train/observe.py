"""Show the progress of a run: Prometheus through Ray's metrics, a bar in a terminal, images in the tracker."""

import importlib
import logging
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import numpy as np
from PIL import Image

from lookalike.redaction import redact
from lookalike.scratch import scratch
from lookalike.tracking import Tracker
from lookalike.training.curriculum import PhaseConfig
from lookalike.training.previews import HeldOutImages
from lookalike.training.ranks import Rank

log = logging.getLogger(__name__)

_TAG_LENGTH = 255
_COUNTED = {"images": "images_per_second", "tokens": "tokens_per_second"}


class RayMetrics:
    """A listener that sets each metric of a step as a gauge ``lookalike_train_NAME`` of Ray's, and counts steps, images
    and tokens. Ray's agents serve them to Prometheus (``ray_lookalike_train_loss{run="…"}``)."""

    def __init__(self, run: str) -> None:
        self._tags = {"run": _tag(run)}
        self._broken = False
        self._gauges: dict[str, Any] = {}
        self._counters: dict[str, Any] = {}

    def __call__(self, steps: int, metrics: Mapping[str, float]) -> None:
        if self._broken:
            return
        try:
            self._show(steps, metrics)
        except Exception as error:  # telemetry must not end a run
            self._broken = True
            log.warning("the run's metrics are not shown to Prometheus: %s", error)

    def _show(self, steps: int, metrics: Mapping[str, float]) -> None:
        for name, value in {"step": float(steps), **metrics}.items():
            self._gauge(_metric_name(name)).set(value, tags=self._tags)
        if "step_seconds" in metrics:
            self._count("steps", 1)
            for name, rate in _COUNTED.items():
                self._count(name, metrics.get(rate, 0.0) * metrics["step_seconds"])

    def _gauge(self, name: str) -> Any:
        from ray.util.metrics import Gauge

        if name not in self._gauges:
            self._gauges[name] = Gauge(name, description="of the last step", tag_keys=("run",))
        return self._gauges[name]

    def _count(self, name: str, number: float) -> None:
        from ray.util.metrics import Counter

        if name not in self._counters:
            self._counters[name] = Counter(f"lookalike_train_{name}", description="trained on", tag_keys=("run",))
        if number > 0:
            self._counters[name].inc(number, tags=self._tags)


def _tag(value: str) -> str:
    """Return a tag for Ray's metrics: printable ASCII; other characters of a URI are percent-encoded."""
    return quote(redact(value), safe="".join(map(chr, range(0x21, 0x7F))))[:_TAG_LENGTH]


def _metric_name(name: str) -> str:
    """Return a metric's name in Prometheus: letters, digits and underscores."""
    return "lookalike_train_" + "".join(letter if letter.isascii() and letter.isalnum() else "_" for letter in name)


def ray_runs() -> bool:
    """Return whether this process has joined a cluster, without importing Ray."""
    ray: Any = sys.modules.get("ray")
    return ray is not None and bool(ray.is_initialized())


class ProgressBar:
    """A listener that shows a progress bar: with Ray in the driver's terminal, without Ray in this process's."""

    def __init__(self, total: int) -> None:
        bars = importlib.import_module("ray.experimental.tqdm_ray" if ray_runs() else "tqdm")
        self._bar: Any = bars.tqdm(desc="train", total=total, unit="step")
        self._shown = 0

    def __call__(self, steps: int, metrics: Mapping[str, float]) -> None:
        if "loss" in metrics:
            self._bar.set_description(f"train  loss {metrics['loss']:.3f}")
            self._bar.update(steps - self._shown)
            self._shown = steps

    def close(self) -> None:
        """Remove the bar."""
        self._bar.close()


@dataclass(frozen=True)
class TrackedImages:
    """Generates held-out images on all ranks; the first rank arranges them with references and real photo and logs
    them as ``samples/step-N.png`` in the tracker."""

    images: HeldOutImages
    rank: Rank
    tracker: Tracker

    def __call__(self, phase: PhaseConfig, steps: int) -> None:
        from lookalike.report.grid import GridRow, draw_grid  # imports matplotlib

        columns = self.images.columns
        drawn = self.images(phase)
        rows = [
            GridRow(
                references=[_upright(image) for image in references[mask.astype(bool)]],
                prompt=str(prompt),
                images={"real": _upright(target), "drawn": image},
            )
            for references, mask, prompt, target, weight, image in zip(
                columns["references"],
                columns["reference_mask"],
                columns["prompt"],
                columns["target"],
                columns["weight"],
                drawn,
                strict=True,
            )
            if weight  # else the sample could not be read
        ]
        gathered = [row for part in self.rank.gather(rows) for row in part]
        if self.rank.is_first and gathered:
            grid = draw_grid(gathered[: self.images.config.count], ["real", "drawn"], f"after {steps} steps")
            self._keep(grid, steps)

    def _keep(self, grid: Image.Image, steps: int) -> None:
        with scratch("samples") as folder:
            path = folder / f"step-{steps:08d}.png"
            grid.save(path)
            self.tracker.log_artifact(path, "samples")


def _upright(image: np.ndarray) -> np.ndarray:
    """Convert ``[3, H, W]`` to ``[H, W, 3]``."""
    return np.moveaxis(image, 0, -1)
