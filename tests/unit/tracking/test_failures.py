"""Wrong servers and databases: each gives an error of one sentence with a fix."""

import sqlite3
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from lookalike.errors import ConfigError, InputError, LookalikeError, UnreachableError
from lookalike.registry import resolve
from lookalike.tracking import open_tracker, tracking_uri


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("sqlite://relative.db", "write sqlite:///relative.db"),
        ("sqlite:m.db", "write sqlite:///m.db"),
        ("sqlite:///", "names no file"),
        ("sqlite:///:memory:", "names no file"),
        ("jsonl:", "names no file"),
        ("ftp://host", "unknown scheme"),
        ("http://", "not a valid address"),
        ("http://host:port", "not a valid address"),
        ("http://host:99999", "not a valid address"),
        ("http://[::1", "not a valid address"),
        ("http://a b", "not a valid address"),
    ],
)
def test_invalid_address_is_refused_immediately(uri: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        tracking_uri(uri)


def _folder(file: Path) -> None:
    file.unlink()
    file.mkdir()


def _garbage(file: Path) -> None:
    file.write_bytes(b"not a database at all" * 100)


def _another_program(file: Path) -> None:
    file.unlink()
    with sqlite3.connect(file) as database:
        database.execute("CREATE TABLE notes (text)")


def _newer(file: Path) -> None:
    with sqlite3.connect(file) as database:
        database.execute("UPDATE alembic_version SET version_num = 'ffffffffffff'")


def _older(file: Path) -> None:
    with sqlite3.connect(file) as database:
        database.execute("UPDATE alembic_version SET version_num = '451aebb31d03'")  # pragma: allowlist secret


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_folder, "is a folder.*mlflow.db"),
        (_garbage, "cannot be used"),
        (_another_program, "another program"),
        (_newer, "newer MLflow"),
        (_older, "mlflow db upgrade"),
    ],
)
def test_unusable_database_is_named(mlflow_database: str, damage, message: str) -> None:
    damage(Path(mlflow_database.removeprefix("sqlite:///")))
    for call in (lambda: open_tracker(mlflow_database, "toys"), lambda: resolve("models:/a@champion", mlflow_database)):
        with pytest.raises(InputError, match=message):
            call()


def test_locked_database_is_reported_within_seconds(mlflow_database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lookalike.tracking.connection._LOCK_S", 0.2)
    other = sqlite3.connect(mlflow_database.removeprefix("sqlite:///"), isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    with pytest.raises(UnreachableError, match="locked by another process"):
        resolve("models:/a@champion", mlflow_database)
    other.execute("COMMIT")
    other.close()
    with pytest.raises(InputError, match="has no champion"):
        resolve("models:/a@champion", mlflow_database)


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("postgresql+nothing://u:secret1@h/db", "the database URI is not valid"),  # pragma: allowlist secret
        ("mysql+oursql_not_there://h/db", "the database URI is not valid"),
        # pragma: allowlist nextline secret
        ("mssql+pymssql://u:secret1@h/db", "driver of the database is not installed"),
    ],
)
def test_database_without_a_driver_is_named(uri: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as raised:
        open_tracker(uri, "toys")
    assert "secret1" not in str(raised.value)


@pytest.fixture
def answering() -> Iterator[dict]:
    """A server that answers everything with ``answer["status"]`` and ``answer["body"]``."""
    answer: dict = {"status": 200, "body": b"", "type": "text/html"}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            self.send_response(answer["status"])
            self.send_header("Content-Type", answer["type"])
            self.send_header("Content-Length", str(len(answer["body"])))
            self.end_headers()
            self.wfile.write(answer["body"])

        do_POST = do_GET  # noqa: N815

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    # pragma: allowlist nextline secret
    answer["uri"] = f"http://mia:secret1@127.0.0.1:{server.server_port}"
    yield answer
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(
    ("status", "body", "message"),
    [
        (200, b"<html>hello</html>", "not that of an MLflow server"),
        (200, b"[1, 2]", "MLflow|no MLflow"),
        (404, b"<html>not found</html>", r"not that of an MLflow server \(HTTP 404\)"),
        (401, b"who are you", "MLFLOW_TRACKING_USERNAME"),
        (403, b"", "MLFLOW_TRACKING_USERNAME"),
        (403, b'{"error_code": "PERMISSION_DENIED", "message": "no"}', "MLFLOW_TRACKING_USERNAME"),
        (500, b"oops", "does not answer"),
        # pragma: allowlist nextline secret
        (400, b'{"error_code": "INTERNAL_ERROR", "message": "http://mia:secret1@db"}', "MLflow refused"),
    ],
)
def test_server_that_is_not_mlflow_or_refuses_is_named(
    answering: dict, status: int, body: bytes, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    answering |= {"status": status, "body": body}
    for call in (
        lambda: open_tracker(answering["uri"], "toys"),
        lambda: resolve("models:/a@champion", answering["uri"]),
        lambda: resolve("models:/a/1", answering["uri"]),
    ):
        with pytest.raises(LookalikeError, match=message) as raised:
            call()
        assert "secret1" not in str(raised.value)
        assert "\n" not in str(raised.value)
