"""Bounds on the sizes in a preset: one stands in every bundle, so a tenant may write it, and every job reads it."""

import re
from collections.abc import Mapping
from typing import Any

from lookalike.errors import ConfigError

MAX_SIDE, MAX_REFERENCES, MAX_WIDTH, MAX_LAYERS = 16_384, 64, 65_536, 1_024  # a bundle of a tenant has a preset
MAX_NUMBER = 100_000_000  # in a component's configuration: above any width, vocabulary, position or base of RoPE
MAX_TEMPLATE = 10_000  # characters
_LAYERS = re.compile("layers|blocks|depth")


def check_sizes(config: object, least: int = 1, **most: int) -> None:
    """Raise ConfigError for a size that makes nothing, or that would fill any machine's memory."""
    for name, limit in most.items():
        if (value := getattr(config, name)) < least:
            raise ConfigError(f"{name} of a preset is below {least}", value=value, fix=f"give {name} a value above 0")
        if value > limit:
            raise ConfigError(f"{name} of a preset is above {limit}", value=value, fix=f"lower {name}")


def check_component(name: str, config: Mapping[str, Any]) -> None:
    """Raise ConfigError for a number of layers or a width in a library's configuration that no model has."""
    for key, value in config.items():
        values = value if isinstance(value, (list, tuple)) else [value]
        for item in values:
            if isinstance(item, Mapping):
                check_component(f"{name}.{key}", item)
            elif isinstance(item, int) and item > (limit := MAX_LAYERS if _LAYERS.search(key) else MAX_NUMBER):
                raise ConfigError(f"{name}.config.{key} is above {limit}", value=item, fix="lower it")
