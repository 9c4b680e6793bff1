"""Typed, frozen configurations: parsed from YAML and flags by jsonargparse, saved with every output."""

import argparse
import dataclasses
import hashlib
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from types import MappingProxyType
from typing import Any, NoReturn, TypeVar, cast, get_type_hints

import jsonargparse
import yaml

from lookalike.errors import ConfigError, LookalikeError, first_line
from lookalike.groups import check_flags, check_groups, forbid_imports
from lookalike.process_wide import alone_in_process
from lookalike.redaction import redact, redacted

ConfigT = TypeVar("ConfigT")

NOT_IDENTITY = MappingProxyType({"identity": "never"})
"""Metadata of a field (``field(metadata=NOT_IDENTITY)``) that may change between two attempts of one run: an address, a
number of workers, or the location of an input that counts by its content."""
IDENTITY_IF_SET = MappingProxyType({"identity": "if set"})
"""Metadata of a field that is part of a run's identity unless it is None or empty: earlier records lack it."""
POSITIONAL = MappingProxyType({"positional": True})
"""Metadata of a field whose values may also be given without its flag, before all flags: of a ``str`` one, of a
``list[str]`` all that are left. It is joined with another: ``metadata={**NOT_IDENTITY, **POSITIONAL}``."""

_MAX_SETTINGS = 100_000  # in one file
_MAX_FILE_BYTES = 4 << 20


