"""Compute the DiT's context tokens from prompt and references, once for all noise levels."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lookalike.models.batch import Batch
from lookalike.models.dit import Context
from lookalike.models.joint import hidden_states


def encode_context(
    mllm: Any, aggregator: Callable[..., Tensor], batch: Batch, *, keep: Tensor | None = None, mllm_learns: bool = False
) -> Context:
    """Run joint encoder, aggregation and bridge.

    Args:
        mllm: a :class:`~lookalike.models.joint.JointEncoder`.
        aggregator: a :class:`~lookalike.models.aggregate.LayerAggregator`.
        batch: B samples.
        keep: bool ``[B]``; all tokens of a row that is false are masked (condition dropout).
        mllm_learns: whether gradients flow into the joint encoder.
    """
    with torch.set_grad_enabled(torch.is_grad_enabled() and mllm_learns):
        layers = hidden_states(mllm, batch)
    tokens = aggregator(layers, batch.attention_mask, batch.image_mask, batch.image_tokens_per_row)
    mask = batch.attention_mask if keep is None else batch.attention_mask & keep[:, None]
    return Context(tokens, mask)
