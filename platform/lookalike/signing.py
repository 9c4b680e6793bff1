"""Ed25519 signatures of documents by the operator's key (RFC 8032), and their verification by anybody.

The key comes from the environment variable ``LOOKALIKE_SIGNING_KEY`` only. ``openssl genpkey -algorithm ed25519`` makes
one; the base64 of its 32 bytes serves too. A signature covers bytes and nothing else, so that each caller signs a
document that says what it is and whose: otherwise a signature of one kind of document would hold for another kind.
"""

import base64
import binascii
import os

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key, load_pem_public_key

from lookalike.errors import ConfigError, InputError

SIGNING_KEY = "LOOKALIKE_SIGNING_KEY"
TRUSTED_KEYS = "LOOKALIKE_TRUSTED_KEYS"
_KEY_BYTES, _SIGNATURE_BYTES = 32, 64
_PEM = "-----BEGIN "


def signing_key() -> Ed25519PrivateKey | None:
    """Read the operator's key from ``LOOKALIKE_SIGNING_KEY``; None if the variable is not set or empty.

    The variable holds a private key in PEM (PKCS#8 without a passphrase; ``\\n`` may stand for a line's end), or the
    base64 of its 32 bytes. Raises ConfigError for anything else, without its value.
    """
    text = os.environ.get(SIGNING_KEY, "").strip()
    if not text:
        return None
    try:
        if not text.startswith(_PEM):
            return Ed25519PrivateKey.from_private_bytes(_decoded(text, _KEY_BYTES))
        key = load_pem_private_key(text.replace("\\n", "\n").encode(), password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):  # TypeError: it has a passphrase
        key = None
    if not isinstance(key, Ed25519PrivateKey):
        raise ConfigError(
            f"{SIGNING_KEY} is not an Ed25519 private key without a passphrase",
            fix="set it to the output of `openssl genpkey -algorithm ed25519`, or to the base64 of the key's 32 bytes",
        )
    return key


def trusted_keys() -> frozenset[str]:
    """Read the public keys that the operator trusts from ``LOOKALIKE_TRUSTED_KEYS``: base64, separated by commas or
    blanks. Empty if the variable is not set. Raises InputError for one that is not an Ed25519 public key.
    """
    return frozenset(map(normalized_public_key, os.environ.get(TRUSTED_KEYS, "").replace(",", " ").split()))


def sign(key: Ed25519PrivateKey, document: bytes) -> str:
    """Sign ``document``; returns the base64 of the signature's 64 bytes. Equal bytes give equal signatures."""
    return base64.b64encode(key.sign(document)).decode()


def public_key_text(key: Ed25519PrivateKey) -> str:
    """The base64 of the 32 bytes of the public key that belongs to ``key``."""
    return base64.b64encode(key.public_key().public_bytes_raw()).decode()


def normalized_public_key(text: str) -> str:
    """The base64 of the 32 bytes of a public key, which ``text`` gives in base64 or in PEM.

    Raises InputError if ``text`` is not an Ed25519 public key.
    """
    return base64.b64encode(_public_key(text).public_bytes_raw()).decode()


def verify(public_text: str, document: bytes, signature: str) -> None:
    """Check that the owner of a public key signed ``document``.

    Args:
        public_text: the public key, in base64 (as :func:`public_key_text`) or in PEM.
        document: the exact bytes that were signed.
        signature: as :func:`sign` returns it.

    Raises:
        InputError: the key or the signature cannot be read, or the signature is not of these bytes and this key.
    """
    key = _public_key(public_text)
    try:
        key.verify(_decoded(signature, _SIGNATURE_BYTES), document)
    except (ValueError, InvalidSignature):
        raise InputError(
            f"the signature is not one of this document by the key {public_key_shown(public_text)}",
            value=signature[:100],
            fix="restore the document from a copy, or name the public key that signed it",
        ) from None


def public_key_shown(public_text: str) -> str:
    """The first 12 characters of a public key in base64, for messages."""
    return f"{normalized_public_key(public_text)[:12]}…"


def _public_key(text: str) -> Ed25519PublicKey:
    text = text.strip()
    try:
        if not text.startswith(_PEM):
            return Ed25519PublicKey.from_public_bytes(_decoded(text, _KEY_BYTES))
        key = load_pem_public_key(text.replace("\\n", "\n").encode())
    except (ValueError, TypeError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, Ed25519PublicKey):
        what = "not an Ed25519 public key"
        # a private key that was passed by mistake is not shown
        value = None if "PRIVATE" in text else text[:100]
        raise InputError(what, value=value, fix="pass the base64 of its 32 bytes, or PEM as `openssl pkey -pubout`")
    return key


def _decoded(text: str, length: int) -> bytes:
    """Decode base64 of exactly ``length`` bytes. Raises ValueError."""
    try:
        data = base64.b64decode(text, validate=True)
    except binascii.Error as error:
        raise ValueError(str(error)) from error
    if len(data) != length:
        raise ValueError(f"{len(data)} bytes instead of {length}")
    return data
