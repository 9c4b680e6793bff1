"""Signatures by the operator's key: formats of keys, and everything that must not verify."""

import base64
import subprocess

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from lookalike.errors import ConfigError, InputError
from lookalike.redaction import redact
from lookalike.signing import SIGNING_KEY, normalized_public_key, public_key_text, sign, signing_key, verify

DOCUMENT = b'{"a": 1}\n'
# RFC 8032, 7.1, test 2: secret key, public key, signature of the one byte 0x72
RFC_SECRET = "4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb"  # pragma: allowlist secret
RFC_PUBLIC = "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c"  # pragma: allowlist secret
RFC_SIGNATURE = (
    "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da"  # pragma: allowlist secret
    "085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00"  # pragma: allowlist secret
)


def _base64(hexadecimal: str) -> str:
    return base64.b64encode(bytes.fromhex(hexadecimal)).decode()


def _pem(key: Ed25519PrivateKey | X25519PrivateKey, password: bytes | None = None) -> str:
    encryption = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption).decode()


def _public_pem(key: Ed25519PrivateKey) -> str:
    public = key.public_key()
    return public.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo).decode()


def test_vector_of_the_standard(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SIGNING_KEY, _base64(RFC_SECRET))
    key = signing_key()
    assert key is not None
    assert public_key_text(key) == _base64(RFC_PUBLIC)
    assert sign(key, b"\x72") == _base64(RFC_SIGNATURE)
    verify(_base64(RFC_PUBLIC), b"\x72", _base64(RFC_SIGNATURE))


def test_no_key_without_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(SIGNING_KEY, raising=False)
    assert signing_key() is None
    monkeypatch.setenv(SIGNING_KEY, " \n")
    assert signing_key() is None


@pytest.mark.parametrize("written", ["pem", "pem in one line", "base64"])
def test_formats_of_a_private_key(written: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made = Ed25519PrivateKey.generate()
    pem = _pem(made)
    raw = base64.b64encode(made.private_bytes_raw()).decode()
    monkeypatch.setenv(SIGNING_KEY, {"pem": pem, "pem in one line": pem.replace("\n", "\\n"), "base64": raw}[written])
    key = signing_key()
    assert key is not None
    signature = sign(key, DOCUMENT)
    verify(public_key_text(made), DOCUMENT, signature)
    verify(_public_pem(made), DOCUMENT, signature)
    assert normalized_public_key(_public_pem(made)) == public_key_text(made)


def test_key_of_openssl(monkeypatch: pytest.MonkeyPatch) -> None:
    try:
        made = subprocess.run(["openssl", "genpkey", "-algorithm", "ed25519"], capture_output=True, check=True)
    except FileNotFoundError:
        pytest.skip("no openssl here")
    monkeypatch.setenv(SIGNING_KEY, made.stdout.decode())
    assert signing_key() is not None


@pytest.mark.parametrize(
    "value",
    [
        "secret-word",
        base64.b64encode(b"x" * 31).decode(),
        base64.b64encode(b"x" * 64).decode(),
        _pem(X25519PrivateKey.generate()),
        _pem(Ed25519PrivateKey.generate(), b"passphrase"),
        "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----",  # pragma: allowlist secret
        _public_pem(Ed25519PrivateKey.generate()),
        "é",
    ],
    ids=["a word", "31 bytes", "64 bytes", "x25519", "with a passphrase", "cut", "public", "not ascii"],
)
def test_bad_key_is_an_error_that_does_not_show_it(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SIGNING_KEY, value)
    with pytest.raises(ConfigError, match=SIGNING_KEY) as refused:
        signing_key()
    assert value not in str(refused.value)
    assert value[30:60] not in str(refused.value) or len(value) < 40


def test_what_does_not_verify() -> None:
    key, other = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()
    public, signature = public_key_text(key), sign(key, DOCUMENT)
    bad = [
        (public, DOCUMENT + b" ", signature),
        (public_key_text(other), DOCUMENT, signature),
        (public, DOCUMENT, sign(other, DOCUMENT)),
        (public, DOCUMENT, ""),
        (public, DOCUMENT, signature[:-4]),
        (public, DOCUMENT, "é"),
        (public, DOCUMENT, base64.b64encode(bytes(64)).decode()),
    ]
    for arguments in bad:
        with pytest.raises(InputError, match="the signature is not one of this document by the key"):
            verify(*arguments)


@pytest.mark.parametrize("public", ["", "é", "AAAA", "-----BEGIN PUBLIC KEY-----\n-----END PUBLIC KEY-----"])
def test_bad_public_key_is_named(public: str) -> None:
    with pytest.raises(InputError, match="not an Ed25519 public key"):
        verify(public, DOCUMENT, base64.b64encode(bytes(64)).decode())


def test_private_key_in_place_of_a_public_one_is_not_shown() -> None:
    private = _pem(Ed25519PrivateKey.generate())
    with pytest.raises(InputError, match="not an Ed25519 public key") as refused:
        verify(private, DOCUMENT, "")
    assert private[30:60] not in str(refused.value)


def test_the_key_is_hidden_in_messages(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = base64.b64encode(bytes(range(32))).decode()
    monkeypatch.setenv(SIGNING_KEY, raw)
    assert redact(f"env: {raw}") == "env: ***"
