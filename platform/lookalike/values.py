"""Configurations: frozen dataclasses that check their values, by their annotations, when they are constructed."""

import dataclasses
import functools
import math
import operator
import os
import types
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, Union, dataclass_transform, get_args, get_origin, get_type_hints
from urllib.parse import quote_from_bytes

from annotated_types import Ge, Gt, Le, Lt

from lookalike.errors import ConfigError

MAX_COUNT = 10**12
"""Larger than any sensible count, and far below the limit of 64 bits."""
MAX_SEED = 2**62
"""Seeds are added to sample numbers, and go into 64-bit columns."""

Count = Annotated[int, Ge(1)]
NonNegative = Annotated[int, Ge(0)]
Seed = Annotated[int, Ge(0), Le(MAX_SEED)]
Mib = Annotated[int, Ge(1), Le(65_536)]
Positive = Annotated[float, Gt(0)]
Share = Annotated[float, Ge(0), Le(1)]
Fraction = Annotated[float, Ge(0), Lt(1)]

ConfigT = TypeVar("ConfigT")

_BOUNDS: dict[type, tuple[Callable[[Any, Any], bool], str, str]] = {
    Ge: (operator.ge, "is below {}", "use {} or more"),
    Gt: (operator.gt, "is not above {}", "use a number above {}"),
    Le: (operator.le, "is above {}", "use {} or less"),
    Lt: (operator.lt, "is not below {}", "use a number below {}"),
}


@dataclass_transform(frozen_default=True, field_specifiers=(dataclasses.field,))
def configuration(section: str = "") -> Callable[[type[ConfigT]], type[ConfigT]]:
    """Make a class a frozen dataclass that calls :func:`check_values` at construction, before its ``__post_init__``.

    Bounds of numbers are annotations, such as ``Annotated[int, Ge(1)]``. They are removed from the class, so that
    ``--help`` shows ``int``. ``section`` precedes the names of fields in errors: ``checkpoint.every is below 1``.
    """

    def decorate(config_class: type[ConfigT]) -> type[ConfigT]:
        hints, plain = get_type_hints(config_class, include_extras=True), get_type_hints(config_class)
        for name in config_class.__annotations__:
            config_class.__annotations__[name] = _written_as_union(plain[name])
        further_checks = getattr(config_class, "__post_init__", None)

        def check(self: Any) -> None:
            _check_fields(self, hints, f"{section}." if section else "")
            if further_checks is not None:
                further_checks(self)

        config_class.__post_init__ = check  # type: ignore[attr-defined]
        return dataclasses.dataclass(frozen=True)(config_class)

    return decorate


def _written_as_union(hint: Any) -> Any:
    """``int | None`` for the equal ``Optional[int]``, which ``--help`` would show."""
    return functools.reduce(operator.or_, get_args(hint)) if get_origin(hint) is Union else hint


def check_values(record: Any) -> None:
    """Check the fields of a dataclass against their annotations; those that are dataclasses check themselves.

    Numbers have the right type (a bool is not a number), are finite, within their bounds, and at most :data:`MAX_COUNT`
    unless a bound says otherwise; text is UTF-8 without NUL, and not empty unless that is the default. Raises
    ConfigError with the name of the first field whose value is not valid.
    """
    _check_fields(record, get_type_hints(type(record), include_extras=True), "")


def _check_fields(record: Any, hints: Mapping[str, Any], prefix: str) -> None:
    for item in dataclasses.fields(record):
        if item.name not in hints:  # of a subclass, which checks it
            continue
        name, value = f"{prefix}{item.name}", getattr(record, item.name)
        if value == "" and item.default != "":
            raise ConfigError(f"{name} is empty", value=value, fix=f"give {name} a value, or leave it out")
        _check(name, value, hints[item.name])


def _check(name: str, value: Any, hint: Any) -> None:
    kind, bounds = (hint.__origin__, hint.__metadata__) if get_origin(hint) is Annotated else (hint, ())
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        if value is not None or type(None) not in arguments:
            choices = [choice for choice in arguments if choice is not type(None)]
            _check(name, value, next((c for c in choices if type(value) in (c, get_origin(c))), choices[-1]))
    elif origin is Literal:
        if value not in arguments or type(value) not in map(type, arguments):
            raise ConfigError(f"{name} does not take this value", value=value, fix=f"use one of {list(arguments)}")
    elif origin in (list, tuple):
        _check_items(name, value, origin, arguments)
    elif kind in (int, float):
        _check_number(name, value, kind, bounds)
    elif kind is bool and not isinstance(value, bool):
        raise _wrong(name, value, "true or false")
    elif kind is str:
        _check_text(name, value)
    elif origin is dict and not isinstance(value, Mapping):
        raise _wrong(name, value, "a mapping")
    elif isinstance(kind, type) and dataclasses.is_dataclass(kind) and not isinstance(value, kind):
        raise _wrong(name, value, f"a {kind.__name__}")


def _check_items(name: str, value: Any, origin: type, arguments: tuple[Any, ...]) -> None:
    if not isinstance(value, (list, tuple)):
        raise _wrong(name, value, "a list")
    fixed = origin is tuple and arguments[-1] is not Ellipsis
    if fixed and len(value) != len(arguments):
        raise _wrong(name, value, f"a list of {len(arguments)}")
    hints = arguments if fixed else arguments[:1] * len(value)
    for number, (element, hint) in enumerate(zip(value, hints, strict=True)):
        _check(f"{name}[{number}]", element, hint)


def _check_number(name: str, value: Any, kind: type, bounds: tuple[Any, ...]) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float) if kind is float else int):
        raise _wrong(name, value, "a number" if kind is float else "a whole number")
    if isinstance(value, float) and not math.isfinite(value):
        raise _wrong(name, value, "a finite number")
    if not any(isinstance(bound, Le) for bound in bounds):
        bounds = (*bounds, Ge(-MAX_COUNT), Le(MAX_COUNT))
    for bound in bounds:
        if callable(bound):
            bound(name, value)
            continue
        (limit,) = dataclasses.astuple(bound)
        holds, problem, fix = _BOUNDS[type(bound)]
        if not holds(value, limit):
            raise ConfigError(f"{name} {problem.format(limit)}", value=value, fix=fix.format(limit))


def _check_text(name: str, value: Any) -> None:
    if not isinstance(value, str):
        raise _wrong(name, value, "text")
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
