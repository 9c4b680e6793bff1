"""Layer aggregation and bridge: from all hidden states of the MLLM to context tokens of the DiT.

Layerwise Attention Pooling (UniFusion, arXiv 2510.12789) and Dual Layer Aggregation (Squeeze-MLLM, arXiv 2605.26111),
beside the baselines of its ablation. B batch, N layers, L tokens, S of them that a branch reads, C channels of the
MLLM, D inner, E channels out.
"""

from collections.abc import Sequence
from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin  # diffusers finds how to load this class by this name
from torch import Tensor, nn

from lookalike.errors import ConfigError
from lookalike.models.blocks import NORM_EPS, Block, LayerStack, take

KINDS = ("last_layer", "layer_mean", "single_lap", "dla")


class WeightedSum(nn.Module):
    """A signed weight for each layer, without softmax: at first their mean."""

    def __init__(self, num_layers: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((1, num_layers), 1 / num_layers))

    def forward(self, layers: Tensor) -> Tensor:
        """``[B, N, D]`` → ``[B, D]``."""
        return (layers * self.weight.view(-1, 1)).sum(dim=1)


class LayerPooling(nn.Module):
    """LAP's first half: for each token, self-attention over its layers, then a signed weighted sum of them."""

    def __init__(self, num_layers: int, mllm_width: int, width: int, head_dim: int, num_blocks: int) -> None:
        super().__init__()
        self.stack = LayerStack(num_layers, mllm_width, width)
        self.blocks = nn.ModuleList(Block(width, head_dim) for _ in range(num_blocks))
        self.collapse = WeightedSum(num_layers)

    def forward(self, layers: Sequence[Tensor], index: Tensor | None = None) -> Tensor:
        """N tensors ``[B, L, C]`` and which tokens to read, ``[B, S]`` (by default all) → ``[B, S, D]``."""
        stacked = self.stack(layers, index)  # B S N D
        tokens = stacked.flatten(0, 1)  # BS N D: every token attends over its own layers
        for block in self.blocks:
            tokens = block(tokens)
        return self.collapse(tokens).view(*stacked.shape[:2], -1)  # type: ignore[no-any-return]


class LastLayer(nn.Module):
    """The last hidden state alone (after the MLLM's final norm), projected."""

    def __init__(self, mllm_width: int, width: int) -> None:
        super().__init__()
        self.stack = LayerStack(1, mllm_width, width)

    def forward(self, layers: Sequence[Tensor], index: Tensor | None = None) -> Tensor:
        """As :class:`LayerPooling`'s."""
        return self.stack(layers[-1:], index).squeeze(2)  # type: ignore[no-any-return]


class LayerMean(nn.Module):
    """The mean of all normalised and projected layers."""

    def __init__(self, num_layers: int, mllm_width: int, width: int) -> None:
        super().__init__()
        self.stack = LayerStack(num_layers, mllm_width, width)

    def forward(self, layers: Sequence[Tensor], index: Tensor | None = None) -> Tensor:
        """As :class:`LayerPooling`'s."""
        return self.stack(layers, index).mean(dim=2)  # type: ignore[no-any-return]


class Branch(nn.Module):
    """Pooling over layers, refinement over tokens, and the bridge (norm → MLP) to the DiT's width."""

    def __init__(self, pooling: nn.Module, width: int, out_width: int, head_dim: int, num_refiners: int) -> None:
        super().__init__()
        self.pooling = pooling
        self.refiners = nn.ModuleList(Block(width, head_dim) for _ in range(num_refiners))
        self.norm = nn.RMSNorm(width, eps=NORM_EPS)
        self.mlp = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, out_width))

    def forward(self, layers: Sequence[Tensor], mask: Tensor, index: Tensor | None = None) -> Tensor:
        """N tensors ``[B, L, C]``, the mask of real tokens among those that are read, bool ``[B, S]``, and which are,
        ``[B, S]`` (by default all) → ``[B, S, E]``."""
        tokens = self.pooling(layers, index)
        visible = mask | ~mask.any(dim=1, keepdim=True)  # softmax over no key at all would be NaN
        for block in self.refiners:
            tokens = block(tokens, visible)
        return self.mlp(self.norm(tokens))  # type: ignore[no-any-return]


class LayerAggregator(ModelMixin, ConfigMixin):
    """Aggregation and bridge in one diffusers model.

    Args:
        kind: ``dla`` (one branch for text, one for image tokens), ``single_lap``, ``last_layer`` or ``layer_mean``.
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
        if kind not in KINDS:
            raise ConfigError("unknown aggregator", value=kind, fix=f"use one of {', '.join(KINDS)}")
        if inner_width % head_dim:
            raise ConfigError(f"inner_width={inner_width} is no multiple of head_dim={head_dim}", fix="change head_dim")

        def branch() -> Branch:
            pooling: nn.Module
            if kind == "last_layer":
                pooling = LastLayer(mllm_width, inner_width)
            elif kind == "layer_mean":
                pooling = LayerMean(num_layers, mllm_width, inner_width)
            else:
                pooling = LayerPooling(num_layers, mllm_width, inner_width, head_dim, layer_blocks)
            return Branch(pooling, inner_width, out_width, head_dim, refiner_blocks)

        self.branches = nn.ModuleDict({"text": branch(), "image": branch()} if kind == "dla" else {"all": branch()})
        self.gradient_checkpointing = False

    def forward(self, layers: Sequence[Tensor], mask: Tensor, image_mask: Tensor, images_per_row: int) -> Tensor:
        """Context tokens in the order of the MLLM's tokens.

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
        """The learned, signed weight of each layer by branch (``text``, ``image`` or ``all``): float32 ``[N]``.

        Raises:
            ConfigError: this kind of aggregator learns none.
        """
        weights: dict[str, Tensor] = {}
        for name, branch in self.branches.items():
            pooling: Any = branch.pooling
            if not isinstance(pooling, LayerPooling):
                raise ConfigError("this aggregator has no layer weights", value=self.config.kind, fix="use dla")
            weights[name] = pooling.collapse.weight.detach().float().view(-1).cpu()
        return weights

    def plot(self, axes: Any) -> None:
        """Draw the weight of each layer by branch on matplotlib ``axes``; 0 is the MLLM's embedding."""
        for name, weights in self.layer_weights().items():
            axes.plot(range(len(weights)), weights.numpy(), marker="o", label=name)
        axes.axhline(0, color="black", linewidth=1)
        axes.set_xlabel("layer of the MLLM")
        axes.legend()
