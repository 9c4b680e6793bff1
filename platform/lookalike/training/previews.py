"""Previews: images of held-out samples, generated during training through the engine's forward pass."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lookalike.diffusion.flow import draw
from lookalike.diffusion.sampler import sample, set_noise_levels
from lookalike.diffusion.schedule import PRESET, ConditionWeights, SamplerPlan, denoising_schedule
from lookalike.models.batch import to_batch
from lookalike.models.dit import References
from lookalike.models.vae import decode, token_grid
from lookalike.training.curriculum import PhaseConfig
from lookalike.training.loop_config import ImagesConfig
from lookalike.training.micro_batch import SampleColumns
from lookalike.training.objective import DenoisingObjective


@dataclass(frozen=True)
class HeldOutImages:
    """Generates images of the same samples from the same noise each time. A collective: all ranks run the same modules.

    Under ZeRO-3 a part of the model cannot be called alone, so each step is a whole forward pass, with the MLLM. A
    condition with a weight below 1 (a schedule with ``blend``) is seen with weight 1.
    """

    objective: DenoisingObjective
    columns: SampleColumns
    """This rank's samples, as many as every other rank has."""
    config: ImagesConfig
    schedule: str
    """Denoising schedule of the preset."""
    scheduler: Any
    """FlowMatchEulerDiscreteScheduler of the bundle."""

    @torch.no_grad()
    def __call__(self, phase: PhaseConfig) -> npt.NDArray[np.uint8]:
        """Return uint8 ``[n, H, W, 3]``: by the preset's schedule, or from MLLM tokens alone as ``phase``."""
        vae, flow, cache = self.objective.vae, self.objective.flow, self.objective.cache
        batch = to_batch(self.columns).to(self.objective.device)
        assert batch.target is not None
        grid = token_grid(vae, *batch.target.shape[-2:])
        latents = cache.encode(vae, batch.references.flatten(0, 1)).unflatten(0, batch.references.shape[:2])
        references = References(latents, batch.reference_mask, token_grid(vae, *batch.references.shape[-2:]))
        shape = (grid[0] * grid[1], latents.shape[-1])
        ids = self.columns["sample_id"].tolist()
        noisy = draw(ids, ("images", self.objective.seed), shape, flow).noise.to(self.objective.device)
        name = PRESET if phase.conditions == "mllm+references" else "mllm_only"
        sigmas = set_noise_levels(self.scheduler, self.config.steps, shape[0], noisy.device)
        plan = SamplerPlan.of(denoising_schedule(name, self.schedule), sigmas)

        def velocity(latents: Tensor, sigma: Tensor, seen: ConditionWeights) -> Tensor:
            return self.objective.model(  # type: ignore[no-any-return]
                batch,
                latents,
                sigma.expand(len(latents)),
                references if seen.references else None,
                grid,
                use_mllm=seen.mllm > 0,
            ).float()

        self.objective.model.eval()
        drawn = sample(velocity, noisy, self.scheduler, plan.weights, scale=lambda: self.config.guidance)
        self.objective.model.train()
        return decode(vae, drawn, grid).permute(0, 2, 3, 1).cpu().numpy()
