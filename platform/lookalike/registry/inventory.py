"""Find the documents that jobs have written below stores, by their names: one listing, whatever there is."""

import logging
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property

from lookalike.config import fingerprint
from lookalike.errors import ConfigError, InputError
from lookalike.registry.versions import identify
from lookalike.storage import ObjectInfo, Store, open_store, read_manifest

log = logging.getLogger(__name__)

_BUNDLE, _MANIFEST = re.compile(r"bundle\.json"), re.compile(r"manifest\.json")
_SNAPSHOT = re.compile(r"(?P<dataset>.+)/v(?P<version>\d{4,})/manifest\.json")
_AT_ONCE = 16  # requests
_SHOWN_EVERY = 100_000  # objects, in the log


def documents(uris: Sequence[str], names: re.Pattern[str]) -> Iterator[ObjectInfo]:
    """Yield the objects whose last segment matches ``names``, with their URIs as keys, in the order of their keys.

    Nothing is kept of the others. A store that lies in another one is listed with that one only.
    """
    listed = 0
    for store in _outermost(uris):
        for info in store.list():
            listed += 1
            if listed % _SHOWN_EVERY == 0:
                log.info("%d objects listed, now at %s", listed, store.uri_of(info.key))
            if names.fullmatch(info.key.rpartition("/")[2]):
                yield ObjectInfo(store.uri_of(info.key), info.size, info.etag, info.modified)


def bundles_below(uris: Sequence[str]) -> Iterator[str]:
    """Yield the places of the bundles below the stores."""
    for info in documents(uris, _BUNDLE):
        yield info.key.rpartition("/")[0]


def snapshots_below(uris: Sequence[str]) -> Iterator[tuple[str, int, str]]:
    """Yield the snapshots below the stores: the data set's URI, the version, and the fingerprint of the manifest.

    A manifest that cannot be read is passed over with a warning: no job could have read it either.
    """
    for info in documents(uris, _MANIFEST):
        if (match := _SNAPSHOT.fullmatch(info.key)) is not None:
            store = open_store(match["dataset"])
            try:
                manifest = read_manifest(store, int(match["version"]))
            except InputError as error:
                log.warning("a snapshot is passed over: %s", error)
                continue
            yield store.uri, int(match["version"]), fingerprint(manifest)


def _outermost(uris: Sequence[str]) -> list[Store]:
    stores: list[Store] = []
    for store in map(open_store, uris):
        if any(store.prefix_in(other) is not None for other in stores):
            continue
        stores = [other for other in stores if other.prefix_in(store) is None] + [store]
    return stores


class Bundles:
    """The places of bundles by their hash, for those that are no longer where they were registered."""

    def __init__(self, places: Sequence[str]) -> None:
        self._places = places

    def places(self, sha256: str, recorded: str | None) -> list[str]:
        """Return where the bundle is: at its recorded place, or at other ones below the stores."""
        if recorded is not None and _identity(recorded) == sha256:
            return [recorded]
        return self._by_sha256.get(sha256, [])

    @cached_property
    def _by_sha256(self) -> dict[str, list[str]]:
        log.info("a bundle is not at its recorded place: %d bundles are compared with it", len(self._places))
        places: dict[str, list[str]] = {}
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            for place, sha256 in zip(self._places, pool.map(_identity, self._places), strict=True):
                if sha256 is not None:
                    places.setdefault(sha256, []).append(place)
        return places


def _identity(place: str) -> str | None:
    try:
        return identify(place)
    except (InputError, ConfigError):
        return None
