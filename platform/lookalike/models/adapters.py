"""LoRA through peft: on the DiT, saved and read in peft's own format, and on the MLLM, which is trained and merged."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lookalike.documents import decoding, parse_object
from lookalike.errors import ConfigError, InputError
from lookalike.models.presets import LoraConfig, check_lora

ADAPTER_NAME = "default"
_WEIGHTS, _CONFIG = "adapter_model.safetensors", "adapter_config.json"
_FILE_PREFIX = "base_model.model."


def inject_lora(transformer: Any, lora: LoraConfig, name: str = ADAPTER_NAME) -> None:
    """Add a LoRA that changes nothing yet (its up projection is zero) to a FluxTransformer2DModel, in place.

    Raises:
        ConfigError: a rank above the attention width.
    """
    from peft import LoraConfig as PeftLoraConfig

    check_lora(lora, transformer.config)
    transformer.add_adapter(PeftLoraConfig(**_peft_values(lora)), adapter_name=name)


def inject_mllm_lora(mllm: Any, lora: LoraConfig) -> None:
    """Add a LoRA that changes nothing yet to linear layers of an MLLM's language model, in place.

    Raises:
        ConfigError: it has no layers of those names.
    """
    from peft import LoraConfig as PeftLoraConfig
    from peft import inject_adapter_in_model

    names = "|".join(re.escape(name) for name in sorted(lora.target_modules))
    values = {**_peft_values(lora), "target_modules": rf"language_model\.(.*\.)?({names})"}
    try:
        inject_adapter_in_model(PeftLoraConfig(**values), mllm, ADAPTER_NAME)
    except ValueError as error:
        raise ConfigError(
            "the language model has no such layers", value=sorted(lora.target_modules), fix="name some, such as q_proj"
        ) from error


def merge_mllm_lora(mllm: Any) -> dict[str, Tensor]:
    """Add the LoRA into the weights of its layers, in place; returns those by their names in the MLLM."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    merged = {}
    for name, layer in list(mllm.named_modules()):
        if isinstance(layer, BaseTunerLayer):
            layer.merge()
            parent, _, child = name.rpartition(".")
            plain: Any = layer.get_base_layer()
            setattr(mllm.get_submodule(parent), child, plain)
            merged[f"{name}.weight"] = plain.weight.detach()
    return merged


def adapter_names(transformer: Any, name: str = ADAPTER_NAME) -> dict[str, str]:
    """Parameter name in the DiT → name in a peft file, of every parameter of that LoRA."""
    mark = f".{name}."
    return {
        parameter: _FILE_PREFIX + parameter.replace(mark, ".")
        for parameter, _ in transformer.named_parameters()
        if ".lora_" in parameter and mark in parameter
    }


def save_lora(folder: Path, lora: LoraConfig, weights: Mapping[str, Tensor]) -> None:
    """Write a peft folder from ``weights`` by parameter name in the DiT, and read it back to check it.

    Raises:
        InputError: a tensor is empty, or every up projection is zero (nothing was learned, or gathered).
    """
    from peft import LoraConfig as PeftLoraConfig
    from safetensors.torch import save_file

    mark = f".{ADAPTER_NAME}."
    tensors = {_FILE_PREFIX + n.replace(mark, "."): w.detach().cpu().contiguous() for n, w in weights.items()}
    empty = [name for name, tensor in tensors.items() if tensor.numel() == 0]
    if empty or not tensors:
        raise InputError("an empty adapter", value=empty[:1] or str(folder), fix="gather the weights on every rank")
    if not any(bool(tensor.any()) for name, tensor in tensors.items() if ".lora_B." in name):
        raise InputError("the adapter's up projections are all zero", value=str(folder), fix="train it first")
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / _WEIGHTS, metadata={"format": "pt"})
    PeftLoraConfig(**_peft_values(lora)).save_pretrained(str(folder))


def read_lora_config(folder: Path) -> LoraConfig:
    """Settings of a peft folder."""
    path = folder / _CONFIG
    values = parse_object(path.read_bytes(), str(path), "r", "lora_alpha", "target_modules", fix="save it again")
    return LoraConfig(
        rank=values["r"],
        alpha=float(values["lora_alpha"]),
        target_modules=tuple(sorted(values["target_modules"])),
        dropout=values.get("lora_dropout", 0.0),
    )


def is_lora(folder: Path) -> bool:
    """Whether ``folder`` is a peft folder, as :func:`save_lora` and peft write it."""
    return (folder / _CONFIG).is_file() and (folder / _WEIGHTS).is_file()


def load_lora(transformer: Any, folder: Path, adapter: str = ADAPTER_NAME) -> None:
    """Inject the adapter of a peft folder into the DiT and load it, strictly.

    Raises:
        InputError: names a tensor that is missing, unknown, or of another shape.
    """
    from safetensors.torch import load_file

    inject_lora(transformer, read_lora_config(folder), adapter)
    with decoding("a safetensors file", str(folder / _WEIGHTS), fix="save it again"):
        tensors = load_file(folder / _WEIGHTS)
    parameters = dict(transformer.named_parameters())
    for name, file_name in adapter_names(transformer, adapter).items():
        if file_name not in tensors:
            raise InputError(f"the adapter lacks {file_name}", value=str(folder), fix="export it again")
        tensor = tensors.pop(file_name)
        if tensor.shape != parameters[name].shape:
            raise InputError(
                f"{file_name} has shape {tuple(tensor.shape)}, the DiT wants {tuple(parameters[name].shape)}",
                value=str(folder),
                fix="use the base that the adapter was trained on",
            )
        with torch.no_grad():
            parameters[name].copy_(tensor)
    if tensors:
        raise InputError(
            f"the adapter holds an unknown tensor {min(tensors)}", value=str(folder), fix="export it again"
        )


def _peft_values(lora: LoraConfig) -> dict[str, Any]:
    return {
        "r": lora.rank,
        "lora_alpha": lora.rank if lora.alpha is None else lora.alpha,
        "target_modules": sorted(lora.target_modules),
        "lora_dropout": lora.dropout,
        "bias": "none",
    }
