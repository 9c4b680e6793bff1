"""Deliver events to a customer's URL, signed by the Standard Webhooks (https://www.standardwebhooks.com).

Each event is a POST with ``webhook-id`` (the event's id, by which a receiver recognises a repetition),
``webhook-timestamp`` and ``webhook-signature``. What was delivered, and when the next attempt is due, lies beside the
events, so that it survives a restart. A thread delivers; whoever appends an event does not wait for it.
"""

import logging
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Annotated, Any

import urllib3
from pydantic import Field
from standardwebhooks import Webhook

from lookalike.config import canonical_json
from lookalike.documents import parse_record, render_json
from lookalike.errors import ConfigError, InputError, LookalikeError, first_line
from lookalike.progress.addresses import Endpoint, addresses_of, parse_endpoint
from lookalike.progress.events import Event, age_s, event_numbers, read_event
from lookalike.storage import Store

log = logging.getLogger(__name__)

SECRET = "LOOKALIKE_WEBHOOK_SECRET_"  # pragma: allowlist secret
"""Beginning of the environment variable with a customer's secret, see :func:`secret_variable`."""
DELIVERIES = "deliveries"
GIVE_UP_S = 7200.0
"""Age of an event after which an attempt that fails is its last."""

_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 2.0, 600.0
_POLL_S = 1.0
_TIMEOUT = urllib3.Timeout(connect=5.0, read=10.0)
_ANSWER_BYTES = 1024
_GONE = 410  # the receiver asks for no more
_LEAST_SECRET_BYTES = 24  # as the specification requires


@dataclass(frozen=True)
class Delivery:
    """The state of one event's delivery."""

    attempts: Annotated[int, Field(ge=0, le=1_000_000)] = 0
    next_at: Annotated[float, Field(ge=0, le=1e11)] = 0.0
    """When the next attempt is due, s since 1970."""
    state: Annotated[str, Field(pattern=r"^(pending|delivered|given up)$")] = "pending"
    answer: Annotated[str, Field(max_length=300)] = ""
    """What the last attempt gave."""


def secret_variable(customer: str) -> str:
    """Return the variable that holds a customer's secret: ``acme`` → ``LOOKALIKE_WEBHOOK_SECRET_ACME``.

    ``_`` in an id becomes ``__``, and ``-`` becomes ``_0``, so that no two customers share a variable.
    """
    return SECRET + customer.replace("_", "__").replace("-", "_0").upper()


def signer_of(customer: str) -> Webhook:
    """Return what signs a customer's webhooks, by the secret in the environment.

    Raises ConfigError: there is none, or it is not ``whsec_`` and at least 24 bytes in base64.
    """
    name = secret_variable(customer)
    fix = f'set {name} to a secret such as the output of: python -c "import base64, secrets; ' + (
        "print('whsec_' + base64.b64encode(secrets.token_bytes(32)).decode())\""
    )
    try:
        signer = Webhook(os.environ.get(name, ""))
    except Exception:  # the library's own class, or binascii's
        raise ConfigError("the customer has no valid secret for webhooks", value=name, fix=fix) from None
    if len(signer._whsecret) < _LEAST_SECRET_BYTES:
        raise ConfigError("the customer's secret for webhooks is too short", value=name, fix=fix)
    return signer


def check_webhook(url: str, customer: str) -> None:
    """Raise ConfigError for a URL that may not be reached, or a customer without a secret."""
    parse_endpoint(url)
    signer_of(customer)


