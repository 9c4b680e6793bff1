"""The optimizer: its configuration, how it is built, and the names and bytes of the state that it keeps.

Engines, checkpoints, exports and memory plans ask here and name no optimizer themselves, so another optimizer
changes this file alone (see the README). PyTorch is imported in the functions, since drivers read configurations
without it.
"""

from typing import TYPE_CHECKING

from lookalike.values import configuration

if TYPE_CHECKING:
    from torch import Tensor, nn, optim

STATE_NAMES = ("exp_avg", "exp_avg_sq")
"""Names of the tensors that ``torch.optim.AdamW`` keeps for each parameter, each of the parameter's shape."""
STATE_BYTES = 4 * len(STATE_NAMES)
"""Bytes of these for each trained number: they are float32."""


@configuration("optimizer")
class OptimizerConfig:
    """Settings of AdamW, and gradient clipping."""

    betas: tuple[float, float] = (0.9, 0.99)
    """Decay rates of the two moments."""
    weight_decay: float = 0.01
    """Decoupled weight decay."""
    max_grad_norm: float = 1.0
    """Gradients with a larger global norm are scaled down to it."""
    epsilon: float = 1e-8
    """Added to the denominator."""


def build_optimizer(
    parameters: "list[nn.Parameter]", config: OptimizerConfig, *, fused: bool = False
) -> "optim.Optimizer":
    """Build AdamW at learning rate 0, which the loop sets before each step; ``fused`` computes all in one kernel."""
    import torch

    return torch.optim.AdamW(
        parameters, lr=0.0, betas=config.betas, eps=config.epsilon, weight_decay=config.weight_decay, fused=fused
    )


def initial_state(weights: "Tensor", steps: int = 0, *, fused: bool = False) -> "dict[str, Tensor]":
    """The optimizer's state of a parameter after ``steps`` steps, with zeros for the tensors of :data:`STATE_NAMES`.

    PyTorch would make it in the first step; it is made earlier, so that a checkpoint's tensors have a place. AdamW
    keeps its step count on the host, or beside the weights if ``fused``.
    """
    import torch

    count = torch.tensor(float(steps), device=weights.device if fused else None)
    return {"step": count, **{name: torch.zeros_like(weights) for name in STATE_NAMES}}
