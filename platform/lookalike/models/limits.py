"""Limits on the sizes in a preset. Every bundle contains a preset, which a tenant may have written; every job reads it.

The defaults lie far above the shipped models. An operator raises some by the environment variable
``LOOKALIKE_PRESET_LIMITS``, a JSON object such as ``{"layers": 2048}``, for every process that reads presets: jobs, and
Ray's workers (``runtime_env: {env_vars: ...}`` or the pods' environment).
"""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import lru_cache
from typing import Any

from lookalike.documents import parse_record
from lookalike.errors import ConfigError, InputError
from lookalike.values import Count

VARIABLE = "LOOKALIKE_PRESET_LIMITS"
MAX_SIDE = 16_384
"""Pixels of a side of any image that is read or generated."""
_LAYERS = re.compile("layers|blocks|depth")


@dataclass(frozen=True)
class PresetLimits:
    """Largest values that a preset may have."""

    side: Count = MAX_SIDE
    """Pixels of a side of a generated image or a reference."""
    references: Count = 64
    """``references.max_references``."""
    width: Count = 65_536
    """Channels inside the aggregator, and of one of its attention heads."""
    layers: Count = 1_024
    """Blocks of the aggregator, and every number of layers in a library's configuration."""
    number: Count = 100_000_000
    """Every other integer in a library's configuration: widths, vocabularies, positions, the base of RoPE."""
    template: Count = 10_000
    """Characters of ``mllm.template``, and of the text around an image."""
    tile: Count = 4_096
    """``mllm.image_size``, pixels."""
    tokens_per_image: Count = 65_536
    """``mllm.tokens_per_image``."""
    prompt_tokens: Count = 32_768
    """``mllm.max_prompt_tokens``."""


def limits() -> PresetLimits:
    """Return the limits of this process. Raises ConfigError if the environment variable has others than these."""
    return _parse(os.environ.get(VARIABLE) or "{}")


@lru_cache(maxsize=8)
def _parse(text: str) -> PresetLimits:
    known = ", ".join(item.name for item in fields(PresetLimits))
    fix = f'write a JSON object of limits, such as {{"layers": 2048}}; there are {known}'
    try:
        return parse_record(PresetLimits, text, VARIABLE, fix=fix)
    except InputError as error:
        raise ConfigError(f"{VARIABLE}: {error.what}", value=text[:200], fix=fix) from None


def check_limit(name: str, value: int, limit: str) -> None:
    """Raise ConfigError if ``value``, which a preset gives for ``name``, is above the limit of that name.

    It is also the bound of a field: ``Annotated[int, partial(check_limit, limit="side")]``.
    """
    if value > (most := getattr(limits(), limit)):
        raise ConfigError(
            f"{name} of a preset is above {most}", value=value, fix=f"lower {name}, or raise {limit} in {VARIABLE}"
        )


def check_component(name: str, config: Mapping[str, Any]) -> None:
    """Raise ConfigError for an integer above its limit in a library's configuration."""
    for key, value in config.items():
        for item in value if isinstance(value, list | tuple) else [value]:
            if isinstance(item, Mapping):
                check_component(f"{name}.{key}", item)
            elif isinstance(item, int):
                check_limit(f"{name}.config.{key}", item, "layers" if _LAYERS.search(key) else "number")
