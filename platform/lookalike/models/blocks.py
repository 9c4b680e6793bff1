"""Transformer blocks of the layer aggregation: pre-norm attention + SwiGLU, and the normalisation of stacked layers.

B batch, N layers, L tokens, S of them or positions of the axis that is attended over, C channels of the MLLM, D inner
channels.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

NORM_EPS = 1e-6


class Attention(nn.Module):
    """Multi-head self-attention over the second axis, without positions: the inputs contain them already."""

    def __init__(self, width: int, head_dim: int) -> None:
        super().__init__()
        self.head_dim = head_dim
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor, key_mask: Tensor | None = None) -> Tensor:
        """``x`` ``[B, S, D]``; ``key_mask`` bool ``[B, S]``, true for keys that may be attended to."""
        query, key, value = (
            self.qkv(x).unflatten(-1, (3, -1, self.head_dim)).permute(2, 0, 3, 1, 4)
        )  # B heads S head_dim
        mask = None if key_mask is None else key_mask[:, None, None, :]
        mixed = functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        return self.out(mixed.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


class SwiGLU(nn.Module):
    """``down(silu(gate) * up)`` with 8/3 of the width inside, rounded to a multiple of 8."""

    def __init__(self, width: int) -> None:
        super().__init__()
        hidden = -(-8 * width // 24) * 8
        self.gate_up = nn.Linear(width, 2 * hidden, bias=False)
        self.down = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.gate_up(x).chunk(2, dim=-1)
        return self.down(functional.silu(gate) * up)  # type: ignore[no-any-return]


class Block(nn.Module):
    """Pre-norm transformer block; its two residual branches end in ``attention.out`` and ``mlp.down``."""

    def __init__(self, width: int, head_dim: int) -> None:
        super().__init__()
        self.attention_norm = nn.RMSNorm(width, eps=NORM_EPS)
        self.attention = Attention(width, head_dim)
        self.mlp_norm = nn.RMSNorm(width, eps=NORM_EPS)
        self.mlp = SwiGLU(width)

    def forward(self, x: Tensor, key_mask: Tensor | None = None) -> Tensor:
        x = x + self.attention(self.attention_norm(x), key_mask)
        return x + self.mlp(self.mlp_norm(x))  # type: ignore[no-any-return]


class LayerStack(nn.Module):
    """RMSNorm with a scale for each layer (raw norms differ by layer), then one projection to the inner width.

    Projects layer by layer and stacks the narrow results, so that ``[B, N, L, C]`` is never materialised.
    """

    def __init__(self, num_layers: int, mllm_width: int, inner_width: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(num_layers, mllm_width))
        self.weight = nn.Parameter(torch.empty(inner_width, mllm_width))
        nn.init.normal_(self.weight, std=mllm_width**-0.5)

    def forward(self, layers: Sequence[Tensor], index: Tensor | None = None) -> Tensor:
        """Stack N tensors ``[B, L, C]`` at the tokens ``index`` ``[B, S]`` (by default all) → ``[B, S, N, D]``."""
        width = self.scale.shape[1]
        narrow = []
        for layer, scale in zip(layers, self.scale, strict=True):
            taken = layer if index is None else take(layer, index)
            normed = functional.rms_norm(taken.to(scale.dtype), (width,), scale, NORM_EPS)
            narrow.append(functional.linear(normed, self.weight))
        return torch.stack(narrow, dim=2)


def take(tokens: Tensor, index: Tensor) -> Tensor:
    """Select tokens of ``[B, L, C]`` by ``index`` ``[B, S]`` → ``[B, S, C]``."""
    return tokens.gather(1, index.unsqueeze(-1).expand(-1, -1, tokens.shape[-1]))
