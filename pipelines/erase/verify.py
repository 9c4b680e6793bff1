"""Check a receipt: its signature, and whose erasure it records."""

import json
from pathlib import Path
from typing import Any

from lookalike import signing
from lookalike.documents import parse_object
from lookalike.errors import InputError
from lookalike.storage import locate_object, read_members
from pipelines.erase.config import VerifyConfig
from pipelines.erase.receipt import FORMAT, KIND, hashed

_FIX = "restore the receipt from a copy"
_LARGEST = 16 << 20  # bytes


def verify_receipt(config: VerifyConfig) -> dict[str, Any]:
    """Return the receipt's document if it is signed, and is of the customer and subject that ``config`` names.

    Raises InputError if it was changed, was signed by another key, is not a receipt, or is of another customer.
    """
    store, key = locate_object(config.receipt)
    signed = read_members(store, key, {"receipt": str, "public_key": str, "signature": str}, most=_LARGEST, fix=_FIX)
    where = store.uri_of(key)
    trusted = signing.normalized_public_key(_public_key(config.public_key) or signed["public_key"])
    if trusted != signing.normalized_public_key(signed["public_key"]):
        what = f"the receipt was signed by the key {signing.public_key_shown(signed['public_key'])}, not by this one"
        raise InputError(what, value=where, fix="name the public key of the operator who erased it")
    signing.verify(trusted, signed["receipt"].encode(), signed["signature"])
    receipt = parse_object(signed["receipt"], where, "kind", "format", "customer", "subject", fix=_FIX)
    if receipt["kind"] != KIND or receipt["format"] != FORMAT:
        shown = json.dumps([receipt["kind"], receipt["format"]])[:100]
        raise InputError("the signed document is not a receipt of this format", value=shown, fix=_FIX)
    for kind in ("customer", "subject"):
        named = getattr(config, kind)
        if named is not None and not _is(receipt[kind], named):
            raise InputError(f"the receipt is not of this {kind}", value=named, fix="name the receipt of its erasure")
    return receipt


def _is(recorded: Any, named: str) -> bool:
    if not isinstance(recorded, dict):
        return False
    try:
        return hashed(named, recorded["salt"]) == str(recorded["scrypt"])
    except (KeyError, TypeError, ValueError):
        return False


def _public_key(given: str | None) -> str | None:
    if given is None:
        return None
    path = Path(given)
    try:
        return path.read_text() if path.is_file() else given
    except (OSError, ValueError) as error:
        raise InputError("the public key cannot be read", value=given, fix="name a file that holds it") from error
