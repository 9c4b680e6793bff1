"""A request is accepted once: keys, expiry, cancellation and status."""

from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from lookalike.errors import ConfigError, ConflictError, InputError
from lookalike.progress.cancel import CancelledError
from lookalike.progress.events import EventLog, read_events
from lookalike.storage import Store, open_store, read_json
from pipelines.finetune import CancelConfig, FinetuneConfig, StatusConfig, cancel, status
from pipelines.finetune.request import REQUEST, accept, attempt_of, fingerprint_of, home_of, record_decision, take_key

CONTENT = {"photos_sha256": "p" * 64}


@pytest.fixture
def config(tmp_path: Path) -> FinetuneConfig:
    return FinetuneConfig(
        customer="acme", subject="mug", photos="/photos", store=str(tmp_path), webhook="https://x/?t=1"
    )


def _places(config: FinetuneConfig) -> tuple[Store, Store]:
    home = home_of(config)
    return home, home.child("photos-0123")


def _accept(config: FinetuneConfig) -> EventLog:
    return accept(*_places(config), config, fingerprint_of(config, CONTENT))


def _of(config: FinetuneConfig) -> dict[str, Any]:
    return {"customer": config.customer, "subject": config.subject, "store": config.store}


def test_same_key_and_request_is_the_same_job_and_another_request_is_refused(config: FinetuneConfig) -> None:
    home, keyed = home_of(config), replace(config, key="4f1c")
    request = fingerprint_of(keyed, CONTENT)
    take_key(home, keyed, request)
    moved = replace(keyed, photos="s3://elsewhere/photos", webhook=None, tracking="sqlite:///x")
    assert fingerprint_of(moved, CONTENT) == request
    take_key(home, moved, request)
    for changed, content in (
        (replace(keyed, seed=1), CONTENT),
        (replace(keyed, class_name="cup"), CONTENT),
        (replace(keyed, expires_after="1d"), CONTENT),
        (keyed, {"photos_sha256": "q" * 64}),
        (replace(keyed, subject="cup"), CONTENT),
    ):
        other = fingerprint_of(changed, content)
        with pytest.raises(ConflictError, match=rf"{request[:16]}; this one is {other[:16]}"):
            take_key(home_of(changed), changed, other)
    take_key(
        home_of(replace(keyed, customer="other")), replace(keyed, customer="other"), "f"
    )  # keys are a customer's own
    with pytest.raises(InputError, match="255 characters"):
        take_key(home, replace(config, key="k" * 256), request)
    assert "4f1c" not in "".join(info.key for info in open_store(config.store).list())


def test_request_records_when_it_expires_and_is_then_refused(config: FinetuneConfig) -> None:
    _, place = _places(config)
    _accept(replace(config, expires_after="30d"))
    recorded = read_json(place, REQUEST)
    length = datetime.fromisoformat(recorded["expires_at"]) - datetime.fromisoformat(recorded["accepted_at"])
    assert length.total_seconds() == 30 * 86_400
    assert recorded["expires_at"].endswith("+00:00")
    assert "webhook" not in recorded["settings"]
    _accept(replace(config, expires_after="30d"))
    assert read_json(place, REQUEST) == recorded
    with pytest.raises(ConflictError, match="accepted with expires_after 30d"):
        _accept(replace(config, expires_after="60d"))
    place.write(REQUEST, place.read(REQUEST).replace(recorded["expires_at"].encode(), b"2020-01-01T00:00:00+00:00"))
    for _ in range(2):
        with pytest.raises(InputError, match=r"expired at 2020.*erase\.py sweep"):
            _accept(config)
    assert [event.state for _, event in read_events(place)] == ["accepted", "expired"]
    assert status(StatusConfig(**_of(config)))["state"] == "expired"


@pytest.mark.parametrize("text", ["", "30", "d", "-1d", "1.5h", "0d", "101y", "99999d", "30d "])
def test_duration_that_is_none_is_refused(config: FinetuneConfig, text: str) -> None:
    with pytest.raises(ConfigError):
        replace(config, expires_after=text)


def test_cancelled_request_stays_cancelled_until_it_is_resumed(config: FinetuneConfig) -> None:
    _, place = _places(config)
    _accept(config).append("started", of="0")
    assert cancel(CancelConfig(**_of(config))) == cancel(CancelConfig(**_of(config))) == "cancelled"
    found = status(StatusConfig(**_of(config)))
    assert (found["state"], found["cancelled_at"] is None) == ("cancelled", False)
    with pytest.raises(CancelledError, match=r"cancelled at .*--resume"):
        _accept(config)
    events = _accept(replace(config, resume=True))
    assert attempt_of(place) == "1"
    events.append("started", of=attempt_of(place))
    assert [event.state for _, event in read_events(place)] == ["accepted", "started", "cancelled", "started"]
    assert status(StatusConfig(**_of(config)))["cancelled_at"] is None


def test_status_names_step_and_time_left_and_a_finished_request_is_not_cancelled(config: FinetuneConfig) -> None:
    with pytest.raises(InputError, match="no request of acme for mug"):
        status(StatusConfig(**_of(config)))
    with pytest.raises(ConfigError):
        status(StatusConfig(**{**_of(config), "subject": "../other"}))
    _, place = _places(config)
    _accept(config).append("step", {"step": 3, "steps": 60, "eta_s": 12.5}, of="3")
    found = status(StatusConfig(**_of(config)))
    assert [found[name] for name in ("state", "step", "steps", "eta_s", "result")] == ["step", 3, 60, 12.5, False]
    place.write("result.json", b"{}")
    for _ in range(2):
        assert record_decision(place, {"promoted": True, "version": 1, "model": "acme--mug"}) == "promoted"
    assert cancel(CancelConfig(**_of(config))) == "promoted"
    found = status(StatusConfig(**_of(config)))
    assert (found["state"], found["step"], found["cancelled_at"]) == ("promoted", None, None)
    assert [event["state"] for event in found["events"]] == ["accepted", "step", "promoted"]
