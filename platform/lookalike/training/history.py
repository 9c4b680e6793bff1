"""The metrics of a run: logged, sent to the tracker, and recorded in ``metrics.jsonl``."""

import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from lookalike.documents import render_lines
from lookalike.storage import Store
from lookalike.tracking import Tracker

log = logging.getLogger(__name__)

METRICS = "metrics.jsonl"
Listener = Callable[[int, Mapping[str, float]], None]
"""Called with the metrics of a step as ``f(steps done, metrics)``: a progress bar, or Prometheus."""


class History:
    """Collects metrics per step. With ``write=False`` (ranks other than the first) it does nothing.

    ``submitted`` is when the run was first submitted, in seconds since 1970. The goodput is the share of the time since
    then spent on computing and validating steps that count. Waiting for data, writing checkpoints, starting, repeating
    steps after a crash and pauses between two attempts do not count.
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
        self._lines: list[bytes] = []
        self._window: list[Mapping[str, Any]] = []
        self._started, self._first_step = time.monotonic(), 0

    def restart_at(self, step: int) -> None:
        """Start at ``step``: later records of an earlier attempt are dropped, since those steps are repeated."""
        self._started, self._first_step = time.monotonic(), step
        if self._write and step > 0:
            earlier = [record for record in readable_records(self._store) if record["step"] < step]
            self._lines = [render_lines(earlier)]
            self._useful = sum(map(_useful_seconds, earlier))

    def add(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Record one step."""
        if self._write:
            self._useful += _useful_seconds(metrics)
            self._record(step, metrics)
            self._window.append(metrics)
            numbers = {name: value for name, value in metrics.items() if isinstance(value, float)}
            self._notify(step + 1, {**numbers, "goodput": self._goodput()})

    def add_validation(self, step: int, phase: str, held_out: Mapping[str, float]) -> None:
        """Record held-out metrics after ``step``."""
        if not self._write:
            return
        self._record(step, {"stage": phase, "validation": dict(held_out)})
        self._notify(step + 1, {f"validation_{name}": value for name, value in held_out.items()})
        self._tracker.log_metrics({f"validation/{name}": value for name, value in held_out.items()}, step=step)
        shown = "  ".join(f"{name} {value:.4f}" for name, value in held_out.items())
        log.info("step %d/%d  held out: %s", step + 1, self._total, shown)

    def flush(self, step: int) -> None:
        """Log the mean of the window since the last flush; ``step`` counts the steps done."""
        if not self._write or not self._window:
            return
        numeric = [name for name, value in self._window[0].items() if isinstance(value, float)]
        means = {name: float(np.mean([metrics[name] for metrics in self._window])) for name in numeric}
        means["goodput"] = self._goodput()
        phase = self._window[-1]["stage"]
        self._window = []
        left_s = (self._total - step) * (time.monotonic() - self._started) / max(1, step - self._first_step)
        losses = f"loss {means['loss']:.4f}  |grad| {means['gradient_norm']:.2f}"
        pace = f"{means['images_per_second']:.1f} images/s  data wait {means['data_wait_share']:.0%}"
        goodput = f"goodput {means['goodput']:.0%}  {left_s:.0f} s left"
        log.info("step %d/%d  phase %s  %s  %s  %s", step, self._total, phase, losses, pace, goodput)
        self._tracker.log_metrics({f"train/{name}": value for name, value in means.items()}, step=step - 1)

    def encoded(self) -> bytes:
        """Return ``metrics.jsonl`` as of now; empty with ``write=False``."""
        return b"".join(self._lines)

    def _goodput(self) -> float:
        return min(1.0, self._useful / max(1e-9, time.time() - self._submitted))

    def _notify(self, steps: int, metrics: Mapping[str, float]) -> None:
        for listener in self._listeners:
            listener(steps, metrics)

    def _record(self, step: int, record: Mapping[str, Any]) -> None:
        self._lines.append(render_lines([{"step": step, **record}]))


def readable_records(store: Store) -> list[dict[str, Any]]:
    """Read the records of ``metrics.jsonl``; a damaged line is named in a warning and left out."""
    records = []
    lines = store.read(METRICS).decode(errors="replace").splitlines() if store.exists(METRICS) else []
    for number, line in enumerate(lines, 1):
        try:
            record = json.loads(line)
            _useful_seconds(record)
            is_whole = isinstance(record["step"], int)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            is_whole = False
        if is_whole:
            records.append(record)
        else:
            log.warning("line %d of %s is damaged and is left out", number, store.uri_of(METRICS))
    return records


def _useful_seconds(metrics: Mapping[str, Any]) -> float:
    """Return the seconds of a step's computation and of the validation before it; 0 for other records."""
    step, waited = float(metrics.get("step_seconds", 0)), float(metrics.get("data_wait_seconds", 0))
    return step - waited + float(metrics.get("validation_seconds", 0))
