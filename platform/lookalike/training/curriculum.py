"""The curriculum as data: its phases, the phase that a step belongs to, and the step's learning rate."""

import math
from collections.abc import Sequence
from typing import Literal

from lookalike.errors import ConfigError
from lookalike.values import Count, NonNegative, Positive, configuration

ConditionSet = Literal["mllm", "mllm+references"]


@configuration("stages[]")
class PhaseConfig:
    """A phase of the curriculum (paper: training stage)."""

    name: str
    """Name of the phase in logs and plots."""
    steps: Count
    """Optimizer steps."""
    conditions: ConditionSet
    """``mllm``: the DiT sees the MLLM's tokens alone. ``mllm+references``: also the references' clean VAE latents."""
    learning_rate: Positive = 1e-3
    """Peak learning rate of AdamW."""
    warmup_steps: NonNegative = 10
    """Steps of linear warm-up at the start of the phase; a cosine to ``final_lr_share`` follows."""
    final_lr_share: float = 0.1
    """Learning rate at the end of the phase, as a share of the peak."""

    def __post_init__(self) -> None:
        if self.warmup_steps > self.steps:
            raise ConfigError(
                "warm-up is longer than its phase",
                value=f"{self.name}: warmup_steps={self.warmup_steps}, steps={self.steps}",
                fix="use 0 to steps for warmup_steps",
            )


def default_phases() -> list[PhaseConfig]:
    """The paper's curriculum (MLLM first, then MLLM + VAE), in the numbers of ``mini``."""
    return [
        PhaseConfig(name="mllm", steps=150, conditions="mllm", learning_rate=2e-3),
        PhaseConfig(name="mllm+references", steps=100, conditions="mllm+references", learning_rate=1e-3),
    ]


def phase_at(phases: Sequence[PhaseConfig], step: int) -> tuple[int, PhaseConfig, int]:
    """Return the index of the phase of the 0-based ``step``, the phase, and the step's position in it."""
    first = 0
    for index, phase in enumerate(phases):
        if step < first + phase.steps:
            return index, phase, step - first
        first += phase.steps
    raise IndexError(f"step {step} is after the end of the curriculum of {first} steps")


def learning_rate(phase: PhaseConfig, position: int) -> float:
    """Return the learning rate: linear warm-up, then a cosine to ``final_lr_share`` of the peak at the end."""
    if position < phase.warmup_steps:
        return phase.learning_rate * (position + 1) / phase.warmup_steps
    span = max(1, phase.steps - 1 - phase.warmup_steps)
    progress = min(1.0, (position - phase.warmup_steps) / span)
    share = phase.final_lr_share + (1 - phase.final_lr_share) * 0.5 * (1 + math.cos(math.pi * progress))
    return phase.learning_rate * share
