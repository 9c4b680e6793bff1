"""The curriculum as data: its phases, the phase that a step belongs to, and the step's learning rate."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from lookalike.errors import ConfigError
from lookalike.values import check_values

ConditionSet = Literal["mllm", "mllm+references"]


@dataclass(frozen=True)
class PhaseConfig:
    """One stage of the curriculum."""

    name: str
    """How the stage is called in logs and plots."""
    steps: int
    """Optimizer steps."""
    conditions: ConditionSet
    """``mllm``: the DiT sees the MLLM's tokens alone. ``mllm+references``: also the references' clean VAE latents."""
    learning_rate: float = 1e-3
    """Peak learning rate of AdamW."""
    warmup_steps: int = 10
    """Steps of linear warm-up at the start of the stage; a cosine to ``final_lr_share`` follows."""
    final_lr_share: float = 0.1
    """Learning rate at the end of the stage, as a share of the peak."""

    def __post_init__(self) -> None:
        check_values(self)
        if self.steps < 1:
            raise ConfigError(
                "a stage needs at least one step", value=f"{self.name}: steps={self.steps}", fix="raise it"
            )
        if not 0 <= self.warmup_steps <= self.steps:
            raise ConfigError(
                "warm-up does not fit into its stage",
                value=f"{self.name}: warmup_steps={self.warmup_steps}, steps={self.steps}",
                fix="lower warmup_steps",
            )
        if self.learning_rate <= 0:
            raise ConfigError("learning rate must be above 0", value=self.learning_rate, fix="try 1e-3 (mini) or 1e-4")


def default_phases() -> list[PhaseConfig]:
    """The paper's curriculum (MLLM first, then MLLM + VAE), in the numbers of ``mini``."""
    return [
        PhaseConfig(name="mllm", steps=150, conditions="mllm", learning_rate=2e-3),
        PhaseConfig(name="mllm+references", steps=100, conditions="mllm+references", learning_rate=1e-3),
    ]


def phase_at(stages: Sequence[PhaseConfig], step: int) -> tuple[int, PhaseConfig, int]:
    """Index of the stage of the 0-based ``step``, the stage, and the step's position in it."""
    first = 0
    for index, stage in enumerate(stages):
        if step < first + stage.steps:
            return index, stage, step - first
        first += stage.steps
    raise IndexError(f"step {step} lies behind the curriculum of {first} steps")


def learning_rate(stage: PhaseConfig, position: int) -> float:
    """Linear warm-up, then a cosine from the peak to ``final_lr_share`` of it at the stage's last step."""
    if position < stage.warmup_steps:
        return stage.learning_rate * (position + 1) / stage.warmup_steps
    span = max(1, stage.steps - 1 - stage.warmup_steps)
    progress = min(1.0, (position - stage.warmup_steps) / span)
    share = stage.final_lr_share + (1 - stage.final_lr_share) * 0.5 * (1 + math.cos(math.pi * progress))
    return stage.learning_rate * share


def ends_phase(stages: Sequence[PhaseConfig], step: int) -> bool:
    """Whether the 0-based ``step`` is the last of its stage."""
    _, stage, position = phase_at(stages, step)
    return position == stage.steps - 1
