"""The marker of an erasure: nothing below a customer's or subject's prefix starts, resumes or commits while it exists.

An erasure writes ``.erasing/erasing.json`` below ``customers/CUSTOMER`` or ``customers/CUSTOMER/SUBJECT`` first and
removes it last. No id begins with a dot, so no subject can have that name. Claims, results and leases look for the
marker (:func:`refuse_if_erasing`); long loops without a lease call :meth:`Watch.check`.
"""

import re
import time
from dataclasses import dataclass, field

from lookalike.errors import BusyError
from lookalike.storage.base import Store
from lookalike.storage.store import open_store

CUSTOMERS = "customers"
IDENTIFIER = re.compile(r"[a-z0-9](?:[a-z0-9_]|-(?=[a-z0-9_])){0,62}")
"""Ids of customers, subjects and base models, see :func:`lookalike.registry.names.validate_identifier`."""
FOLDER = ".erasing"
MARKER = f"{FOLDER}/erasing.json"
_EVERY_S = 5.0


def prefixes_of(store: Store) -> list[Store]:
    """The prefixes that ``store`` lies in: its customer's and its subject's, or none.

    Of several folders named ``customers`` in a path the first one counts, as everywhere.
    """
    segments = store.uri.split("/")
    for place in range(3, len(segments) - 1):  # behind the scheme and the bucket
        if segments[place] == CUSTOMERS and IDENTIFIER.fullmatch(segments[place + 1]):
            ends = [place + 2]
            if len(segments) > place + 2 and IDENTIFIER.fullmatch(segments[place + 2]):
                ends.append(place + 3)
            return [open_store("/".join(segments[:end])) for end in ends]
    return []


def refuse_if_erasing(store: Store) -> None:
    """Raise BusyError if the customer or subject that ``store`` belongs to is being erased; other stores pass.

    It costs one or two requests, and none outside of customers' prefixes. The erasure's own state passes.
    """
    if FOLDER in store.uri.split("/"):
        return
    for prefix in prefixes_of(store):
        if prefix.exists(MARKER):
            raise BusyError(
                "this data is being erased, so nothing may start, resume or be written here",
                value=prefix.uri,
                fix="start nothing for it; if the erasure was killed, run the same jobs/erase.py command again",
            )


@dataclass
class Watch:
    """Looks for the marker at most once in ``every_s`` seconds, for loops over many short units of work."""

    store: Store
    every_s: float = _EVERY_S
    looked: float = field(default=float("-inf"))

    def check(self) -> None:
        """Raise BusyError as :func:`refuse_if_erasing` does."""
        if time.monotonic() - self.looked >= self.every_s:
            refuse_if_erasing(self.store)
            self.looked = time.monotonic()
