"""Retention: erase the subjects whose finetunes have all expired, by the same code as every erasure."""

import logging
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime

from lookalike.errors import InputError, LookalikeError
from lookalike.storage import Store, open_store, read_members
from lookalike.storage.erasing import CUSTOMERS, IDENTIFIER, MARKER
from lookalike.storage.purge import pages
from pipelines.erase.config import EraseConfig, SweepConfig
from pipelines.erase.run import erase

log = logging.getLogger(__name__)

_ID = IDENTIFIER.pattern
_FILE = rf"(?:photos-[^/]+/)?request\.json|photos-[^/]+/run\.json|{re.escape(MARKER)}"
_PLACE = re.compile(rf"({_ID})/(?:({_ID})/)?({_FILE})")
_LARGEST = 1 << 20  # bytes of a request


@dataclass(frozen=True)
class Row:
    """One subject."""

    customer: str
    subject: str | None
    """None for a whole customer, whose erasure was begun and not finished."""
    state: str
    """``due``, ``kept``, ``erased`` or ``failed``."""
    why: str


def sweep(config: SweepConfig) -> list[Row]:
    """Find the subjects that are due, and with ``config.delete`` erase them; returns a row for each with a request.

    One that cannot be erased, or whose request cannot be read, is a row with its reason, and the others are erased.
    """
    root = open_store(config.store).child(CUSTOMERS)
    return [_swept(config, row) if row.state == "due" and config.delete else row for row in _rows(root)]


def _swept(config: SweepConfig, row: Row) -> Row:
    settings = EraseConfig(
        customer=row.customer,
        subject=row.subject,
        store=config.store,
        tracking=config.tracking,
        search=config.search,
        requests=config.requests,
        take_down=config.take_down,
        receipts=config.receipts,
        wait_s=config.wait_s,
    )
    try:
        outcome = erase(settings)
    except LookalikeError as error:
        log.warning("%s/%s was not erased: %s", row.customer, row.subject, error)
        return Row(row.customer, row.subject, "failed", str(error))
    return Row(row.customer, row.subject, "erased", f"{row.why}; receipt {outcome.receipt}")


def _rows(root: Store) -> Iterator[Row]:
    """One row for each subject with a request, or with an erasure that was begun."""
    requests: dict[tuple[str, str | None], dict[str, str]] = {}
    for page in pages(root):
        for info in page:
            if match := _PLACE.fullmatch(info.key):
                place, _, name = match[3].rpartition("/")
                found = requests.setdefault((match[1], match[2]), {})
                if found.get(place) != "request.json":  # a place of an earlier version has none
                    found[place] = name
    now = datetime.now(UTC)
    for (customer, subject), places in sorted(requests.items(), key=lambda item: (item[0][0], item[0][1] or "")):
        home = root.child(customer).child(subject) if subject else root.child(customer)
        if home.exists(MARKER):
            yield Row(customer, subject, "due", "its erasure was begun and not finished")
            continue
        if subject is None or "request.json" not in places.values():
            continue
        yield _row(customer, subject, home, places, now)


def _row(customer: str, subject: str, home: Store, places: dict[str, str], now: datetime) -> Row:
    ends: list[datetime | None] = []
    for place, name in sorted(places.items()):
        try:
            ends.append(_expiry(home, f"{place}/{name}" if place else name) if name == "request.json" else None)
        except InputError as error:
            return Row(customer, subject, "failed", str(error))
    left = [end for end in ends if end is None or end > now]
    if not left:
        return Row(customer, subject, "due", f"expired at {max(end for end in ends if end).isoformat()}")
    if None in left:
        return Row(customer, subject, "kept", f"{left.count(None)} of {len(ends)} finetunes do not expire")
    first = min(end for end in left if end).isoformat()
    return Row(customer, subject, "kept", f"{len(left)} of {len(ends)} finetunes have not expired; next at {first}")


def _expiry(home: Store, key: str) -> datetime | None:
    """When a request expires; None if it never does. Raises InputError for one that cannot be read."""
    record = read_members(home, key, {}, most=_LARGEST)
    value = record.get("expires_at")
    if value is None:
        return None
    try:
        end = datetime.fromisoformat(str(value))
    except ValueError:
        end = None
    if end is None or end.tzinfo is None:
        fix = "write it as 2026-12-31T00:00:00+00:00"
        raise InputError(f"expires_at is not a time with its zone: {value!r:.60}", value=home.uri_of(key), fix=fix)
    return end
