"""An output prefix belongs to one run, whose claim and results lie there.

The claim (``run.json``) is the run's configuration: the same command resumes, another one is refused. Inputs count by
the hash of their content; their location may change between attempts.

A result carries ``run``, the fingerprint of the claim, and ``seal``, a hash of that and of the result's values: an
edited result, or one of another run, is an error. The seal is not a signature, since anyone who may write the location
can compute it. So the job that reads a result also checks what it names: bundles by their hash, places by
:func:`inside`.
"""

import json
import logging
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from lookalike.config import IDENTITY_IF_SET, NOT_IDENTITY, canonical_json, fields_marked, fingerprint, to_dict
from lookalike.documents import render_json
from lookalike.errors import ConfigError, ConflictError, InputError
from lookalike.redaction import redacted
from lookalike.storage import location
from lookalike.storage.base import Store
from lookalike.storage.erasing import refuse_if_erasing
from lookalike.storage.store import open_store, read_members

log = logging.getLogger(__name__)

RECORD = "run.json"
RUN, SEAL = "run", "seal"
AGAIN = "remove it and run the same command again, which makes it again from the finished parts"

ResultT = TypeVar("ResultT")


def run_once(
    store: Store,
    key: str,
    config: object,
    *,
    content: Mapping[str, Any] | None = None,
    earlier: Callable[[str], ResultT],
    work: Callable[[str], ResultT],
) -> ResultT:
    """Do the work of a run, unless it is done already.

    Args:
        store: where the run writes; claimed by the configuration (:func:`claim`).
        key: name of the result in ``store``; the run writes it last.
        config: a dataclass. Its fields that are marked with ``NOT_IDENTITY`` may change between two attempts.
        content: hashes of the run's inputs, see :func:`claim`.
        earlier: called with the claim's fingerprint if the result exists: checks and returns it.
        work: called with the fingerprint otherwise: makes, writes and returns the result.

    Raises:
        ConflictError: another configuration, or other inputs, hold the location.
    """
    values, unset = to_dict(config), fields_marked(config, IDENTITY_IF_SET)
    run = claim(
        store,
        {name: value for name, value in values.items() if name not in unset or value not in (None, {}, [])},
        ignore=fields_marked(config, NOT_IDENTITY),
        content=content,
    )
    if not store.exists(key):
        return work(run)
    log.info("this run is done already: its result is %s", store.uri_of(key))
    return earlier(run)


def claim(
    store: Store, config: Mapping[str, Any], *, ignore: tuple[str, ...] = (), content: Mapping[str, Any] | None = None
) -> str:
    """Record the resolved ``config`` as the owner of ``store`` (``run.json``) and return the recorded fingerprint.

    ``ignore`` names top-level keys that may change between attempts of the same run: addresses, worker counts, and the
    locations of inputs. ``content`` holds hashes of what lies at those locations; in its values a key ``uri`` is not
    compared. A hash that a record of an earlier version of this software lacks is not compared either. Users and
    passwords of URIs are neither stored nor compared.

    Raises ConflictError that names the differing keys if another configuration holds the prefix, and BusyError if its
    customer or subject is being erased.
    """
    refuse_if_erasing(store)
    content = dict(content or {})
    ours = _identity({**config, **content}, ignore, content)
    record = {"config": redacted({**config, **content}), "identity": ours, "fingerprint": fingerprint(ours)}
    try:
        store.create(RECORD, canonical_json(record).encode())
    except ConflictError:
        recorded = read_claim(store)
        assert recorded is not None
        theirs = _identity(recorded["identity"], ignore, content)
        compared = (theirs.keys() | ours.keys()) - (content.keys() - theirs.keys())
        differing = sorted(key for key in compared if theirs.get(key) != ours.get(key))
        if differing:
            what = f"the location holds another run's result, with another {', '.join(differing)}"
            fix = "choose another location, or remove that one"
            raise ConflictError(what, value=store.uri, fix=fix) from None
        return str(recorded["fingerprint"])
    return str(record["fingerprint"])


def read_claim(store: Store) -> dict[str, Any] | None:
    """Read the record of :func:`claim` (``config``, ``identity``, ``fingerprint``); None if there is none.

    Raises InputError for a record that is damaged.
    """
    if not store.exists(RECORD):
        return None
    record = read_members(store, RECORD, {"identity": dict, "config": dict, "fingerprint": str})
    if record["fingerprint"] != fingerprint(record["identity"]):
        fix = "restore it, or remove the location and run the same command again"
        what = "the record of the run that this location belongs to was changed"
        raise InputError(what, value=store.uri_of(RECORD), fix=fix)
    return record


def write_result(store: Store, key: str, result: Mapping[str, Any], run: str) -> None:
    """Write ``result`` for the run whose claim has the fingerprint ``run``."""
    refuse_if_erasing(store)
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


def _identity(config: Mapping[str, Any], ignore: tuple[str, ...], content: Mapping[str, Any]) -> dict[str, Any]:
    """The part of ``config`` that is a run's identity, as plain JSON values."""
    identity = {
        key: {name: item for name, item in value.items() if name != "uri"}
        if key in content and isinstance(value, dict)
        else value
        for key, value in config.items()
        if key not in ignore
    }
    return dict(_spelled_alike(redacted(json.loads(canonical_json(identity)))))


def _spelled_alike(value: Any) -> Any:
    """Spell each ``file:`` URI in ``value`` as stores do; earlier records have blanks and marks unencoded."""
    if isinstance(value, dict):
        return {name: _spelled_alike(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_spelled_alike(item) for item in value]
    if isinstance(value, str) and value.startswith("file:"):
        try:
            return location.local_uri(location.local_path(value))
        except ConfigError:
            return value
    return value
