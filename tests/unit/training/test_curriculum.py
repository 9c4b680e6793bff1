"""Phases as data."""

import pytest

from lookalike.errors import ConfigError
from lookalike.training.config import LoraConfig, TrainConfig
from lookalike.training.curriculum import PhaseConfig, default_phases, learning_rate, phase_at
from lookalike.training.workers import WorkerConfig

PHASES = [
    PhaseConfig(name="first", steps=10, conditions="mllm", learning_rate=1.0, warmup_steps=4, final_lr_share=0.1),
    PhaseConfig(name="second", steps=5, conditions="mllm+references", learning_rate=0.5, warmup_steps=0),
]


def test_each_step_has_its_phase() -> None:
    found = [(phase_at(PHASES, step)[1].name, phase_at(PHASES, step)[2]) for step in range(15)]
    assert found == [("first", i) for i in range(10)] + [("second", i) for i in range(5)]
    with pytest.raises(IndexError, match="15"):
        phase_at(PHASES, 15)


def test_the_rate_warms_up_and_falls_to_its_final_share() -> None:
    rates = [learning_rate(PHASES[0], position) for position in range(10)]
    assert rates[:4] == [0.25, 0.5, 0.75, 1.0]
    assert rates[4:] == sorted(rates[4:], reverse=True)
    assert rates[-1] == pytest.approx(0.1)
    assert learning_rate(PHASES[1], 0) == 0.5


def test_settings_that_cannot_work_name_value_and_fix() -> None:
    with pytest.raises(ConfigError, match=r"multiple of workers.*batch_size=30.*divisible by 32"):
        TrainConfig(dataset="d", run="r", batch_size=30)
    with pytest.raises(ConfigError, match="base"):
        TrainConfig(dataset="d", run="r", adapter=LoraConfig(rank=4))
    with pytest.raises(ConfigError, match="warm-up"):
        PhaseConfig(name="s", steps=5, conditions="mllm", warmup_steps=6)
    with pytest.raises(ConfigError, match="empty"):
        TrainConfig(dataset="d", run="r", stages=[])
    with pytest.raises(ConfigError, match="base and from_seed exclude each other"):
        TrainConfig(dataset="d", run="r", base="b", from_seed=True)


def test_plain_process_takes_whole_batches() -> None:
    config = TrainConfig(dataset="d", run="r", batch_size=16, micro_batch_size=16, workers=WorkerConfig(num_workers=0))
    assert config.total_steps == sum(phase.steps for phase in default_phases())
