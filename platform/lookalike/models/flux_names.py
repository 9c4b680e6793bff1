"""Map other trainers' names of Flux's linear layers to rows of diffusers' layers.

Black Forest Labs' layers (also in kohya, ComfyUI, XLabs) fuse several of diffusers': ``img_attn.qkv`` is ``to_q``,
``to_k`` and ``to_v``, one above the other.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

_DOUBLE = {
    "img_attn.qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
    "img_attn.proj": ("attn.to_out.0",),
    "img_mlp.0": ("ff.net.0.proj",),
    "img_mlp.2": ("ff.net.2",),
    "img_mod.lin": ("norm1.linear",),
    "txt_attn.qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
    "txt_attn.proj": ("attn.to_add_out",),
    "txt_mlp.0": ("ff_context.net.0.proj",),
    "txt_mlp.2": ("ff_context.net.2",),
    "txt_mod.lin": ("norm1_context.linear",),
    "processor.qkv1": ("attn.to_q", "attn.to_k", "attn.to_v"),  # XLabs: 1 is the image's stream, 2 the text's
    "processor.proj1": ("attn.to_out.0",),
    "processor.qkv2": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
    "processor.proj2": ("attn.to_add_out",),
}
_SINGLE = {
    "linear1": ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"),
    "linear2": ("proj_out",),
    "modulation.lin": ("norm.linear",),
    "processor.qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
    "processor.proj": ("proj_out",),
}
_OUTSIDE = {
    "img_in": "x_embedder",
    "txt_in": "context_embedder",
    "time_in.in_layer": "time_text_embed.timestep_embedder.linear_1",
    "time_in.out_layer": "time_text_embed.timestep_embedder.linear_2",
    "vector_in.in_layer": "time_text_embed.text_embedder.linear_1",
    "vector_in.out_layer": "time_text_embed.text_embedder.linear_2",
    "guidance_in.in_layer": "time_text_embed.guidance_embedder.linear_1",
    "guidance_in.out_layer": "time_text_embed.guidance_embedder.linear_2",
    "final_layer.linear": "proj_out",
    "final_layer.adaLN_modulation.1": "norm_out.linear",
}
_SWAPPED = "norm_out.linear"  # Black Forest Labs: shift above scale; diffusers: scale above shift


@dataclass(frozen=True)
class Rows:
    """The rows of a fused layer's output that are one layer of diffusers."""

    module: str
    """Name of the linear layer in the FluxTransformer2DModel."""
    first: int
    """First row in the fused layer."""
    count: int
    """Number of rows: all of diffusers' layer."""
    swap_halves: bool = False
    """Whether diffusers has the lower half above the upper one."""


def linear_layers(transformer: Any) -> dict[str, nn.Linear]:
    """Return the DiT's linear layers by module name; of one that peft wrapped, its base layer."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers: dict[str, nn.Linear] = {}
    wrapped: list[str] = []
    for name, module in transformer.named_modules():
        if isinstance(module, BaseTunerLayer):
            wrapped.append(f"{name}.")
            module = module.get_base_layer()
        elif name.startswith(tuple(wrapped)):
            continue
        if isinstance(module, nn.Linear):
            layers[name] = module
    return layers


def names_of_layers(layers: Mapping[str, nn.Linear]) -> dict[str, tuple[Rows, ...]]:
    """Map each name that LoRA files use for a layer, with dots or (kohya) underscores, to rows of ``layers``."""
    names: dict[str, tuple[Rows, ...]] = {name: (Rows(name, 0, layer.out_features),) for name, layer in layers.items()}
    for blocks, ours, parts in (
        ("double_blocks", "transformer_blocks", _DOUBLE),
        ("single_blocks", "single_transformer_blocks", _SINGLE),
    ):
        numbers = {int(name.split(".")[1]) for name in layers if name.startswith(f"{ours}.")}
        for number in numbers:
            for theirs, modules in parts.items():
                names[f"{blocks}.{number}.{theirs}"] = _fused([f"{ours}.{number}.{name}" for name in modules], layers)
    for theirs, module in _OUTSIDE.items():
        names[theirs] = _fused([module], layers, swap=module == _SWAPPED)
    names = {name: rows for name, rows in names.items() if rows}
    for name, rows in list(names.items()):
        if name.endswith("to_out.0"):
            names.setdefault(name.removesuffix(".0"), rows)  # of diffusers' attention processors before peft
    for name in list(names):
        names.setdefault(name.replace(".", "_"), names[name])
    return names


def _fused(modules: list[str], layers: Mapping[str, nn.Linear], swap: bool = False) -> tuple[Rows, ...]:
    """Return the rows of ``modules`` one above the other; nothing if the DiT lacks one of them."""
    if not all(name in layers for name in modules):
        return ()
    rows, first = [], 0
    for name in modules:
        rows.append(Rows(name, first, layers[name].out_features, swap))
        first += layers[name].out_features
    return tuple(rows)
