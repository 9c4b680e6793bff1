"""Check that groups of settings are mappings before jsonargparse parses them.

If a group of settings is text, jsonargparse imports the class or reads the file that the text names before it refuses
the value. Settings may come from a customer, for example in a ``bundle.json``.
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
    """Forbid jsonargparse to import classes that a value names (``class_path``), except the groups of
    ``config_class``, whose paths it writes into the items of a list."""
    own = [path for group in _all_groups(config_class) for path in _paths(group)]
    allowed = [path for path in own if all(map(str.isidentifier, path.split(".")))]
    jsonargparse.set_parsing_settings(import_path_denylist=["*"], import_path_allowlist=allowed)


def check_groups(hint: Any, value: Any, name: str = "") -> None:
    """Check that each group of settings in ``value`` (of YAML or JSON) is a mapping, by the dataclasses in ``hint``.

    The parser checks the types of single settings later. ``name`` is the dotted name of ``value`` in messages. Raises
    ConfigError if a group is text, or a key cannot be the name of a setting; the key is not shown, since a user may
    have named any file as a configuration.
    """
    groups = _groups(hint)
    if not groups:
        return
    if isinstance(value, Mapping):
        for key, item in value.items():
            if not isinstance(key, str) or not _NAME.fullmatch(key):
                raise ConfigError(
                    f"a key in {name or 'the settings'} is not the name of a setting",
                    fix="see --help for the names of settings",
                )
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
    """Check the flags that set a whole group of settings, as :func:`check_groups` does. Raises ConfigError, also for
    one that is not YAML."""
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
    """The type of a setting by its dotted name; None if it does not exist."""
    hint = config_class
    for part in name.split("."):
        matches = [hints[part] for group in _groups(hint) if part in (hints := _hints(group))]
        if not matches:
            return None
        hint = matches[0]
    return hint


def _groups(hint: Any) -> list[Any]:
    """The dataclasses in a type: the type itself, members of a union, or items of a list."""
    if dataclasses.is_dataclass(hint):
        return [hint]
    if get_origin(hint) in (Union, types.UnionType, list, tuple):
        return [group for argument in get_args(hint) for group in _groups(argument)]
    return []


def _paths(group: Any) -> list[str]:
    """Paths by which a class can be imported: from its module, or from a package above."""
    parts = group.__module__.split(".")
    return [".".join([*parts[:end], group.__qualname__]) for end in range(1, len(parts) + 1)]


def _all_groups(hint: Any) -> list[Any]:
    """The dataclasses in a type, and those nested in them."""
    outer = _groups(hint)
    return outer + [group for within in outer for inner in _hints(within).values() for group in _all_groups(inner)]


@lru_cache(maxsize=256)
def _hints(config_class: Any) -> dict[str, Any]:
    return get_type_hints(config_class)
