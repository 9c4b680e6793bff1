"""Held-out losses in pairs: with the right conditions and with another subject's, on the same noise."""

from collections.abc import Sequence
from typing import Any

import torch

from lookalike.diffusion import objective
from lookalike.diffusion.flow import FlowConfig
from lookalike.evaluation.measurements import Measurement
from lookalike.models.batch import Batch
from lookalike.models.subject import SubjectModel
from lookalike.models.vae import LatentCache

LOSS_MODES = {"": (True, True), "mllm_only/": (True, False)}  # prefix of the metric -> (MLLM, references)


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
    """Measure the held-out loss of each sample with its own and with another subject's conditions, on the same noise.

    ``right`` and ``shuffled`` have the same targets; ``shuffled`` is None if there is no other subject. Both modes of
    training are measured: with the references' latents, and (``mllm_only/``) without. A ``cache`` saves encoding the
    same images for each arm and mode.
    """
    rows = []
    for prefix, (use_mllm, use_references) in LOSS_MODES.items():
        own, wrong = objective.paired_losses(
            model,
            vae,
            right,
            shuffled,
            sample_ids=sample_ids,
            seed=seed,
            flow=flow,
            use_mllm=use_mllm,
            use_references=use_references,
            cache=cache,
        )
        values = {"loss_right": own.double().cpu().numpy()}
        if wrong is not None:
            values["loss_shuffled"] = wrong.double().cpu().numpy()
            values["loss_gap"] = values["loss_shuffled"] - values["loss_right"]
        for name, losses in values.items():
            cases = zip(sample_ids, subjects, losses, strict=True)
            rows += [Measurement(case, subject, prefix + name, float(loss)) for case, subject, loss in cases]
    return rows
