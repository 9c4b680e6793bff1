"""Attention of the DiT with keys and values from an earlier pass, as an attention processor of diffusers.

The same idea as diffusers' ``Flux2KVAttnProcessor`` (FLUX.2 klein KV), for FluxTransformer2DModel.
"""

from typing import Any

import torch
from diffusers.models.attention_dispatch import dispatch_attention_fn
from diffusers.models.embeddings import apply_rotary_emb
from diffusers.models.transformers.transformer_flux import FluxAttention, FluxAttnProcessor, _get_qkv_projections
from torch import Tensor, nn


class KeyValues:
    """Normalised and rotated keys, and values, of each attention module: ``[B, S, heads, head_dim]``.

    It is not a mapping: accelerate's offloading hooks copy mappings that are passed to a module, and the original would
    stay empty.
    """

    def __init__(self) -> None:
        self._layers: dict[nn.Module, tuple[Tensor, Tensor]] = {}

    def write(self, layer: nn.Module, key: Tensor, value: Tensor) -> None:
        """Store the first write of a layer: gradient checkpointing repeats it in the backward pass."""
        self._layers.setdefault(layer, (key, value))

    def behind(self, layer: nn.Module, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Append the stored keys and values of the layer to ``key`` and ``value``."""
        written = self._layers[layer]
        return torch.cat([key, written[0]], dim=1), torch.cat([value, written[1]], dim=1)


class ReferenceAttnProcessor(FluxAttnProcessor):
    """diffusers' ``FluxAttnProcessor`` that can store its keys and values, and attend to stored ones.

    Without ``written`` and ``given`` it computes what its parent does.
    """

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        image_rotary_emb: tuple[Tensor, Tensor] | None = None,
        written: KeyValues | None = None,
        given: KeyValues | None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """As the parent's; the mask also covers the given keys, which follow those of the sequence.

        Args:
            attn: the FluxAttention.
            hidden_states: ``[B, S, D]``.
            encoder_hidden_states: ``[B, L, D]`` in a double block.
            attention_mask: broadcast to ``[B, heads, L + S, L + S + given]``.
            image_rotary_emb: cosines and sines of L + S positions.
            written: gets this layer's keys and values.
            given: keys and values that every query of this layer attends to in addition.
        """
        streams = 1 if encoder_hidden_states is None else 2
        projected = _get_qkv_projections(attn, hidden_states, encoder_hidden_states)[: 3 * streams]
        query, key, value, *added = (part.unflatten(-1, (-1, attn.head_dim)) for part in projected)
        query, key = attn.norm_q(query), attn.norm_k(key)
        if encoder_hidden_states is not None:
            query = torch.cat([attn.norm_added_q(added[0]), query], dim=1)
            key = torch.cat([attn.norm_added_k(added[1]), key], dim=1)
            value = torch.cat([added[2], value], dim=1)
        if image_rotary_emb is not None:
            query, key = (apply_rotary_emb(part, image_rotary_emb, sequence_dim=1) for part in (query, key))
        if written is not None:
            written.write(attn, key, value)
        if given is not None:
            key, value = given.behind(attn, key, value)
        mixed = dispatch_attention_fn(
            query,
            key,
            value,
            attn_mask=attention_mask,
            backend=self._attention_backend,
            parallel_config=self._parallel_config,
        )
        mixed = mixed.flatten(2, 3).to(query.dtype)
        if encoder_hidden_states is None:
            return mixed  # type: ignore[no-any-return]
        length = encoder_hidden_states.shape[1]
        image = attn.to_out[1](attn.to_out[0](mixed[:, length:].contiguous()))
        return image, attn.to_add_out(mixed[:, :length].contiguous())


def use_reference_attention(transformer: Any) -> None:
    """Set a :class:`ReferenceAttnProcessor` on every attention of a FluxTransformer2DModel; the backend is kept."""
    for module in transformer.modules():
        if isinstance(module, FluxAttention) and not isinstance(module.processor, ReferenceAttnProcessor):
            processor = ReferenceAttnProcessor()
            processor._attention_backend = module.processor._attention_backend
            processor._parallel_config = module.processor._parallel_config
            module.set_processor(processor)
