"""The services of a local stack: their commands, ports and readiness checks."""

import json
import random
import secrets
import shutil
import socket
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import keys

HOST = "127.0.0.1"
SERVICES = ("s3", "mlflow", "ray")
PORTS = (
    *("s3", "s3_master", "s3_volume", "s3_filer", "s3_admin"),
    "mlflow",
    *("ray", "ray_client", "ray_dashboard", "ray_agent"),
)
BUCKETS = ("lookalike", "scratch")
# Below the kernel's ephemeral ports; SeaweedFS also uses each of its ports + 10000 for gRPC.
_PORT_RANGE = range(20_000, 22_760)
_GRPC_OFFSET = 10_000
_TEMPORARY = "tmp"  # in Ray's temporary folder
_SOCKET_PATH_BYTES = 107 - len("/session_2026-01-01_00-00-00_000000_0000000/sockets/plasma_store.sock")


@dataclass(frozen=True)
class Stack:
    """Settings of a state folder, which its first ``up`` chooses."""

    folder: Path
    """Absolute path of the state folder."""
    ports: dict[str, int]
    """A port for each name in ``PORTS``."""
    secret: str
    """The S3 server's secret key."""

    def environment(self) -> dict[str, str]:
        """Return the variables with addresses and keys for clients."""
        return {
            "AWS_ENDPOINT_URL": f"http://{HOST}:{self.ports['s3']}",
            "AWS_ACCESS_KEY_ID": keys.USER,
            "AWS_SECRET_ACCESS_KEY": self.secret,
            "AWS_DEFAULT_REGION": "us-east-1",
            "MLFLOW_TRACKING_URI": f"http://{HOST}:{self.ports['mlflow']}",
            "MLFLOW_TRACKING_USERNAME": keys.USER,
            "MLFLOW_TRACKING_PASSWORD": keys.derived(self.secret, "mlflow"),
            "RAY_ADDRESS": f"{HOST}:{self.ports['ray']}",
            "RAY_API_SERVER_ADDRESS": f"http://{HOST}:{self.ports['ray_dashboard']}",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": "",  # a token in the user's environment would override the file
            "RAY_AUTH_TOKEN_PATH": str(self.folder / "ray-token"),
        }

    def url(self, service: str) -> str:
        """Return the address of ``service``."""
        port = self.ports["ray_dashboard" if service == "ray" else service]
        return f"http://{HOST}:{port}"


def load(folder: Path) -> Stack | None:
    """Load the stack of a state folder, and write its key files again; None if the folder has no stack."""
    path = folder / "stack.json"
    if not path.exists():
        return None
    stack = Stack(folder, **json.loads(path.read_text()))
    keys.write(folder, stack.secret, stack.environment())
    return stack


def create(folder: Path, fixed_ports: dict[str, int]) -> Stack:
    """Choose ports and keys for a new state folder, and write the key files, the env file and then ``stack.json``."""
    stack = Stack(keys.private_folder(folder), _free_ports(PORTS) | fixed_ports, secrets.token_hex(16))
    keys.write(folder, stack.secret, stack.environment())
    path = folder / "stack.json"
    path.touch(mode=0o600)
    path.write_text(json.dumps({"ports": stack.ports, "secret": stack.secret}))
    return stack


def s3_command(stack: Stack) -> list[str]:
    """Return the command of SeaweedFS: master, volume, filer and S3 gateway in one process."""
    data = stack.folder / "s3"
    data.mkdir(exist_ok=True)
    flags = {
        "dir": data,
        "ip": HOST,
        "ip.bind": HOST,
        "s3.config": stack.folder / "s3.json",
        "s3.port": stack.ports["s3"],
        "master.port": stack.ports["s3_master"],
        "volume.port": stack.ports["s3_volume"],
        "filer.port": stack.ports["s3_filer"],
        "admin.port": stack.ports["s3_admin"],
        "bucket": ",".join(BUCKETS),
        "s3.autoCreateBucket": "false",  # as on AWS, a misspelt bucket is an error
        "disableHttp": "true",  # of master and filer, which would delete buckets without a key
        "s3.port.iceberg": 0,
        "s3.port.lance": 0,
        "admin.ui": "false",
        "webdav": "false",
        "master.telemetry": "false",
        "master.electionTimeout": "1s",
        "volume.preStopSeconds": 0,
    }
    weed = Path(sys.executable).parent / "weed"
    return [str(weed), "-logtostderr=true", "mini", *(f"-{name}={value}" for name, value in flags.items())]


