"""What became of requests: ``done/NAME.TAG.json`` and ``failed/NAME.json`` beside them."""

import hashlib
import json
from typing import Any

from lookalike.errors import LookalikeError
from lookalike.storage import Store

DONE, FAILED, LEASES = "done", "failed", "leases"


def tag_of(etag: str) -> str:
    """A short name of a version of a file: a changed file is a new request."""
    return hashlib.sha256(etag.encode()).hexdigest()[:12]


def done_key(name: str, tag: str) -> str:
    """Where the result of a version of a request lies: its key says that it is done, without a read."""
    return f"{DONE}/{name}.{tag}.json"


def record_done(folder: Store, name: str, tag: str, result: dict[str, Any]) -> None:
    """Record that a request is done, so that no fleet reads it again until its file changes."""
    folder.write(done_key(name, tag), json.dumps(result, indent=1).encode())


def failure_of(folder: Store, name: str) -> dict[str, Any]:
    """Return the record of a request that failed; {} if there is none."""
    key = f"{FAILED}/{name}.json"
    if not folder.exists(key):
        return {}
    try:
        return dict(json.loads(folder.read(key)))
    except (ValueError, TypeError):
        return {}


def record_failure(folder: Store, name: str, sha256: str, error: BaseException) -> None:
    """Record why a request failed, so that it is not tried again until its file changes."""
    described = {"what": str(error)}
    if isinstance(error, LookalikeError):
        described = {"what": error.what, "value": str(error.value), "fix": str(error.fix)}
    record = {"request_sha256": sha256, "error": type(error).__name__, **described}
    folder.write(f"{FAILED}/{name}.json", json.dumps(record, indent=1).encode())
