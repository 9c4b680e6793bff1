"""The Euler sampler with classifier-free guidance, for the pipeline and for the previews of training.

B batch, T tokens of the target, C channels of packed latents.
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from lookalike.diffusion.flow import FlowConfig
from lookalike.diffusion.schedule import ConditionWeights

Negative = Literal["all", "mllm", "references"]


class Velocity(Protocol):
    """The model with everything that is the same in all steps."""

    def __call__(self, noisy: Tensor, sigma: Tensor, seen: ConditionWeights, /) -> Tensor:
        """Velocity ``[B, T, C]`` of packed latents ``[B, T, C]`` at a scalar ``sigma``."""


def set_noise_levels(scheduler: Any, steps: int, tokens: int, device: torch.device | None = None) -> list[float]:
    """Set the noise levels of diffusers' FlowMatchEulerDiscreteScheduler as FluxPipeline does; returns them.

    The patchified ``tokens`` of the image decide the resolution shift; ``device`` is that of the scheduler's tensors.
    """
    mu = FlowConfig.from_scheduler(scheduler.config).mu(tokens) if scheduler.config.use_dynamic_shifting else None
    scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / steps, steps), mu=mu, device=device)
    return scheduler.sigmas[:-1].tolist()  # type: ignore[no-any-return]


def sample(
    velocity: Velocity,
    latents: Tensor,
    scheduler: Any,
    weights: Sequence[ConditionWeights],
    *,
    scale: Callable[[], float],
    negative: Negative = "all",
    negative_prompt: Velocity | None = None,
    on_step_end: Callable[[int, Tensor, Tensor], Tensor] = lambda step, timestep, latents: latents,
    interrupted: Callable[[], bool] = lambda: False,
) -> Tensor:
    """Denoise ``latents`` ``[B, T, C]`` by the scheduler's Euler steps.

    Args:
        velocity: the model.
        latents: noise.
        scheduler: with its noise levels set, see :func:`set_noise_levels`.
        weights: what each step sees.
        scale: returns the scale of the guidance; called before each step.
        negative: what the negative branch of guidance leaves out.
        negative_prompt: the model with a negative prompt's context, if there is one.
        on_step_end: called as ``f(step, timestep, latents)``; returns the latents to continue with.
        interrupted: called before each step; if it returns true, the remaining steps are skipped.
    """
    for step, (timestep, seen) in enumerate(zip(scheduler.timesteps, weights, strict=True)):
        if interrupted():
            break
        sigma = scheduler.sigmas[step].to(latents)
        predicted = guided(velocity, latents, sigma, seen, scale(), negative, negative_prompt)
        latents = scheduler.step(predicted, timestep, latents, return_dict=False)[0]
        latents = on_step_end(step, timestep, latents)
    return latents


def guided(
    velocity: Velocity,
    noisy: Tensor,
    sigma: Tensor,
    seen: ConditionWeights,
    scale: float,
    negative: Negative = "all",
    negative_prompt: Velocity | None = None,
) -> Tensor:
    """Negative + scale × (positive − negative); one branch is computed if the other would change nothing."""
    positive, unguided = velocity(noisy, sigma, seen), velocity
    less = ConditionWeights(
        mllm=seen.mllm if negative == "references" else 0,
        references=seen.references if negative == "mllm" else 0,
    )
    if negative_prompt is not None and seen.mllm:
        less, unguided = ConditionWeights(seen.mllm, less.references), negative_prompt
    if scale == 1 or (less == seen and unguided is velocity):
        return positive
    base = unguided(noisy, sigma, less)
    return base + scale * (positive - base)
