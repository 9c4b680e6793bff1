"""The loss that the training loop minimises, and the held-out loss that it validates with."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from lookalike.diffusion.flow import FlowConfig, draw, noise_levels
from lookalike.diffusion.objective import denoising_loss, paired_losses, with_latents
from lookalike.models.batch import to_batch
from lookalike.models.vae import LatentCache, token_grid
from lookalike.training.curriculum import PhaseConfig
from lookalike.training.loop_config import DropoutConfig
from lookalike.training.micro_batch import MicroBatch, SampleColumns

_BINS = 4  # bins of the noise level, equally wide


@dataclass(frozen=True)
class DenoisingObjective:
    """Flow-matching loss of a micro batch; noise, noise level and dropout depend on sample and epoch alone."""

    model: nn.Module
    vae: nn.Module
    flow: FlowConfig
    dropout: DropoutConfig
    seed: int
    device: torch.device
    cache: LatentCache = field(default_factory=LatentCache)
    """The VAE is frozen: each image is encoded once."""

    def __call__(self, micro_batch: MicroBatch, phase: PhaseConfig, epoch: int) -> Tensor:
        """Compute the training loss of each sample, float32 ``[B]``."""
        batch = micro_batch.batch or to_batch(micro_batch.columns)
        return denoising_loss(
            self.model,
            self.vae,
            batch.to(self.device),
            sample_ids=micro_batch.columns["sample_id"].tolist(),
            seed=(self.seed, epoch),
            flow=self.flow,
            cache=self.cache,
            drawn=micro_batch.drawn,
            use_mllm=True,
            use_references=sees_references(phase),
            dropout_mllm=self.dropout.mllm,
            dropout_references=self.dropout.references,
        )

    def compute_inputs(self, columns: SampleColumns, phase: PhaseConfig, epoch: int) -> MicroBatch:
        """Compute the host's share of such a call, latents and noise, while a GPU is busy with the step before."""
        batch = with_latents(to_batch(columns), self.vae, self.cache, references=sees_references(phase))
        assert batch.target_latents is not None
        tokens, channels = batch.target_latents.shape[1:]
        drawn = draw(columns["sample_id"].tolist(), (self.seed, epoch), (tokens, channels), self.flow)
        if self.device.type == "cuda":
            batch, drawn = batch.pin_memory(), drawn.pin_memory()
        return MicroBatch(columns, batch, drawn)


@dataclass(frozen=True)
class HeldOutLoss:
    """Loss on fixed validation samples with their own and with another subject's conditions, on the same noise.

    Without a gap the DiT ignores its conditions.
    """

    objective: DenoisingObjective
    batches: Sequence[SampleColumns]
    """This rank's share, the same number of batches on every rank."""
    total: Callable[..., list[float]]
    """Sums each argument over all ranks."""

    def __call__(self, phase: PhaseConfig) -> dict[str, float]:
        """Return means over all ranks' samples: ``loss_right``, ``loss_shuffled`` and their difference ``loss_gap``.

        ``loss_sigma_A-B`` is the right loss of the samples with a noise level from A to B.
        """
        sums = torch.zeros(2)
        binned = np.zeros((2, _BINS))  # sum of losses, number of samples
        self.objective.model.eval()
        for columns in self.batches:
            weight = torch.tensor(columns["weight"])  # 0: the sample could not be read
            partners = partners_of_other_subjects(columns["subject"].tolist(), columns["weight"] > 0)
            batch = to_batch(columns).to(self.objective.device)
            right, shuffled = paired_losses(
                self.objective.model,
                self.objective.vae,
                batch,
                batch.with_conditions_of(partners),
                sample_ids=columns["sample_id"].tolist(),
                seed=(self.objective.seed,),
                flow=self.objective.flow,
                cache=self.objective.cache,
                use_references=sees_references(phase),
            )
            assert shuffled is not None
            right, shuffled = right.cpu() * weight, shuffled.cpu() * weight
            sums += torch.stack([right.sum(), shuffled.sum()])
            bins = self._bins(columns)
            binned += [np.bincount(bins, part.double().numpy(), _BINS) for part in (right, weight)]
        self.objective.model.train()
        loss_right, loss_shuffled, *totals = self.total(*sums.tolist(), *binned.flatten().tolist())
        losses, numbers = totals[:_BINS], totals[_BINS:]
        samples = sum(numbers)
        return {
            "loss_right": loss_right / samples,
            "loss_shuffled": loss_shuffled / samples,
            "loss_gap": (loss_shuffled - loss_right) / samples,
            **{
                f"loss_sigma_{index / _BINS:.2f}-{(index + 1) / _BINS:.2f}": total / number
                for index, (total, number) in enumerate(zip(losses, numbers, strict=True))
                if number
            },
        }

    def _bins(self, columns: SampleColumns) -> npt.NDArray[np.int64]:
        rows, cols = token_grid(self.objective.vae, *columns["target"].shape[-2:])
        levels = noise_levels(columns["sample_id"].tolist(), (self.objective.seed,), rows * cols, self.objective.flow)
        return np.minimum((np.array(levels) * _BINS).astype(np.int64), _BINS - 1)


def sees_references(phase: PhaseConfig) -> bool:
    """Return whether the DiT sees reference tokens in a phase."""
    return phase.conditions == "mllm+references"


def partners_of_other_subjects(subjects: Sequence[str], usable: Sequence[bool] | npt.NDArray[Any]) -> list[int]:
    """Return for each row the next usable row (cyclically) of another subject; its own index if there is none."""
    count = len(subjects)
    return [
        next((j for j in ((i + d) % count for d in range(1, count)) if usable[j] and subjects[j] != subjects[i]), i)
        for i in range(count)
    ]
