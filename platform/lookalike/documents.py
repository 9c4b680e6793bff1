"""Write JSON documents, and read files of other processes: a damaged one is an error that names the file."""

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import MISSING, fields
from functools import lru_cache
from typing import Any, TypeVar, cast

from pydantic import TypeAdapter, ValidationError, create_model

from lookalike.errors import InputError, LookalikeError, first_line

RecordT = TypeVar("RecordT")

_MOST_LEVELS = 100  # of nested lists and objects, which readers walk recursively
REWRITE = "restore it, or remove it and run the job that writes it again"


def render_json(value: Any, *, indent: int = 1, sort_keys: bool = False) -> bytes:
    """Render ``value`` as a JSON document in UTF-8 that ends with a newline. Hashes are taken of
    :func:`lookalike.config.canonical_json` instead."""
    return (json.dumps(value, indent=indent, sort_keys=sort_keys, ensure_ascii=False) + "\n").encode()


def render_lines(records: Iterable[Any]) -> bytes:
    """Render ``records`` as JSON lines in ASCII; values that JSON has no type for become text."""
    return "".join(json.dumps(record, default=str) + "\n" for record in records).encode()


def parse_json(data: bytes | str, where: str, *, fix: str = REWRITE) -> Any:
    """Parse the JSON value in ``data``, which was read from ``where``. Raises InputError if it is not JSON."""
    try:
        value = json.loads(data)
        if not _is_shallow(value):
            raise RecursionError
        if _escapes_surrogates(data):
            json.dumps(value, ensure_ascii=False).encode()  # a lone surrogate cannot be written again
        return value
    except RecursionError:
        raise InputError("the JSON is nested too deeply", value=where, fix=fix) from None
    except ValueError as error:  # also text that is not UTF-8, and integers of thousands of digits
        raise InputError(f"not valid JSON: {str(error)[:200]}", value=where, fix=fix) from None


def _escapes_surrogates(data: bytes | str) -> bool:
    return (b"\\ud" in data.lower()) if isinstance(data, bytes) else ("\\ud" in data.lower())


def _is_shallow(value: Any) -> bool:
    """Whether lists and objects are nested at most ``_MOST_LEVELS`` deep."""
    level = [value]
    for _ in range(_MOST_LEVELS):
        level = [
            inner
            for item in level
            if isinstance(item, dict | list)
            for inner in (item.values() if isinstance(item, dict) else item)
        ]
        if not level:
            return True
    return False


def parse_object(data: bytes | str, where: str, *names: str, fix: str = REWRITE) -> dict[str, Any]:
    """Parse the JSON object in ``data``, which was read from ``where`` and must have the keys ``names``.

    Raises:
        InputError: ``data`` is not a JSON object, or lacks a key.
    """
    value = parse_json(data, where, fix=fix)
    if not isinstance(value, dict):
        raise InputError(f"the JSON is a {type(value).__name__}, not an object", value=where, fix=fix)
    if missing := [name for name in names if name not in value]:
        raise InputError(f"the JSON object lacks {', '.join(map(repr, missing))}", value=where, fix=fix)
    return value


def parse_record(record_class: type[RecordT], data: bytes | str, where: str, *, fix: str = REWRITE) -> RecordT:
    """Parse the JSON object in ``data``, which was read from ``where``, into the dataclass ``record_class``.

    Types are checked as pydantic does in strict mode: no text for a number, no unknown members.

    Raises:
        InputError: names the first member whose value does not fit.
    """
    members = fields(record_class)  # type: ignore[arg-type]
    needed = [item.name for item in members if item.default is MISSING and item.default_factory is MISSING]
    value = parse_object(data, where, *needed, fix=fix)
    if unknown := value.keys() - {item.name for item in members}:
        raise InputError(f"the JSON object has unknown members: {', '.join(sorted(unknown))}", value=where, fix=fix)
    with _naming_members(where, fix):
        return cast(RecordT, _validator(cast(Any, record_class)).validate_json(data, strict=True))


def parse_members(data: bytes | str, where: str, types: Mapping[str, Any], *, fix: str = REWRITE) -> dict[str, Any]:
    """Parse the JSON object in ``data``, whose members ``types`` must be there and have these types, checked as
    :func:`parse_record` does. Other members are not checked. Raises InputError that names the first one that is wrong.
    """
    value = parse_object(data, where, *types, fix=fix)
    members: dict[str, Any] = {name: (member_type, ...) for name, member_type in types.items()}
    with _naming_members(where, fix):
        create_model("Members", **members).model_validate_json(data, strict=True)
    return value


@contextmanager
def _naming_members(where: str, fix: str) -> Iterator[None]:
    try:
        yield
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        name = ".".join(str(part) for part in first["loc"])
        raise InputError(f"{name} in the JSON object: {first['msg']}", value=where, fix=fix) from None


@lru_cache(maxsize=64)
def _validator(record_class: Any) -> TypeAdapter[Any]:
    return TypeAdapter(record_class)


@contextmanager
def decoding(what: str, where: str, *, fix: str = REWRITE) -> Iterator[None]:
    """Turn exceptions of a library that parses damaged bytes (pyarrow, safetensors, YAML) into an InputError.

    Args:
        what: the kind of file, with an article: ``"a Parquet table"``.
        where: the location of the file or object.
        fix: what the user can do.
    """
    try:
        yield
    except (LookalikeError, MemoryError):
        raise
    except Exception as error:  # each library has its own classes
        problem = f"{type(error).__name__} {first_line(error, 200)}".rstrip()
        raise InputError(f"not {what}: {problem}", value=where, fix=fix) from error
