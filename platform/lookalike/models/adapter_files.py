"""Read LoRA files for Flux of any common format as peft's settings and tensors.

Formats: peft folders, diffusers' ``pytorch_lora_weights.safetensors`` (with or without its metadata), and the names of
kohya, XLabs and Black Forest Labs. What cannot be converted exactly is an error. Nothing is unpickled.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from lookalike.documents import parse_object
from lookalike.errors import InputError
from lookalike.models.adapter_config import check_alphas, check_settings
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

    Raises:
        InputError: there is no LoRA or more than one, it is a pickle, has settings or tensors that cannot be applied
            exactly or do not fit the DiT, or has no effect.
    """
    if isinstance(source, Mapping):
        return _convert(dict(source), {}, None, transformer, "a dictionary of tensors")
    weights = find_weights(Path(source), weight_name)
    tensors, header = _read_safetensors(weights)
    config = weights.parent / PEFT_CONFIG
    from_peft = any(name.startswith(PEFT_PREFIX) for name in tensors) and config.is_file()
    settings = parse_object(config.read_bytes(), str(config), fix=_COPY) if from_peft else None
    return _convert(tensors, header, settings, transformer, str(weights))


def find_weights(path: Path, weight_name: str | None = None) -> Path:
    """Find the weights of a LoRA: ``path`` itself, or in that folder ``weight_name``, a standard name or the only file.

    Raises:
        InputError: there is no file, there are several without a standard name, or there is only a pickle.
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


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise InputError(f"not a readable safetensors file ({error})", value=str(path), fix=_COPY) from error


def _convert(
    tensors: dict[str, Tensor],
    header: Mapping[str, str],
    settings: Mapping[str, Any] | None,
    transformer: Any,
    origin: str,
) -> AdapterFile:
    layers = linear_layers(transformer)
    parts = sort_tensors(tensors, names_of_layers(layers), peft=settings is not None, origin=origin)
    check_layers(parts, layers, origin)
    settings = settings if settings is not None else _metadata(header, origin)
    if settings is None:
        settings = settings_of(parts, origin)
        check_alphas(settings, origin)
        return AdapterFile(settings, peft_tensors(parts), origin)
    if alphas := [layer.names[0] for layer in parts.values() if layer.alpha is not None]:
        raise InputError(
            f"the adapter has its alpha twice: in its settings, and as {len(alphas)} tensors, such as of {alphas[0]}",
            value=origin,
            fix="remove one of the two",
        )
    return AdapterFile(check_settings(settings, origin), peft_tensors(parts), origin)


def _metadata(header: Mapping[str, str], origin: str) -> dict[str, Any] | None:
    """Read peft's settings in a header that diffusers wrote: of a pipeline's transformer, or of a single model."""
    if METADATA not in header:
        return None
    values = parse_object(header[METADATA], f"{METADATA} of {origin}", fix="save the LoRA again")
    if "r" in values:
        return values
    own = {name.removeprefix("transformer."): v for name, v in values.items() if name.startswith("transformer.")}
    return own or None
