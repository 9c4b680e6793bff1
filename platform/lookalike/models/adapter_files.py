"""Read LoRA files for Flux of any common format as peft's settings and tensors.

Formats: peft folders, diffusers' ``pytorch_lora_weights.safetensors`` (with or without its metadata), and the names of
kohya, XLabs and Black Forest Labs. Each setting is applied exactly or refused by name. Nothing is unpickled.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from lookalike.documents import decoding, parse_object
from lookalike.errors import InputError
from lookalike.models.adapter_tensors import (
    PEFT_CONFIG,
    PEFT_PREFIX,
    PEFT_WEIGHTS,
    check_layers,
    peft_tensors,
    settings_of,
    sort_tensors,
)
from lookalike.models.flux_names import linear_layers, names_of_layers

DIFFUSERS_WEIGHTS = "pytorch_lora_weights.safetensors"
METADATA = "lora_adapter_metadata"  # key in a safetensors header under which diffusers keeps peft's settings
_COPY = "copy the file again"
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
_EXACT = (
    "r",
    "lora_alpha",
    "target_modules",
    "exclude_modules",
    "lora_dropout",
    "use_rslora",
    "rank_pattern",
    "alpha_pattern",
    "layers_to_transform",
    "layers_pattern",
    "use_dora",
    "lora_bias",
)
_NO_EFFECT = (
    "peft_type",
    "peft_version",
    "task_type",
    "auto_mapping",
    "base_model_name_or_path",
    "revision",
    "inference_mode",
    "runtime_config",
    "megatron_core",  # without megatron_config
    "qalora_group_size",  # without use_qalora
    "fan_in_fan_out",  # peft turns it off for linear layers
    "eva_config",  # with init_lora_weights=eva
    "ensure_weight_tying",  # of modules_to_save
)
_INITIALISATIONS = (True, False, None, "gaussian", "orthogonal", "eva")  # the others change the weights of the base
_UNSET: tuple[Any, ...] = (None, False, "", "none", [], {}, ())


@dataclass(frozen=True)
class AdapterFile:
    """A LoRA on the DiT's linear layers, as peft describes it."""

    settings: dict[str, Any]
    """Keyword arguments of ``peft.LoraConfig``."""
    tensors: dict[str, Tensor]
    """By peft's names in the DiT, such as ``transformer_blocks.0.attn.to_q.lora_A.weight``."""
    origin: str
    """Where it was read from, for error messages."""


def read_adapter(
    source: str | Path | Mapping[str, Tensor], transformer: Any, weight_name: str | None = None
) -> AdapterFile:
    """Read a LoRA for ``transformer``: a folder, a ``.safetensors`` file, or tensors by name.

    Args:
        source: a folder with one LoRA (if it has peft's and diffusers' files, peft's are read), a file, or tensors.
        transformer: the FluxTransformer2DModel, for the names and shapes of its layers; it is not changed.
        weight_name: file in the folder.

    Raises InputError if there is no LoRA or more than one, or it is a pickle, has settings or tensors that cannot be
    applied exactly or do not fit the DiT, or has no effect.
    """
    settings, from_peft = None, False
    if isinstance(source, Mapping):
        tensors, origin = dict(source), "a dictionary of tensors"
    else:
        from safetensors import safe_open

        path = find_weights(Path(source), weight_name)
        origin, config = str(path), path.parent / PEFT_CONFIG
        with decoding("a safetensors file", origin, fix=_COPY), safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
            header = file.metadata() or {}
        from_peft = any(name.startswith(PEFT_PREFIX) for name in tensors) and config.is_file()
        if from_peft:
            settings = parse_object(config.read_bytes(), str(config), fix=_COPY)
        elif METADATA in header:
            settings = _metadata(header[METADATA], origin)
    layers = linear_layers(transformer)
    parts = sort_tensors(tensors, names_of_layers(layers), peft=from_peft, origin=origin)
    check_layers(parts, layers, origin)
    alphas = [layer.names[0] for layer in parts.values() if layer.alpha is not None]
    if settings is not None and alphas:
        raise InputError(
            f"the adapter has its alpha twice: in its settings, and as {len(alphas)} tensors, such as of {alphas[0]}",
            value=origin,
            fix="remove one of the two",
        )
    settings = check_settings(settings_of(parts, origin) if settings is None else settings, origin)
    return AdapterFile(settings, peft_tensors(parts), origin)


def _metadata(data: str, origin: str) -> dict[str, Any] | None:
    """Read peft's settings in a header that diffusers wrote: of a pipeline's transformer, or of a single model."""
    values = parse_object(data, f"{METADATA} of {origin}", fix="save the LoRA again")
    if "r" in values:
        return values
    own = {name.removeprefix("transformer."): v for name, v in values.items() if name.startswith("transformer.")}
    return own or None


