"""A request and what became of it: acceptance, idempotency keys, expiry, status and cancellation.

``customers/CUSTOMER/SUBJECT/photos-…/request.json`` is the request as it was accepted, ``events/`` what it has reached.
``customers/CUSTOMER/_keys/`` has one object for each idempotency key; no subject can have that name. An object names no
subject and no photo, since it stays when a subject is erased.
"""

import hashlib
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from typing import Any

from lookalike import config as configs
from lookalike.documents import render_json
from lookalike.errors import ConflictError, InputError
from lookalike.progress.cancel import cancelled_at, check_not_cancelled, order_cancel, withdraw_cancel
from lookalike.progress.events import Event, EventLog, State, read_events
from lookalike.progress.webhooks import Deliverer, deliver_all, read_deliveries
from lookalike.registry import personal_model_name
from lookalike.registry.names import CUSTOMERS
from lookalike.storage import Store, open_store, read_members
from pipelines.finetune.config import CancelConfig, DeliverConfig, FinetuneConfig, PlaceConfig, StatusConfig, duration_s

REQUEST, CURRENT, RESULT = "request.json", "current.json", "result.json"
_KEYS = "_keys"
_REQUEST = {"customer": str, "subject": str, "request": str, "accepted_at": str, "expires_at": str | None}
_MOST_KEY = 255


def home_of(config: PlaceConfig | FinetuneConfig) -> Store:
    """Return the store of a subject. Raises ConfigError for ids that are not valid."""
    personal_model_name(config.customer, config.subject)  # before any path is made of the ids
    return open_store(config.store).child(CUSTOMERS).child(config.customer).child(config.subject)


def fingerprint_of(config: FinetuneConfig, content: dict[str, Any]) -> str:
    """Return the identity of a request: its settings, and the hashes of its photos, base and gate in ``content``."""
    values = configs.to_dict(config)
    unset = configs.fields_marked(config, configs.IDENTITY_IF_SET)
    ignored = set(configs.fields_marked(config, configs.NOT_IDENTITY))
    ours = {
        name: value
        for name, value in values.items()
        if name not in ignored and (name not in unset or value not in (None, {}, []))
    }
    return configs.fingerprint({**ours, **content, "expires_after": config.expires_after})


def take_key(home: Store, config: FinetuneConfig, request: str) -> None:
    """Bind the idempotency key to the request, if it has one.

    Raises:
        InputError: the key is too long.
        ConflictError: the customer has used the key for another request; the message has both fingerprints.
    """
    if config.key is None:
        return
    if len(config.key) > _MOST_KEY:
        raise InputError(f"the key has more than {_MOST_KEY} characters", value=len(config.key), fix="use a UUID")
    keys, name = home.parent.child(_KEYS), f"{_hash_of(config.key)}.json"
    try:
        keys.create(name, render_json({"request": request}))
    except ConflictError:
        taken = read_members(keys, name, {"request": str})["request"]
        if taken != request:
            raise ConflictError(
                f"the key belongs to another request, {taken[:16]}; this one is {request[:16]}",
                value=config.key,
                fix="repeat that request unchanged, or use a new key",
            ) from None


def accept(home: Store, place: Store, config: FinetuneConfig, request: str) -> EventLog:
    """Record the request, unless it is recorded; return its log, with the event ``accepted``.

    Raises:
        InputError: the request has expired.
        ConflictError: it was accepted with another ``expires_after``.
        CancelledError: it was cancelled, and ``config.resume`` is not set.
    """
    now = datetime.now(UTC)
    until = None if config.expires_after is None else now + timedelta(seconds=duration_s(config.expires_after))
    document = {
        "customer": config.customer,
        "subject": config.subject,
        "request": request,
        "key_sha256": None if config.key is None else _hash_of(config.key),
        "accepted_at": now.isoformat(timespec="seconds"),
        "expires_after": config.expires_after,
        "expires_at": None if until is None else until.isoformat(timespec="seconds"),
        "settings": {name: value for name, value in configs.to_dict(config).items() if name not in ("key", "webhook")},
    }
    try:
        place.create(REQUEST, render_json(document))
    except ConflictError:
        document = read_request(place)
        if config.expires_after not in (None, document.get("expires_after")):
            what = f"the request was accepted with expires_after {document.get('expires_after')}"
            raise ConflictError(what, value=config.expires_after, fix="leave it out") from None
    refuse_expired(place)
    events, expires_at = EventLog(place, request), document["expires_at"]
    if config.resume:
        withdraw_cancel(place)
    check_not_cancelled(place)
    home.write(CURRENT, render_json({"place": "" if place is home else place.name}))
    events.append("accepted", {"expires_at": expires_at})
    return events


