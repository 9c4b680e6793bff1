"""LoRA with peft: on the DiT, saved and loaded in peft's format, and on the MLLM, where it is merged after training."""

import hashlib
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lookalike.errors import ConfigError, InputError, first_line
from lookalike.models.adapter_files import AdapterFile, peft_config, read_adapter
from lookalike.models.adapter_tensors import PEFT_PREFIX, PEFT_WEIGHTS
from lookalike.models.presets import LoraConfig, check_lora
from lookalike.process_wide import alone_in_process

ADAPTER_NAME = "default"


@alone_in_process()
def inject_lora(transformer: Any, lora: LoraConfig) -> None:
    """Add a LoRA without effect yet (its up projection is zero) to a FluxTransformer2DModel, in place.

    Raises ConfigError for a rank above the attention width.
    """
    check_lora(lora, transformer.config)
    transformer.add_adapter(peft_config(_peft_values(lora)), adapter_name=ADAPTER_NAME)


@alone_in_process()
def initialise_lora(parameters: Mapping[str, nn.Parameter], seed: int) -> None:
    """Set the down projections among ``parameters`` to peft's initial distribution, by ``seed`` and their names alone.

    peft draws them from PyTorch's global generator, which other threads use as well.
    """
    for name, parameter in parameters.items():
        if ".lora_A." in name:
            digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
            generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little"))
            values = torch.empty(parameter.shape, dtype=torch.float32)
            nn.init.kaiming_uniform_(values, a=math.sqrt(5), generator=generator)
            with torch.no_grad():
                parameter.copy_(values)


@alone_in_process()
def inject_mllm_lora(mllm: Any, lora: LoraConfig) -> None:
    """Add a LoRA without effect yet to linear layers of an MLLM's language model, in place.

    Raises ConfigError if the language model has no linear layers with those names.
    """
    from peft import inject_adapter_in_model

    names = "|".join(re.escape(name) for name in sorted(lora.target_modules))
    values = {**_peft_values(lora), "target_modules": rf"language_model\.(.*\.)?({names})"}
    try:
        inject_adapter_in_model(peft_config(values), mllm, ADAPTER_NAME)
    except ValueError as error:
        raise ConfigError(
            "the language model has no layers with these names",
            value=sorted(lora.target_modules),
            fix="name linear layers of the language model, such as q_proj",
        ) from error


def merge_mllm_lora(mllm: Any) -> dict[str, Tensor]:
    """Merge the LoRA into the weights of its layers, in place; returns these weights by their names in the MLLM."""
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


def lora_layers(transformer: Any) -> Iterator[tuple[str, Any]]:
    """Yield (path, layer) for every layer of the DiT that peft has wrapped for LoRA."""
    from peft.tuners.lora import LoraLayer

    for path, module in transformer.named_modules():
        if isinstance(module, LoraLayer):
            yield path, module


def lora_parameters(transformer: Any, name: str = ADAPTER_NAME) -> dict[str, nn.Parameter]:
    """Return the parameters of a LoRA in the DiT by peft's names (see :class:`AdapterFile`)."""
    named = ((_peft_name(own, name), parameter) for own, parameter in transformer.named_parameters())
    return {peft_name: parameter for peft_name, parameter in named if peft_name is not None}


def save_lora(folder: Path, lora: LoraConfig, weights: Mapping[str, Tensor]) -> None:
    """Write ``weights``, by parameter name in the DiT, as a peft folder; raises as :func:`write_adapter`."""
    tensors = {_peft_name(name, ADAPTER_NAME) or name: tensor for name, tensor in weights.items()}
    write_adapter(folder, _peft_values(lora), tensors)


