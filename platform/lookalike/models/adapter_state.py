"""The current state of a DiT's LoRAs (weighted, fused, disabled) as weights and settings to save."""

import math
from typing import Any

import torch
from torch import Tensor

from lookalike.errors import ConfigError
from lookalike.models.adapter_files import AdapterFile, check_settings
from lookalike.models.adapter_tensors import exact_scales
from lookalike.models.adapters import lora_layers, lora_parameters
from lookalike.process_wide import alone_in_process


def check_not_wrapped(transformer: Any) -> None:
    """Raise ConfigError for peft's own wrapper around a DiT: diffusers cannot load, save or list LoRAs of one."""
    from peft import PeftModel

    if isinstance(transformer, PeftModel):
        raise ConfigError(
            "the transformer is wrapped as a PeftModel",
            value=type(transformer).__name__,
            fix="set pipe.transformer = pipe.transformer.get_base_model(), or .merge_and_unload()",
        )


def loras(transformer: Any) -> list[str]:
    """Return the names of a DiT's LoRAs, including those that are fused or not active."""
    return list(getattr(transformer, "peft_config", {}))


def is_fused(transformer: Any) -> bool:
    """Whether a LoRA is fused into the DiT's weights."""
    return any(layer.merged for _, layer in lora_layers(transformer))


def effective_loras(transformer: Any) -> list[str]:
    """Return the names of the LoRAs that act in a forward pass: active, not fused, not disabled, not zero.

    Raises ConfigError for a LoRA that is fused into some of its layers only.
    """
    names: dict[str, bool] = {}
    for path, layer in lora_layers(transformer):
        if layer.disable_adapters:
            continue
        for name in layer.active_adapters:
            if name not in layer.lora_A or not _changes(layer, name):
                continue
            if names.setdefault(name, layer.merged) != layer.merged:
                raise ConfigError(
                    f"the LoRA {name} is fused into some of its layers, and not into {path}",
                    fix="call fuse_lora again, or unfuse_lora",
                )
    return [name for name, merged in names.items() if not merged]


def adapter_state(transformer: Any, name: str, *, alpha_is_rank: bool = False) -> AdapterFile:
    """Return the LoRA ``name`` in peft's form, with the weight that it has now.

    The weights of ``set_adapters`` are multiplied into alpha, so the tensors keep their values. With ``alpha_is_rank``
    the whole scale is multiplied into the up projections (float32), for programs that do not read alpha.
    """
    config = transformer.peft_config[name]
    settings = check_settings(config.to_dict(), f"the LoRA {name}")
    for key in ("target_modules", "exclude_modules"):
        if isinstance(settings.get(key), (set, tuple, list)):
            settings[key] = sorted(settings[key])
    ranks: dict[str, int] = {}
    alphas: dict[str, float] = {}
    factors: dict[str, float] = {}
    for path, layer in lora_layers(transformer):
        if name in layer.lora_A:
            rank, alpha = layer.r[name], layer.lora_alpha[name]
            natural = alpha / (math.sqrt(rank) if settings.get("use_rslora") else rank)
            factor = layer.scaling[name] / natural if natural else 0.0
            ranks[path], alphas[path], factors[path] = rank, alpha * factor, layer.scaling[name]
            if math.isclose(factor, 1.0, rel_tol=1e-12):
                alphas[path] = alpha
    tensors = {key: parameter.detach() for key, parameter in lora_parameters(transformer, name).items()}
    if alpha_is_rank:
        for key, tensor in tensors.items():
            path, up, _ = key.partition(".lora_B.")
            if up and factors[path] != 1:
                tensors[key] = tensor.float() * factors[path]
        settings.update(exact_scales(ranks, {path: float(rank) for path, rank in ranks.items()}), use_rslora=False)
    elif any(alphas[path] != layer.lora_alpha[name] for path, layer in lora_layers(transformer) if path in alphas):
        settings.update(exact_scales(ranks, alphas))
    return AdapterFile(settings, tensors, f"the LoRA {name}")


@alone_in_process()
def without_loras(transformer: Any) -> Any:
    """Return a DiT without LoRA layers that shares the weights of ``transformer``, which is unchanged.

    LoRAs that are fused stay in the weights. Raises ConfigError for other adapters than LoRAs on linear layers.
    """
    tensors = transformer.state_dict()
    weights = {name.replace(".base_layer.", "."): tensors[name] for name in tensors if ".lora_" not in name}
    for path, layer in list(lora_layers(transformer)):
        if layer.merged and layer.disable_adapters:  # it unmerges what is fused the next time it runs
            weights.update(_unfused(path, layer))
    with torch.device("meta"):
        plain = type(transformer).from_config(transformer.config)
    try:
        plain.load_state_dict(weights, strict=True, assign=True)
    except RuntimeError as error:
        raise ConfigError(
            f"the DiT has other adapters than LoRAs on its linear layers ({str(error).splitlines()[-1].strip()})",
            fix="unload them, or merge them with peft (merge_and_unload)",
        ) from error
    return plain.requires_grad_(False).eval()


def _unfused(path: str, layer: Any) -> dict[str, Tensor]:
    base, merged = layer.get_base_layer(), list(layer.merged_adapters)
    fused = {name: tensor.detach().clone() for name, tensor in base.state_dict().items()}
    layer.unmerge()
    weights = {f"{path}.{name}": tensor.detach().clone() for name, tensor in base.state_dict().items()}
    layer.merge(adapter_names=merged)
    base.load_state_dict(fused)  # bit for bit: unmerging and merging rounds
    return weights


def _changes(layer: Any, name: str) -> bool:
    up = layer.lora_B[name]
    changed = bool(up.weight.any()) or (up.bias is not None and bool(up.bias.any()))
    return bool(layer.use_dora.get(name, False)) or (layer.scaling[name] != 0 and changed)