def mlflow_command(stack: Stack) -> list[str]:
    """Return the command of MLflow, with runs and models in sqlite and artifacts in a folder that it serves."""
    flags = {
        "app-name": "basic-auth",
        "host": HOST,
        "port": stack.ports["mlflow"],
        "workers": 1,
        "backend-store-uri": f"sqlite:///{stack.folder / 'mlflow.db'}",
        "artifacts-destination": (stack.folder / "mlflow-artifacts").as_uri(),
    }
    return [sys.executable, "-m", "mlflow", "server", *(f"--{name}={value}" for name, value in flags.items())]


def ray_command(stack: Stack, num_cpus: int, object_store_mib: int) -> list[str]:
    """Return the command of a Ray head in the foreground, so that stopping its process stops all of Ray."""
    flags = {
        "port": stack.ports["ray"],
        "dashboard-host": HOST,
        "dashboard-port": stack.ports["ray_dashboard"],
        "dashboard-agent-listen-port": stack.ports["ray_agent"],
        "ray-client-server-port": stack.ports["ray_client"],
        "min-worker-port": 0,
        "max-worker-port": 0,
        "num-cpus": num_cpus,
        "object-store-memory": object_store_mib << 20,
        "include-dashboard": "true",
        "temp-dir": ray_folder(stack.folder),
    }
    options = [f"--{name}={value}" for name, value in flags.items()]
    return [
        sys.executable,
        "-m",
        "ray.scripts.scripts",
        "start",
        "--head",
        "--block",
        "--disable-usage-stats",
        *options,
    ]


def answers(stack: Stack, service: str) -> bool:
    """Return whether ``service`` is ready for requests."""
    if service == "s3":
        return _s3_answers(stack)
    if service == "mlflow":
        return _http_status(f"{stack.url('mlflow')}/health") == 200
    return _http_status(f"{stack.url('ray')}/api/jobs/", (stack.folder / "ray-token").read_text()) == 200


def is_free(port: int) -> bool:
    """Return whether ``port`` of this machine is free."""
    with socket.socket() as probe:
        return probe.connect_ex((HOST, port)) != 0


def _free_ports(names: Iterable[str]) -> dict[str, int]:
    candidates = random.sample(_PORT_RANGE, len(_PORT_RANGE))
    free = (port for port in candidates if is_free(port) and is_free(port + _GRPC_OFFSET))
    return dict(zip(names, free, strict=False))


def ray_folder(folder: Path) -> Path:
    """Return Ray's temporary folder; a short one if needed, since paths of its Unix sockets have a length limit."""
    inside = folder / "ray"
    if len(str(inside).encode()) <= _SOCKET_PATH_BYTES:
        return inside
    return Path(tempfile.gettempdir()) / f"ray-{sha256(str(folder).encode()).hexdigest()[:8]}"


def clean(stack: Stack, service: str) -> None:
    """Remove what a service that has ended leaves outside the state folder, and what its jobs left in TMPDIR."""
    if service == "s3":
        for port in stack.ports.values():
            if is_free(port):  # no other program has it now
                for number in (port, port + _GRPC_OFFSET):
                    for path in Path("/tmp").glob(f"seaweedfs-*-{number}.sock"):  # not in TMPDIR
                        with suppress(OSError):  # of another user
                            path.unlink()
    if service == "ray":
        folder = ray_folder(stack.folder)
        shutil.rmtree(folder / _TEMPORARY if folder.is_relative_to(stack.folder) else folder, ignore_errors=True)


def temporary_folder(stack: Stack) -> Path:
    """Make and return the TMPDIR of the Ray head and its jobs: the processes of Ray's dashboard leave folders there."""
    return keys.private_folder(keys.private_folder(ray_folder(stack.folder)) / _TEMPORARY)


def _http_status(url: str, token: str | None = None) -> int | None:
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {token}"} if token else {})
    try:
        with urllib.request.urlopen(request, timeout=5) as response:
            return int(response.status)
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return None


def _s3_answers(stack: Stack) -> bool:
    import boto3
    from botocore.config import Config
    from botocore.exceptions import BotoCoreError, ClientError

    environment = stack.environment()
    client: Any = boto3.client(
        "s3",
        endpoint_url=environment["AWS_ENDPOINT_URL"],
        aws_access_key_id=environment["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=environment["AWS_SECRET_ACCESS_KEY"],
        region_name=environment["AWS_DEFAULT_REGION"],
        config=Config(connect_timeout=2, read_timeout=5, retries={"total_max_attempts": 1}),
    )
    try:
        if not set(BUCKETS) <= {bucket["Name"] for bucket in client.list_buckets()["Buckets"]}:
            return False
        probe = {"Bucket": "scratch", "Key": ".probe"}  # buckets are listed before objects can be written
        client.put_object(Body=b"there", **probe)
        answered = client.get_object(**probe)["Body"].read() == b"there"
        client.delete_object(**probe)
        return bool(answered)
    except (BotoCoreError, ClientError):
        return False
