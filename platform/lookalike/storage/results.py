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
from lookalike.storage.store import open_store, read_members

RUN, SEAL = "run", "seal"
AGAIN = "remove it and run the same command again, which makes it again from the finished parts"


def write_result(store: Store, key: str, result: Mapping[str, Any], run: str) -> None:
    """Write ``result`` for the run whose claim has the fingerprint ``run``."""
    sealed = json.loads(canonical_json({**result, RUN: run}))  # as it will be read
    sealed.pop(SEAL, None)
    store.write(key, render_json({**sealed, SEAL: fingerprint(sealed)}))


def read_result(store: Store, key: str, run: str, types: Mapping[str, Any]) -> tuple[dict[str, Any], bool]:
    """Return a result that :func:`write_result` wrote for ``run``, and whether it has a seal (earlier versions: none).

    Args:
        store: the location that the run has claimed.
        key: name of the result in ``store``.
        run: the fingerprint of the claim.
        types: the type of each required value, see :func:`lookalike.documents.parse_members`.

    Raises:
        InputError: the result is not such an object, is another run's, or was changed after it was written.
    """
    result, where = read_members(store, key, types, fix=AGAIN), store.uri_of(key)
    values = {name: value for name, value in result.items() if name not in (RUN, SEAL)}
    if SEAL not in result:
        return values, False
    if result.get(RUN) != run:
        raise InputError(f"the result is another run's ({result.get(RUN)!r:.40})", value=where, fix=AGAIN)
    if result[SEAL] != fingerprint({**values, RUN: run}):
        raise InputError("the result was changed after the job wrote it", value=where, fix=AGAIN)
    return values, True


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
