"""Webhooks on a real HTTP server: signed, retried, each event once by its id, and never in anyone's way."""

import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from standardwebhooks import Webhook

from lookalike.errors import ConfigError
from lookalike.progress import webhooks
from lookalike.progress.addresses import ALLOWED, Endpoint, addresses_of, parse_endpoint
from lookalike.progress.events import EventLog
from lookalike.progress.webhooks import Deliverer, deliver_all, delivering, read_deliveries, secret_variable
from lookalike.storage import Store, open_store
from tests.webhook_receiver import SECRET, Receiver, receiving


@pytest.fixture
def receiver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Receiver]:
    monkeypatch.setattr(webhooks, "_FIRST_PAUSE_S", 0.05)
    monkeypatch.setattr(webhooks, "_POLL_S", 0.05)
    with receiving(monkeypatch) as made:
        yield made


@pytest.fixture
def place(tmp_path: Path) -> Store:
    return open_store(str(tmp_path))


def test_server_that_fails_twice_gets_each_event_signed_and_in_order(receiver: Receiver, place: Store) -> None:
    receiver.statuses = [500, 302]
    log = EventLog(place, "request")
    log.append("accepted")
    log.append("step", {"step": 1, "steps": 2})
    assert deliver_all(Deliverer(place, receiver.url, "acme")) == 0
    events = [Webhook(SECRET).verify(body, headers) for headers, body in receiver.requests]
    assert [event["type"] for event in events] == ["finetune.accepted"] * 3 + ["finetune.step"]
    assert events[-1]["data"] == {"step": 1, "steps": 2}
    ids = [headers["webhook-id"] for headers, _ in receiver.requests]
    assert len(set(ids[:3])) == 1
    assert ids[3] not in ids[:3]
    assert [each.attempts for each in read_deliveries(place).values()] == [3, 1]
    tampered = receiver.requests[-1][1].replace(b'"step":1', b'"step":2')
    with pytest.raises(Exception, match="signature"):
        Webhook(SECRET).verify(tampered, receiver.requests[-1][0])
    deliver_all(Deliverer(place, receiver.url, "acme"))  # a restart repeats nothing
    assert len(receiver.requests) == 4


def test_pending_deliveries_survive_a_restart(receiver: Receiver, place: Store) -> None:
    receiver.statuses = [503]
    EventLog(place, "request").append("accepted")
    first = Deliverer(place, receiver.url, "acme")
    assert first.deliver_due() is not None
    assert first.failing
    assert read_deliveries(place)[1].answer == "HTTP 503"
    assert deliver_all(Deliverer(place, receiver.url, "acme")) == 0
    assert read_deliveries(place)[1].state == "delivered"


def test_a_webhook_that_never_answers_delays_nobody(place: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:  # accepts connections, and says nothing
        port = silent.getsockname()[1]
        monkeypatch.setenv(ALLOWED, "127.0.0.1")
        monkeypatch.setenv(secret_variable("acme"), SECRET)
        began = time.monotonic()
        with delivering(Deliverer(place, f"http://127.0.0.1:{port}/", "acme"), flush_s=0.5):
            for step in range(5):
                EventLog(place, "request").append("step", of=str(step))
            assert time.monotonic() - began < 2
        assert time.monotonic() - began < 4
    refused = Deliverer(place, f"http://127.0.0.1:{port}/", "acme")
    assert refused.deliver_due() is not None
    began = time.monotonic()
    with delivering(refused, flush_s=30):
        time.sleep(0.2)
    assert time.monotonic() - began < 5


def test_delivery_is_given_up_after_two_hours_or_when_the_receiver_is_gone(
    receiver: Receiver, place: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    receiver.statuses = [410, 500]
    EventLog(place, "request").append("accepted")
    assert deliver_all(Deliverer(place, receiver.url, "acme")) == 1
    EventLog(place, "request").append("queued")
    monkeypatch.setattr(webhooks, "age_s", lambda event: 7300.0)
    assert deliver_all(Deliverer(place, receiver.url, "acme")) == 2
    assert [each.state for each in read_deliveries(place).values()] == ["given up"] * 2


def test_pauses_double_up_to_ten_minutes(receiver: Receiver, place: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webhooks, "_FIRST_PAUSE_S", 2.0)
    receiver.statuses = [500] * 30
    EventLog(place, "request").append("accepted")
    now, deliverer = [1e9], Deliverer(place, receiver.url, "acme", clock=lambda: now[0])
    pauses = []
    for _ in range(12):
        due = deliverer.deliver_due()
        assert due is not None
        pauses.append(due - now[0])
        now[0] = due
    assert pauses == [2, 4, 8, 16, 32, 64, 128, 256, 512, 600, 600, 600]


def test_events_are_delivered_while_the_block_runs(receiver: Receiver, place: Store) -> None:
    with delivering(Deliverer(place, receiver.url, "acme")):
        EventLog(place, "request").append("accepted")
        while not receiver.requests:
            time.sleep(0.01)
        EventLog(place, "request").append("promoted")
    assert len(receiver.requests) == 2


def test_each_customer_has_a_secret_of_its_own(place: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = ["acme", "a-b", "a_b", "a__b", "a_0b", "a-0b", "a0b", "a-_b", "a_-b"]
    assert len({secret_variable(name) for name in ids}) == len(ids)
    assert secret_variable("acme") == "LOOKALIKE_WEBHOOK_SECRET_ACME"
    for secret in ("", "whsec_", "whsec_AAAA", "whsec_*"):
        monkeypatch.setenv(secret_variable("acme"), secret)
        with pytest.raises(ConfigError, match=r"secret for webhooks.*LOOKALIKE_WEBHOOK_SECRET_ACME"):
            Deliverer(place, "https://example.org/", "acme")
    monkeypatch.setenv(secret_variable("acme"), SECRET)
    with pytest.raises(ConfigError, match="LOOKALIKE_WEBHOOK_SECRET_OTHER"):
        Deliverer(place, "https://example.org/", "other")


@pytest.mark.parametrize(
    "url",
    [
        "http://example.org/", "ftp://example.org/", "file:///etc/passwd", "https://",
        "https://user:word@example.org/",  # pragma: allowlist secret
        "https://example.org:99999/", "https://exa mple.org/", "https://example.org/\r\nX: y", "https://[::1", "x",
        "https://example.org/" + "a" * 2000,
    ],
)  # fmt: skip
def test_url_that_is_not_plain_https_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match="the webhook"):
        parse_endpoint(url)


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1", "localhost", "10.0.0.1", "192.168.1.1", "172.16.0.1", "169.254.169.254", "0.0.0.0", "224.0.0.1",
        "100.64.0.1", "[::1]", "[fe80::1]", "[fc00::1]", "[::ffff:10.0.0.1]", "[64:ff9b::a00:1]", "[2002:a00:1::1]",
        "2130706433", "0x7f000001", "017700000001",
    ],
)  # fmt: skip
def test_private_address_is_refused_unless_the_operator_allows_it(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="private network"):
        addresses_of(parse_endpoint(f"https://{host}/"))
    monkeypatch.setenv(ALLOWED, host.strip("[]"))
    assert addresses_of(parse_endpoint(f"http://{host}:8080/"))


def test_public_address_is_allowed() -> None:
    assert addresses_of(Endpoint("https", "1.1.1.1", 443, "/", False)) == ["1.1.1.1"]
    assert parse_endpoint("https://[2606:4700::1]:8443/a?b=c").authority == "[2606:4700::1]:8443"
