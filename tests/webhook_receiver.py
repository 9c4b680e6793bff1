"""A real HTTP server that receives webhooks."""

import base64
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from standardwebhooks import Webhook

from lookalike.progress.addresses import ALLOWED
from lookalike.progress.webhooks import secret_variable

SECRET = "whsec_" + base64.b64encode(bytes(range(32))).decode()  # pragma: allowlist secret


@dataclass
class Receiver:
    """Answers with ``statuses`` in turn, then with 200, and keeps what it was sent."""

    statuses: list[int] = field(default_factory=list)
    requests: list[tuple[dict[str, str], bytes]] = field(default_factory=list)
    accepted: list[dict[str, Any]] = field(default_factory=list)
    """The events that were answered with 200; each has a valid signature."""
    url: str = ""


@contextmanager
def receiving(patch: pytest.MonkeyPatch, customer: str = "acme") -> Iterator[Receiver]:
    """Run a receiver, which the operator allows, and whose secret is the customer's."""
    kept = Receiver()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            kept.requests.append((dict(self.headers), body))
            status = kept.statuses.pop(0) if kept.statuses else 200
            if status == 200:
                kept.accepted.append(Webhook(SECRET).verify(body, dict(self.headers)))
            self.send_response(status)
            self.send_header("Location", "http://169.254.169.254/latest")
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    kept.url = f"http://127.0.0.1:{server.server_port}/hooks?of={customer}"
    patch.setenv(ALLOWED, f"127.0.0.1:{server.server_port}")
    patch.setenv(secret_variable(customer), SECRET)
    yield kept
    server.shutdown()
