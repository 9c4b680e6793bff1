"""A listing of a prefix that others have filled, in which every name has its place."""

from collections.abc import Iterator

from lookalike.storage.local import LocalStore
from lookalike.storage.store import ObjectInfo, Store
from lookalike.storage.walk import Skipped


def survey(store: Store, prefix: str = "") -> Iterator[ObjectInfo | Skipped]:
    """Objects whose key starts with ``prefix``, and each name below it that gives no object, in the order of keys.

    Of a file system links are followed as far as they stay within the store. Object stores have no links and no locked
    folders: there it is a listing.
    """
    yield from store.survey(prefix) if isinstance(store, LocalStore) else store.list(prefix)
