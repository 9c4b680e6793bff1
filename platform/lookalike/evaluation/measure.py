"""Measure: what one sample or one image scores."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from lookalike.annotators.base import Embedder
from lookalike.diffusion.flow import FlowConfig
from lookalike.diffusion.objective import denoising_loss
from lookalike.evaluation.clip import ClipScorer
from lookalike.evaluation.measurements import Measurement
from lookalike.models.batch import Batch
from lookalike.models.subject import SubjectModel
from lookalike.models.vae import LatentCache

Pixels = np.ndarray  # uint8 [H, W, 3]

LOSS_MODES = {"": (True, True), "mllm_only/": (True, False)}  # prefix of the metric -> (MLLM, references)


@dataclass(frozen=True)
class Task:
    """What an image was asked to show; what the model was given may differ (the shuffled probe)."""

    case: str
    """Identity."""
    subject: str
    """Whom the image should show."""
    prompt: str
    """What the image should show."""
    references: Sequence[Pixels]
    """Photos of the subject."""
    others: Sequence[Pixels]
    """Photos of another subject; none where there is no other."""


@torch.no_grad()
def paired_losses(
    model: SubjectModel,
    vae: Any,
    flow: FlowConfig,
    right: Batch,
    shuffled: Batch | None,
    *,
    sample_ids: Sequence[str],
    subjects: Sequence[str],
    seed: int,
    cache: LatentCache | None = None,
) -> list[Measurement]:
    """Held-out loss of each sample under its own and under a stranger's conditions, on the same noise.

    ``right`` and ``shuffled`` have the same targets; ``shuffled`` is None where there is no stranger. Both modes of
    training are measured: with the references' latents, and (``mllm_only/``) without. A ``cache`` saves encoding the
    same images for each arm and mode.
    """
    found = []
    for prefix, (use_mllm, use_references) in LOSS_MODES.items():
        values = {}
        for arm, batch in (("right", right), ("shuffled", shuffled)):
            if batch is not None:
                loss = denoising_loss(
                    model,
                    vae,
                    batch,
                    sample_ids=sample_ids,
                    seed=seed,
                    flow=flow,
                    use_mllm=use_mllm,
                    use_references=use_references,
                    cache=cache,
                )
                values[f"loss_{arm}"] = loss.double().cpu().numpy()
        if shuffled is not None:
            values["loss_gap"] = values["loss_shuffled"] - values["loss_right"]
        for name, losses in values.items():
            rows = zip(sample_ids, subjects, losses, strict=True)
            found += [Measurement(case, subject, prefix + name, float(loss)) for case, subject, loss in rows]
    return found


@dataclass(frozen=True)
class ImageScorer:
    """Compares generated images with the photos and the prompt they should follow."""

    embedder: Embedder
    """Of ``identity`` and ``identity_margin``."""
    clip: ClipScorer | None = None
    """Of ``clip_i`` and ``clip_t``."""
    dino: Embedder | None = None
    """Of ``dino_i``."""

    def __call__(self, images: Sequence[Pixels], tasks: Sequence[Task]) -> list[Measurement]:
        """Every metric of every image."""
        found = []
        for image, task in zip(images, tasks, strict=True):
            values = {"identity": similarity(self.embedder, image, task.references)}
            if task.others:
                values["identity_margin"] = values["identity"] - similarity(self.embedder, image, task.others)
            if self.dino is not None:
                values["dino_i"] = similarity(self.dino, image, task.references)
            if self.clip is not None:
                values["clip_i"] = similarity(self.clip.images, image, task.references)
                values["clip_t"] = float((self.clip.images([image]) @ self.clip.texts([task.prompt]).T).item())
            found += [Measurement(task.case, task.subject, name, value) for name, value in values.items()]
        return found


def similarity(embed: Any, image: Pixels, photos: Sequence[Pixels]) -> float:
    """Mean cosine similarity of ``image`` to ``photos`` under ``embed`` (images → unit rows ``[B, D]``)."""
    rows = embed([image, *photos])
    return float((rows[1:] @ rows[0]).mean())


def with_prefix(measurements: Iterable[Measurement], prefix: str) -> list[Measurement]:
    """The same rows, each metric's name behind ``prefix``."""
    return [replace(row, metric=prefix + row.metric) for row in measurements]