def find_weights(path: Path, weight_name: str | None = None) -> Path:
    """Find the weights of a LoRA: ``path`` itself, or in that folder ``weight_name``, a standard name or the only file.

    Raises InputError for an empty folder, several files without a standard name, or a pickle alone.
    """
    if weight_name is not None:
        path = path / weight_name
    if path.suffix in _PICKLES:
        raise _pickle(path)
    if path.is_file():
        return path
    if not path.is_dir():
        raise InputError(
            "the LoRA does not exist: there is no such file or folder", value=str(path), fix="check the path"
        )
    for name in (PEFT_WEIGHTS, DIFFUSERS_WEIGHTS):
        if (path / name).is_file():
            return path / name
    candidates = sorted(file.name for file in path.glob("*.safetensors"))
    if len(candidates) == 1:
        return path / candidates[0]
    if candidates:
        raise InputError(
            f"the folder has {len(candidates)} files that may be a LoRA: {candidates}",
            value=str(path),
            fix="pass one as weight_name",
        )
    if pickles := sorted(file for file in path.iterdir() if file.suffix in _PICKLES):
        raise _pickle(pickles[0])
    if below := sorted(file.parent.name for file in path.glob(f"*/{PEFT_CONFIG}")):
        raise InputError(
            f"the folder has no LoRA, but its folders {below} have", value=str(path), fix="pass one of them"
        )
    raise InputError(
        "the folder has no .safetensors file", value=str(path), fix="pass the folder of a LoRA, or its file"
    )


def _pickle(path: Path) -> InputError:
    return InputError(
        "the LoRA is a pickle, which can run any code and is not read",
        value=str(path),
        fix="save it as .safetensors with the program that wrote it",
    )


def check_settings(values: Mapping[str, Any], origin: str) -> dict[str, Any]:
    """Return the arguments of ``peft.LoraConfig`` that are equivalent to ``values`` (an ``adapter_config.json``).

    Fields that this version of peft does not have are ignored if they are unset. Raises InputError for another method
    than LoRA, an unsupported setting, an invalid value, no rank, alpha or targets, or a LoRA without effect.
    """
    method = str(values.get("peft_type") or "LORA").upper().removeprefix("PEFTTYPE.")
    if method != "LORA":
        raise InputError(
            f"the adapter's method is {method}, not LoRA", value=origin, fix="use a LoRA, or merge it into its base"
        )
    for name in ("r", "lora_alpha", "target_modules"):
        if values.get(name) in _UNSET and (name != "lora_alpha" or values.get(name) is None):
            raise InputError(
                f"the settings of the LoRA have no {name}", value=origin, fix="copy adapter_config.json again"
            )
    for name, value in values.items():
        known = name in _EXACT or name in _NO_EFFECT or (name == "init_lora_weights" and value in _INITIALISATIONS)
        if not known and not any(value == unset for unset in _UNSET):
            raise InputError(
                f"the adapter needs {name} ({str(value)[:80]}), which is not supported",
                value=origin,
                fix="merge it into its base with peft (merge_and_unload) and set the result as pipe.transformer",
            )
    result = {name: values[name] for name in _EXACT if values.get(name) is not None}
    try:
        result["r"], result["lora_alpha"] = int(result["r"]), float(result["lora_alpha"])
        ranks = [result["r"], *dict(result.get("rank_pattern") or {}).values()]
        if any(type(rank) is not int or rank < 1 for rank in ranks) or result["r"] != values["r"]:
            raise ValueError("a rank is not a whole number of 1 or more")
        alphas = [result["lora_alpha"], *dict(result.get("alpha_pattern") or {}).values()]
        if not all(-1e9 < float(alpha) < 1e9 for alpha in alphas):
            raise ValueError("an alpha is not a finite number")
        peft_config(result)
    except (TypeError, ValueError, AttributeError) as error:
        raise InputError(
            f"the settings of the LoRA are invalid ({error})",
            value=origin,
            fix="correct its adapter_config.json, or the alpha tensors of its file",
        ) from error
    if not any(alphas):
        raise InputError(
            "the alpha of the LoRA is 0: it has no effect", value=origin, fix="train it with an alpha above 0"
        )
    return result


def peft_config(settings: Mapping[str, Any]) -> Any:
    """Make peft's configuration, with which injecting a LoRA does not change the base."""
    from peft import LoraConfig

    return LoraConfig(**settings, bias="none", init_lora_weights=True)
