"""What the loop minimises and what it validates, on prepared columns."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from lookalike.diffusion.flow import FlowConfig
from lookalike.diffusion.objective import denoising_loss
from lookalike.models.batch import to_batch
from lookalike.models.vae import LatentCache
from lookalike.training.config import DropoutConfig, StageConfig

Columns = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class DenoisingObjective:
    """Flow-matching loss of the model on prepared columns; noise, level and dropout follow from sample and epoch."""

    model: nn.Module
    vae: nn.Module
    flow: FlowConfig
    dropout: DropoutConfig
    seed: int
    device: torch.device
    cache: LatentCache = field(default_factory=LatentCache)
    """The VAE is frozen: each image is encoded once."""

    def __call__(self, columns: Columns, stage: StageConfig, epoch: int) -> Tensor:
        """Training loss of each sample, float32 ``[B]``."""
        return denoising_loss(
            self.model,
            self.vae,
            to_batch(columns).to(self.device),
            sample_ids=columns["sample_id"].tolist(),
            seed=(self.seed, epoch),
            flow=self.flow,
            cache=self.cache,
            use_mllm=True,
            use_references=stage.conditions == "mllm+references",
            dropout_mllm=self.dropout.mllm,
            dropout_references=self.dropout.references,
        )


@dataclass(frozen=True)
class HeldOutLoss:
    """Loss on fixed validation samples with their own and with another subject's conditions, on the same noise.

    The gap says whether the DiT listens to its conditions at all (spec sheet, pitfall 2).
    """

    objective: DenoisingObjective
    batches: Sequence[Columns]
    """This rank's share, the same number of batches on every rank."""
    total: Callable[..., list[float]]
    """Sums each argument over all ranks."""

    def __call__(self, stage: StageConfig) -> dict[str, float]:
        """``loss_right``, ``loss_shuffled`` and their difference ``loss_gap``, means over all ranks' samples."""
        sums = torch.zeros(2)
        count = 0
        self.objective.model.eval()
        for columns in self.batches:
            partners = partners_of_other_subjects(columns["subject"].tolist())
            batch = to_batch(columns).to(self.objective.device)
            for index, chosen in enumerate((batch, batch.with_conditions_of(partners))):
                sums[index] += (
                    denoising_loss(
                        self.objective.model,
                        self.objective.vae,
                        chosen,
                        sample_ids=columns["sample_id"].tolist(),
                        seed=(self.objective.seed,),
                        flow=self.objective.flow,
                        cache=self.objective.cache,
                        use_mllm=True,
                        use_references=stage.conditions == "mllm+references",
                    )
                    .sum()
                    .cpu()
                )
            count += len(columns["weight"])
        self.objective.model.train()
        right, shuffled, samples = self.total(float(sums[0]), float(sums[1]), float(count))
        return {
            "loss_right": right / samples,
            "loss_shuffled": shuffled / samples,
            "loss_gap": (shuffled - right) / samples,
        }


def partners_of_other_subjects(subjects: Sequence[str]) -> list[int]:
    """For each row the next row (cyclically) of another subject; its own index if there is none."""
    count = len(subjects)
    return [
        next(((i + d) % count for d in range(1, count) if subjects[(i + d) % count] != subjects[i]), i)
        for i in range(count)
    ]
