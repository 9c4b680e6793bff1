"""A proxy in front of an S3 server that makes a share of the requests fail, as networks do.

    python tests/faulty_s3.py http://127.0.0.1:8333 --rate 0.01 --seed 0

Prints its own URL. ``GET /-/faults`` returns the numbers of requests and of failures, by kind. The Host header, which
S3's signatures cover, is forwarded unchanged.
"""

import argparse
import asyncio
import json
import random
import threading
from collections import Counter
from collections.abc import Callable
from queue import SimpleQueue
from typing import Protocol

from aiohttp import ClientSession, DummyCookieJar, web
from yarl import URL

# Kind of fault, and its weight. A stall takes until the client gives up.
KINDS = {"throttled": 3, "reset before": 2, "reset after": 2, "broken off": 4, "stalled": 1}
_STALL_S = 90  # longer than the time-outs of our clients
_HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "expect"}
_SLOW_DOWN = b'<?xml version="1.0"?><Error><Code>SlowDown</Code><Message>Reduce your request rate.</Message></Error>'


class Faults(Protocol):
    """Decides which requests fail."""

    def choose(self, request: web.Request) -> str | None:
        """Return one of KINDS, or None to forward the request."""

    def acted(self, request: web.Request) -> None:
        """Called when the server has acted on a request whose answer will be reset (``reset after``)."""


class RandomFaults:
    """Each request fails with probability ``rate``."""

    def __init__(self, rate: float, seed: int) -> None:
        self._rate, self._random = rate, random.Random(seed)

    def choose(self, request: web.Request) -> str | None:
        if self._random.random() >= self._rate:
            return None
        return self._random.choices(list(KINDS), list(KINDS.values()))[0]

    def acted(self, request: web.Request) -> None:
        """Nothing else happens."""


class FaultyProxy:
    """Forwards requests to ``upstream``, except for ``faults``."""

    def __init__(self, upstream: str, faults: Faults) -> None:
        self._upstream, self._faults = upstream.rstrip("/"), faults
        self.requests, self.faults = 0, Counter[str]()

    async def serve(self, ready: Callable[[str], None]) -> None:
        """Listen on a free port, call ``ready`` with the URL, and serve forever."""
        self._session = ClientSession(auto_decompress=False, cookie_jar=DummyCookieJar())
        application = web.Application(client_max_size=1 << 30)
        application.router.add_get("/-/faults", self._report)
        application.router.add_route("*", "/{path:.*}", self._handle)
        runner = web.AppRunner(application, access_log=None)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        ready(f"http://127.0.0.1:{runner.addresses[0][1]}")
        await asyncio.Event().wait()

    async def _report(self, request: web.Request) -> web.Response:
        return web.json_response({"requests": self.requests, "faults": dict(self.faults)})

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        self.requests += 1
        fault = self._faults.choose(request)
        if fault is not None:
            self.faults[fault] += 1
        if fault == "throttled":
            return web.Response(status=503, body=_SLOW_DOWN, content_type="application/xml")
        if fault == "reset before":
            return self._hang_up(request)
        headers = {name: value for name, value in request.headers.items() if name.lower() not in _HOP_BY_HOP}
        url = URL(self._upstream + request.raw_path, encoded=True)
        body = await request.read()
        async with self._session.request(request.method, url, headers=headers, data=body) as answer:
            data = await answer.read()
            if fault == "reset after":  # the server has acted, and the client gets no answer
                self._faults.acted(request)
                return self._hang_up(request)
            kept = {name: value for name, value in answer.headers.items() if name.lower() not in _HOP_BY_HOP}
            response = web.StreamResponse(status=answer.status, headers=kept)
            if fault:
                return await self._break_off(request, response, data, fault)
            await response.prepare(request)
            if request.method != "HEAD":
                await response.write(data)
            await response.write_eof()
            return response

    async def _break_off(
        self, request: web.Request, response: web.StreamResponse, data: bytes, fault: str
    ) -> web.StreamResponse:
        """Send the head of an answer and half of its body, or nothing if it has no body, and close."""
        if len(data) > 1 and request.method != "HEAD":
            await response.prepare(request)
            await response.write(data[: len(data) // 2])
        await asyncio.sleep(_STALL_S if fault == "stalled" else 0.05)
        return self._hang_up(request)

    @staticmethod
    def _hang_up(request: web.Request) -> web.StreamResponse:
        if request.transport is not None:
            request.transport.abort()
        return web.Response()


def serve_in_thread(proxy: FaultyProxy) -> str:
    """Run a proxy in a daemon thread, and return its URL."""
    ready: SimpleQueue[str] = SimpleQueue()
    threading.Thread(target=lambda: asyncio.run(proxy.serve(ready.put)), daemon=True).start()
    return ready.get(timeout=30)


def main() -> None:
    """Parse the flags and serve."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("upstream", help="URL of the S3 server")
    parser.add_argument("--rate", type=float, default=0.01, help="share of the requests that fail")
    parser.add_argument("--seed", type=int, default=0, help="of the choice which, and how")
    options = parser.parse_args()
    proxy = FaultyProxy(options.upstream, RandomFaults(options.rate, options.seed))
    asyncio.run(proxy.serve(lambda url: print(json.dumps({"url": url}), flush=True)))


if __name__ == "__main__":
    main()
