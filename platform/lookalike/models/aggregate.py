"""Layer aggregation and bridge: from all hidden states of the MLLM to context tokens of the DiT.

Which kinds there are is listed in ``aggregators.py``. B batch, N layers, L tokens, S of them that a branch reads, C
channels of the MLLM, D inner, E channels out.
"""

from collections.abc import Sequence
from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin  # diffusers finds how to load this class by this name
from torch import Tensor, nn

from lookalike.errors import ConfigError
from lookalike.models.aggregators import aggregator_of
from lookalike.models.blocks import NORM_EPS, Block, take
from lookalike.models.pooling import Pooling


class Branch(nn.Module):
    """Pooling over layers, refinement over tokens, and the bridge (norm → MLP) to the DiT's width."""

    def __init__(self, pooling: Pooling, width: int, out_width: int, head_dim: int, num_refiners: int) -> None:
        super().__init__()
        self.pooling = pooling
        self.refiners = nn.ModuleList(Block(width, head_dim) for _ in range(num_refiners))
        self.norm = nn.RMSNorm(width, eps=NORM_EPS)
        self.mlp = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, out_width))

    def forward(self, layers: Sequence[Tensor], mask: Tensor, index: Tensor | None = None) -> Tensor:
        """Map the MLLM's hidden states to context tokens ``[B, S, E]``.

        Args:
            layers: N tensors ``[B, L, C]``.
            mask: bool ``[B, S]``, true on real tokens among those that are read.
            index: which tokens are read, int64 ``[B, S]``; by default all.
        """
        tokens = self.pooling(layers, index)
        visible = mask | ~mask.any(dim=1, keepdim=True)  # softmax over zero keys would be NaN
        for block in self.refiners:
            tokens = block(tokens, visible)
        return self.mlp(self.norm(tokens))  # type: ignore[no-any-return]


class LayerAggregator(ModelMixin, ConfigMixin):
    """Aggregation and bridge in one diffusers model.

    Args:
        kind: name in :data:`~lookalike.models.aggregators.AGGREGATORS`.
        num_layers: hidden states of the MLLM: the embedding and every block. As transformers gives them, the last one
            is after the final norm and the others are before it.
        mllm_width: their channels.
        out_width: the DiT's ``joint_attention_dim``.
        inner_width: channels inside; ``head_dim`` divides it.
        layer_blocks: transformer blocks over the layer axis.
        refiner_blocks: transformer blocks over the token axis.
    """

    _supports_gradient_checkpointing = True
    config_name = "config.json"

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(
        self,
        kind: str = "dla",
        num_layers: int = 29,
        mllm_width: int = 3584,
        out_width: int = 4096,
        inner_width: int = 1536,
        head_dim: int = 128,
        layer_blocks: int = 2,
        refiner_blocks: int = 2,
    ) -> None:
        super().__init__()
        aggregator = aggregator_of(kind)
        if inner_width % head_dim:
            raise ConfigError(
                f"inner_width={inner_width} is not a multiple of head_dim={head_dim}",
                fix="change inner_width or head_dim",
            )
        pooling_class = aggregator.pooling_class()
        self.branches = nn.ModuleDict()
        for name in aggregator.branches:
            pooling = pooling_class(num_layers, mllm_width, inner_width, head_dim, layer_blocks)
            self.branches[name] = Branch(pooling, inner_width, out_width, head_dim, refiner_blocks)
        self.gradient_checkpointing = False

    def forward(self, layers: Sequence[Tensor], mask: Tensor, image_mask: Tensor, images_per_row: int) -> Tensor:
        """Compute context tokens in the order of the MLLM's tokens.

        Args:
            layers: ``num_layers`` hidden states ``[B, L, C]``.
            mask: bool ``[B, L]``, true on real tokens.
            image_mask: bool ``[B, L]``, true on image tokens, real or of an absent reference.
            images_per_row: image tokens of every row (the same number in each), so that shapes are static.

        Returns:
            ``[B, L, out_width]``.
        """
        if "all" in self.branches:
            return self._run("all", layers, mask)
        order = torch.argsort(image_mask.logical_not(), dim=1, stable=True)  # image tokens first, order kept
        image, text = order[:, :images_per_row], order[:, images_per_row:]
        parts = [
            self._run(name, layers, mask.gather(1, index), index) for name, index in (("image", image), ("text", text))
        ]
        return take(torch.cat(parts, dim=1), torch.argsort(order, dim=1))

    def _run(self, name: str, layers: Sequence[Tensor], mask: Tensor, index: Tensor | None = None) -> Tensor:
        branch = self.branches[name]
        if self.gradient_checkpointing and torch.is_grad_enabled():
            return self._gradient_checkpointing_func(branch, layers, mask, index)  # type: ignore[no-any-return]
        return branch(layers, mask, index)  # type: ignore[no-any-return]

    def layer_weights(self) -> dict[str, Tensor]:
        """Return the learned, signed weight of each layer by branch (``text``, ``image`` or ``all``): float32 ``[N]``.

        Raises ConfigError if this kind of aggregator learns none.
        """
        weights: dict[str, Tensor] = {}
        for name, branch in self.branches.items():
            pooling: Any = branch.pooling
            if (learned := pooling.layer_weights()) is None:
                raise ConfigError("this aggregator learns no layer weights", value=self.config.kind, fix="use dla")
            weights[name] = learned.detach().float().cpu()
        return weights

    def plot(self, axes: Any) -> None:
        """Plot the weight of each layer by branch on matplotlib ``axes``; layer 0 is the MLLM's embedding."""
        for name, weights in self.layer_weights().items():
            axes.plot(range(len(weights)), weights.numpy(), marker="o", label=name)
        axes.axhline(0, color="black", linewidth=1)
        axes.set_xlabel("layer of the MLLM")
        axes.legend()
