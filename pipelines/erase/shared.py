"""Shared data sets that hold a customer's photos: their take-down list, and texts to search for."""

import re

import numpy as np

from lookalike.errors import ConfigError
from lookalike.storage import Store, locate_object
from pipelines.curate.takedown import TakeDownList
from pipelines.erase.state import Inventory

_MOST_TEXTS = 500  # hashes that a database is searched for
_NOTE = b"# added by an erasure\n"


def check(inventory: Inventory, uri: str | None) -> None:
    """Raise ConfigError if shared data sets hold photos and no take-down list is named."""
    if inventory.holders and uri is None:
        names = sorted({f"{holder.dataset} v{holder.version:04d}" for holder in inventory.holders})
        raise ConfigError(
            f"shared data sets hold photos of this customer: {', '.join(names)}",
            value=sum(holder.images for holder in inventory.holders),
            fix="name the take-down list that they are curated with: --take-down URI",
        )


def take_down(inventory: Inventory, home: Store, uri: str | None) -> None:
    """Add the photos to the take-down list at ``uri``, which is made if it is missing."""
    if not inventory.holders or uri is None:
        return
    store, key = locate_object(uri)
    before = store.read(key) if store.exists(key) else b""
    lacking = _lacking(before, inventory, home, uri)
    if lacking:
        end = b"" if not before or before.endswith((b"\n", b"\r")) else b"\n"
        store.write(key, before + end + _NOTE + "".join(f"sha256:{name}\n" for name in lacking).encode())


def missing(inventory: Inventory, home: Store, uri: str | None) -> list[str]:
    """Photos that the list lacks, such as after another job had rewritten it meanwhile."""
    if not inventory.holders or uri is None:
        return []
    store, key = locate_object(uri)
    lacking = _lacking(store.read(key) if store.exists(key) else b"", inventory, home, uri)
    return [f"{len(lacking)} photos are not on the take-down list {uri}"] if lacking else []


def count(inventory: Inventory, uri: str | None) -> int:
    """How many photos are on the list."""
    return inventory.photos if inventory.holders and uri is not None else 0


def some_photos(inventory: Inventory, home: Store) -> list[str]:
    """The content hashes to search a database for; the first ones of very many."""
    text = home.read(inventory.photos_key).decode()
    return [line.removeprefix("sha256:") for line in text.split()[:_MOST_TEXTS]]


def joined(pattern: re.Pattern[str], texts: list[str]) -> re.Pattern[str]:
    """``pattern``, or one of ``texts``."""
    return re.compile("|".join([pattern.pattern, *map(re.escape, texts)]))


def _lacking(data: bytes, inventory: Inventory, home: Store, uri: str) -> list[str]:
    ours = TakeDownList.decode(home.read(inventory.photos_key), home.uri_of(inventory.photos_key))
    listed = TakeDownList.decode(data, uri)
    return [ours.contents[n].astype(">u8").tobytes().hex() for n in np.flatnonzero(listed.find(ours.contents) < 0)]
