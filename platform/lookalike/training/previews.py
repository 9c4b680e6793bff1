"""Images of held-out samples in the loop, drawn through the engine's forward pass."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lookalike.diffusion.flow import draw, shift_sigma
from lookalike.diffusion.stages import PRESET, Conditions, stages_of
from lookalike.models.batch import to_batch
from lookalike.models.vae import decode, token_grid
from lookalike.training.curriculum import PhaseConfig
from lookalike.training.loop_config import ImagesConfig
from lookalike.training.objective import Columns, DenoisingObjective

_NOTHING = Conditions(mllm=0, references=0)


@dataclass(frozen=True)
class HeldOutImages:
    """Draws the same samples from the same noise each time. A collective: every rank runs the same modules.

    Under ZeRO-3 a part of the model cannot be called alone, so each step is a whole forward pass, the MLLM's too. Of
    stages that blend, a condition with any weight is seen whole.
    """

    objective: DenoisingObjective
    columns: Columns
    """This rank's samples, as many as every other rank has."""
    config: ImagesConfig
    stages: str
    """Of the preset."""

    @torch.no_grad()
    def __call__(self, stage: PhaseConfig) -> npt.NDArray[np.uint8]:
        """uint8 ``[n, H, W, 3]``: by the preset's stages, or from the MLLM alone where ``stage`` trains that."""
        vae, flow, cache = self.objective.vae, self.objective.flow, self.objective.cache
        batch = to_batch(self.columns).to(self.objective.device)
        assert batch.target is not None
        grid = token_grid(vae, *batch.target.shape[-2:])
        reference_grid = token_grid(vae, *batch.references.shape[-2:])
        latents = cache.encode(vae, batch.references.flatten(0, 1)).unflatten(0, batch.references.shape[:2])
        shape = (grid[0] * grid[1], latents.shape[-1])
        ids = self.columns["sample_id"].tolist()
        noisy = draw(ids, ("images", self.objective.seed), shape, flow).noise.to(self.objective.device)
        steps = self.config.steps
        sigmas = shift_sigma(torch.linspace(1, 1 / steps, steps), flow.mu(shape[0])).tolist()
        schedule = stages_of(PRESET if stage.conditions == "mllm+references" else "mllm_only", self.stages)

        def velocity(seen: Conditions, sigma: float) -> Tensor:
            return self.objective.model(  # type: ignore[no-any-return]
                batch,
                noisy,
                noisy.new_full((len(noisy),), sigma),
                reference_latents=latents,
                use_mllm=seen.mllm > 0,
                use_references=seen.references > 0,
                grid=grid,
                reference_grid=reference_grid,
            ).float()

        self.objective.model.eval()
        for sigma, following in zip(sigmas, [*sigmas[1:], 0.0], strict=True):
            predicted = velocity(schedule(sigma), sigma)
            if self.config.guidance != 1:
                unguided = velocity(_NOTHING, sigma)
                predicted = unguided + self.config.guidance * (predicted - unguided)
            noisy = noisy + (following - sigma) * predicted
        self.objective.model.train()
        return decode(vae, noisy, grid).permute(0, 2, 3, 1).cpu().numpy()
