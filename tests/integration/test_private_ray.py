"""A private Ray cluster accepts requests only of the job that started it."""

import http.client
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import psutil
import pytest

from tests.conftest import job_environment

_VICTIM = """
import logging, os, sys
logging.basicConfig(level="WARNING")
from pipelines.entry import ray_session
with ray_session():
    import ray
    print(ray.get_runtime_context().gcs_address, os.environ.get("RAY_AUTH_TOKEN_PATH"), flush=True)
    sys.stdin.readline()
"""
_STRANGER = """
import sys
import ray
ray.init(sys.argv[1], logging_level="ERROR", log_to_driver=False)
@ray.remote(num_cpus=0)
def attack():
    open(sys.argv[2], "w").close()
attack = attack.options(runtime_env={})
ray.get(attack.remote(), timeout=60)
print("ran a command")
"""
_WRONG = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 64}
_CALLS = (  # of every server of a node one that does something
    "InternalKVGcsService/InternalKVPut",
    "CoreWorkerService/PushTask",
    "NodeManagerService/RequestWorkerLease",
    "ObjectManagerService/Pull",
    "ReporterService/GetTraceback",
)


@contextmanager
def _job_with_a_cluster(**environment: str) -> Iterator[tuple[subprocess.Popen[str], str, str]]:
    """A process with a private cluster, the address of that, and the path of its token."""
    argv = [sys.executable, "-c", _VICTIM]
    job = subprocess.Popen(
        argv,
        env=job_environment(environment),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert job.stdout is not None
    try:
        address, token = job.stdout.readline().split()
        yield job, address, token
    finally:
        job.communicate("\n", timeout=60)


def _attack(address: str, mark: Path, environment: dict[str, str]) -> str:
    """Requests to the cluster by a process that knows only its address."""
    argv = [sys.executable, "-c", _STRANGER.replace("sys.argv[2]", repr(str(mark))), address]
    env = {**job_environment(environment), "HOME": str(mark.parent), "RAY_gcs_rpc_server_connect_timeout_s": "2"}
    done = subprocess.run(argv, env=env, capture_output=True, text=True, timeout=120)
    return done.stdout + done.stderr


@pytest.mark.parametrize("stranger", [{"RAY_AUTH_MODE": "disabled"}, _WRONG], ids=["no token", "a wrong token"])
def test_a_stranger_cannot_run_a_command_in_a_job_s_cluster(tmp_path: Path, stranger: dict[str, str]) -> None:
    with _job_with_a_cluster() as (_, address, _token):
        said = _attack(address, tmp_path / "mark", stranger)
    assert "AuthenticationError" in said
    assert "ran a command" not in said
    assert not (tmp_path / "mark").exists()


def test_who_disables_the_token_is_warned_of_what_a_stranger_can_do(tmp_path: Path) -> None:
    with _job_with_a_cluster(RAY_AUTH_MODE="disabled") as (job, address, _token):
        assert "ran a command" in _attack(address, tmp_path / "mark", {"RAY_AUTH_MODE": "disabled"})
        assert job.stderr is not None
        assert "RAY_AUTH_MODE=disabled: anyone who reaches" in job.stderr.readline()
    assert (tmp_path / "mark").exists()


def test_every_port_of_a_job_s_cluster_wants_the_token() -> None:
    with _job_with_a_cluster() as (job, address, token):
        host = address.split(":")[0]
        assert Path(token).stat().st_mode & 0o777 == 0o600
        assert Path(token).parent.stat().st_mode & 0o777 == 0o700
        right = Path(token).read_text()
        answers = {}
        for port in _listening_ports(job.pid):
            for given in (None, "0" * 64):
                answers[port, given] = _answers(host, port, given)
        assert len(answers) >= 10  # GCS, raylet, its object manager, two agents, a driver, metrics
        for (port, given), codes in answers.items():
            assert "OK" not in codes, (port, given)
            closed = {"UNAUTHENTICATED", "401", "403"} & codes
            assert closed or _is_metrics(host, port), (port, given, codes)
        gcs = int(address.split(":")[1])
        assert "UNAUTHENTICATED" not in _answers(host, gcs, right)
    assert not Path(token).exists()


def test_each_cluster_has_a_token_and_a_folder_of_its_own(tmp_path: Path) -> None:
    with _job_with_a_cluster(**_WRONG) as (one, _, first), _job_with_a_cluster() as (_, _, second):
        assert Path(first).read_text() not in (Path(second).read_text(), "0" * 64)
        sockets = [c.laddr for c in _connections(one.pid, "unix") if str(c.laddr).endswith("plasma_store")]
        assert sockets
        for socket in sockets:  # Ray makes folders that every user can write into: ours around them is closed
            assert any(folder.stat().st_mode & 0o777 == 0o700 for folder in Path(str(socket)).parents)


def _connections(pid: int, kind: str) -> list[Any]:
    root = psutil.Process(pid)
    return [c for process in [root, *root.children(recursive=True)] for c in process.net_connections(kind)]


def _listening_ports(pid: int) -> set[int]:
    return {c.laddr.port for c in _connections(pid, "inet") if c.status == "LISTEN"}


def _answers(host: str, port: int, token: str | None) -> set[str]:
    """The codes with which a port answers to calls of gRPC and to the job agent's path of HTTP."""
    codes = set()
    with grpc.insecure_channel(f"{host}:{port}") as channel:
        for call in _CALLS:
            metadata = (("authorization", f"Bearer {token}"),) if token else ()
            try:
                channel.unary_unary(f"/ray.rpc.{call}")(b"", timeout=5, metadata=metadata)
                codes.add("OK")
            except grpc.RpcError as error:
                codes.add(error.code().name)
    try:
        connection = http.client.HTTPConnection(host, port, timeout=5)
        connection.request(
            "POST", "/api/job_agent/jobs/", headers={"Authorization": f"Bearer {token}"} if token else {}
        )
        codes.add(str(connection.getresponse().status))
    except (OSError, http.client.HTTPException):
        pass
    return codes


def _is_metrics(host: str, port: int) -> bool:
    """Whether the port serves only metrics for Prometheus."""
    connection = http.client.HTTPConnection(host, port, timeout=5)
    connection.request("GET", "/metrics")
    text = connection.getresponse().read().decode()
    return re.match(r"# HELP \w+ ", text) is not None
