"""Results of a job, bound to the run that made them: a result of another run, or an edited one, is an error.

A result carries ``run``, the fingerprint of the claim of its location (``run.json``), and ``seal``, a hash of that and
of the result's values. The seal is not a signature, since anyone who may write the location can compute it. So the job
that reads a result also checks what it names: bundles by their hash, places by :func:`inside`.
"""

import json
from collections.abc import Mapping
from typing import Any

from lookalike.config import canonical_json, fingerprint
from lookalike.documents import render_json
from lookalike.errors import InputError
from lookalike.storage.base import Store
from lookalike.storage.documents import MOST_BYTES, read_object
from lookalike.storage.store import open_store

RUN, SEAL = "run", "seal"
AGAIN = "remove it and run the same command again, which makes it again from the finished parts"
_KINDS = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
    list: "a list",
    dict: "an object",
}

Kinds = Mapping[str, type | tuple[type | None, ...]]


def write_result(store: Store, key: str, result: Mapping[str, Any], run: str) -> None:
    """Write ``result`` for the run whose claim has the fingerprint ``run``."""
    sealed = json.loads(canonical_json({**result, RUN: run}))  # as it will be read
    sealed.pop(SEAL, None)
    store.write(key, render_json({**sealed, SEAL: fingerprint(sealed)}))


def read_result(store: Store, key: str, run: str, kinds: Kinds) -> dict[str, Any] | None:
    """Read a result that :func:`write_result` wrote for ``run``; None if it has no seal, as in earlier versions.

    Args:
        store: the location that the run has claimed.
        key: name of the result in ``store``.
        run: the fingerprint of the claim.
        kinds: the type of each required value; a tuple allows several, and None in it allows null.

    Raises:
        InputError: the result is not such an object, is another run's, or was changed after it was written.
    """
    result = read_object(store, key, *kinds, most=MOST_BYTES)
    where = store.uri_of(key)
    check_kinds(result, kinds, where)
    if SEAL not in result:
        return None
    if result.get(RUN) != run:
        raise InputError(f"the result is another run's ({result.get(RUN)!r:.40})", value=where, fix=AGAIN)
    if result[SEAL] != fingerprint({name: value for name, value in result.items() if name != SEAL}):
        raise InputError("the result was changed after the job wrote it", value=where, fix=AGAIN)
    return {name: value for name, value in result.items() if name not in (RUN, SEAL)}


def check_each(items: list[Any], kinds: Kinds, where: str) -> None:
    """Raise InputError unless each item is an object with exactly the members of ``kinds``, each of its type."""
    for item in items:
        if not isinstance(item, dict) or item.keys() != kinds.keys():
            raise InputError(f"an item is not an object with {', '.join(kinds)}: {item!r:.60}", value=where, fix=AGAIN)
        check_kinds(item, kinds, where)


def check_kinds(result: Mapping[str, Any], kinds: Kinds, where: str) -> None:
    """Raise InputError if a value is not of its type in ``kinds``; a whole number is also a number, a bool is not."""
    for name, kind in kinds.items():
        allowed = kind if isinstance(kind, tuple) else (kind,)
        value = result[name]
        if value is None and None in allowed:
            continue
        types = tuple(item for item in allowed if item is not None)
        if not isinstance(value, types) or (isinstance(value, bool) and bool not in types):
            said = " or ".join(_KINDS.get(item, item.__name__) for item in types)
            raise InputError(f"{name} is {value!r:.60}, not {said}", value=where, fix=AGAIN)


def inside(store: Store, uri: object, where: str) -> Store:
    """Open the store at ``uri``, which the document at ``where`` names and which has to lie below ``store``.

    Raises InputError if it does not.
    """
    if isinstance(uri, str):
        named = open_store(uri)
        if named.prefix_in(store) is not None:
            return named
    raise InputError(
        f"the document names a place outside of its own location: {uri!r:.200}",
        value=where,
        fix="restore it; if the location was moved, run the job that wrote the document again, with its new place",
    )