def write_adapter(folder: Path, settings: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Write peft's ``settings`` and ``tensors``, by peft's names (see :class:`AdapterFile`), as a peft folder.

    Raises InputError if a tensor is empty, or every up projection is zero (nothing was learned or gathered).
    """
    from safetensors.torch import save_file

    stored = {PEFT_PREFIX + name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    empty = [name for name, tensor in stored.items() if tensor.numel() == 0]
    if empty or not stored:
        value = empty[:1] or str(folder)
        raise InputError("the adapter has empty tensors", value=value, fix="gather them on every rank first")
    if not settings.get("use_dora") and not any(bool(t.any()) for name, t in stored.items() if ".lora_B." in name):
        raise InputError("the adapter's up projections are all zero", value=str(folder), fix="train it first")
    folder.mkdir(parents=True, exist_ok=True)
    save_file(stored, folder / PEFT_WEIGHTS, metadata={"format": "pt"})
    peft_config(settings).save_pretrained(str(folder))


def load_lora(transformer: Any, folder: Path, adapter: str = ADAPTER_NAME) -> int:
    """Read the LoRA of a folder or file (:func:`read_adapter`) and load it, strictly; returns the number of tensors."""
    return load_adapter(transformer, read_adapter(folder, transformer), adapter)


@alone_in_process()
def load_adapter(transformer: Any, file: AdapterFile, name: str = ADAPTER_NAME) -> int:
    """Inject ``file`` into the DiT as the active LoRA and load it, strictly; returns the number of tensors.

    Raises InputError if no layer matches its settings, or a tensor is missing, unknown or of another shape; then the
    DiT is unchanged.
    """
    before = list(getattr(transformer, "peft_config", {}))
    if before:
        transformer._hf_peft_config_loaded = True  # diffusers' flag, which peft does not set
    active = transformer.active_adapters() if before else []
    try:
        transformer.add_adapter(peft_config(file.settings), adapter_name=name)
        transformer.train(transformer.training)  # peft's new dropout would be active
        return _copy(transformer, file, name)
    except (InputError, ValueError, TypeError, NotImplementedError) as error:
        if not before:
            transformer.unload_lora()
        else:
            if name in transformer.peft_config:
                transformer.delete_adapters(name)
            transformer.set_adapter(active)
        if isinstance(error, InputError):
            raise
        raise InputError(
            f"the settings of the LoRA do not fit the DiT ({first_line(error)})",
            value=file.origin,
            fix="use a LoRA on the linear layers of the Flux model that this bundle holds",
        ) from error


def _copy(transformer: Any, file: AdapterFile, name: str) -> int:
    places = _places(transformer, file, name)
    with torch.no_grad():
        for file_name, target in places.items():
            target.copy_(file.tensors[file_name])
    return len(places)


def _places(transformer: Any, file: AdapterFile, name: str) -> dict[str, nn.Parameter]:
    """Return the LoRA's parameters by peft's names; checks that the file has exactly these tensors and shapes."""
    places = lora_parameters(transformer, name)
    for verb, own, others in (("lacks", places, file.tensors), ("holds an unknown tensor", file.tensors, places)):
        if wrong := sorted(own.keys() - others.keys()):
            what = f"the adapter {verb} {PEFT_PREFIX}{wrong[0]} ({len(wrong)} of {len(own)} tensors)"
            raise InputError(what, value=file.origin, fix="export it again")
    for file_name, target in places.items():
        if (shape := file.tensors[file_name].shape) != target.shape:
            raise InputError(
                f"{PEFT_PREFIX}{file_name} has shape {tuple(shape)}, its settings give {tuple(target.shape)}",
                value=file.origin,
                fix="use the settings and the base that the adapter was trained with",
            )
    return places


def swap_adapter(transformer: Any, file: AdapterFile, name: str) -> int:
    """Replace the LoRA ``name`` by ``file`` in the same layer objects; returns the number of tensors.

    Raises InputError if it is on other layers or of other ranks; then the DiT is unchanged.
    """
    from peft.utils.other import get_pattern_key

    try:
        _places(transformer, file, name)
    except InputError as error:
        raise InputError(
            f"the LoRA cannot replace {name}: {error.what}",
            value=file.origin,
            fix="load it under another adapter_name, or after unload_lora_weights",
        ) from error
    alphas = file.settings.get("alpha_pattern") or {}
    for path, layer in lora_layers(transformer):
        if name in layer.lora_A:
            layer.lora_alpha[name] = alphas.get(get_pattern_key(alphas, path), file.settings["lora_alpha"])
            layer.use_rslora[name] = bool(file.settings.get("use_rslora"))
            layer.set_scale(name, 1.0)
    transformer.peft_config[name] = peft_config(file.settings)
    return _copy(transformer, file, name)


def _peft_name(parameter: str, adapter: str) -> str | None:
    """Return peft's name in a file for a parameter of that LoRA; None for every other parameter."""
    match = re.fullmatch(rf"(.+\.lora_[A-Za-z_]+)\.{re.escape(adapter)}\.(weight|bias)", parameter)
    return match and (match[1] if match[1].endswith("_magnitude_vector") else f"{match[1]}.{match[2]}")


def _peft_values(lora: LoraConfig) -> dict[str, Any]:
    return {
        "r": lora.rank,
        "lora_alpha": lora.rank if lora.alpha is None else lora.alpha,
        "target_modules": sorted(lora.target_modules),
        "lora_dropout": lora.dropout,
    }
