"""Assign the tensors of a LoRA file to the DiT's linear layers, for every naming scheme and fused layers."""

import logging
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from lookalike.errors import InputError
from lookalike.models.flux_names import Rows

log = logging.getLogger(__name__)

PEFT_WEIGHTS, PEFT_CONFIG = "adapter_model.safetensors", "adapter_config.json"
PEFT_PREFIX = "base_model.model."
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


@dataclass
class LoraLayer:
    """Tensors of a file for one linear layer of the DiT."""

    down: Tensor | None = None  # [r, in]
    up: Tensor | None = None  # [out, r]
    bias: Tensor | None = None  # [out]
    alpha: float | None = None
    magnitude: Tensor | None = None  # [out], of DoRA
    names: list[str] = field(default_factory=list)


def sort_tensors(
    tensors: Mapping[str, Tensor], names: Mapping[str, tuple[Rows, ...]], *, peft: bool, origin: str
) -> dict[str, LoraLayer]:
    """Group tensors by layer of the DiT; those of a fused layer are split into its parts.

    Raises InputError for a tensor of an unknown layer, of a wrong shape, twice for one layer, or not of a LoRA.
    """
    parts: dict[str, LoraLayer] = {}
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
        if not peft and key.startswith(f"{PEFT_PREFIX}{rows[0].module}."):
            raise InputError(
                f"the file holds tensors of peft without {PEFT_CONFIG}, which has their alpha",
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
        log.warning(
            "%s: %d tensors belong to a text encoder, which this model does not have; they are ignored",
            origin,
            len(elsewhere),
        )
    if not parts:
        raise InputError("the file holds no LoRA of the DiT", value=origin, fix="use a LoRA that was trained on Flux")
    return parts


def _rows(layer: str, names: Mapping[str, tuple[Rows, ...]]) -> tuple[Rows, ...] | None:
    candidates = [layer, layer.replace(".processor.", ".")]
    for candidate in candidates:
        if candidate in names:
            return names[candidate]
        candidates += [candidate.removeprefix(prefix) for prefix in _PREFIXES if candidate.startswith(prefix)]
    return None


def _put(
    parts: dict[str, LoraLayer], match: re.Match[str], rows: tuple[Rows, ...], tensor: Tensor, key: str, origin: str
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
        raise InputError(
            f"{key} is the bias of a down projection, which peft does not support", value=origin, fix="remove it"
        )
    for part in rows:
        value: Any = float(tensor) if kind == "alpha" else tensor
        if kind in ("up", "bias", "magnitude"):
            value = tensor[part.first : part.first + part.count]
            if part.swap_halves:
                value = torch.cat(value.chunk(2)[::-1])
        layer = parts.setdefault(part.module, LoraLayer())
        if getattr(layer, kind) is not None:
            raise InputError(
                f"the file has the {kind} of {part.module} twice, once as {key}", value=origin, fix="remove one"
            )
        setattr(layer, kind, value)
        layer.names.append(key)


def _shape(key: str, tensor: Tensor, wanted: tuple[int, ...], origin: str) -> InputError:
    return InputError(
        f"{key} has shape {tuple(tensor.shape)}, and the DiT expects {wanted}",
        value=origin,
        fix="use the base that the adapter was trained on",
    )


def check_layers(parts: Mapping[str, LoraLayer], layers: Mapping[str, Any], origin: str) -> None:
    """Raise InputError for half a pair, a wrong shape, values that are not finite, or a LoRA without effect."""
    for name, layer in parts.items():
        if layer.down is None or layer.up is None:
            prefix = PEFT_PREFIX if layer.names[0].startswith(PEFT_PREFIX) else ""
            missing = f"{prefix}{name}.lora_{'A' if layer.down is None else 'B'}.weight"
            raise InputError(f"the adapter lacks {missing}", value=origin, fix="export it again")
        wanted = (layer.up.shape[1], layers[name].in_features)
        if tuple(layer.down.shape) != wanted:
            raise _shape(layer.names[0], layer.down, wanted, origin)
        for tensor in (layer.down, layer.up, layer.bias, layer.magnitude):
            if tensor is not None and not (tensor.is_floating_point() and torch.isfinite(tensor.float()).all()):
                raise InputError(
                    f"{layer.names[0]} has values that are not finite numbers", value=origin, fix="train it again"
                )
    if not any(
        layer.magnitude is not None or layer.up.any() or (layer.bias is not None and layer.bias.any())  # type: ignore[union-attr]
        for layer in parts.values()
    ):
        raise InputError(
            "the adapter's up projections are all zero: it has no effect", value=origin, fix="train it first"
        )


def settings_of(parts: Mapping[str, LoraLayer], origin: str) -> dict[str, Any]:
    """Derive peft's settings for a file without any: ranks from shapes; alpha from tensors, else equal to the rank."""
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
    """Make peft's settings for ranks and alphas by layer: the most frequent as default, the others by exact name."""
    rank, alpha = (Counter(values.values()).most_common(1)[0][0] for values in (ranks, alphas))
    return {
        "r": rank,
        "lora_alpha": alpha,
        "rank_pattern": {_exactly(name): value for name, value in ranks.items() if value != rank},
        "alpha_pattern": {_exactly(name): value for name, value in alphas.items() if value != alpha},
    }


def _exactly(name: str) -> str:
    return "^" + re.escape(name)  # peft adds an optional path before, and the end of the name after it


def peft_tensors(parts: Mapping[str, LoraLayer]) -> dict[str, Tensor]:
    """Return all tensors by peft's names; if some layers have a bias, the others get one of zeros."""
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
