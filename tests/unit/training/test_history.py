"""Metrics of a run over its attempts: goodput, listeners, damaged records."""

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
    store, received = open_store(str(tmp_path)), []
    tracker = open_tracker(f"jsonl:{tmp_path}/tracking", "test")
    submitted = time.time() - 100

    def attempt() -> History:
        return History(
            store,
            tracker,
            10,
            write=True,
            submitted=submitted,
            listeners=[lambda steps, metrics: received.append((steps, metrics))],
        )

    first = attempt()
    first.restart_at(0)
    for step in range(4):
        first.add(step, STEP)
    first.add_validation(3, "only", {"loss_right": 1.0})
    store.write(METRICS, first.encoded())
    assert received[3][1]["goodput"] == pytest.approx(4 * 2.0 / 100, rel=0.05)
    assert received[4] == (4, {"validation_loss_right": 1.0})

    second = attempt()
    second.restart_at(2)  # two steps are lost
    second.add(2, STEP)
    assert received[-1][0] == 3
    assert received[-1][1]["goodput"] == pytest.approx(3 * 2.0 / 100, rel=0.05)
    second.flush(3)
    events = [json.loads(line) for line in next(tmp_path.rglob("events.jsonl")).read_text().splitlines()]
    assert events[-1]["metrics"]["train/goodput"] == pytest.approx(0.06, rel=0.05)
    assert [json.loads(line)["step"] for line in second.encoded().decode().splitlines()] == [0, 1, 2]


def test_a_clock_adds_up_what_is_measured() -> None:
    clock = StepClock()
    for _ in range(2):
        with clock.measure("forward"):
            time.sleep(0.01)
    taken = clock.take("forward", "backward")
    assert 0.02 <= taken["forward"] < 0.1
    assert taken["backward"] == 0
    assert clock.take("forward") == {"forward": 0}
    assert 0.05 < clock.peak_memory_gb() < 24


@pytest.mark.parametrize("line", [b"cut {", b"[]", b"null", b'{"step": "x"}', b"{}", b"\xff", b"[" * 100_000])
def test_damaged_line_of_metrics_does_not_end_a_resumed_run(line: bytes, tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    store.write(METRICS, b"".join([json.dumps({**STEP, "step": 0}).encode(), b"\n", line, b"\n"]))
    history = History(store, open_tracker("none:", "test"), 10, write=True, submitted=time.time())
    history.restart_at(1)
    assert [json.loads(kept)["step"] for kept in history.encoded().splitlines()] == [0]
