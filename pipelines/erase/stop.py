"""Wait until nothing works for a customer any more."""

import logging
import re
import time

from lookalike.errors import BusyError, InputError
from lookalike.storage import Store
from lookalike.storage.erasing import FOLDER
from lookalike.storage.lease import live_holder
from lookalike.storage.purge import pages
from lookalike.training.stopping import STOP

log = logging.getLogger(__name__)

_LEASE = re.compile(r"(.*/lease)/\d{8,}\.json", re.DOTALL)
_EVERY_S = 1.0


def wait_until_stopped(home: Store, wait_s: float) -> None:
    """Ask training runs below ``home`` to stop, and wait until no process holds a lease there.

    The erasure's marker makes each holder end at its next commit; a training run looks for ``STOP`` every second.
    Raises BusyError if one still does after ``wait_s`` seconds.
    """
    places = {match[1] for page in pages(home) for info in page if (match := _LEASE.fullmatch(info.key))}
    working = {place: home.child(place) for place in sorted(places) if not place.startswith(FOLDER)}
    end, shown = time.monotonic() + wait_s, ""
    while working:
        holders = {place: holder for place, store in working.items() if (holder := _holder(store))}
        working = {place: working[place] for place in holders}
        if not working:
            return
        if (now := "; ".join(f"{place}: {holder}" for place, holder in holders.items())) != shown:
            log.info("waiting for %d jobs to stop: %s", len(holders), now)
            shown = now
            for place in holders:
                home.write(f"{place.removesuffix('lease')}{STOP}", b"erased\n")
        if time.monotonic() >= end:
            raise BusyError(
                f"{len(holders)} jobs still work for this customer after {wait_s:.0f} s: {shown}",
                value=home.uri,
                fix="stop them, and run the same command again; nothing has been removed, and nothing new can start",
            )
        time.sleep(_EVERY_S)


def _holder(store: Store) -> str | None:
    """The holder of a lease; None for a damaged record, with which no holder can renew."""
    try:
        return live_holder(store)
    except InputError as error:
        log.warning("the record of a lease is damaged, and its holder counts as stopped: %s", error.what)
        return None
