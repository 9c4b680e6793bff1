"""Check the values of a configuration when it is constructed: their types, and that numbers are finite."""

import dataclasses
import math
import os
import types
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints
from urllib.parse import quote_from_bytes

from lookalike.errors import ConfigError

MAX_COUNT = 10**12
"""Larger than any sensible count, and far below the limit of 64 bits."""
MAX_SEED = 2**62
"""Seeds are added to sample numbers, and go into 64-bit columns."""


Range = tuple[float | None, float | None]
"""The least and the largest value of a field; None: no bound on that side."""


def check_values(config: Any, *, at: str = "", **ranges: Range) -> None:
    """Check the fields of a frozen dataclass against their annotations and ranges; nested ones check themselves.

    Numbers have the right type (a bool is not a number), are finite and at most :data:`MAX_COUNT`; a field named
    ``seed`` is 0 to :data:`MAX_SEED`; text is UTF-8 without NUL, and not empty unless that is the default.

    Args:
        config: the dataclass.
        at: prefix of the field's name in errors, such as ``limits.``.
        ranges: for fields by their names; a field that is None has no range.

    Raises:
        ConfigError: names the first field whose value is not valid.
    """
    config_class: Any = type(config)
    for item in dataclasses.fields(config):
        value = getattr(config, item.name)
        if value == "" and item.default != "":
            raise ConfigError(f"{item.name} is empty", value=value, fix=f"give {item.name} a value, or leave it out")
        _check(item.name, value, _hints(config_class)[item.name])
    for name, (least, most) in ranges.items():
        value = getattr(config, name)
        if value is not None and least is not None and value < least:
            raise ConfigError(f"{at}{name} is below {least}", value=value, fix=f"use {least} or more")
        if value is not None and most is not None and value > most:
            raise ConfigError(f"{at}{name} is above {most}", value=value, fix=f"use at most {most}")


@lru_cache(maxsize=256)
def _hints(config_class: Any) -> dict[str, Any]:
    return get_type_hints(config_class)


def _check(name: str, value: Any, hint: Any) -> None:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        if value is None and type(None) in arguments:
            return
        _check_union(name, value, [argument for argument in arguments if argument is not type(None)])
    elif origin is Literal:
        if value not in arguments or type(value) not in {type(argument) for argument in arguments}:
            raise ConfigError(f"{name} does not take this value", value=value, fix=f"use one of {list(arguments)}")
    elif origin in (list, tuple):
        _check_items(name, value, origin, arguments)
    elif hint in (int, float):
        _check_number(name, value, hint)
    elif hint in (str, bool):
        if not isinstance(value, hint):
            raise _wrong(name, value, "true or false" if hint is bool else "text")
        if isinstance(value, str):
            _check_text(name, value)
    elif origin is dict:
        if not isinstance(value, Mapping):
            raise _wrong(name, value, "a mapping")
    elif isinstance(hint, type) and dataclasses.is_dataclass(hint) and not isinstance(value, hint):
        raise _wrong(name, value, f"a {hint.__name__}")


def _check_union(name: str, value: Any, choices: list[Any]) -> None:
    errors = []
    for choice in choices:
        try:
            return _check(name, value, choice)
        except ConfigError as error:
            errors.append((_fits(value, choice), error))
    raise max(errors, key=lambda found: found[0])[1]


def _fits(value: Any, hint: Any) -> bool:
    kind = get_origin(hint) or hint
    return isinstance(kind, type) and isinstance(value, kind)


def _check_items(name: str, value: Any, origin: type, arguments: tuple[Any, ...]) -> None:
    if not isinstance(value, (list, tuple)):
        raise _wrong(name, value, "a list")
    if origin is tuple and arguments and arguments[-1] is not Ellipsis:
        if len(value) != len(arguments):
            raise _wrong(name, value, f"a list of {len(arguments)}")
        hints = list(arguments)
    else:
        hints = [arguments[0] if arguments else Any] * len(value)
    for number, (element, hint) in enumerate(zip(value, hints, strict=True)):
        _check(f"{name}[{number}]", element, hint)


def _check_number(name: str, value: Any, hint: type) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float) if hint is float else int):
        raise _wrong(name, value, "a number" if hint is float else "a whole number")
    if name.rpartition(".")[2] == "seed":
        if not 0 <= value <= MAX_SEED:
            raise ConfigError(f"{name} is out of range", value=value, fix=f"use 0 to {MAX_SEED}")
    elif not abs(value) <= MAX_COUNT:
        what = f"{name} is not a finite number" if not _is_finite(value) else f"{name} is out of range"
        raise ConfigError(what, value=value, fix=f"use -{MAX_COUNT} to {MAX_COUNT} at most")


def _is_finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer of hundreds of digits
        return True


def _check_text(name: str, value: str) -> None:
    if "\0" in value:
        raise ConfigError(f"{name} holds a NUL character", value=value, fix="remove it")
    try:
        value.encode()
    except UnicodeEncodeError:
        try:
            written = f"file://{quote_from_bytes(os.fsencode(Path(value).absolute()), safe='/~')}"
        except UnicodeEncodeError:
            written = "file:///…"
        raise ConfigError(
            f"{name} is not valid UTF-8", value=value, fix=f"write it in UTF-8; for a path on this machine: {written}"
        ) from None


def _wrong(name: str, value: Any, expected: str) -> ConfigError:
    return ConfigError(f"{name} is not {expected}", value=value, fix=f"give {expected}")
