"""LoRA files of every kind that Flux users have, read into one form: peft's settings and peft's tensors.

Peft folders, diffusers' ``pytorch_lora_weights.safetensors`` (with or without its metadata), kohya's, XLabs' and Black
Forest Labs' names. What would be lost or changed on the way is an error that names it. Nothing is unpickled.
"""

import json
import logging
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lookalike.errors import InputError
from lookalike.models.adapter_config import check_settings
from lookalike.models.flux_names import Rows, linear_layers, names_of_layers

log = logging.getLogger(__name__)

PEFT_WEIGHTS, PEFT_CONFIG = "adapter_model.safetensors", "adapter_config.json"
PEFT_PREFIX = "base_model.model."
DIFFUSERS_WEIGHTS = "pytorch_lora_weights.safetensors"
METADATA = "lora_adapter_metadata"  # key in a safetensors header under which diffusers keeps peft's settings
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
_PREFIXES = (
    PEFT_PREFIX,
    "transformer.",
    "model.diffusion_model.",
    "diffusion_model.",
    "lora_unet_",
    "lora_transformer_",
)
_TEXT_ENCODERS = ("text_encoder", "lora_te", "te1.", "te2.")
_KEY = re.compile(
    r"(?P<layer>.+?)(?:"
    r"\.lora_(?P<letter>[AB])(?:\.[^.]+)?\.(?P<what>weight|bias)"
    r"|[._]lora(?P<stream>[12]?)[._](?P<way>down|up)\.weight"
    r"|\.(?P<alpha>alpha)"
    r"|\.(?P<dora>lora_magnitude_vector)(?:\.[^.]+)?(?:\.weight)?)"
)


@dataclass(frozen=True)
class AdapterFile:
    """A LoRA on the DiT's linear layers, as peft describes it."""

    settings: dict[str, Any]
    """Keyword arguments of ``peft.LoraConfig``."""
    tensors: dict[str, Tensor]
    """By peft's names in the DiT, such as ``transformer_blocks.0.attn.to_q.lora_A.weight``."""
    origin: str
    """Where it is from, for messages."""


@dataclass
class _Layer:
    down: Tensor | None = None  # [r, in]
    up: Tensor | None = None  # [out, r]
    bias: Tensor | None = None  # [out]
    alpha: float | None = None
    magnitude: Tensor | None = None  # [out], of DoRA
    names: list[str] = field(default_factory=list)


def read_adapter(
    source: str | Path | Mapping[str, Tensor], transformer: Any, weight_name: str | None = None
) -> AdapterFile:
    """Read a LoRA for ``transformer``: a folder, a ``.safetensors`` file, or tensors by name.

    Args:
        source: a folder that holds one LoRA (of both formats in one folder peft's is read), a file, or tensors.
        transformer: the FluxTransformer2DModel, for the names and shapes of its layers; it is not changed.
        weight_name: file in the folder.

    Raises:
        InputError: no LoRA there, several, a pickle, settings or tensors that cannot be applied exactly, a layer or a
            shape that the DiT does not have, or a LoRA without effect.
    """
    if isinstance(source, Mapping):
        return _convert(dict(source), {}, None, transformer, "a dictionary of tensors")
    weights = find_weights(Path(source), weight_name)
    tensors, header = _read_safetensors(weights)
    config = weights.parent / PEFT_CONFIG
    from_peft = any(name.startswith(PEFT_PREFIX) for name in tensors) and config.is_file()
    return _convert(tensors, header, _read_json(config) if from_peft else None, transformer, str(weights))


def find_weights(path: Path, weight_name: str | None = None) -> Path:
    """The safetensors file of a LoRA at ``path``, a folder or the file itself.

    Raises:
        InputError: none, several, or a pickle.
    """
    if weight_name is not None:
        path = path / weight_name
    if path.suffix in _PICKLES:
        raise _pickle(path)
    if path.is_file():
        return path
    if not path.is_dir():
        raise InputError("no LoRA here: no such file or folder", value=str(path), fix="check the path")
    for name in (PEFT_WEIGHTS, DIFFUSERS_WEIGHTS):
        if (path / name).is_file():
            return path / name
    candidates = sorted(file.name for file in path.glob("*.safetensors"))
    if len(candidates) == 1:
        return path / candidates[0]
    if candidates:
        raise InputError(
            f"{len(candidates)} files that may be a LoRA: {candidates}", value=str(path), fix="pass one as weight_name"
        )
    if pickles := sorted(file for file in path.iterdir() if file.suffix in _PICKLES):
        raise _pickle(pickles[0])
    if below := sorted(file.parent.name for file in path.glob(f"*/{PEFT_CONFIG}")):
        raise InputError(
            f"no LoRA in this folder, but in its folders {below}", value=str(path), fix="pass one of those"
        )
    raise InputError("no LoRA here: no .safetensors file", value=str(path), fix="pass a folder or file that has one")


