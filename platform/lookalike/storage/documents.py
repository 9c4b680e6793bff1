"""Read JSON documents from a store."""

from typing import Any

from lookalike.documents import REWRITE, parse_json, parse_object
from lookalike.errors import InputError
from lookalike.storage.base import Store

MOST_BYTES = 64 << 20
"""Largest size of a record or a result of a job; they usually have a few kilobytes."""


def read_json(store: Store, key: str) -> Any:
    """Read the JSON value at ``key``. Raises InputError if it is missing or is not JSON."""
    return parse_json(store.read(key), store.uri_of(key))


def size_of(store: Store, key: str) -> int:
    """Return the size of the object at ``key`` in bytes; 0 if it is missing."""
    return next((info.size for info in store.list(key) if info.key == key), 0)


def read_object(store: Store, key: str, *names: str, most: int | None = None, fix: str = REWRITE) -> dict[str, Any]:
    """Read the JSON object at ``key``, which must have the keys ``names``.

    Raises InputError if it is missing, is not such an object, or has more than ``most`` bytes.
    """
    where = store.uri_of(key)
    if most is not None and (size := size_of(store, key)) > most:
        raise InputError(f"the JSON document has {size} bytes, more than {most}", value=where, fix=fix)
    return parse_object(store.read(key), where, *names, fix=fix)


def read_lines(store: Store, key: str, *names: str) -> list[dict[str, Any]]:
    """Read JSON lines at ``key``, each an object with the keys ``names``. Raises InputError that names the line."""
    lines = store.read(key).splitlines()
    return [
        parse_object(line, f"{store.uri_of(key)}, line {number}", *names)
        for number, line in enumerate(lines, 1)
        if line.strip()
    ]
