"""Request files of fleets, and the records beside them, that name the customer."""

import re
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import PurePosixPath
from typing import Any

from lookalike.config import read_config_file
from lookalike.errors import LookalikeError
from lookalike.scratch import scratch
from lookalike.storage import Store, open_store
from lookalike.storage.purge import Entry, pages, purge
from pipelines.erase.scope import Scope
from pipelines.fleet.records import DONE, LEASES

_AT_ONCE = 16  # reads of files
_LARGEST = 1 << 20  # bytes of a request; what is larger is none


def find(uri: str, scope: Scope) -> list[Entry]:
    """Return the objects in a folder of requests that are the customer's: its requests, and what a fleet recorded of
    them. Every file of the folder is read."""
    folder = open_store(uri)
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        ours: list[Entry] = []
        names: set[str] = set()
        others: list[Entry] = []
        for page in pages(folder):
            entries = [Entry(info.key, info.size, info.etag) for info in page]
            for entry, named in zip(entries, pool.map(partial(_is_ours, folder, scope), entries), strict=True):
                if named:
                    ours.append(entry)
                    names.add(_name(entry.key))
                elif "/" in entry.key:  # a lease or failure record without the customer's id
                    others.append(entry)
    return ours + [entry for entry in others if _name(entry.key) in names]


def count(uris: Iterable[str], scope: Scope) -> dict[str, list[int]]:
    """Count the objects, and their bytes, in each folder that has some."""
    found = {open_store(uri).uri: find(uri, scope) for uri in uris}
    return {uri: [len(objects), sum(each.size for each in objects)] for uri, objects in found.items() if objects}


def remove(uris: Iterable[str], scope: Scope) -> None:
    """Remove them, with their old versions."""
    for uri in uris:
        keys = {entry.key for entry in find(uri, scope)}
        if keys:
            purge(open_store(uri), only=keys)


def left(uris: Iterable[str], scope: Scope) -> list[str]:
    """Return the URIs of what is left."""
    return [open_store(uri).uri_of(entry.key) for uri in uris for entry in find(uri, scope)]


def _is_ours(folder: Store, scope: Scope, entry: Entry) -> bool:
    if entry.size > _LARGEST or not folder.exists(entry.key):
        return False
    data = folder.read(entry.key)
    text = data.decode(errors="replace")
    if scope.pattern.search(text):
        return True
    if scope.customer not in text and not _may_hide_ids(text):
        return False
    settings = _settings(data)
    if settings is None:  # a fleet refuses it too
        wanted = {"customer": scope.customer, **({"subject": scope.subject} if scope.subject else {})}
        return all(re.search(rf"{key}\W{{1,4}}{re.escape(value)}(?![\w-])", text) for key, value in wanted.items())
    return settings.get("customer") == scope.customer and scope.subject in (None, settings.get("subject"))


def _may_hide_ids(text: str) -> bool:
    """Whether an id may be written with escapes (``"\\u0061cme"``), or in another encoding than UTF-8."""
    return "\\" in text or "\ufffd" in text or "\0" in text


def _settings(data: bytes) -> dict[str, Any] | None:
    """The settings in a request or a record; None if it has none that can be read."""
    with scratch("request") as folder:
        (folder / "request.yaml").write_bytes(data)
        try:
            return read_config_file(folder / "request.yaml")
        except LookalikeError:
            return None


def _name(key: str) -> str:
    """The name of the request that a file, or a record, is of."""
    path = PurePosixPath(key)
    if path.parts[0] == LEASES:
        return path.parts[1]
    return path.stem.rpartition(".")[0] if path.parts[0] == DONE else path.stem
