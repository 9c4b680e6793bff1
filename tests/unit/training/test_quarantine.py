"""Samples that are left out: the weight of the others, the records, and the limit that ends the run."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lookalike.errors import ConfigError, InputError
from lookalike.storage import open_store
from lookalike.tracking import open_tracker
from lookalike.training.config import TrainConfig
from lookalike.training.curriculum import PhaseConfig
from lookalike.training.engine import PlainEngine
from lookalike.training.epoch_plan import PADDING, EpochPlan
from lookalike.training.history import METRICS, History
from lookalike.training.ledger import read_ledger
from lookalike.training.loop import Loop
from lookalike.training.loop_config import SafetyConfig, ValidationConfig
from lookalike.training.micro_batch import MicroBatch
from lookalike.training.objective import partners_of_other_subjects
from lookalike.training.quarantine import QUARANTINE, Failure, Quarantine, UnusableDataError
from lookalike.training.ranks import Rank
from lookalike.training.workers import WorkerConfig

BATCH, MICRO = 4, 2


def run(folder: Path, samples: int, failing: set[int], safety: SafetyConfig = SafetyConfig()) -> list[dict[str, Any]]:  # noqa: B008
    """Two epochs of a linear model on its samples' numbers; its metrics."""
    plan = EpochPlan(samples, BATCH, seed=0)
    steps = 2 * plan.steps_per_epoch
    config = TrainConfig(
        dataset="none",
        run=str(folder),
        stages=[PhaseConfig(name="only", steps=steps, conditions="mllm", warmup_steps=0, learning_rate=0.05)],
        batch_size=BATCH,
        micro_batch_size=MICRO,
        workers=WorkerConfig(num_workers=0),
        validation=ValidationConfig(samples=0),
        safety=safety,
        log_every=1,
    )
    torch.manual_seed(0)
    model = nn.Linear(1, 1)
    engine = PlainEngine(model, dict(model.named_parameters()), config.optimizer, BATCH // MICRO)

    def objective(micro_batch: MicroBatch, phase: PhaseConfig, epoch: int) -> Tensor:
        numbers = torch.tensor([[float(name)] for name in micro_batch.columns["sample_id"]])
        return (model(numbers) - numbers).square().flatten()

    def batches() -> Iterator[MicroBatch]:
        for step in range(steps):
            slots = plan.slots(step)
            failed = np.isin(slots, list(failing))
            for part, wrong in zip(slots.reshape(-1, MICRO), failed.reshape(-1, MICRO), strict=True):
                yield MicroBatch(
                    {
                        "step": np.full(MICRO, step),
                        "sample_id": np.array([str(max(0, index)) for index in part]),
                        "weight": ((part != PADDING) & ~wrong).astype(np.float32),
                        "reason": np.where(wrong, "rot", ""),
                        "fatal": np.zeros(MICRO, bool),
                        "failed_in_step": np.full(MICRO, failed.sum()),
                    }
                )

    store = open_store(str(folder))
    Loop(
        config=config,
        rank=Rank(),
        engine=engine,
        objective=objective,
        plan=plan,
        store=store,
        history=History(store, open_tracker("none:", "none"), steps, write=True),
        fingerprint="run",
        base_sha256="base",
    ).run(batches())
    return [json.loads(line) for line in (folder / METRICS).read_text().splitlines()]


def test_a_failed_sample_does_not_change_the_weight_of_the_others(tmp_path: Path) -> None:
    """A batch of four with one failure is one of three: loss, gradient and the weights that follow."""
    left_out = run(tmp_path / "four", 4, failing={3})
    without = run(tmp_path / "three", 3, failing=set())
    for name in ("loss", "gradient_norm"):
        assert [r[name] for r in left_out] == pytest.approx([r[name] for r in without], rel=1e-5)
    assert [record["quarantined"] for record in left_out] == [1, 1]
    ledger = read_ledger(open_store(str(tmp_path / "four")))
    slots = [int(np.flatnonzero(EpochPlan(4, BATCH, 0).slots(step) == 3)[0]) for step in (0, 1)]
    for line, slot in zip(ledger, slots, strict=True):
        assert sorted(line["samples"]) == ["0", "1", "2"]
        assert line["quarantined"] == [{"sample": "3", "slot": slot, "reason": "rot"}]
    assert "quarantined" not in read_ledger(open_store(str(tmp_path / "three")))[0]
    (listed,) = (tmp_path / "four" / QUARANTINE).read_text().splitlines()
    assert json.loads(listed) == {"sample": "3", "step": 0, "slot": slots[0], "reason": "rot"}


def test_a_step_without_usable_samples_changes_nothing(tmp_path: Path) -> None:
    records = run(tmp_path, 12, failing={int(i) for i in EpochPlan(12, BATCH, 0).slots(1)})
    assert (records[1]["loss"], records[1]["gradient_norm"]) == (0, 0)
    assert all(np.isfinite(record["loss"]) for record in records)


@pytest.mark.parametrize(
    "safety",
    [SafetyConfig(max_quarantined=1), SafetyConfig(max_quarantined=0), SafetyConfig(max_quarantined_share=0.2)],
)
def test_more_than_the_limit_ends_the_run_and_names_them(tmp_path: Path, safety: SafetyConfig) -> None:
    with pytest.raises(UnusableDataError, match=r"samples cannot be read .*: \d: rot.*raise safety.max_quarantined"):
        run(tmp_path, 8, failing={1, 5}, safety=safety)
    assert (tmp_path / QUARANTINE).is_file()
    run(tmp_path, 8, failing={1, 5}, safety=SafetyConfig())  # as the message says


def test_limits_are_checked() -> None:
    assert SafetyConfig().quarantine_limit(10_000_000) == 100
    assert SafetyConfig().quarantine_limit(6) == 3
    for wrong in ({"max_quarantined": -1}, {"max_quarantined_share": 1.5}, {"max_quarantined_share": float("nan")}):
        with pytest.raises(ConfigError, match="max_quarantined"):
            SafetyConfig(**wrong)  # type: ignore[arg-type]


def failure(sample: str, **changes: Any) -> Failure:
    return Failure(sample, 0, "rot", **changes)


def test_a_sample_counts_once_and_a_restart_drops_later_records(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    quarantine = Quarantine(store, Rank(), limit=3)
    quarantine.add_held_out([failure("v")], readable=1)
    for step in range(5):
        quarantine.add(step, [failure("a")], 1)
    quarantine.add(5, [failure("b")], 1)
    store.write(QUARANTINE, quarantine.encoded())
    again = Quarantine(store, Rank(), limit=3)
    again.restart_at(5)
    assert [json.loads(line)["sample"] for line in store.read(QUARANTINE).splitlines()] == ["v", "a"]
    again.add(5, [failure("c")], 1)
    with pytest.raises(UnusableDataError, match="4 samples"):
        again.add(6, [failure("d")], 1)


def test_held_out_samples_that_all_fail_end_the_run(tmp_path: Path) -> None:
    with pytest.raises(UnusableDataError, match="no validation sample can be read"):
        Quarantine(open_store(str(tmp_path)), Rank(), limit=9).add_held_out([failure("v")], readable=0)
    Quarantine(open_store(str(tmp_path)), Rank(), limit=9).add_held_out([], readable=0)  # none are asked for


@dataclass(frozen=True)
class SecondOfTwo(Rank):
    """A rank other than the first: it gathers nothing and has to follow the first one's decision."""

    index: int = 1
    count: int = 2

    def sum(self, *values: float) -> list[float]:
        return [value + 1 for value in values]

    def gather(self, value: Any) -> list[Any]:
        return []


def test_all_ranks_end_if_one_has_an_unreadable_shard(tmp_path: Path) -> None:
    quarantine = Quarantine(open_store(str(tmp_path)), SecondOfTwo(), limit=9)
    with pytest.raises(UnusableDataError):
        quarantine.add(0, [], 1)
    assert not (tmp_path / QUARANTINE).exists()
    broken = Failure("a", 0, json.dumps(["a shard is gone", "x.tar", "copy it back"]), fatal=True)
    with pytest.raises(UnusableDataError, match=r"a shard is gone \('x.tar'\); copy it back"):
        Quarantine(open_store(str(tmp_path)), Rank(), limit=9).add(0, [broken], 1)


def test_conditions_are_not_shuffled_with_samples_that_failed() -> None:
    subjects = ["a", "", "b", "a"]
    assert partners_of_other_subjects(subjects, [True, False, True, True]) == [2, 2, 3, 2]
    assert partners_of_other_subjects(subjects, [True] * 4) == [1, 2, 3, 1]


@pytest.mark.parametrize("line", ["cut {", "[]", "{}", '{"step": 1}'])
def test_damaged_record_of_left_out_samples_is_an_error_that_names_its_line(line: str, tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    store.write(QUARANTINE, f'{{"step": 0, "sample": "a"}}\n{line}\n'.encode())
    with pytest.raises(InputError) as refused:
        Quarantine(store, Rank(), 8).restart_at(5)
    assert str(refused.value.value).endswith(f"{QUARANTINE}, line 2")
