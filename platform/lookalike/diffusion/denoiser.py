"""The DiT with the conditions of one call of the pipeline, computed once and seen by its steps."""

import dataclasses
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lookalike.diffusion.schedule import ConditionWeights
from lookalike.models.batch import Batch
from lookalike.models.dit import Context, ReferenceKeys, References, prepare_references, velocity
from lookalike.models.presets import ReferenceConfig, ReferencePosition
from lookalike.models.subject import encode_context
from lookalike.models.vae import encode, token_grid


@dataclass(frozen=True)
class Denoiser:
    """Predicts the velocity under the weights of its conditions: a :class:`~lookalike.diffusion.sampler.Velocity`."""

    transformer: Any
    """FluxTransformer2DModel."""
    grid: tuple[int, int]
    """Rows and columns of the target's tokens."""
    context: Context | None
    """Tokens of the MLLM; None if no step sees them."""
    references: References | ReferenceKeys | None
    """None if no step sees them."""
    position: ReferencePosition
    """How reference tokens are numbered."""
    distilled_guidance: float
    """Value of the guidance embedding, if the DiT has one."""

    def __call__(self, noisy: Tensor, sigma: Tensor, seen: ConditionWeights) -> Tensor:
        """Velocity ``[B, T, C]`` of packed latents ``[B, T, C]`` at a scalar ``sigma``.

        A condition of weight 0 is not computed.
        """
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


def context_of(mllm: Any, aggregator: Any, batch: Batch, repeats: int, keep: Tensor | None = None) -> Context:
    """Compute the MLLM's tokens of each prompt, ``repeats`` times each; ``keep`` [B] masks prompts out."""
    once = encode_context(mllm, aggregator, batch, keep=keep)
    return Context(once.tokens.repeat_interleave(repeats, dim=0), once.mask.repeat_interleave(repeats, dim=0))


def references_of(
    vae: Any,
    transformer: Any,
    batch: Batch,
    repeats: int,
    grid: tuple[int, int],
    config: ReferenceConfig,
    distilled_guidance: float,
    device: torch.device,
) -> References | ReferenceKeys:
    """Encode the references of each prompt, ``repeats`` times each, for a target of ``grid`` tokens."""
    images = batch.references
    latents = encode(vae, images.flatten(0, 1), device).unflatten(0, images.shape[:2])
    latents, mask = (part.repeat_interleave(repeats, dim=0) for part in (latents, batch.reference_mask))
    references = References(latents, mask, token_grid(vae, *images.shape[-2:]))
    return prepare_references(transformer, references, grid, config, distilled_guidance)


def _weighted(condition: Any, weight: float) -> Any:
    if not weight:
        return None
    assert condition is not None, "a step sees a condition that was not computed"
    return dataclasses.replace(condition, weight=weight)
