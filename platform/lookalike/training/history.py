"""The run's figures: a line in the log, a point in the tracker, a record in ``METRICS``."""

import json
import logging
import time
from collections.abc import Mapping
from typing import Any

import numpy as np

from lookalike.storage import Store
from lookalike.tracking import Tracker

log = logging.getLogger(__name__)

METRICS = "metrics.jsonl"


class History:
    """Collects figures per step. Where ``write`` is false (ranks other than the first) it does nothing."""

    def __init__(self, store: Store, tracker: Tracker, total_steps: int, *, write: bool) -> None:
        self._store, self._tracker, self._total, self._write = store, tracker, total_steps, write
        self._lines: list[str] = []
        self._window: list[Mapping[str, Any]] = []
        self._started, self._first_step = time.monotonic(), 0

    def restart_at(self, step: int) -> None:
        """Begin at ``step``: what an earlier attempt recorded beyond it is dropped, since it will be done again."""
        self._started, self._first_step = time.monotonic(), step
        if self._write and step > 0 and self._store.exists(METRICS):
            lines = self._store.read(METRICS).decode().splitlines()
            self._lines = [line for line in lines if json.loads(line)["step"] < step]

    def add(self, step: int, figures: Mapping[str, Any]) -> None:
        """Record one step."""
        if self._write:
            self._record(step, figures)
            self._window.append(figures)

    def add_validation(self, step: int, stage: str, held_out: Mapping[str, float]) -> None:
        """Record held-out figures after ``step``."""
        if not self._write:
            return
        self._record(step, {"stage": stage, "validation": dict(held_out)})
        self._tracker.log_metrics({f"validation/{name}": value for name, value in held_out.items()}, step=step)
        shown = "  ".join(f"{name} {value:.4f}" for name, value in held_out.items())
        log.info("step %d/%d  held out: %s", step + 1, self._total, shown)

    def flush(self, step: int) -> None:
        """Log the mean of the window since the last flush; ``step`` counts the steps done."""
        if not self._write or not self._window:
            return
        numeric = [name for name, value in self._window[0].items() if isinstance(value, float)]
        means = {name: float(np.mean([figures[name] for figures in self._window])) for name in numeric}
        stage = self._window[-1]["stage"]
        self._window = []
        pace = (time.monotonic() - self._started) / max(1, step - self._first_step)
        log.info(
            "step %d/%d  stage %s  loss %.4f  |grad| %.2f  %.1f images/s  data wait %.0f%%  %.0f s left",
            step,
            self._total,
            stage,
            means["loss"],
            means["gradient_norm"],
            means["images_per_second"],
            100 * means["data_wait_share"],
            pace * (self._total - step),
        )
        self._tracker.log_metrics({f"train/{name}": value for name, value in means.items()}, step=step - 1)

    def encoded(self) -> bytes:
        """``metrics.jsonl`` as of now; empty where nothing is written."""
        return "".join(f"{line}\n" for line in self._lines).encode()

    def _record(self, step: int, record: Mapping[str, Any]) -> None:
        self._lines.append(json.dumps({"step": step, **record}))
