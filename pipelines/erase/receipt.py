"""Receipts: what was erased, when and by which code, signed, without the name of the customer.

A receipt identifies its customer and subject by scrypt of the id with a random salt: who knows the id can check that
the receipt is theirs, and who does not would have to try ids, at 16 MiB and some 50 ms each.
"""

import hashlib
import secrets
from contextlib import suppress
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from lookalike import __version__
from lookalike.config import canonical_json
from lookalike.documents import render_json
from lookalike.errors import ConflictError
from lookalike.signing import public_key_text, sign
from lookalike.storage import Store
from pipelines.erase.scope import Scope
from pipelines.erase.state import Inventory, Marker, now

KIND, FORMAT = "lookalike erasure receipt", 1
KEYS = "public-keys"
_SALT_BYTES = 16
_COST = {"n": 1 << 14, "r": 8, "p": 1, "dklen": 32}
HIDDEN = "[erased]"
NOT_COVERED = [
    "logs of Ray, of the cluster and of the object store, which name what ran in command lines and job names",
    "backups and replicas of the store and of MLflow's database, which their owner has to expire",
    "copies that were made by other means than this software's jobs",
]


def key_of(erasure: str) -> str:
    """The key of a receipt, by the random id of its erasure."""
    return f"{erasure}.json"


def hashed(identifier: str, salt: str) -> str:
    """scrypt of an id, in hex; ``salt`` is hex too."""
    return hashlib.scrypt(identifier.encode(), salt=bytes.fromhex(salt), **_COST).hex()


def salted(identifier: str) -> dict[str, str]:
    """An id as a receipt holds it."""
    salt = secrets.token_hex(_SALT_BYTES)
    return {"salt": salt, "scrypt": hashed(identifier, salt)}


def render(scope: Scope, marker: Marker, inventory: Inventory, checked: dict[str, Any], taken_down: int) -> bytes:
    """The document that is signed, as canonical JSON.

    Args:
        scope: what was erased.
        marker: when it began.
        inventory: what there was.
        checked: what the check at the end searched.
        taken_down: photos on the take-down list of shared data sets.

    Places of shared data that name the customer are shortened.
    """
    document = {
        "kind": KIND,
        "format": FORMAT,
        "erasure": marker.erasure,
        "customer": salted(scope.customer),
        "subject": salted(scope.subject) if scope.subject else None,
        "began": marker.began,
        "finished": now(),
        "code_version": __version__,
        "objects": {kind: {"count": n, "bytes": size} for kind, (n, size) in inventory.kinds.items()},
        "listing_sha256": inventory.listing_sha256,
        "photos": {"count": inventory.photos, "sha256": inventory.photos_sha256, "unreadable": inventory.unreadable},
        "mlflow": inventory.tracked.counts,
        "outputs_elsewhere": _summed(inventory),
        "requests_of_fleets": sum(count for count, _ in inventory.requests.values()),
        "shared_data_sets": [
            {"dataset": h.dataset, "version": h.version, "images": h.images} for h in inventory.holders
        ],
        "taken_down": taken_down,
        "models_that_learned": [
            {"run": m.run, "bundle_sha256": m.bundle_sha256, "train_anew": m.anew} for m in inventory.learned
        ],
        "to_be_looked_at": inventory.unclear,
        "check": checked,
        "not_covered": NOT_COVERED,
    }
    return scope.named.sub(HIDDEN, canonical_json(document)).encode()


def write(receipts: Store, erasure: str, document: bytes, key: Ed25519PrivateKey) -> str:
    """Sign and write a receipt with its public key beside it, and return its URI; an earlier one stays."""
    public = public_key_text(key)
    receipts.write(f"{KEYS}/{hashlib.sha256(public.encode()).hexdigest()[:16]}.txt", f"{public}\n".encode())
    signed = {"receipt": document.decode(), "public_key": public, "signature": sign(key, document)}
    with suppress(ConflictError):
        receipts.create(key_of(erasure), render_json(signed))
    return receipts.uri_of(key_of(erasure))


def _summed(inventory: Inventory) -> dict[str, dict[str, int]]:
    summed: dict[str, dict[str, int]] = {}
    for output in inventory.outputs:
        counted = summed.setdefault(output.kind, {"places": 0, "count": 0, "bytes": 0})
        counted["places"] += 1
        counted["count"] += output.objects
        counted["bytes"] += output.size
    return summed
