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

from lookalike.documents import parse_object
from lookalike.errors import ConfigError, InputError

VARIABLE = "LOOKALIKE_PRESET_LIMITS"
_LAYERS = re.compile("layers|blocks|depth")


@dataclass(frozen=True)
class PresetLimits:
    """Largest values that a preset may have."""

    side: int = 16_384
    """Pixels of a side of a generated image or a reference."""
    references: int = 64
    """``references.max_references``."""
    width: int = 65_536
    """Channels inside the aggregator, and of one of its attention heads."""
    layers: int = 1_024
    """Blocks of the aggregator, and every number of layers in a library's configuration."""
    number: int = 100_000_000
    """Every other integer in a library's configuration: widths, vocabularies, positions, the base of RoPE."""
    template: int = 10_000
    """Characters of ``mllm.template``, and of the text around an image."""
    tile: int = 4_096
    """``mllm.image_size``, pixels."""
    tokens_per_image: int = 65_536
    """``mllm.tokens_per_image``."""
    prompt_tokens: int = 32_768
    """``mllm.max_prompt_tokens``."""


def limits() -> PresetLimits:
    """Return the limits of this process.

    Raises:
        ConfigError: the environment variable is not a JSON object of known limits with values of at least 1.
    """
    return _parse(os.environ.get(VARIABLE) or "{}")


@lru_cache(maxsize=8)
def _parse(text: str) -> PresetLimits:
    known = [item.name for item in fields(PresetLimits)]
    fix = f'write a JSON object of limits, such as {{"layers": 2048}}; there are {", ".join(known)}'
    try:
        values = parse_object(text, VARIABLE, fix=fix)
    except InputError as error:
        raise ConfigError(f"{VARIABLE}: {error.what}", value=text[:200], fix=fix) from None
    for name, value in values.items():
        if name not in known or type(value) is not int or value < 1:
            raise ConfigError(f"{VARIABLE} has no limit {name} of {value!r:.50}", value=text[:200], fix=fix)
    return PresetLimits(**values)


def check_limit(name: str, value: int, limit: str) -> None:
    """Raise ConfigError if ``value``, which the preset gives for ``name``, is above the limit of that name."""
    if value > (most := getattr(limits(), limit)):
        raise ConfigError(
            f"{name} of a preset is above {most}", value=value, fix=f"lower {name}, or raise {limit} in {VARIABLE}"
        )


def check_sizes(config: object, least: int = 1, **names: str) -> None:
    """Raise ConfigError for an attribute of ``config`` below ``least`` or above its limit.

    Args:
        config: a part of a preset.
        least: smallest valid value.
        names: attribute → name of its limit.
    """
    for name, limit in names.items():
        if (value := getattr(config, name)) < least:
            raise ConfigError(f"{name} of a preset is below {least}", value=value, fix=f"set it to {least} or more")
        check_limit(name, value, limit)


def check_component(name: str, config: Mapping[str, Any]) -> None:
    """Raise ConfigError for an integer above its limit in a library's configuration."""
    for key, value in config.items():
        for item in value if isinstance(value, list | tuple) else [value]:
            if isinstance(item, Mapping):
                check_component(f"{name}.{key}", item)
            elif isinstance(item, int):
                check_limit(f"{name}.config.{key}", item, "layers" if _LAYERS.search(key) else "number")
