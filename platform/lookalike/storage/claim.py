"""An output prefix belongs to one configuration: the same command resumes, another one is refused."""

import json
from collections.abc import Mapping
from typing import Any

from lookalike.config import canonical_json, fingerprint
from lookalike.errors import ConfigError, ConflictError
from lookalike.storage import location
from lookalike.storage.documents import read_object
from lookalike.storage.store import Store

RECORD = "run.json"


def claim(store: Store, config: Mapping[str, Any], *, ignore: tuple[str, ...] = ()) -> str:
    """Record the resolved ``config`` as the owner of ``store`` (``run.json``) and return its fingerprint.

    ``ignore`` names top-level keys that may change between attempts of the same run (addresses, worker counts).
    Raises ConflictError that names the first differing key where another configuration holds the prefix.
    """
    identity = {key: value for key, value in config.items() if key not in ignore}
    record = {"config": dict(config), "identity": identity, "fingerprint": fingerprint(identity)}
    try:
        store.create(RECORD, canonical_json(record).encode())
    except ConflictError:
        found = read_object(store, RECORD, "fingerprint", "identity")
        if found["fingerprint"] != record["fingerprint"]:
            theirs, ours = _spelled_alike(found["identity"]), _spelled_alike(json.loads(canonical_json(identity)))
            if theirs == ours:
                return str(found["fingerprint"])
            differing = sorted(key for key in theirs.keys() | ours.keys() if theirs.get(key) != ours.get(key))
            raise ConflictError(
                f"the location holds another run's result, with another {', '.join(differing)}",
                value=store.uri,
                fix="choose another location, or remove that one",
            ) from None
    return str(record["fingerprint"])


def _spelled_alike(value: Any) -> Any:
    """``value`` with each ``file:`` URI as stores spell it: records of before have blanks and marks unencoded."""
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
