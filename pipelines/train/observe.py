"""Show the progress of a run: Prometheus through Ray's metrics, a bar in a terminal, images in the tracker."""

import importlib
import logging
import queue
import re
import sys
import threading
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import numpy as np

from lookalike.progress.events import EventLog
from lookalike.redaction import redact
from lookalike.scratch import scratch
from lookalike.tracking import Tracker
from lookalike.training.curriculum import PhaseConfig
from lookalike.training.history import Listener
from lookalike.training.previews import HeldOutImages
from lookalike.training.ranks import Rank

log = logging.getLogger(__name__)

_TAG_LENGTH = 255
_STEP_EVENTS = 20  # of a run
_ETA_STEPS = 50  # last steps, whose mean time is that of the next ones
_LAST_EVENTS_S = 10.0
_PRINTABLE = "".join(map(chr, range(0x21, 0x7F)))


class RayMetrics:
    """A listener that sets each metric of a step as a gauge ``lookalike_train_NAME`` of Ray's, and counts steps, images
    and tokens. Ray's agents serve them to Prometheus (``ray_lookalike_train_loss{run="…"}``)."""

    def __init__(self, run: str) -> None:
        # Tags are printable ASCII; other characters of a URI are percent-encoded.
        self._tags = {"run": quote(redact(run), safe=_PRINTABLE)[:_TAG_LENGTH]}
        self._broken = False
        self._made: dict[str, Any] = {}

    def __call__(self, steps: int, metrics: Mapping[str, float]) -> None:
        if self._broken:
            return
        try:
            self._show(steps, metrics)
        except Exception as error:  # telemetry must not end a run
            self._broken = True
            log.warning("the run's metrics are not shown to Prometheus: %s", error)

    def _show(self, steps: int, metrics: Mapping[str, float]) -> None:
        from ray.util.metrics import Counter, Gauge

        for name, value in {"step": float(steps), **metrics}.items():
            self._metric(Gauge, name, "of the last step").set(value, tags=self._tags)
        if seconds := metrics.get("step_seconds"):
            rates = {name: metrics.get(f"{name}_per_second", 0.0) for name in ("images", "tokens")}
            for name, number in {"steps": 1.0, **{name: rate * seconds for name, rate in rates.items()}}.items():
                counter = self._metric(Counter, name, "trained on")
                if number > 0:
                    counter.inc(number, tags=self._tags)

    def _metric(self, kind: Any, name: str, description: str) -> Any:
        name = "lookalike_train_" + re.sub("[^A-Za-z0-9]", "_", name)  # what Prometheus allows
        if name not in self._made:
            self._made[name] = kind(name, description=description, tag_keys=("run",))
        return self._made[name]


def ray_runs() -> bool:
    """Return whether this process has joined a cluster, without importing Ray."""
    ray: Any = sys.modules.get("ray")
    return ray is not None and bool(ray.is_initialized())


@contextmanager
def progress_bar(total: int) -> Iterator[Listener]:
    """Yield a listener that shows a progress bar: with Ray in the driver's terminal, without Ray in this process's."""
    bars: Any = importlib.import_module("ray.experimental.tqdm_ray" if ray_runs() else "tqdm")
    shown = 0
    with closing(bars.tqdm(desc="train", total=total, unit="step")) as bar:

        def show(steps: int, metrics: Mapping[str, float]) -> None:
            nonlocal shown
            if "loss" in metrics:
                bar.set_description(f"train  loss {metrics['loss']:.3f}")
                bar.update(steps - shown)
                shown = steps

        yield show


@contextmanager
def step_events(events: EventLog, total: int) -> Iterator[Listener]:
    """Yield a listener that appends the event ``step`` about twenty times in a run of ``total`` steps, with the time
    that is left. A thread appends, so that a step does not wait for the store."""
    every, waiting = max(1, total // _STEP_EVENTS), queue.SimpleQueue[tuple[int, float] | None]()

    def append() -> None:
        while (reached := waiting.get()) is not None:
            step, left_s = reached
            try:
                events.append("step", {"step": step, "steps": total, "eta_s": round(left_s, 1)}, of=str(step))
            except Exception as error:  # progress must not end a run
                log.warning("step %d is not in the request's events: %s", step, error)

    thread = threading.Thread(target=append, name="step-events", daemon=True)
    thread.start()
    seconds: deque[float] = deque(maxlen=_ETA_STEPS)

    def show(steps: int, metrics: Mapping[str, float]) -> None:
        if "step_seconds" in metrics:
            seconds.append(metrics["step_seconds"])
            if steps % every == 0 or steps == total:
                waiting.put((steps, (total - steps) * sum(seconds) / len(seconds)))

    try:
        yield show
    finally:
        waiting.put(None)
        thread.join(_LAST_EVENTS_S)


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
        targets = np.moveaxis(columns["target"], -3, -1)
        rows = [
            GridRow(
                references=list(np.moveaxis(columns["references"][row], -3, -1)),
                prompt=str(columns["prompt"][row]),
                images={"real": targets[row], "drawn": image},
            )
            for row, image in enumerate(self.images(phase))
            if columns["weight"][row]  # else the sample could not be read
        ]
        gathered = [row for part in self.rank.gather(rows) for row in part]
        if self.rank.is_first and gathered:
            grid = draw_grid(gathered[: self.images.config.count], ["real", "drawn"], f"after {steps} steps")
            with scratch("samples") as folder:
                path = folder / f"step-{steps:08d}.png"
                grid.save(path)
                self.tracker.log_artifact(path, "samples")
