"""The run's figures: a line in the log, a point in the tracker, a record in ``METRICS``."""

import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from lookalike.storage import Store
from lookalike.tracking import Tracker

log = logging.getLogger(__name__)

METRICS = "metrics.jsonl"
Listener = Callable[[int, Mapping[str, float]], None]
"""Hears the figures of a step as ``f(steps done, figures)``: a progress bar, or Prometheus."""


class History:
    """Collects figures per step. Where ``write`` is false (ranks other than the first) it does nothing.

    ``submitted`` is when the run was first submitted, in seconds since 1970. Its goodput is the share of the time since
    then in which it computed or validated steps that count: not waiting for data, writing checkpoints, starting,
    repeating what a crash has undone, or lying still between two attempts.
    """

    def __init__(
        self,
        store: Store,
        tracker: Tracker,
        total_steps: int,
        *,
        write: bool,
        submitted: float | None = None,
        listeners: Sequence[Listener] = (),
    ) -> None:
        self._store, self._tracker, self._total, self._write = store, tracker, total_steps, write
        self._submitted = time.time() if submitted is None else submitted
        self._listeners = listeners
        self._useful = 0.0
        self._lines: list[str] = []
        self._window: list[Mapping[str, Any]] = []
        self._started, self._first_step = time.monotonic(), 0

    def restart_at(self, step: int) -> None:
        """Begin at ``step``: what an earlier attempt recorded beyond it is dropped, since it will be done again."""
        self._started, self._first_step = time.monotonic(), step
        if self._write and step > 0 and self._store.exists(METRICS):
            lines = self._store.read(METRICS).decode(errors="replace").splitlines()
            for number, line in enumerate(lines, 1):
                try:
                    earlier = (record := json.loads(line))["step"] < step
                    useful = _useful_seconds(record)
                except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
                    log.warning("line %d of %s is damaged and left out", number, self._store.uri_of(METRICS))
                    continue
                if earlier:
                    self._lines.append(line)
                    self._useful += useful

    def add(self, step: int, figures: Mapping[str, Any]) -> None:
        """Record one step."""
        if self._write:
            self._useful += _useful_seconds(figures)
            self._record(step, figures)
            self._window.append(figures)
            numbers = {name: value for name, value in figures.items() if isinstance(value, float)}
            self._hear(step + 1, {**numbers, "goodput": self._goodput()})

    def add_validation(self, step: int, stage: str, held_out: Mapping[str, float]) -> None:
        """Record held-out figures after ``step``."""
        if not self._write:
            return
        self._record(step, {"stage": stage, "validation": dict(held_out)})
        self._hear(step + 1, {f"validation_{name}": value for name, value in held_out.items()})
        self._tracker.log_metrics({f"validation/{name}": value for name, value in held_out.items()}, step=step)
        shown = "  ".join(f"{name} {value:.4f}" for name, value in held_out.items())
        log.info("step %d/%d  held out: %s", step + 1, self._total, shown)

    def flush(self, step: int) -> None:
        """Log the mean of the window since the last flush; ``step`` counts the steps done."""
        if not self._write or not self._window:
            return
        numeric = [name for name, value in self._window[0].items() if isinstance(value, float)]
        means = {name: float(np.mean([figures[name] for figures in self._window])) for name in numeric}
        means["goodput"] = self._goodput()
        stage = self._window[-1]["stage"]
        self._window = []
        pace = (time.monotonic() - self._started) / max(1, step - self._first_step)
        log.info(
            "step %d/%d  stage %s  loss %.4f  |grad| %.2f  %.1f images/s  data wait %.0f%%  goodput %.0f%%  "
            "%.0f s left",
            step,
            self._total,
            stage,
            means["loss"],
            means["gradient_norm"],
            means["images_per_second"],
            100 * means["data_wait_share"],
            100 * means["goodput"],
            pace * (self._total - step),
        )
        self._tracker.log_metrics({f"train/{name}": value for name, value in means.items()}, step=step - 1)

    def encoded(self) -> bytes:
        """``metrics.jsonl`` as of now; empty where nothing is written."""
        return "".join(f"{line}\n" for line in self._lines).encode()

    def _goodput(self) -> float:
        return min(1.0, self._useful / max(1e-9, time.time() - self._submitted))

    def _hear(self, steps: int, figures: Mapping[str, float]) -> None:
        for listener in self._listeners:
            listener(steps, figures)

    def _record(self, step: int, record: Mapping[str, Any]) -> None:
        self._lines.append(json.dumps({"step": step, **record}))


def _useful_seconds(figures: Mapping[str, Any]) -> float:
    """Of a step: what it computed, and the validation before it. 0 for a record that is no step."""
    step, waited = float(figures.get("step_seconds", 0)), float(figures.get("data_wait_seconds", 0))
    return step - waited + float(figures.get("validation_seconds", 0))
