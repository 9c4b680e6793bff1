"""Stages as data: which stage a step belongs to, and its learning rate."""

import math
from collections.abc import Sequence

from lookalike.training.config import StageConfig


def stage_at(stages: Sequence[StageConfig], step: int) -> tuple[int, StageConfig, int]:
    """Index of the stage of the 0-based ``step``, the stage, and the step's position in it."""
    first = 0
    for index, stage in enumerate(stages):
        if step < first + stage.steps:
            return index, stage, step - first
        first += stage.steps
    raise IndexError(f"step {step} lies behind the curriculum of {first} steps")


def learning_rate(stage: StageConfig, position: int) -> float:
    """Linear warm-up, then a cosine from the peak to ``final_lr_share`` of it at the stage's last step."""
    if position < stage.warmup_steps:
        return stage.learning_rate * (position + 1) / stage.warmup_steps
    span = max(1, stage.steps - 1 - stage.warmup_steps)
    progress = min(1.0, (position - stage.warmup_steps) / span)
    share = stage.final_lr_share + (1 - stage.final_lr_share) * 0.5 * (1 + math.cos(math.pi * progress))
    return stage.learning_rate * share


def ends_stage(stages: Sequence[StageConfig], step: int) -> bool:
    """Whether the 0-based ``step`` is the last of its stage."""
    _, stage, position = stage_at(stages, step)
    return position == stage.steps - 1
