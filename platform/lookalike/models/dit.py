"""Run the DiT: diffusers' FluxTransformer2DModel with the references' tokens, or with their keys and values.

B batch, T target tokens, R reference slots, K tokens of one reference, L context tokens, C packed latent channels.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lookalike.models.attention import KeyValues, use_reference_attention
from lookalike.models.presets import ReferenceConfig, ReferencePosition


@dataclass(frozen=True)
class Context:
    """Context tokens, which replace T5's tokens in the DiT."""

    tokens: Tensor
    """float ``[B, L, joint_attention_dim]``."""
    mask: Tensor
    """bool ``[B, L]``: true on tokens that may be attended to."""
    weight: float = 1.0
    """Factor of these tokens in every softmax, above 0; near 0 they have no effect."""


@dataclass(frozen=True)
class References:
    """Clean packed latents of the references."""

    latents: Tensor
    """float ``[B, R, K, C]``."""
    mask: Tensor
    """bool ``[B, R]``: true on references that may be attended to."""
    grid: tuple[int, int]
    """Rows and columns of the patchified grid; their product is K."""
    weight: float = 1.0
    """As :attr:`Context.weight`."""


@dataclass(frozen=True)
class ReferenceKeys:
    """Keys and values of the references in every layer, which are the same at every noise level."""

    layers: KeyValues
    """Keys and values of R K tokens."""
    mask: Tensor
    """bool ``[B, R K]``: true on tokens that may be attended to."""
    weight: float = 1.0
    """As :attr:`Context.weight`."""


def grid_ids(grid: tuple[int, int], *, first: tuple[int, int, int] = (0, 0, 0)) -> Tensor:
    """Compute the rotary ids of one image as diffusers' Flux pipeline does: ``[rows * columns, 3]``."""
    ranges = zip(first, (1, *grid), strict=True)
    return torch.cartesian_prod(*(torch.arange(start, start + count, dtype=torch.float32) for start, count in ranges))


def image_ids(
    grid: tuple[int, int], reference_grid: tuple[int, int], num_references: int, position: ReferencePosition
) -> Tensor:
    """Compute the rotary ids of target and references: float32 ``[T + R K, 3]``.

    ``diagonal``: reference k starts at the lower right corner of the image before it (UNO, arXiv 2504.02160), so no two
    images share a row or column. ``index``: same rows and columns as the target, distinguished by the first axis.
    """
    parts = [grid_ids(grid)]
    row, column = grid
    for index in range(num_references):
        first = (0, row, column) if position == "diagonal" else (index + 1, 0, 0)
        parts.append(grid_ids(reference_grid, first=first))
        row, column = row + reference_grid[0], column + reference_grid[1]
    return torch.cat(parts)


def prepare_references(
    transformer: Any, references: References, grid: tuple[int, int], config: ReferenceConfig, guidance: float = 1.0
) -> References | ReferenceKeys:
    """Prepare the references of a target of ``grid`` (rows, columns) for :func:`velocity`, once for all steps.

    With ``attention: full`` the latents are returned as they are. With ``cached`` one pass over the reference tokens
    alone, modulated at noise level 0, computes keys and values of every layer: a reference token attends to the
    references of its sample, and neither to context nor to target. Gradients flow through that pass.
    """
    if config.attention == "full":
        return references
    use_reference_attention(transformer)
    slots, length = references.latents.shape[1:3]
    tokens = references.latents.flatten(1, 2).to(transformer.dtype)
    mask = references.mask.repeat_interleave(length, dim=1)
    visible = mask | ~mask.any(dim=1, keepdim=True)  # softmax over zero keys would be NaN
    layers = KeyValues()
    _run(
        transformer,
        tokens,
        tokens.new_zeros(len(tokens)),
        image_ids(grid, references.grid, slots, config.position)[grid[0] * grid[1] :],
        None,
        guidance,
        {"attention_mask": visible[:, None, None, :], "written": layers},
    )
    return ReferenceKeys(layers, mask, references.weight)


def velocity(
    transformer: Any,
    noisy: Tensor,
    sigma: Tensor,
    grid: tuple[int, int],
    context: Context | None,
    references: References | ReferenceKeys | None,
    position: ReferencePosition,
    guidance: float,
) -> Tensor:
    """Predict the flow's velocity (noise − clean) for ``noisy`` ``[B, T, C]`` at ``sigma`` ``[B]`` in [0, 1].

    A condition that is None adds no tokens; one that is masked adds tokens that nothing attends to. Both give the same
    result. The pooled embedding is zero.
    """
    noisy = noisy.to(transformer.dtype)
    tokens, ids = noisy, grid_ids(grid)
    seen = [(torch.ones(noisy.shape[:2], dtype=torch.bool, device=noisy.device), 1.0)]
    if context is not None:
        seen.insert(0, (context.mask, context.weight))
    attention: dict[str, Any] = {}
    if isinstance(references, ReferenceKeys):
        attention["given"] = references.layers
        seen.append((references.mask, references.weight))
    elif references is not None:
        slots, length = references.latents.shape[1:3]
        tokens = torch.cat([noisy, references.latents.flatten(1, 2).to(noisy.dtype)], dim=1)
        ids = image_ids(grid, references.grid, slots, position)
        seen.append((references.mask.repeat_interleave(length, dim=1), references.weight))
    attention["attention_mask"] = _attention_mask(seen, noisy.dtype)
    text = None if context is None else context.tokens
    return _run(transformer, tokens, sigma, ids, text, guidance, attention)[:, : noisy.shape[1]]


def _run(
    transformer: Any,
    tokens: Tensor,
    sigma: Tensor,
    ids: Tensor,
    context: Tensor | None,
    guidance: float,
    attention: dict[str, Any],
) -> Tensor:
    """Call diffusers' forward on image tokens ``[B, S, C]`` with rotary ``ids`` ``[S, 3]``; no context is length 0."""
    config, batch = transformer.config, len(tokens)
    if context is None:
        context = tokens.new_zeros(batch, 0, config.joint_attention_dim)
    return transformer(  # type: ignore[no-any-return]
        hidden_states=tokens,
        encoder_hidden_states=context.to(tokens.dtype),
        pooled_projections=tokens.new_zeros(batch, config.pooled_projection_dim),
        timestep=sigma.to(tokens.dtype),  # the model multiplies by 1000
        guidance=tokens.new_full((batch,), guidance) if config.guidance_embeds else None,
        img_ids=ids.to(tokens.device),
        txt_ids=torch.zeros(context.shape[1], 3, device=tokens.device),
        joint_attention_kwargs=attention,
        return_dict=False,
    )[0]


def _attention_mask(seen: list[tuple[Tensor, float]], dtype: torch.dtype) -> Tensor:
    """Make the mask of all keys ``[B, 1, 1, S]``: bool, or a bias of log(weight) if a weight is not 1."""
    mask = torch.cat([part for part, _ in seen], dim=1)[:, None, None, :]
    if all(weight == 1 for _, weight in seen):
        return mask
    bias = torch.cat([torch.full_like(part, math.log(weight), dtype=dtype) for part, weight in seen], dim=1)
    return bias[:, None, None, :].masked_fill(~mask, -math.inf)