class _HelpFormatter(jsonargparse.DefaultHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Keep the lines of the description, so that its examples can be copied."""


class _Parser(jsonargparse.ArgumentParser):
    """Hide secrets in errors, and in the output of ``--print_config``."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        super().error(redact(message), ex)

    def dump(self, *arguments: Any, **named: Any) -> str:
        return redact(super().dump(*arguments, **named))


@alone_in_process()
def parse_command(
    commands: Mapping[str, type], argv: Sequence[str] | None = None, description: str | None = None
) -> tuple[str, Any]:
    """Parse a subcommand, one of ``commands``, and after it its flags as :func:`parse` does: (name, configuration).

    ``--help`` in place of a subcommand lists them (exit code 0); no subcommand also does, with exit code 2.
    """
    given = list(sys.argv[1:] if argv is None else argv)
    parser = _Parser(description=description, formatter_class=_HelpFormatter)
    if given and given[0] in commands:
        return given[0], parse(commands[given[0]], given[1:], prog=f"{parser.prog} {given[0]}")
    subcommands = parser.add_subcommands(help=f"`{parser.prog} SUBCOMMAND --help` lists the settings of each.")
    for name, config_class in commands.items():
        subcommands.add_subcommand(name, _Parser(), help=first_line(config_class.__doc__))
    if given and given[0] not in ("-h", "--help"):
        parser.error(f"{given[0]!r} is not a subcommand; begin with one of: {', '.join(commands)}")
    parser.print_help(None if given else sys.stderr)
    raise SystemExit(0 if given else 2)


@alone_in_process()
def parse(
    config_class: type[ConfigT],
    argv: Sequence[str] | None = None,
    description: str | None = None,
    *,
    prog: str | None = None,
) -> ConfigT:
    """Parse flags and ``--config FILE.yaml`` into ``config_class`` (a frozen dataclass).

    Flags win over the file; a nested field is ``--stage.steps 10``; ``--max-samples`` is ``--max_samples``; a
    ``bool`` is a flag alone or with ``true`` or ``false``; a ``list[str]`` is a flag that may be repeated
    (``--prompt "a cup" --prompt "a hat"``) or a YAML list; fields marked :data:`POSITIONAL` may be given without
    their flags, before all others; an unknown key is refused by name (exit code 2).
    """
    forbid_imports(config_class)
    jsonargparse.set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = _Parser(
        prog=prog,
        description=description or config_class.__doc__,
        formatter_class=_HelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--config", action="config", help="A YAML file with the same keys as the flags; flags win.")
    parser.add_class_arguments(config_class, fail_untyped=True)
    parser.set_defaults(_plain_lists(config_class))
    given = _normalise(config_class, sys.argv[1:] if argv is None else argv)
    files = {name: read_config_file(Path(name)) for name in _config_files(given)}
    for name, document in files.items():
        if "config" in document:  # which jsonargparse would read as a further file
            raise ConfigError(
                "a configuration file names another configuration file", value=name, fix="repeat --config instead"
            )
        check_groups(config_class, document)
    check_flags(config_class, given)
    try:
        namespace = parser.parse_args(given, env=False)  # JSONARGPARSE_DEFAULT_ENV would let variables name files
        namespace.pop("config")
        for name, document in files.items():
            for key in _empty_mappings(document):
                if key not in namespace:  # jsonargparse passes over what is empty
                    parser.error(f"Key '{key}' is not expected ({name})")
        return config_class(**parser.instantiate(namespace).as_dict())
    except LookalikeError:
        raise
    except Exception as error:  # jsonargparse and YAML have more classes of errors than can be listed
        if isinstance(error.__cause__, LookalikeError):  # of a value that may be null: it is tried as each type
            raise error.__cause__ from error
        raise ConfigError(
            f"the settings cannot be read: {type(error).__name__} {first_line(error)}",
            fix="compare them with --print_config",
        ) from error


def _config_files(argv: Sequence[str]) -> list[str]:
    """Values of ``--config``."""
    values = [token.removeprefix("--config=") for token in argv if token.startswith("--config=")]
    return values + [value for flag, value in pairwise(argv) if flag == "--config"]


class _DuplicateKeyError(yaml.MarkedYAMLError):
    pass


class _UniqueKeyLoader(yaml.SafeLoader):
    """PyYAML's loader keeps the last of two equal keys silently."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        names = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in names:
                    raise _DuplicateKeyError(problem_mark=key.start_mark)
                names.add(key.value)
        return super().construct_mapping(node, deep)


def read_config_file(path: Path) -> dict[str, Any]:
    """Read a YAML file of settings; {} if empty. Raises ConfigError if it is not a mapping, or has a key twice."""

    def refused(problem: str) -> ConfigError:
        fix = "pass a YAML file with the settings"
        return ConfigError(f"cannot read the configuration file: {problem}", value=str(path), fix=fix)

    try:
        with path.open("rb") as file:
            data = file.read(_MAX_FILE_BYTES + 1)
        document: Any = yaml.load(data, _UniqueKeyLoader) if len(data) <= _MAX_FILE_BYTES else None
    except (OSError, ValueError, yaml.YAMLError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        problem = f"not valid YAML, line {mark.line + 1}" if mark else "not valid YAML in UTF-8"
        problem = f"line {mark.line + 1} repeats a key" if isinstance(error, _DuplicateKeyError) and mark else problem
        raise refused(str(error.strerror) if isinstance(error, OSError) else problem) from None
    if len(data) > _MAX_FILE_BYTES:
        raise refused(f"it has more than {_MAX_FILE_BYTES} bytes")
    if document is None:
        return {}
    if not isinstance(document, dict):
        raise refused("it is not a mapping of settings")
    left = _MAX_SETTINGS
    waiting: list[Any] = [document]
    while waiting:  # counted, since anchors can make a small file endless
        item = waiting.pop()
        if (left := left - 1) < 0:
            raise refused(f"it has more than {_MAX_SETTINGS} settings, or YAML anchors that refer to themselves")
        if isinstance(item, dict):
            if unnamed := [key for key in item if not isinstance(key, str)]:
                raise ConfigError(f"the key {unnamed[0]!r:.80} is not text", value=str(path), fix="put it in quotes")
            waiting.extend(item.values())
        elif isinstance(item, (list, tuple, set)):
            waiting.extend(item)
    return dict(document)


def _empty_mappings(values: Any, prefix: str = "") -> Iterator[str]:
    """Dotted keys of ``values`` under which an empty mapping lies."""
    for name, value in values.items() if isinstance(values, dict) else ():
        if value == {}:
            yield f"{prefix}{name}"
        yield from _empty_mappings(value, f"{prefix}{name}.")


def _plain_lists(config_class: Any, prefix: str = "") -> dict[str, list[Any]]:
    """Default lists of dataclasses as lists of mappings, since ``--print_config`` cannot print objects."""
    found: dict[str, list[Any]] = {}
    for item in dataclasses.fields(config_class):
        default = None if item.default_factory is dataclasses.MISSING else item.default_factory()
        if dataclasses.is_dataclass(default):
            found |= _plain_lists(type(default), f"{prefix}{item.name}.")
        elif isinstance(default, list) and any(map(dataclasses.is_dataclass, default)):
            found[prefix + item.name] = [dataclasses.asdict(element) for element in default]
    return found


def _normalise(config_class: type, argv: Sequence[str]) -> list[str]:
    """Spell ``--max-samples`` as the field is, and gather repeated ``list[str]`` flags into one JSON list."""
    hints = get_type_hints(config_class)
    argv = _flagged(config_class, hints, argv)
    switches = {f"--{name}" for name, hint in hints.items() if hint is bool}
    gathered: dict[str, list[str]] = {f"--{name}": [] for name, hint in hints.items() if hint == list[str]}
    rest: list[str] = []
    tokens = list(reversed(argv))
    while tokens:
        flag, equals, value = tokens.pop().partition("=")
        if flag.startswith("--"):
            flag = "--" + flag[2:].replace("-", "_")
        if flag in switches and not equals and (not tokens or tokens[-1].startswith("--")):
            equals, value = "=", "true"
        if flag not in gathered or not (equals or tokens):
            rest.append(f"{flag}{equals}{value}")
            continue
        value = value if equals else tokens.pop()
        try:
            values = yaml.safe_load(value) if value.startswith("[") else value
        except yaml.YAMLError:
            values = value
        gathered[flag].extend(values if isinstance(values, list) else [value])
    return rest + [f"{flag}={_yaml_list(values)}" for flag, values in gathered.items() if values]


def _flagged(config_class: Any, hints: Mapping[str, Any], argv: Sequence[str]) -> list[str]:
    """Write the arguments before the first flag as values of the positional fields; what they do not take stays."""
    first = next((number for number, token in enumerate(argv) if token.startswith("-")), len(argv))
    leading, flags = list(argv[:first]), list(argv[first:])
    given: list[str] = []
    for item in dataclasses.fields(config_class):
        if item.metadata.get("positional"):
            count = len(leading) if hints[item.name] == list[str] else 1
            given += [part for value in leading[:count] for part in (f"--{item.name}", value)]
            del leading[:count]
    return [*leading, *given, *flags]


def _yaml_list(values: list[str]) -> str:
    """Write ``values`` as a YAML list; YAML would read JSON's two escapes of an emoji as two characters."""
    text = json.dumps(values, ensure_ascii=False)
    return "".join(
        letter if " " <= letter <= "~" else f"\\U{ord(letter):08x}" if ord(letter) > 0xFFFF else f"\\u{ord(letter):04x}"
        for letter in text
    )


def fields_marked(config: object, mark: Mapping[str, object]) -> tuple[str, ...]:
    """Names of the fields of a configuration that carry ``mark``, such as :data:`NOT_IDENTITY`."""
    return tuple(
        item.name for item in dataclasses.fields(cast(Any, config)) if mark.items() <= dict(item.metadata).items()
    )


def to_dict(config: object) -> dict[str, Any]:
    """The resolved configuration as plain JSON values, to be stored: users and passwords of URIs are hidden."""
    plain = dataclasses.asdict(cast(Any, config))
    return cast(dict[str, Any], redacted(json.loads(json.dumps(plain, default=str))))


def canonical_json(value: object) -> str:
    """JSON with sorted keys and no blanks: equal values give equal bytes."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, default=str)


def fingerprint(value: Mapping[str, Any] | Sequence[Any] | str) -> str:
    """SHA-256 (hex) of the canonical JSON of ``value``: the identity of a configuration or a manifest."""
    return hashlib.sha256(canonical_json(value).encode("utf-8", "surrogatepass")).hexdigest()