def _pickle(path: Path) -> InputError:
    return InputError(
        "a pickle can run any code and is not read",
        value=str(path),
        fix="save it as .safetensors with the program that wrote it",
    )


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise InputError(f"not a readable safetensors file ({error})", value=str(path), fix="copy it again") from error


def _read_json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"not a readable {path.name} ({error})", value=str(path), fix="copy it again") from error
    if not isinstance(values, dict):
        raise InputError(f"{path.name} holds no settings", value=str(path), fix="copy it again")
    return values


def _convert(
    tensors: dict[str, Tensor],
    header: Mapping[str, str],
    settings: Mapping[str, Any] | None,
    transformer: Any,
    origin: str,
) -> AdapterFile:
    layers = linear_layers(transformer)
    parts = _sort(tensors, names_of_layers(layers), peft=settings is not None, origin=origin)
    _check(parts, layers, origin)
    settings = settings if settings is not None else _metadata(header, origin)
    if settings is None:
        return AdapterFile(_settings_of(parts, origin), _peft_tensors(parts), origin)
    if alphas := [layer.names[0] for layer in parts.values() if layer.alpha is not None]:
        raise InputError(
            f"says its alpha twice: in its settings and as {len(alphas)} tensors, of {alphas[0]} first",
            value=origin,
            fix="remove one of them",
        )
    return AdapterFile(check_settings(settings, origin), _peft_tensors(parts), origin)


def _metadata(header: Mapping[str, str], origin: str) -> dict[str, Any] | None:
    """Settings in a header of diffusers: those of the pipeline's transformer, or of a model that was saved alone."""
    if METADATA not in header:
        return None
    try:
        values = dict(json.loads(header[METADATA]))
    except (ValueError, TypeError) as error:
        raise InputError(f"its {METADATA} is no JSON ({error})", value=origin, fix="save it again") from error
    if "r" in values:
        return values
    own = {name.removeprefix("transformer."): v for name, v in values.items() if name.startswith("transformer.")}
    return own or None


def _sort(
    tensors: Mapping[str, Tensor], names: Mapping[str, tuple[Rows, ...]], *, peft: bool, origin: str
) -> dict[str, _Layer]:
    """Tensors by layer of the DiT; those of a fused layer are cut into its parts."""
    parts: dict[str, _Layer] = {}
    elsewhere, unknown = [], []
    for key, tensor in tensors.items():
        if key.startswith(_TEXT_ENCODERS):
            elsewhere.append(key)
            continue
        match = _KEY.fullmatch(key)
        rows = _rows(match["layer"] + (match["stream"] or ""), names) if match else None
        if match is None or rows is None:
            unknown.append(key)
            continue
        if (
            key.startswith(PEFT_PREFIX)
            and not peft
            and len(rows) == 1
            and key.startswith(f"{PEFT_PREFIX}{rows[0].module}.")
        ):
            raise InputError(
                f"tensors of peft without their {PEFT_CONFIG}, which holds their alpha",
                value=origin,
                fix=f"put the {PEFT_CONFIG} beside the file, and pass the folder",
            )
        _put(parts, match, rows, tensor, key, origin)
    if unknown:
        raise InputError(
            f"the DiT lacks the layers of {len(unknown)} of {len(tensors)} tensors, the first is {min(unknown)}",
            value=origin,
            fix="use a LoRA on the linear layers of the Flux model that this bundle holds",
        )
    if elsewhere:
        log.warning("%s: %d tensors are of a text encoder, which this model has not; not used", origin, len(elsewhere))
    if not parts:
        raise InputError("holds no LoRA of the DiT", value=origin, fix="use a LoRA that was trained on Flux")
    return parts


def _rows(layer: str, names: Mapping[str, tuple[Rows, ...]]) -> tuple[Rows, ...] | None:
    for candidate in (layer, layer.replace(".processor.", ".")):
        for prefix in ("", *_PREFIXES):
            if candidate.startswith(prefix) and candidate.removeprefix(prefix) in names:
                return names[candidate.removeprefix(prefix)]
    return None


