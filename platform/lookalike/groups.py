"""Check settings from outside before jsonargparse sees them: it imports or reads what stands in a group's place.

jsonargparse takes text in the place of a group of settings for the path of a class, which it imports before it is
refused, or of a file, which it reads: so would a tenant's ``bundle.json``.
"""

import dataclasses
import re
import types
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, Union, get_args, get_origin, get_type_hints

import jsonargparse
import yaml

from lookalike.errors import ConfigError

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.\-]{0,63}")
_FIX = "write a mapping of settings in its place"


def forbid_imports(config_class: type) -> None:
    """Keep jsonargparse from importing what a value names (``class_path``), but for the groups of ``config_class``
    themselves, as which it writes the elements of a list."""
    own = [path for group in _all_groups(config_class) for path in _paths(group)]
    allowed = [path for path in own if all(map(str.isidentifier, path.split(".")))]
    jsonargparse.set_parsing_settings(import_path_denylist=["*"], import_path_allowlist=allowed)


def check_groups(hint: Any, value: Any, name: str = "") -> None:
    """Check that each group of settings in ``value`` is a mapping, by the dataclasses that ``hint`` names.

    Types of single settings are left to the parser.

    Args:
        hint: a dataclass, or a type that holds some.
        value: plain values, as of YAML or JSON.
        name: dotted name of ``value`` in messages.

    Raises:
        ConfigError: text where a group belongs, or a key that cannot be the name of a setting; what such a key says
            is not shown, since any file may have been named as a configuration.
    """
    groups = _groups(hint)
    if not groups:
        return
    if isinstance(value, Mapping):
        for key, item in value.items():
            if not isinstance(key, str) or not _NAME.fullmatch(key):
                raise ConfigError(f"a key in {name or 'the settings'} is not the name of a setting", fix="see --help")
            for group in groups:
                first, _, rest = key.partition(".")
                if first in (hints := _hints(group)):
                    check_groups(hints[first], {rest: item} if rest else item, f"{name}.{first}".strip("."))
    elif isinstance(value, Sequence) and not isinstance(value, (str, bytes)):
        for number, item in enumerate(value):
            check_groups(hint, item, f"{name}[{number}]")
    elif isinstance(value, (str, bytes)):
        raise ConfigError(f"{name or 'the document'} is text, not a group of settings", fix=_FIX)


def check_flags(config_class: type, argv: Sequence[str]) -> None:
    """Check the flags that name a whole group of settings, as :func:`check_groups` does.

    Raises:
        ConfigError: one of them is text that is not a mapping in YAML.
    """
    for place, token in enumerate(argv):
        flag, equals, value = token.partition("=")
        name = flag.removeprefix("--").rstrip("+")
        if flag == name or (hint := _hint_at(config_class, name)) is None or not _groups(hint):
            continue
        text = value if equals else next(iter(argv[place + 1 : place + 2]), "")
        try:
            check_groups(hint, yaml.safe_load(text), name)
        except (yaml.YAMLError, ValueError, RecursionError) as error:
            if isinstance(error, ConfigError):
                raise
            raise ConfigError(f"{name} is not valid YAML", fix=_FIX) from None


def _hint_at(config_class: Any, name: str) -> Any:
    """The type of a setting by its dotted name; None if there is none."""
    hint = config_class
    for part in name.split("."):
        found = [hints[part] for group in _groups(hint) if part in (hints := _hints(group))]
        if not found:
            return None
        hint = found[0]
    return hint


def _groups(hint: Any) -> list[Any]:
    """The dataclasses in a type: itself, in a union, or as the elements of a list."""
    if dataclasses.is_dataclass(hint):
        return [hint]
    if get_origin(hint) in (Union, types.UnionType, list, tuple):
        return [group for argument in get_args(hint) for group in _groups(argument)]
    return []


def _paths(group: Any) -> list[str]:
    """Where a class can be imported: from its module, or from a package above that shows it."""
    parts = group.__module__.split(".")
    return [".".join([*parts[:end], group.__qualname__]) for end in range(1, len(parts) + 1)]


def _all_groups(hint: Any) -> list[Any]:
    """:func:`_groups` of a type, and of all that these hold."""
    return [group for outer in _groups(hint) for group in (outer, *_all_within(outer))]


@lru_cache(maxsize=256)
def _all_within(group: Any) -> list[Any]:
    return [inner for hint in _hints(group).values() for inner in _all_groups(hint)]


@lru_cache(maxsize=256)
def _hints(config_class: Any) -> dict[str, Any]:
    return get_type_hints(config_class)
