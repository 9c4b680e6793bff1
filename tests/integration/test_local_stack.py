"""infra/local/stack.py, as its user runs it; the session's own stack plays the stranger's."""

import json
import urllib.request
from pathlib import Path

import pytest

from lookalike.storage import open_store
from tests.conftest import LocalStack


def test_up_status_down_and_up_again(
    tmp_path: Path, local_stack: LocalStack, s3_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_store(s3_uri).write("theirs", b"theirs")
    theirs = {name: value for name, value in local_stack.environment.items() if name.startswith("AWS_")}
    stack = LocalStack(tmp_path / "other stack")
    try:
        stack.up("s3")
        stack.up("s3")  # runs already
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
    finally:
        stack.down()
    for name, value in theirs.items():
        monkeypatch.setenv(name, value)
    assert open_store(s3_uri).read("theirs") == b"theirs"


def test_a_port_that_is_taken_is_named(tmp_path: Path, local_stack: LocalStack, s3_server: dict[str, str]) -> None:
    port = json.loads((local_stack.folder / "stack.json").read_text())["ports"]["s3"]
    stack = LocalStack(tmp_path / "other")
    done = stack.command("up", "--services", "s3", "--port", f"s3={port}")
    assert done.returncode != 0
    assert f"port {port} of s3 is taken" in done.stderr
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
