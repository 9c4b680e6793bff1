"""infra/local/stack.py as a user runs it; the session's stack stands for that of another user."""

import base64
import http.client
import json
import time
import urllib.request
from pathlib import Path

import grpc
import psutil
import pytest

from lookalike.storage import open_store
from tests.conftest import LocalStack

PORTS = (
    *("s3", "s3_master", "s3_volume", "s3_filer", "s3_admin"),
    *("mlflow", "ray", "ray_client", "ray_dashboard", "ray_agent"),
)


def test_up_status_down_and_up_again(
    tmp_path: Path, local_stack: LocalStack, s3_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_store(s3_uri).write("theirs", b"theirs")
    theirs = {name: value for name, value in local_stack.environment.items() if name.startswith("AWS_")}
    stack = LocalStack(tmp_path / "other stack")
    try:
        stack.up("s3")
        stack.up("s3")  # is running already
        assert (stack.folder / "env").stat().st_mode & 0o077 == 0
        ours = stack.environment
        assert ours["AWS_ENDPOINT_URL"] != theirs["AWS_ENDPOINT_URL"]
        assert ours["AWS_SECRET_ACCESS_KEY"] != theirs["AWS_SECRET_ACCESS_KEY"]
        for name in theirs:
            monkeypatch.setenv(name, ours[name])
        open_store("s3://lookalike/x").write("ours", b"ours")
        status = stack.command("status")
        assert status.returncode == 0
        assert [line.split()[1] for line in status.stdout.splitlines()] == ["answers", "stopped", "stopped"]

        stack.down()
        assert [line.split()[1] for line in stack.command("status").stdout.splitlines()] == ["stopped"] * 3
        stack.up("s3")
        assert stack.environment == ours
        assert open_store("s3://lookalike/x").read("ours") == b"ours"
        assert _sockets(stack)
    finally:
        stack.down()
    assert not _sockets(stack)
    for name, value in theirs.items():
        monkeypatch.setenv(name, value)
    assert open_store(s3_uri).read("theirs") == b"theirs"


def _sockets(stack: LocalStack) -> list[Path]:
    """The sockets that the S3 server of a stack has made outside its state folder."""
    ports = json.loads((stack.folder / "stack.json").read_text())["ports"].values()
    numbers = {number for port in ports for number in (port, port + 10_000)}
    return [path for path in Path("/tmp").glob("seaweedfs-*.sock") if int(path.stem.rpartition("-")[2]) in numbers]


def test_a_port_that_is_taken_is_named(tmp_path: Path, local_stack: LocalStack, s3_server: dict[str, str]) -> None:
    port = json.loads((local_stack.folder / "stack.json").read_text())["ports"]["s3"]
    stack = LocalStack(tmp_path / "other")
    done = stack.command("up", "--services", "s3", "--port", f"s3={port}")
    assert done.returncode != 0
    assert f"port {port} of s3 is in use" in done.stderr
    with urllib.request.urlopen(urllib.request.Request(s3_server["AWS_ENDPOINT_URL"] + "/healthz")) as response:
        assert response.status == 200


def test_what_does_not_start_shows_its_log(tmp_path: Path) -> None:
    stack = LocalStack(tmp_path / "broken")
    stack.folder.mkdir()
    (stack.folder / "mlflow.db").write_text("no database")
    done = stack.command("up", "--services", "mlflow")
    assert done.returncode != 0
    assert "mlflow does not answer; the end of" in done.stderr
    assert "file is not a database" in done.stderr
    stack.down()


def test_wrong_commands_are_refused(tmp_path: Path) -> None:
    stack = LocalStack(tmp_path / "none")
    assert "unknown services ['minio']" in stack.command("up", "--services", "s3,minio").stderr
    assert stack.command("status").returncode == 1
    assert stack.command("down").returncode == 0
    assert not stack.folder.exists()


def test_nothing_answers_without_a_key(local_stack: LocalStack, ray_cluster: dict[str, str]) -> None:
    """Requests without a key, from this machine and from its network address, to each port of a stack."""
    ports = json.loads((local_stack.folder / "stack.json").read_text())["ports"]
    ours = {*ports.values(), *(port + 10_000 for name, port in ports.items() if name.startswith("s3"))}
    begun = time.monotonic()
    while not ours <= (listening := _listening(local_stack)).keys() | {ports["ray_client"]}:
        assert time.monotonic() < begun + 60, ours - listening.keys()  # Ray's agents start after its head answers
        time.sleep(1)
    wider = {port for port, hosts in listening.items() if hosts - {"127.0.0.1"}}
    # Ray's own: GCS, raylet, agents, workers, the client server; it has no option for their address
    assert wider & ours <= {ports["ray"], ports["ray_client"], ports["ray_agent"]}

    for name, path, expected in (
        ("s3", "/", {403}),
        ("s3", "/scratch/x", {403}),
        ("s3_filer", "/buckets/scratch/x", {401, 404}),
        ("s3_filer", "/", {401, 404}),
        ("s3_master", "/dir/assign", {404}),
        ("s3_master", "/dir/status", {404}),
        ("s3_master", "/col/delete?collection=scratch", {404}),
        ("s3_volume", "/1,01", {401}),
        ("mlflow", "/", {401}),
        ("mlflow", "/graphql", {401}),
        ("mlflow", "/api/2.0/mlflow/experiments/search", {401}),
        ("mlflow", "/api/2.0/mlflow-artifacts/artifacts", {401}),
        ("mlflow", "/api/2.0/mlflow/users/create", {401}),
        ("ray_dashboard", "/api/jobs/", {401}),
        ("ray_dashboard", "/api/cluster_status", {401}),
        ("ray_agent", "/api/job_agent/jobs/", {401}),
    ):
        for method in ("GET", "POST", "PUT", "DELETE"):
            status = _status(method, ports[name], path, b"{}")
            assert status in expected | ({400, 405} if method != "GET" else set()), (name, path, method, status)
    wrong = {"Authorization": "Basic " + base64.b64encode(b"lookalike:lookalike").decode()}
    assert _status("GET", ports["mlflow"], "/api/2.0/mlflow/experiments/search?max_results=1", headers=wrong) == 401
    wrong = {"Authorization": "Bearer " + "0" * 64}
    assert _status("GET", ports["ray_dashboard"], "/api/jobs/", headers=wrong) == 403
    for name, call in (
        ("s3_master", "master_pb.Seaweed/Assign"),
        ("s3_volume", "volume_server_pb.VolumeServer/VolumeServerStatus"),
        ("s3_filer", "filer_pb.SeaweedFiler/ListEntries"),
        ("s3", "s3_pb.SeaweedS3/Configure"),
    ):
        assert _grpc_status(ports[name] + 10_000, call) == "UNAVAILABLE", name  # requires a certificate
    for call in ("InternalKVGcsService/InternalKVPut", "JobInfoGcsService/GetAllJobInfo"):
        assert _grpc_status(ports["ray"], f"ray.rpc.{call}") == "UNAUTHENTICATED"


def test_files_of_a_stack_are_its_owners(local_stack: LocalStack, s3_server: dict[str, str]) -> None:
    assert local_stack.folder.stat().st_mode & 0o777 == 0o700
    secrets = {value for name, value in local_stack.environment.items() if name.endswith(("KEY", "PASSWORD"))}
    for process in psutil.process_iter(["cmdline"]):
        assert not any(secret in word for word in process.info["cmdline"] or () for secret in secrets)


def test_a_state_folder_of_before_gets_the_new_keys(tmp_path: Path) -> None:
    stack = LocalStack(tmp_path / "old")
    stack.folder.mkdir()
    ports = dict(zip(PORTS, range(22_761, 22_761 + len(PORTS)), strict=True))
    (stack.folder / "stack.json").write_text(json.dumps({"ports": ports, "secret": "0" * 32}))
    (stack.folder / "env").write_text("export AWS_ACCESS_KEY_ID=lookalike\n")
    assert stack.command("status").returncode == 0
    assert stack.environment["AWS_SECRET_ACCESS_KEY"] == "0" * 32
    assert stack.environment["MLFLOW_TRACKING_PASSWORD"]
    assert (stack.folder / "ray-token").stat().st_mode & 0o777 == 0o600


def _listening(stack: LocalStack) -> dict[int, set[str]]:
    """The ports of all processes of the stack, with the addresses at which they listen."""
    found: dict[int, set[str]] = {}
    for file in (stack.folder / "pids").glob("*.json"):
        leader = psutil.Process(json.loads(file.read_text())["pid"])
        for process in (leader, *leader.children(recursive=True)):
            for connection in process.net_connections("inet"):
                if connection.status == psutil.CONN_LISTEN:
                    found.setdefault(connection.laddr.port, set()).add(connection.laddr.ip)
    return found


def _status(method: str, port: int, path: str, body: bytes | None = None, headers: dict[str, str] | None = None) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.request(method, path, body=body, headers=headers or {})
    return connection.getresponse().status


def _grpc_status(port: int, call: str) -> str:
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        try:
            channel.unary_unary(f"/{call}")(b"", timeout=10)
        except grpc.RpcError as error:
            return str(error.code().name)
    return "OK"
