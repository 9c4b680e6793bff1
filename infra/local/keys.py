"""Keys of a local stack: without one nothing of it answers, also not to other users of this machine."""

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

USER = "lookalike"  # of S3 and of MLflow
_CERTIFICATE, _CERTIFICATE_KEY = "weed.crt", "weed.key"
_COMPONENTS = ("MASTER", "VOLUME", "FILER", "S3", "ADMIN", "WORKER", "MQ", "MSG_BROKER", "MSG_AGENT", "CLIENT")


def derived(secret: str, purpose: str) -> str:
    """A key for one purpose, out of the stack's secret."""
    return hmac.digest(secret.encode(), purpose.encode(), "sha256").hex()


def write(folder: Path, secret: str, environment: Mapping[str, str]) -> None:
    """Write the files with the keys of ``secret`` into ``folder``, which nobody else may enter."""
    folder.chmod(0o700)  # Ray and the servers write files for everybody into it
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
        "auth_cache_ttl_seconds": "3600",  # a check of the password takes a tenth of a second
    }
    _write_private(folder / "mlflow-auth.ini", "\n".join(["[mlflow]", *(f"{k} = {v}" for k, v in settings.items())]))
    exports = "".join(f"export {name}={shlex.quote(value)}\n" for name, value in environment.items())
    _write_private(folder / "env", exports)


def _other_identities(path: Path) -> list[object]:
    """The identities that the stack's user has added to the S3 server's. Raises SystemExit if the file is damaged."""
    if not path.exists():
        return []
    try:
        return [each for each in json.loads(path.read_text())["identities"] if each["name"] != USER]
    except (ValueError, KeyError, TypeError):
        raise SystemExit(f"error: {path} is damaged; restore it, or remove it and the identities in it") from None


def server_environment(folder: Path, secret: str) -> dict[str, str]:
    """Variables by which the servers find their keys. SeaweedFS asks for a signature on HTTP and for a client's
    certificate on gRPC; MLflow for the password of mlflow-auth.ini."""
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
    """``path`` as a folder that only its owner enters. Raises SystemExit if it is somebody else's."""
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    if path.is_symlink() or path.stat().st_uid != os.getuid():
        raise SystemExit(f"error: {path} belongs to another user; choose another --state folder")
    path.chmod(0o700)
    return path


def _write_certificate(folder: Path) -> None:
    """One certificate, signed by itself, that all parts of the S3 server show each other."""
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
