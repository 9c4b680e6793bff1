"""Poolings over the layers of the MLLM, one vector per token; ``aggregators.py`` lists which aggregator uses which.

B batch, N layers, L tokens, S of them that a branch reads, C channels of the MLLM, D inner channels.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lookalike.models.blocks import Block, LayerStack


class Pooling(nn.Module):
    """Base class of the poolings.

    Args:
        num_layers: hidden states that it gets, N.
        mllm_width: their channels, C.
        width: channels of its output, D.
        head_dim: channels of an attention head; divides ``width``.
        num_blocks: transformer blocks over the layer axis, for a pooling that has some.
    """

    def __init__(self, num_layers: int, mllm_width: int, width: int, head_dim: int, num_blocks: int) -> None:
        super().__init__()
        self.stack = LayerStack(num_layers, mllm_width, width)

    def forward(self, layers: Sequence[Tensor], index: Tensor | None = None) -> Tensor:
        """Pool N tensors ``[B, L, C]`` for the tokens at ``index`` ``[B, S]`` (by default all) → ``[B, S, D]``."""
        raise NotImplementedError

    def layer_weights(self) -> Tensor | None:
        """Return the learned, signed weight of each layer, ``[N]``; None for a pooling that learns none."""
        return None


class LastLayer(Pooling):
    """The last hidden state alone (after the MLLM's final norm), projected."""

    def __init__(self, num_layers: int, mllm_width: int, width: int, head_dim: int, num_blocks: int) -> None:
        super().__init__(1, mllm_width, width, head_dim, num_blocks)

    def forward(self, layers: Sequence[Tensor], index: Tensor | None = None) -> Tensor:
        return self.stack(layers[-1:], index).squeeze(2)  # type: ignore[no-any-return]


class LayerMean(Pooling):
    """The mean of all normalised and projected layers."""

    def forward(self, layers: Sequence[Tensor], index: Tensor | None = None) -> Tensor:
        return self.stack(layers, index).mean(dim=2)  # type: ignore[no-any-return]


class LayerPooling(Pooling):
    """First half of Layerwise Attention Pooling (UniFusion, arXiv 2510.12789).

    For each token: self-attention over its layers, then a signed weighted sum of them.
    """

    def __init__(self, num_layers: int, mllm_width: int, width: int, head_dim: int, num_blocks: int) -> None:
        super().__init__(num_layers, mllm_width, width, head_dim, num_blocks)
        self.blocks = nn.ModuleList(Block(width, head_dim) for _ in range(num_blocks))
        self.collapse = WeightedSum(num_layers)

    def forward(self, layers: Sequence[Tensor], index: Tensor | None = None) -> Tensor:
        stacked = self.stack(layers, index)  # B S N D
        tokens = stacked.flatten(0, 1)  # BS N D: every token attends over its own layers
        for block in self.blocks:
            tokens = block(tokens)
        return self.collapse(tokens).view(*stacked.shape[:2], -1)  # type: ignore[no-any-return]

    def layer_weights(self) -> Tensor:
        return self.collapse.weight.view(-1)


class WeightedSum(nn.Module):
    """A weighted sum over layers with signed weights, without softmax; initialised to the mean."""

    def __init__(self, num_layers: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((1, num_layers), 1 / num_layers))

    def forward(self, layers: Tensor) -> Tensor:
        """``[B, N, D]`` → ``[B, D]``."""
        return (layers * self.weight.view(-1, 1)).sum(dim=1)
