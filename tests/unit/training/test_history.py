"""Figures of a run over its attempts: goodput, and who hears of them."""

import json
import time
from pathlib import Path

import pytest

from lookalike.storage import open_store
from lookalike.tracking import open_tracker
from lookalike.training.clock import StepClock
from lookalike.training.history import METRICS, History

STEP = {
    "stage": "only",
    "loss": 1.0,
    "gradient_norm": 1.0,
    "images_per_second": 4.0,
    "data_wait_share": 0.25,
    "data_wait_seconds": 0.5,
    "step_seconds": 2.0,
    "validation_seconds": 0.5,
}


def test_goodput_counts_surviving_steps_over_all_attempts(tmp_path: Path) -> None:
    store, heard = open_store(str(tmp_path)), []
    tracker = open_tracker(f"jsonl:{tmp_path}/tracking", "test")
    submitted = time.time() - 100

    def attempt() -> History:
        return History(
            store,
            tracker,
            10,
            write=True,
            submitted=submitted,
            listeners=[lambda steps, figures: heard.append((steps, figures))],
        )

    first = attempt()
    first.restart_at(0)
    for step in range(4):
        first.add(step, STEP)
    first.add_validation(3, "only", {"loss_right": 1.0})
    store.write(METRICS, first.encoded())
    assert heard[3][1]["goodput"] == pytest.approx(4 * 2.0 / 100, rel=0.05)
    assert heard[4] == (4, {"validation_loss_right": 1.0})

    second = attempt()
    second.restart_at(2)  # two steps are lost
    second.add(2, STEP)
    assert heard[-1][0] == 3
    assert heard[-1][1]["goodput"] == pytest.approx(3 * 2.0 / 100, rel=0.05)
    second.flush(3)
    events = [json.loads(line) for line in next(tmp_path.rglob("events.jsonl")).read_text().splitlines()]
    assert events[-1]["metrics"]["train/goodput"] == pytest.approx(0.06, rel=0.05)
    assert [json.loads(line)["step"] for line in second.encoded().decode().splitlines()] == [0, 1, 2]


def test_a_clock_adds_up_what_is_measured() -> None:
    clock = StepClock()
    for _ in range(2):
        with clock.measure("forward"):
            time.sleep(0.01)
    forward, backward = clock.take("forward", "backward")
    assert 0.02 <= forward < 0.1
    assert backward == 0
    assert clock.take("forward") == [0]
    assert 0.05 < clock.peak_memory_gb() < 24
