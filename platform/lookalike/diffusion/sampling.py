"""One step of the sampler: the velocity under the conditions that a stage sees, with or without guidance."""

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from lookalike.diffusion.stages import Conditions
from lookalike.models.dit import Context, ReferenceKeys, References, velocity
from lookalike.models.presets import ReferencePosition

Negative = Literal["all", "mllm", "references"]


def without(seen: Conditions, negative: Negative) -> Conditions:
    """What the negative branch of classifier-free guidance keeps of what its step sees."""
    return Conditions(
        mllm=seen.mllm if negative == "references" else 0,
        references=seen.references if negative == "mllm" else 0,
    )


@dataclass(frozen=True)
class Denoiser:
    """The DiT with everything that is the same in all steps of one call."""

    transformer: Any
    """FluxTransformer2DModel."""
    grid: tuple[int, int]
    """Rows and columns of the target's tokens."""
    context: Context | None
    """None if no step sees it."""
    references: References | ReferenceKeys | None
    """None if no step sees them."""
    position: ReferencePosition
    """How reference tokens are numbered."""
    distilled_guidance: float
    """Value of the guidance embedding, where the DiT has one."""
    negative_context: Context | None = None
    """What the MLLM makes of a negative prompt: the negative branch sees it in place of the context."""

    def __call__(self, noisy: Tensor, sigma: Tensor, seen: Conditions) -> Tensor:
        """Velocity ``[B, T, C]`` of packed latents ``[B, T, C]`` at a scalar ``sigma``; no weight is absent."""
        return velocity(
            self.transformer,
            noisy,
            sigma.expand(len(noisy)),
            self.grid,
            _weighted(self.context, seen.mllm),
            _weighted(self.references, seen.references),
            self.position,
            self.distilled_guidance,
        )

    def guided(self, noisy: Tensor, sigma: Tensor, seen: Conditions, scale: float, negative: Negative) -> Tensor:
        """Negative + scale × (positive − negative); one branch alone where the other would change nothing."""
        positive, less, other = self(noisy, sigma, seen), without(seen, negative), self
        if self.negative_context is not None and seen.mllm:
            less = Conditions(seen.mllm, less.references)
            other = dataclasses.replace(self, context=self.negative_context)
        if scale == 1 or (less == seen and other is self):
            return positive
        unguided = other(noisy, sigma, less)
        return unguided + scale * (positive - unguided)


def _weighted(condition: Any, weight: float) -> Any:
    if not weight:
        return None
    assert condition is not None, "a step sees a condition that was not computed"
    return dataclasses.replace(condition, weight=weight)
