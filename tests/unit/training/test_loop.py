"""The loop in one plain process: it stops when asked, ends when training diverges, and repeats no recorded step."""

import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lookalike.errors import BusyError, InputError, StoppedError, UnreachableError
from lookalike.storage import open_store
from lookalike.storage.lease import Fence
from lookalike.storage.local import LocalStore
from lookalike.tracking import open_tracker
from lookalike.training import checkpoint, stopping
from lookalike.training.config import TrainConfig
from lookalike.training.curriculum import PhaseConfig
from lookalike.training.engine import PlainEngine
from lookalike.training.epoch_plan import PADDING, EpochPlan
from lookalike.training.history import METRICS, History
from lookalike.training.ledger import read_ledger
from lookalike.training.loop import Evaluation, Loop, TrainingDivergedError
from lookalike.training.loop_config import CheckpointConfig, ValidationConfig
from lookalike.training.marks import Mark
from lookalike.training.micro_batch import MicroBatch
from lookalike.training.ranks import Rank
from lookalike.training.watchdog import EXIT_HANG
from lookalike.training.workers import WorkerConfig

STEPS, SAMPLES, BATCH, MICRO = 8, 7, 4, 2
PLAN = EpochPlan(SAMPLES, BATCH, seed=0)


def attempt(
    folder: Path,
    before_step: Callable[[int], None] = lambda step: None,
    poison: int | None = None,
    rank: Rank = Rank(),  # noqa: B008
    fingerprint: str = "run",
    lease: int = 0,
    evaluations: Sequence[tuple[int, Evaluation]] = (),
) -> None:
    """One process's share of a run: a linear model learns its samples' numbers; ``poison`` has no finite loss."""
    config = TrainConfig(
        dataset="none",
        run=str(folder),
        stages=[PhaseConfig(name="only", steps=STEPS, conditions="mllm", warmup_steps=1, learning_rate=0.05)],
        batch_size=BATCH,
        micro_batch_size=MICRO,
        workers=WorkerConfig(num_workers=0),
        validation=ValidationConfig(samples=0),
        checkpoint=CheckpointConfig(every=3),
        log_every=1,
    )
    torch.manual_seed(0)
    model = nn.Linear(1, 1)
    engine = PlainEngine(model, dict(model.named_parameters()), config.optimizer, BATCH // MICRO)
    store = open_store(str(folder))

    def objective(micro_batch: MicroBatch, phase: PhaseConfig, epoch: int) -> Tensor:
        numbers = torch.tensor([[float(name)] for name in micro_batch.columns["sample_id"]])
        losses = (model(numbers) - numbers).square().flatten()
        return torch.where(numbers.flatten() == (-1 if poison is None else poison), torch.nan, losses)

    def batches() -> Iterator[MicroBatch]:
        first = max(checkpoint.committed_steps(store.child(checkpoint.CHECKPOINTS)), default=0)
        for step in range(first, STEPS):
            before_step(step)
            for part in PLAN.slots(step).reshape(-1, MICRO):
                yield MicroBatch(
                    {
                        "step": np.full(MICRO, step),
                        "sample_id": np.array([str(max(0, index)) for index in part]),
                        "weight": (part != PADDING).astype(np.float32),
                    }
                )

    if lease:
        store.write(f"lease/{lease:08d}.json", b"{}")
    Loop(
        config=config,
        rank=rank,
        engine=engine,
        objective=objective,
        plan=PLAN,
        store=store,
        history=History(store, open_tracker("none:", "none"), STEPS, write=True),
        fingerprint=fingerprint,
        base_sha256="base",
        evaluations=evaluations,
        fence=Fence(store.child("lease"), lease) if lease else None,
    ).run(batches())


def losses(folder: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (folder / METRICS).read_text().splitlines()]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed")
    attempt(folder)
    return folder


def test_a_stop_request_ends_with_a_checkpoint_and_the_run_resumes(
    tmp_path: Path, undisturbed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stopping, "_POLL_S", 0.01)

    def ask(step: int) -> None:
        if step == 3:
            (tmp_path / stopping.STOP).touch()
            time.sleep(0.5)

    with pytest.raises(StoppedError, match=r"after step 5 of 8.*same command"):
        attempt(tmp_path, ask)
    assert checkpoint.newest(open_store(str(tmp_path))) == 5
    (tmp_path / stopping.STOP).unlink()  # as the next driver does
    attempt(tmp_path)
    assert losses(tmp_path) == losses(undisturbed)
    assert read_ledger(open_store(str(tmp_path))) == read_ledger(open_store(str(undisturbed)))


def test_a_run_that_another_process_took_over_ends_at_its_next_checkpoint(tmp_path: Path, undisturbed: Path) -> None:
    run = open_store(str(tmp_path))

    def take_over(step: int) -> None:
        if step == 5:  # after the first checkpoint
            time.sleep(0.5)
            run.write("lease/00000002.json", b"{}")

    with pytest.raises(BusyError, match="lost to another worker, which has number 2"):
        attempt(tmp_path, take_over, lease=1)
    assert checkpoint.newest(run) == 3
    assert len(losses(tmp_path)) == 3
    attempt(tmp_path, lease=2)
    assert losses(tmp_path) == losses(undisturbed)
    assert read_ledger(run) == read_ledger(open_store(str(undisturbed)))
    names = {info.key.split("/")[0] for info in run.child(checkpoint.CHECKPOINTS).list()}
    assert names == {"step-00000006.2", "step-00000008.2"}
    run.write("ledger/step-00000008.1.jsonl", b"of the first one, when it continues")
    assert read_ledger(run) == read_ledger(open_store(str(undisturbed)))


class BesideOneThatIsAsked(Rank):
    def sum(self, *values: float) -> list[float]:
        loss, stop, *work = values
        return [loss, stop + 1, *work]


def test_all_ranks_stop_if_one_is_asked_to(tmp_path: Path) -> None:
    with pytest.raises(StoppedError, match="after step 1 of 8"):
        attempt(tmp_path, rank=BesideOneThatIsAsked())


@dataclass(frozen=True)
class Recorded(Rank):
    collectives: list[str] = field(default_factory=list)

    def sum(self, *values: float) -> list[float]:
        self.collectives.append("sum")
        return super().sum(*values)

    def gather(self, value: Any) -> list[Any]:
        self.collectives.append("gather")
        return super().gather(value)


def test_ranks_take_part_in_the_same_collectives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A rank that leaves out a collective would make the others wait forever."""
    state = PlainEngine.state
    found = []
    for index in range(2):
        rank = Recorded(index)

        def gathered(engine: PlainEngine, rank: Recorded = rank) -> Iterator[tuple[str, Tensor]]:
            for key, tensor in state(engine):
                rank.collectives.append(key)
                yield key, tensor

        monkeypatch.setattr(PlainEngine, "state", gathered)
        attempt(tmp_path / str(index), rank=rank)
        found.append(rank.collectives)
    assert found[0] == found[1]
    assert found[0].count("master/weight") == 3  # after 3, 6 and 8 steps
    assert not (tmp_path / "1" / "checkpoints").exists()


def test_the_parts_of_a_step_add_up(undisturbed: Path) -> None:
    for line in (undisturbed / METRICS).read_text().splitlines():
        metrics = json.loads(line)
        parts = [metrics[f"{name}_seconds"] for name in ("data_wait", "forward", "backward", "optimizer")]
        assert all(seconds > 0 for seconds in parts)
        assert sum(parts) <= metrics["step_seconds"]
        assert (metrics["checkpoint_seconds"] > 0) == (metrics["step"] in (3, 6))  # the steps after a save
        assert metrics["validation_seconds"] == 0


def test_evaluations_run_at_their_steps_and_after_the_last_of_a_phase(tmp_path: Path) -> None:
    done = []
    attempt(tmp_path, evaluations=[(3, lambda phase, steps: done.append((phase.name, steps)))])
    assert done == [("only", 3), ("only", 6), ("only", STEPS)]


def test_the_ledger_has_each_sample_once_an_epoch(undisturbed: Path) -> None:
    records = read_ledger(open_store(str(undisturbed)))
    assert [record["step"] for record in records] == list(range(STEPS))
    for epoch in range(STEPS // PLAN.steps_per_epoch):
        seen = [sample for record in records if record["epoch"] == epoch for sample in record["samples"]]
        assert sorted(seen) == [str(index) for index in range(SAMPLES)]


def test_a_run_killed_between_checkpoints_repeats_the_same_steps(tmp_path: Path, undisturbed: Path) -> None:
    def kill(step: int) -> None:
        if step == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        attempt(tmp_path, kill)
    (tmp_path / "ledger" / "step-00000005.jsonl").write_text("of a dead attempt")
    attempt(tmp_path)
    assert losses(tmp_path) == losses(undisturbed)
    assert read_ledger(open_store(str(tmp_path))) == read_ledger(open_store(str(undisturbed)))


def test_ledger_of_an_unfinished_first_checkpoint_is_removed(tmp_path: Path, undisturbed: Path) -> None:
    (tmp_path / "ledger").mkdir()
    (tmp_path / "ledger" / "step-00000002.jsonl").write_text("of a dead attempt")
    attempt(tmp_path)
    assert read_ledger(open_store(str(tmp_path))) == read_ledger(open_store(str(undisturbed)))


def test_missing_checkpoints_end_the_run(tmp_path: Path, undisturbed: Path) -> None:
    shutil.copytree(undisturbed, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    with pytest.raises(InputError, match=r"no checkpoint is there.*start again"):
        attempt(tmp_path / "run")


def test_checkpoints_of_another_run_are_rejected(tmp_path: Path, undisturbed: Path) -> None:
    shutil.copytree(undisturbed, tmp_path / "run")
    with pytest.raises(InputError, match="another configuration"):
        attempt(tmp_path / "run", fingerprint="other")


def test_a_loss_that_is_not_finite_ends_the_run_and_names_the_samples(tmp_path: Path) -> None:
    with pytest.raises(TrainingDivergedError, match=r"diverged at step .*diverged/step-"):
        attempt(tmp_path, poison=3)
    (file,) = (tmp_path / "diverged").iterdir()
    found = json.loads(file.read_text())
    assert "3" in found["samples"]
    assert found["samples"] == [str(index) for index in PLAN.slots(found["step"]) if index != PADDING]


def test_a_checkpoint_that_cannot_be_written_ends_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(store: LocalStore, key: str, data: bytes) -> None:
        raise UnreachableError("the store is gone", value=key, fix="none")

    monkeypatch.setattr(LocalStore, "write", refuse)
    reached = []
    with pytest.raises(UnreachableError):
        attempt(tmp_path, lambda step: reached.append(step) or time.sleep(0.05))
    assert reached[-1] < 5  # the first save is behind step 2, the next one behind step 5: a step ends it, no save
    assert not (tmp_path / "checkpoints").exists()


def test_the_last_checkpoint_that_cannot_be_written_fails_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = LocalStore.write

    def refuse_last(store: LocalStore, key: str, data: bytes) -> None:
        if str(Mark(STEPS)) in f"{store.uri}/{key}":
            raise UnreachableError("the store is gone", value=key, fix="none")
        write(store, key, data)

    monkeypatch.setattr(LocalStore, "write", refuse_last)
    with pytest.raises(UnreachableError):
        attempt(tmp_path)


_HANGS = """
import sys, time
from lookalike.storage import open_store
from lookalike.training.watchdog import Watchdog

def waits_forever():
    time.sleep(60)

with Watchdog(open_store(sys.argv[1]), rank=1, timeout_s=0.5) as watchdog:
    watchdog.alive(7)
    waits_forever()
"""


def test_a_process_that_hangs_leaves_its_stacks_and_ends(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", _HANGS, str(tmp_path)], capture_output=True, text=True, timeout=50)
    assert done.returncode == EXIT_HANG
    assert "waits_forever" in (tmp_path / "hangs" / "step-00000007-rank-1.txt").read_text()
    assert "rank 1 hangs at step 7" in done.stderr


_STOPS = """
import sys, time
from lookalike.errors import StoppedError
from lookalike.storage import open_store
from lookalike.training.stopping import STOP, stops_on_sigterm

store = open_store(sys.argv[1])
try:
    with stops_on_sigterm(store, grace_s=float(sys.argv[2])):
        print("ready", flush=True)
        while not store.exists(STOP) or sys.argv[2] == "0.5":
            time.sleep(0.05)
except StoppedError as error:
    print(error)
"""


@pytest.mark.parametrize(("grace", "said"), [("30", ""), ("0.5", "stopped without a checkpoint")])
def test_sigterm_writes_a_marker_and_the_grace_period_ends(tmp_path: Path, grace: str, said: str) -> None:
    argv = [sys.executable, "-c", _STOPS, str(tmp_path), grace]
    (tmp_path / stopping.STOP).touch()  # an earlier attempt's
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        time.sleep(0.2)
        assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        try:
            assert said in process.communicate(timeout=20)[0]
        finally:
            process.kill()  # else leaving waits for one that did not stop
    assert process.returncode == 0
    assert (tmp_path / stopping.STOP).exists()