@dataclass
class Deliverer:
    """Delivers the events in one place to one URL."""

    place: Store
    url: str
    customer: str
    kind: str = "finetune"
    """Begins the type of each event: ``finetune.promoted``."""
    clock: Any = time.time

    def __post_init__(self) -> None:
        self._endpoint: Endpoint = parse_endpoint(self.url)
        self._signer = signer_of(self.customer)
        self._store = self.place.child(DELIVERIES)
        self._deliveries: dict[int, Delivery] | None = None
        self._delivered_ids: set[str] = set()
        self.failing = False
        """Whether the last attempt failed."""

    def pending(self) -> list[int]:
        """Return the numbers of the events that are still to be delivered."""
        return [number for number in event_numbers(self.place) if self._of(number).state == "pending"]

    def deliver_due(self, stop: threading.Event | None = None) -> float | None:
        """Make the attempts that are due, oldest first; return when the next one is, s since 1970; None if there is
        nothing to deliver. An attempt that fails ends the round, since the next one would fail as well."""
        waiting = self.pending()
        for number in waiting:
            if (stop is not None and stop.is_set()) or self._of(number).next_at > self.clock():
                break
            self._attempt(number)
            if self.failing:
                break
        left = [self._of(number).next_at for number in self.pending()]
        return min(left) if left else None

    def _attempt(self, number: int) -> None:
        before, event = self._of(number), read_event(self.place, number)
        if event is None:
            self._record(number, Delivery(before.attempts, state="given up", answer="the event is damaged"))
            return
        if event.id in self._delivered_ids:  # two writers appended it
            self._record(number, Delivery(before.attempts, state="delivered", answer="with an earlier number"))
            return
        attempts = before.attempts + 1
        try:
            status, answer = self._post(event)
        except (LookalikeError, urllib3.exceptions.HTTPError, OSError) as error:
            status, answer = 0, first_line(error, 200)
        if 200 <= status < 300:
            self.failing = False
            self._delivered_ids.add(event.id)
            self._record(number, Delivery(attempts, state="delivered", answer=answer))
        elif status == _GONE or age_s(event) > GIVE_UP_S:
            log.warning("webhook %s of %s is given up after %d attempts: %s", event.id, event.state, attempts, answer)
            self._record(number, Delivery(attempts, state="given up", answer=answer))
        else:
            pause = min(_LONGEST_PAUSE_S, _FIRST_PAUSE_S * 2.0 ** min(attempts - 1, 20))
            self.failing = True
            self._record(number, Delivery(attempts, self.clock() + pause, answer=answer))

    def _post(self, event: Event) -> tuple[int, str]:
        """Send an event; return the status and a short answer. Redirects are not followed."""
        body = canonical_json({"type": f"{self.kind}.{event.state}", "timestamp": event.time, "data": event.data})
        now, endpoint = datetime.now(UTC), self._endpoint
        headers = {
            "Host": endpoint.authority,
            "Content-Type": "application/json",
            "User-Agent": "lookalike",
            "webhook-id": event.id,
            "webhook-timestamp": str(int(now.timestamp())),
            "webhook-signature": self._signer.sign(event.id, now, body),
        }
        options: dict[str, Any] = {"timeout": _TIMEOUT, "retries": False, "maxsize": 1}
        address = addresses_of(endpoint)[0]
        if endpoint.scheme == "https":
            pool: urllib3.HTTPConnectionPool = urllib3.HTTPSConnectionPool(
                address, endpoint.port, server_hostname=endpoint.host, assert_hostname=endpoint.host, **options
            )
        else:
            pool = urllib3.HTTPConnectionPool(address, endpoint.port, **options)
        with pool:
            response = pool.urlopen(
                "POST", endpoint.path, body=body.encode(), headers=headers, redirect=False, preload_content=False
            )
            try:
                response.read(_ANSWER_BYTES, decode_content=False)
            finally:
                response.close()
        return response.status, f"HTTP {response.status}"

    def _of(self, number: int) -> Delivery:
        if self._deliveries is None:
            there = {info.key for info in self._store.list()}
            self._deliveries = {int(key[:8]): self._read(key) for key in there if key[:8].isdigit()}
        return self._deliveries.get(number, Delivery())

    def _read(self, key: str) -> Delivery:
        try:
            return parse_record(Delivery, self._store.read(key), self._store.uri_of(key))
        except InputError as error:  # the event is delivered again, with its id
            log.warning("the state of a delivery is damaged: %s", error)
            return Delivery()

    def _record(self, number: int, delivery: Delivery) -> None:
        assert self._deliveries is not None
        self._deliveries[number] = delivery
        self._store.write(f"{number:08d}.json", render_json(asdict(delivery)))


def read_deliveries(place: Store) -> dict[int, Delivery]:
    """Return the deliveries that were tried, by the number of their event."""
    store = place.child(DELIVERIES)
    found = {}
    for info in store.list():
        if info.key[:8].isdigit():
            try:
                found[int(info.key[:8])] = parse_record(Delivery, store.read(info.key), store.uri_of(info.key))
            except InputError:
                found[int(info.key[:8])] = Delivery(answer="the record is damaged")
    return found


@contextmanager
def delivering(deliverer: Deliverer | None, flush_s: float = 3.0) -> Iterator[None]:
    """Deliver in a thread while the block runs, and at its end for at most ``flush_s`` seconds more, unless the last
    attempt failed. What is left then is delivered by the next start, or by the job's ``deliver``."""
    if deliverer is None:
        yield
        return
    stop, drained = threading.Event(), threading.Event()

    def work() -> None:
        while True:
            ending = stop.is_set()
            try:
                due = deliverer.deliver_due()
            except LookalikeError as error:  # the store does not answer
                log.warning("webhooks cannot be delivered now: %s", error)
                due = 0.0
            if ending and (due is None or deliverer.failing or due > time.time()):
                break
            stop.wait(_POLL_S) if not ending else time.sleep(0.05)
        drained.set()

    threading.Thread(target=work, name="webhooks", daemon=True).start()
    try:
        yield
    finally:
        stop.set()
        if not deliverer.failing:
            drained.wait(flush_s)


def deliver_all(deliverer: Deliverer) -> int:
    """Deliver until nothing is left to try; return how many events were given up."""
    while (due := deliverer.deliver_due()) is not None:
        time.sleep(max(_POLL_S, min(60.0, due - time.time())))
    return sum(delivery.state == "given up" for delivery in read_deliveries(deliverer.place).values())
