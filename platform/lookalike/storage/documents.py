"""JSON objects of a store."""

from typing import Any

from lookalike.documents import parse_json, parse_object
from lookalike.errors import InputError
from lookalike.storage.base import Store

MOST_BYTES = 64 << 20  # of a record or a result of a job: they are some kilobytes


def read_json(store: Store, key: str) -> Any:
    """The JSON value at ``key``. Raises InputError if it is not there or is not JSON."""
    return parse_json(store.read(key), store.uri_of(key))


def read_object(store: Store, key: str, *names: str, most: int | None = None) -> dict[str, Any]:
    """The JSON object at ``key``, which has the keys ``names``.

    Raises InputError if it is not there, is something else, or has more than ``most`` bytes.
    """
    size = 0 if most is None else next((info.size for info in store.list(key) if info.key == key), 0)
    if most is not None and size > most:
        raise InputError(
            f"the JSON object has {size} bytes, more than {most}",
            value=store.uri_of(key),
            fix="restore it, or remove it and run the job that writes it again",
        )
    return parse_object(store.read(key), store.uri_of(key), *names)


def read_lines(store: Store, key: str, *names: str) -> list[dict[str, Any]]:
    """The JSON objects at ``key``, one a line, each with the keys ``names``. Raises InputError naming the line."""
    lines = store.read(key).splitlines()
    return [
        parse_object(line, f"{store.uri_of(key)}, line {number}", *names)
        for number, line in enumerate(lines, 1)
        if line.strip()
    ]
