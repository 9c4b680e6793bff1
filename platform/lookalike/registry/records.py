"""What a store records about registered models: promotion logs and decisions, each where its model's may lie."""

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from lookalike.documents import parse_json
from lookalike.errors import ConfigError, InputError
from lookalike.registry.inventory import documents
from lookalike.registry.names import SEPARATOR, customer_prefix, validate_model_name
from lookalike.storage import Store, locate_object, open_store, read_members
from lookalike.storage.claim import RUN, read_result

log = logging.getLogger(__name__)

DECISION = "decision.json"
_BUNDLE = "bundle.json"
_LOGS = "promotion-log"
_NAMES = re.compile(r"decision\.json|bundle\.json|\d{8}\.json")
_ENTRY = re.compile(r"(?P<prefix>.+)/(?P<name>[^/]+)/\d{8}\.json")
_OF_AN_ENTRY = {"number", "version", "bundle_sha256", "scores_sha256", "checks"}
_DECISION: dict[str, Any] = {"model": str, "version": int, "bundle_sha256": str, "bundle_uri": str}
_DECISION |= {"scores_uri": str, "promoted": bool}


@dataclass(frozen=True)
class DecisionRecord:
    """One ``decision.json``."""

    uri: str
    version: int
    bundle_sha256: str
    bundle_uri: str
    scores_uri: str
    promoted: bool
    modified: float
    """When it was written, s since 1970 by the store's clock."""


@dataclass
class Records:
    """What was recorded about one model."""

    name: str
    logs: list[str] = field(default_factory=list)
    """Prefixes of its promotion logs."""
    decisions: list[DecisionRecord] = field(default_factory=list)


@dataclass
class Found:
    """What a listing has found. Its size grows with the promotions and bundles, a few hundred bytes for each, and not
    with the number of objects."""

    models: dict[str, Records] = field(default_factory=dict)
    bundles: list[str] = field(default_factory=list)
    """Prefixes of all bundles."""
    passed_over: list[tuple[str, str]] = field(default_factory=list)
    """URI of a document that is not used, and the reason."""

    def of(self, name: str) -> Records:
        """The records of one model."""
        return self.models.setdefault(name, Records(name))


def read_records(uris: Sequence[str], logs: Sequence[str] = (), model: str | None = None) -> Found:
    """List the stores, and read each decision and the first entry of each promotion log.

    A document that cannot be read, or lies where another customer may write, is passed over with a reason.

    Args:
        uris: stores to list.
        logs: prefixes of promotion logs that count alone for the models that they have a log of.
        model: the only model to read records of; None for all.
    """
    found, named = Found(), Found()
    for place in dict.fromkeys(logs):
        _read(place, named, model)
    for place in uris:
        _read(place, found, model)
    for name, records in named.models.items():
        if records.logs:
            found.of(name).logs = records.logs
    found.passed_over += [each for each in named.passed_over if each not in found.passed_over]
    return found


def _read(place: str, found: Found, model: str | None) -> None:
    folder = ""
    for info in documents([place], _NAMES):
        uri, name = info.key, info.key.rpartition("/")[2]
        if name == _BUNDLE:
            found.bundles.append(uri.rpartition("/")[0])
        elif name == DECISION:
            _read_decision(uri, info.modified, found, model)
        elif (match := _ENTRY.fullmatch(uri)) and uri.rpartition("/")[0] != folder:
            folder = uri.rpartition("/")[0]
            _read_log(uri, match["prefix"], match["name"], found, model)


def _read_decision(uri: str, modified: float, found: Found, model: str | None) -> None:
    store, key = locate_object(uri)
    try:
        run = read_members(store, key, _DECISION).get(RUN)
        values, _ = read_result(store, key, str(run), _DECISION)
        name = _owned(values["model"], store)
    except (InputError, ConfigError) as error:
        found.passed_over.append((uri, error.what))
        return
    if model in (None, name):
        members = {each: values[each] for each in _DECISION if each != "model"}
        found.of(name).decisions.append(DecisionRecord(uri=uri, modified=modified, **members))


def _read_log(uri: str, prefix: str, name: str, found: Found, model: str | None) -> None:
    """Note the log that the object at ``uri`` is an entry of, unless it is a numbered document of another kind."""
    store, key = locate_object(uri)
    try:
        entry = parse_json(store.read(key), uri)
        damaged = not isinstance(entry, dict) or not entry.keys() >= _OF_AN_ENTRY
    except InputError:
        damaged = True
    if damaged and prefix.rpartition("/")[2] != _LOGS:
        return
    try:
        name = _owned(name, open_store(prefix))
    except (InputError, ConfigError) as error:
        found.passed_over.append((uri, error.what))
        return
    if model in (None, name):
        found.of(name).logs.append(prefix)


def _owned(model: str, store: Store) -> str:
    """Return the model's name if it is valid, and its records may lie here: whoever may write below one customer's
    prefix has no say about another's models, or about a base model.

    Raises InputError or ConfigError if not.
    """
    customer, separator, _ = validate_model_name(model).partition(SEPARATOR)
    prefix = customer_prefix(store.uri)
    if (prefix.rpartition("/")[2] if prefix else "") != (customer if separator else ""):
        owner = "of a customer" if separator else "for all customers"
        raise InputError(
            f"it records {model}, a model {owner}, and does not lie where that model's records belong",
            value=store.uri,
            fix="remove it",
        )
    return model
