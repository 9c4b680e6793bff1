"""List a prefix that other programs have filled: every name is an object or has a reason why it is none."""

from collections.abc import Iterator

from lookalike.storage.local import LocalStore
from lookalike.storage.store import ObjectInfo, Store
from lookalike.storage.walk import Skipped


def survey(store: Store, prefix: str = "") -> Iterator[ObjectInfo | Skipped]:
    """Objects whose key starts with ``prefix``, and each name below it that gives no object, in the order of keys.

    In a file system, links are followed if they stay within the store. Object stores have no links and no locked
    folders: there it is a listing.
    """
    yield from store.survey(prefix) if isinstance(store, LocalStore) else store.list(prefix)
