"""The training loss and the paired held-out loss; the samples' identities determine all random numbers."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from lookalike.diffusion.flow import Draw, FlowConfig, add_noise, draw, flow_matching_loss
from lookalike.errors import ConfigError
from lookalike.models.batch import Batch
from lookalike.models.dit import References
from lookalike.models.vae import LatentCache, encode, token_grid


def denoising_loss(
    model: Callable[..., Tensor],
    vae: Any,
    batch: Batch,
    *,
    sample_ids: Sequence[str],
    seed: object,
    flow: FlowConfig,
    use_mllm: bool = True,
    use_references: bool = True,
    dropout_mllm: float | Tensor = 0.0,
    dropout_references: float | Tensor = 0.0,
    cache: LatentCache | None = None,
    drawn: Draw | None = None,
) -> Tensor:
    """Compute the flow-matching loss of each sample: float32 ``[B]``.

    Noise, noise level and dropout depend on (``seed``, sample id) alone: a sample's loss is the same in any batch and
    at any number of ranks, and two calls that differ only in conditions (``batch.with_conditions_of``) are paired.

    Args:
        model: a SubjectModel, or an engine that calls one.
        vae: frozen AutoencoderKL.
        batch: with targets; latents that it has are not computed again.
        sample_ids: B identities.
        seed: anything with a stable ``str``, such as (run seed, epoch).
        flow: noise levels and shift; see :meth:`FlowConfig.from_bundle`.
        use_mllm: whether the MLLM's tokens are computed.
        use_references: whether the reference tokens are computed.
        dropout_mllm: probability that a sample does not see the MLLM's tokens; of each sample if float ``[B]``.
        dropout_references: probability, independent of the other, that it does not see the reference tokens. A
            dropped condition is absent, as in a sampler step that gives it weight 0.
        cache: keeps latents between calls; without it the VAE runs on every image.
        drawn: result of :func:`~lookalike.diffusion.flow.draw` for these ids and this seed, if the caller has it.

    Raises ConfigError if the batch has no targets, or the number of ids is not that of the samples.
    """
    if batch.target is None:
        raise ConfigError("the batch has no targets", fix="pass targets to the preprocessor")
    if len(sample_ids) != len(batch):
        raise ConfigError(f"{len(sample_ids)} sample ids for {len(batch)} samples", fix="pass one for each")
    batch = with_latents(batch, vae, cache, references=use_references)
    clean, target = batch.target_latents, batch.target
    assert clean is not None
    assert target is not None
    clean = clean.float()  # on the device: a snapshot's latents are float16
    if drawn is None:
        drawn = draw(sample_ids, seed, (clean.shape[1], clean.shape[2]), flow)
    drawn = drawn.to(clean.device)
    noise, sigma, uniform = drawn.noise, drawn.sigma, drawn.uniform
    references = None
    if use_references:
        assert batch.reference_latents is not None
        mask = batch.reference_mask & (uniform[:, 1] >= dropout_references)[:, None]
        references = References(batch.reference_latents.float(), mask, token_grid(vae, *batch.references.shape[-2:]))
    predicted = model(
        batch,
        add_noise(clean, noise, sigma),
        sigma,
        references,
        token_grid(vae, *target.shape[-2:]),
        use_mllm=use_mllm,
        mllm_keep=uniform[:, 0] >= dropout_mllm,
    )
    return flow_matching_loss(predicted, noise, clean)


def paired_losses(
    model: Callable[..., Tensor], vae: Any, right: Batch, shuffled: Batch | None, **options: Any
) -> tuple[Tensor, Tensor | None]:
    """Compute the held-out loss of each sample with its own and with another subject's conditions, on the same noise.

    ``shuffled`` has the targets of ``right`` under other conditions (:meth:`Batch.with_conditions_of`); ``options`` are
    the other arguments of :func:`denoising_loss`. Returns two float32 ``[B]``; the second is None without ``shuffled``.
    """
    own = denoising_loss(model, vae, right, **options)
    return own, None if shuffled is None else denoising_loss(model, vae, shuffled, **options)


def with_latents(batch: Batch, vae: Any, cache: LatentCache | None = None, *, references: bool = True) -> Batch:
    """Return ``batch`` with the latents of its targets, and with ``references`` of its references, if it lacks them."""
    to_latents = encode if cache is None else cache.encode
    found = {}
    if batch.target_latents is None and batch.target is not None:
        found["target_latents"] = to_latents(vae, batch.target)
    if batch.reference_latents is None and references:
        flat = to_latents(vae, batch.references.flatten(0, 1))
        found["reference_latents"] = flat.unflatten(0, batch.references.shape[:2])
    return dataclasses.replace(batch, **found)
