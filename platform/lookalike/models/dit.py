"""One step of the DiT: diffusers' FluxTransformer2DModel with reference tokens in its image sequence.

B batch, T target tokens, R reference slots, K tokens of one reference, L context tokens, C packed latent channels.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lookalike.models.presets import ReferencePosition


@dataclass(frozen=True)
class Context:
    """What the DiT reads in place of T5's tokens."""

    tokens: Tensor
    """float ``[B, L, joint_attention_dim]``."""
    mask: Tensor
    """bool ``[B, L]``: true on tokens that may be seen."""


@dataclass(frozen=True)
class References:
    """Clean packed latents of the references."""

    latents: Tensor
    """float ``[B, R, K, C]``."""
    mask: Tensor
    """bool ``[B, R]``: true on references that may be seen."""
    grid: tuple[int, int]
    """Rows and columns of the patchified grid; their product is K."""


def grid_ids(grid: tuple[int, int], *, first: tuple[int, int, int] = (0, 0, 0)) -> Tensor:
    """Rotary ids of one image as diffusers' Flux pipeline numbers them: ``[rows * columns, 3]``."""
    rows, columns = grid
    ids = torch.zeros(rows, columns, 3)
    ids[..., 0] = first[0]
    ids[..., 1] = torch.arange(first[1], first[1] + rows)[:, None]
    ids[..., 2] = torch.arange(first[2], first[2] + columns)[None, :]
    return ids.flatten(0, 1)


def image_ids(
    grid: tuple[int, int], reference_grid: tuple[int, int], num_references: int, position: ReferencePosition
) -> Tensor:
    """Rotary ids of target and references: float32 ``[T + R K, 3]``.

    ``diagonal``: reference k starts behind the lower right corner of what precedes it (UNO, arXiv 2504.02160), so no
    two tokens share a row or column. ``index``: same rows and columns as the target, told apart by the first axis.
    """
    parts = [grid_ids(grid)]
    row, column = grid
    for index in range(num_references):
        first = (0, row, column) if position == "diagonal" else (index + 1, 0, 0)
        parts.append(grid_ids(reference_grid, first=first))
        row, column = row + reference_grid[0], column + reference_grid[1]
    return torch.cat(parts)


def velocity(
    transformer: Any,
    noisy: Tensor,
    sigma: Tensor,
    grid: tuple[int, int],
    context: Context | None,
    references: References | None,
    position: ReferencePosition,
    guidance: float,
) -> Tensor:
    """Predict the flow's velocity (noise − clean) for ``noisy`` ``[B, T, C]`` at ``sigma`` ``[B]`` in [0, 1].

    A condition that is None adds no tokens at all; one that is masked adds tokens that nothing attends to. Both give
    the same result. The pooled embedding is zero.
    """
    config, batch, device = transformer.config, noisy.shape[0], noisy.device
    noisy = noisy.to(transformer.dtype)
    if context is None:
        empty = noisy.new_zeros(batch, 0, config.joint_attention_dim)
        context = Context(empty, torch.ones(batch, 0, dtype=torch.bool, device=device))
    tokens, masks = [noisy], [context.mask, torch.ones(noisy.shape[:2], dtype=torch.bool, device=device)]
    ids = grid_ids(grid)
    if references is not None:
        slots, length = references.latents.shape[1:3]
        tokens.append(references.latents.flatten(1, 2).to(noisy.dtype))
        masks.append(references.mask.repeat_interleave(length, dim=1))
        ids = image_ids(grid, references.grid, slots, position)
    mask = torch.cat(masks, dim=1)
    predicted = transformer(
        hidden_states=torch.cat(tokens, dim=1),
        encoder_hidden_states=context.tokens.to(noisy.dtype),
        pooled_projections=noisy.new_zeros(batch, config.pooled_projection_dim),
        timestep=sigma.to(noisy.dtype),  # the model multiplies by 1000
        guidance=noisy.new_full((batch,), guidance) if config.guidance_embeds else None,
        img_ids=ids.to(device),
        txt_ids=torch.zeros(context.tokens.shape[1], 3, device=device),
        joint_attention_kwargs={"attention_mask": mask[:, None, None, :]},
        return_dict=False,
    )[0]
    return predicted[:, : noisy.shape[1]]  # type: ignore[no-any-return]
