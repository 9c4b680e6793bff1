"""The take-down list: its entries, the rows that each of them names, and the copy that a curation run reads."""

import hashlib
import re
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
import pyarrow as pa

from lookalike.data.text import decode_text, normal
from lookalike.errors import ConfigError, InputError
from lookalike.storage import Store, locate_object, location, read_at_most
from pipelines.curate.workspace import take_down_hash, take_down_list

KINDS = ("sha256", "key", "subject", "source")  # columns of the image table
_HASH_LINE = re.compile(r"(?:sha256\s*:)?\s*([0-9a-f]{64})\s*(?:\s#.*)?", re.IGNORECASE)
_LINE = re.compile(r"\r\n|\n|\r")  # str.splitlines would also divide a name at a form feed or U+2028
# Spaces of no width and marks of direction, which are copied with a name from a page or a file manager.
_UNSEEN = "\u200b\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2060\u2066\u2067\u2068\u2069\ufeff"


def trimmed(name: str) -> str:
    """Return a name in Unicode's form NFC, without spaces and invisible marks at its ends."""
    text = normal(name)
    while (shorter := text.strip().strip(_UNSEEN)) != text:
        text = shorter
    return text


def comparable(kind: str, name: str) -> str:
    """Return the form in which names of a kind are compared: :func:`trimmed`, and of a ``file:`` URI of a source its
    path, in which blanks and other characters may be percent-encoded or not."""
    name = trimmed(name)
    if kind != "source" or not name.lower().startswith("file:"):
        return name
    try:
        return trimmed(f"file://{location.local_path(name)}")
    except ConfigError:  # such as a URI of another host
        return name


@dataclass(frozen=True)
class TakeDownList:
    """The entries of a take-down list."""

    entries: tuple[tuple[str, str], ...]
    """(kind, name) of each entry, in the order of the list and without repetitions. The kind is a column of the image
    table: ``sha256``, ``key``, ``subject`` or ``source``; the name is :func:`trimmed`."""

    def __len__(self) -> int:
        return len(self.entries)

    @property
    def names(self) -> list[str]:
        """Each entry as a line of a list."""
        return [f"{kind}:{name}" for kind, name in self.entries]

    @classmethod
    def parse(cls, text: str, origin: str) -> "TakeDownList":
        """Parse a list. Raises InputError if a line is not an entry: a typing error must not prevent a removal."""
        entries: dict[tuple[str, str], None] = {}
        for number, line in enumerate(_LINE.split(text), start=1):
            written = trimmed(line)
            if written and not written.startswith("#"):
                entries[parse_entry(written, f"line {number} of the take-down list", origin)] = None
        return cls(tuple(entries))

    def matches(self, rows: pa.Table) -> tuple[np.ndarray, np.ndarray]:
        """Return which rows of an image table the list names, bool [N], and how many each entry names, int [E]."""
        named, counts = np.zeros(len(rows), bool), np.zeros(len(self), np.int64)
        for kind, numbers in self._numbers.items():
            column = rows[kind].combine_chunks().dictionary_encode()  # many rows have the same subject or source
            values = [
                -1 if value is None else numbers.get(comparable(kind, value), -1)
                for value in column.dictionary.to_pylist()
            ]
            places = column.indices.fill_null(len(values)).to_numpy(zero_copy_only=False)
            entry_N = np.array([*values, -1], np.int64)[places]
            named |= entry_N >= 0
            counts += np.bincount(entry_N[entry_N >= 0], minlength=len(self))
        return named, counts[self._first]

    @cached_property
    def _numbers(self) -> dict[str, dict[str, int]]:
        """The number of each entry by kind and :func:`comparable` name; of equal entries that of the first."""
        numbers: dict[str, dict[str, int]] = {}
        for number, (kind, name) in enumerate(self.entries):
            numbers.setdefault(kind, {}).setdefault(comparable(kind, name), number)
        return numbers

    @cached_property
    def _first(self) -> np.ndarray:
        """The number of the first entry that is equal to each entry: int [E]."""
        return np.array([self._numbers[kind][comparable(kind, name)] for kind, name in self.entries], np.int64)


def parse_entry(written: str, where: str, origin: str) -> tuple[str, str]:
    """Return (kind, name) of one line; ``where`` names the line in the error, and ``origin`` its list."""
    content = _HASH_LINE.fullmatch(written)
    if content is not None:
        return "sha256", content.group(1).lower()
    kind, _, name = written.partition(":")
    kind, name = kind.strip().lower(), trimmed(name)
    if kind not in KINDS[1:] or not name:
        raise InputError(
            f"{where} is not an entry",
            value=written,
            fix=f"write a SHA-256, key:KEY, subject:NAME or source:TEXT in {origin}, one per line and without quotes",
        )
    return kind, name


def pin(uri: str, dataset: Store, max_mib: int = 1024) -> str:
    """Copy the list at ``uri`` below the dataset by :func:`keep`, and return the URI of the copy.

    Tasks read the copy, so a list that changes during a curation run affects the next run only.
    Raises InputError if there is none, if it has more than ``max_mib`` MiB, or if a line is not an entry.
    """
    data = read_at_most(*locate_object(uri), max_mib, "filters.taken_down.max_list_mib")
    TakeDownList.parse(decode_text(data, uri, len(data)), uri)
    return keep(data, dataset)


def keep(data: bytes, dataset: Store) -> str:
    """Write a list below the dataset, under the hash of its bytes, unless it is there, and return its URI."""
    key = take_down_list(hashlib.sha256(data).hexdigest())
    if not dataset.exists(key):
        dataset.write(key, data)
    return dataset.uri_of(key)


def pinned_hash(uri: str) -> str:
    """Return the SHA-256 of the list that :func:`keep` has written to ``uri``, from its name."""
    return take_down_hash(locate_object(uri)[1])


@lru_cache(maxsize=2)
def read_list(pinned: str) -> TakeDownList:
    """Return the list at a URI that :func:`keep` returned; the copy never changes, so it is cached."""
    store, key = locate_object(pinned)
    data = store.read(key)
    return TakeDownList.parse(decode_text(data, pinned, len(data)), pinned)
