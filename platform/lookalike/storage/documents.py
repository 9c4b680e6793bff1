"""JSON objects of a store."""

from typing import Any

from lookalike.documents import parse_json, parse_object
from lookalike.storage.store import Store


def read_json(store: Store, key: str) -> Any:
    """The JSON value at ``key``. Raises InputError if it is not there or is not JSON."""
    return parse_json(store.read(key), store.uri_of(key))


def read_object(store: Store, key: str, *names: str) -> dict[str, Any]:
    """The JSON object at ``key``, which has the keys ``names``. Raises InputError if it is not there or is another."""
    return parse_object(store.read(key), store.uri_of(key), *names)


def read_lines(store: Store, key: str, *names: str) -> list[dict[str, Any]]:
    """The JSON objects at ``key``, one a line, each with the keys ``names``. Raises InputError naming the line."""
    lines = store.read(key).splitlines()
    return [
        parse_object(line, f"{store.uri_of(key)}, line {number}", *names)
        for number, line in enumerate(lines, 1)
        if line.strip()
    ]
