"""Keys of a local stack, without which its services refuse requests, also of other users of this machine."""

import datetime
import hmac
import json
import os
import shlex
from collections.abc import Mapping
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

USER = "lookalike"  # user name for S3 and MLflow
_CERTIFICATE, _CERTIFICATE_KEY = "weed.crt", "weed.key"
_COMPONENTS = ("MASTER", "VOLUME", "FILER", "S3", "ADMIN", "WORKER", "MQ", "MSG_BROKER", "MSG_AGENT", "CLIENT")


def derived(secret: str, purpose: str) -> str:
    """Derive the key for one purpose from the secret of the stack."""
    return hmac.digest(secret.encode(), purpose.encode(), "sha256").hex()


def write(folder: Path, secret: str, environment: Mapping[str, str]) -> None:
    """Write the key files of ``secret`` into ``folder``, which becomes private to its owner."""
    folder.chmod(0o700)  # Ray and the servers write files into it that all users can read
    identity = {
        "name": USER,
        "credentials": [{"accessKey": USER, "secretKey": secret}],
        "actions": ["Admin", "Read", "Write", "List", "Tagging"],
    }
    _write_private(folder / "s3.json", json.dumps({"identities": [identity, *_other_identities(folder / "s3.json")]}))
    _write_private(folder / "ray-token", derived(secret, "ray"))
    if not (folder / _CERTIFICATE).exists():
        _write_certificate(folder)
    settings = {
        "default_permission": "NO_PERMISSIONS",
        "database_uri": f"sqlite:///{folder / 'mlflow-users.db'}".replace("%", "%%"),  # configparser's escape
        "admin_username": USER,
        "admin_password": derived(secret, "mlflow"),
        "auth_cache_ttl_seconds": "3600",  # checking a password takes 0.1 s
    }
    _write_private(folder / "mlflow-auth.ini", "\n".join(["[mlflow]", *(f"{k} = {v}" for k, v in settings.items())]))
    exports = "".join(f"export {name}={shlex.quote(value)}\n" for name, value in environment.items())
    _write_private(folder / "env", exports)


def _other_identities(path: Path) -> list[object]:
    """Identities of the S3 server that a user has added. Raises SystemExit if the file is damaged."""
    if not path.exists():
        return []
    try:
        return [each for each in json.loads(path.read_text())["identities"] if each["name"] != USER]
    except (ValueError, KeyError, TypeError):
        raise SystemExit(
            f"error: {path} is not valid; restore it, or remove it together with the identities that you added"
        ) from None


def server_environment(folder: Path, secret: str) -> dict[str, str]:
    """Return the variables with the servers' keys. SeaweedFS requires a signature on HTTP and a client certificate on
    gRPC, MLflow the password of mlflow-auth.ini."""
    signatures = ("SIGNING_KEY", "SIGNING_READ_KEY", "FILER_SIGNING_KEY", "FILER_SIGNING_READ_KEY")
    return {
        **{f"WEED_JWT_{name}": derived(secret, name) for name in signatures},
        "WEED_GRPC_CA": str(folder / _CERTIFICATE),
        **{f"WEED_GRPC_{component}_CERT": str(folder / _CERTIFICATE) for component in _COMPONENTS},
        **{f"WEED_GRPC_{component}_KEY": str(folder / _CERTIFICATE_KEY) for component in _COMPONENTS},
        "MLFLOW_AUTH_CONFIG_PATH": str(folder / "mlflow-auth.ini"),
        "MLFLOW_FLASK_SERVER_SECRET_KEY": derived(secret, "flask"),
    }


def private_folder(path: Path) -> Path:
    """Make ``path`` a folder that only its owner can enter. Raises SystemExit if another user owns it."""
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    if path.is_symlink() or path.stat().st_uid != os.getuid():
        raise SystemExit(f"error: {path} belongs to another user; choose another --state folder")
    path.chmod(0o700)
    return path


def _write_certificate(folder: Path) -> None:
    """Write a self-signed certificate that the parts of the S3 server use for each other."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "lookalike local stack")])
    now = datetime.datetime.now(datetime.UTC)
    usages = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=3650))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    private = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    _write_private(folder / _CERTIFICATE_KEY, private.decode())
    _write_private(folder / _CERTIFICATE, certificate.public_bytes(pem).decode())


def _write_private(path: Path, text: str) -> None:
    path.touch(mode=0o600)
    path.chmod(0o600)
    path.write_text(text)