def _put(
    parts: dict[str, _Layer], match: re.Match[str], rows: tuple[Rows, ...], tensor: Tensor, key: str, origin: str
) -> None:
    down = match["letter"] == "A" or match["way"] == "down"
    if match["alpha"]:
        kind = "alpha"
    elif match["dora"]:
        kind = "magnitude"
    elif match["what"] == "bias":
        kind = "bias"
    else:
        kind = "down" if down else "up"
    wanted = sum(part.count for part in rows)
    if kind in ("up", "bias", "magnitude"):
        if tensor.ndim == 0 or tensor.shape[0] != wanted or tensor.ndim != (2 if kind == "up" else 1):
            raise _shape(key, tensor, (wanted, *tensor.shape[1:]), origin)
    elif kind == "alpha" and tensor.numel() != 1:
        raise _shape(key, tensor, (), origin)
    if kind == "bias" and down:
        raise InputError(f"{key} is the bias of a down projection, which peft has not", value=origin, fix="remove it")
    for part in rows:
        value: Any = float(tensor) if kind == "alpha" else tensor
        if kind in ("up", "bias", "magnitude"):
            value = tensor[part.first : part.first + part.count]
            if part.swap_halves:
                value = torch.cat(value.chunk(2)[::-1])
        layer = parts.setdefault(part.module, _Layer())
        if getattr(layer, kind) is not None:
            raise InputError(f"two tensors are {kind} of {part.module}, one is {key}", value=origin, fix="remove one")
        setattr(layer, kind, value)
        layer.names.append(key)


def _shape(key: str, tensor: Tensor, wanted: tuple[int, ...], origin: str) -> InputError:
    return InputError(
        f"{key} has shape {tuple(tensor.shape)}, the DiT wants {wanted}",
        value=origin,
        fix="use the base that the adapter was trained on",
    )


def _check(parts: Mapping[str, _Layer], layers: Mapping[str, Any], origin: str) -> None:
    """Refuse half pairs, shapes that do not fit, values that are not finite, and a LoRA that changes nothing."""
    for name, layer in parts.items():
        if layer.down is None or layer.up is None:
            prefix = PEFT_PREFIX if layer.names[0].startswith(PEFT_PREFIX) else ""
            missing = f"{prefix}{name}.lora_{'A' if layer.down is None else 'B'}.weight"
            raise InputError(f"the adapter lacks {missing}", value=origin, fix="export it again")
        wanted = (layer.up.shape[1], layers[name].in_features)
        if tuple(layer.down.shape) != wanted:
            raise _shape(next(key for key in layer.names), layer.down, wanted, origin)
        for tensor in (layer.down, layer.up, layer.bias, layer.magnitude):
            if tensor is not None and not (tensor.is_floating_point() and torch.isfinite(tensor.float()).all()):
                raise InputError(
                    f"{layer.names[0]}: values that are not finite numbers", value=origin, fix="train it again"
                )
    if not any(
        layer.magnitude is not None or layer.up.any() or (layer.bias is not None and layer.bias.any())  # type: ignore[union-attr]
        for layer in parts.values()
    ):
        raise InputError(
            "the adapter's up projections are all zero: it has no effect", value=origin, fix="train it first"
        )


def _settings_of(parts: Mapping[str, _Layer], origin: str) -> dict[str, Any]:
    """peft's settings of a file that has none: ranks by shape; alpha by tensor, else equal to the rank."""
    ranks = {name: int(layer.up.shape[1]) for name, layer in parts.items()}  # type: ignore[union-attr]
    alphas = {name: float(ranks[name]) if layer.alpha is None else layer.alpha for name, layer in parts.items()}
    if len({layer.magnitude is None for layer in parts.values()}) == 2:
        raise InputError("some layers have a DoRA magnitude and some have none", value=origin, fix="train it again")
    return {
        **exact_scales(ranks, alphas),
        "target_modules": "|".join(re.escape(name) for name in sorted(parts)),  # a string is matched as a whole
        "use_dora": any(layer.magnitude is not None for layer in parts.values()),
        "lora_bias": any(layer.bias is not None for layer in parts.values()),
    }


def exact_scales(ranks: Mapping[str, int], alphas: Mapping[str, float]) -> dict[str, Any]:
    """peft's settings for these ranks and alphas by layer: the most frequent as default, the others by exact name."""
    rank, alpha = (Counter(values.values()).most_common(1)[0][0] for values in (ranks, alphas))
    return {
        "r": rank,
        "lora_alpha": alpha,
        "rank_pattern": {_exactly(name): value for name, value in ranks.items() if value != rank},
        "alpha_pattern": {_exactly(name): value for name, value in alphas.items() if value != alpha},
    }


def _exactly(name: str) -> str:
    return "^" + re.escape(name)  # peft puts an optional path in front and the end of the name behind


def _peft_tensors(parts: Mapping[str, _Layer]) -> dict[str, Tensor]:
    biased = any(layer.bias is not None for layer in parts.values())
    tensors: dict[str, Tensor] = {}
    for name, layer in parts.items():
        assert layer.down is not None
        assert layer.up is not None
        tensors[f"{name}.lora_A.weight"], tensors[f"{name}.lora_B.weight"] = layer.down, layer.up
        if biased:
            tensors[f"{name}.lora_B.bias"] = layer.up.new_zeros(len(layer.up)) if layer.bias is None else layer.bias
        if layer.magnitude is not None:
            tensors[f"{name}.lora_magnitude_vector"] = layer.magnitude
    return tensors