def refuse_expired(place: Store) -> None:
    """Raise InputError if the request in ``place`` has expired, and append the event."""
    if not place.exists(REQUEST):  # of an earlier version
        return
    request = read_request(place)
    if (expires_at := request["expires_at"]) is None or datetime.fromisoformat(expires_at) > datetime.now(UTC):
        return
    EventLog(place, request["request"]).append("expired", {"expires_at": expires_at})
    what = f"the request expired at {expires_at}, and what is stored of it is to be removed"
    raise InputError(what, value=place.uri, fix="remove it with jobs/erase.py sweep, and send the request again")


def record_decision(place: Store, result: dict[str, Any]) -> State:
    """Append the gate's decision of a finished finetune, once; return the state."""
    names = ("model", "version", "verdict", "bundle_uri", "bundle_sha256", "decision")
    state: State = "promoted" if result["promoted"] else "refused"
    if place.exists(REQUEST):  # earlier versions recorded no request
        data = {name: result[name] for name in names if name in result}
        EventLog(place, read_request(place)["request"]).append(state, data, of=attempt_of(place))
    return state


def read_request(place: Store) -> dict[str, Any]:
    """Read ``request.json``. Raises InputError if it is missing or damaged."""
    request = read_members(place, REQUEST, _REQUEST)
    try:
        if request["expires_at"] is not None:
            datetime.fromisoformat(request["expires_at"]).astimezone(UTC)
    except ValueError:
        what = "expires_at of the request is not a time in ISO 8601"
        raise InputError(what, value=place.uri_of(REQUEST), fix="restore it") from None
    return request


def attempt_of(place: Store) -> str:
    """Return what tells the attempts of a request apart: how often it has failed or was cancelled."""
    return str(sum(event.state in ("failed", "cancelled") for _, event in read_events(place)))


def current_place(config: PlaceConfig) -> Store:
    """Return the place of the subject's newest request. Raises InputError if there is none."""
    home = home_of(config)
    if not home.exists(CURRENT):
        what = f"there is no request of {config.customer} for {config.subject}"
        raise InputError(what, value=home.uri, fix="check --store, or start one with jobs/finetune.py run")
    name = read_members(home, CURRENT, {"place": str})["place"]
    if "/" in name:
        raise InputError("the pointer to the newest request is damaged", value=home.uri_of(CURRENT), fix="remove it")
    return home.child(name) if name else home


def status(config: StatusConfig | PlaceConfig) -> dict[str, Any]:
    """Return the state of the subject's newest request.

    ``state``, ``since``, ``step``, ``steps`` and ``eta_s`` (null before training and after it), ``expires_at``,
    ``cancelled_at``, ``result`` (whether there is one), ``webhooks`` (events by the state of their delivery, and the
    last answer), ``events``. Raises InputError if there is no request.
    """
    place = current_place(config)
    request, events = read_request(place), read_events(place)
    last = events[-1][1] if events else None
    step = last.data if last is not None and last.state == "step" else {}
    deliveries = read_deliveries(place)
    counts: dict[str, int] = {}
    for number, _ in events:
        state = deliveries[number].state if number in deliveries else "pending"
        counts[state] = counts.get(state, 0) + 1
    return {
        "customer": config.customer,
        "subject": config.subject,
        "place": place.uri,
        "request": request["request"],
        "state": last.state if last else "accepted",
        "since": last.time if last else request["accepted_at"],
        **{name: step.get(name) for name in ("step", "steps", "eta_s")},
        "expires_at": request["expires_at"],
        "cancelled_at": cancelled_at(place),
        "result": place.exists(RESULT),
        "webhooks": {**counts, "answer": deliveries[max(deliveries)].answer} if deliveries else {},
        "events": [{"number": number, **asdict(event)} for number, event in events],
    }


def cancel(config: CancelConfig) -> str:
    """Order the newest request to stop; return the state that it had, or ``cancelled``.

    A finished request stays as it is. Raises InputError if there is none.
    """
    place = current_place(config)
    if place.exists(RESULT):
        return str(status(config)["state"])
    attempt = attempt_of(place)
    order_cancel(place)
    last = last_event(place)
    if last is None or last.state != "cancelled":  # the job appends the same event when it stops
        EventLog(place, read_request(place)["request"]).append("cancelled", of=attempt)
    return "cancelled"


def deliver(config: DeliverConfig) -> int:
    """Deliver the webhooks of the newest request until none is left to try; return how many were given up."""
    return deliver_all(Deliverer(current_place(config), config.webhook, config.customer))


def last_event(place: Store) -> Event | None:
    """Return the newest event of a request."""
    events = read_events(place)
    return events[-1][1] if events else None


def _hash_of(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()[:32]
