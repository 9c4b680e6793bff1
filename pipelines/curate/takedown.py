"""The take-down list: its entries, the rows that each of them names, and the copy that a curation run reads."""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from lookalike.data.text import decode_text, normal
from lookalike.errors import ConfigError, InputError
from lookalike.storage import Store, locate_object, location, read_at_most
from pipelines.curate.workspace import take_down_hash, take_down_list

KINDS = ("sha256", "key", "subject", "source")  # columns of the image table
_HASH_LINE = re.compile(r"(?:sha256\s*:)?\s*([0-9a-f]{64})\s*(?:\s#.*)?", re.IGNORECASE)
_BLOCK = 1 << 20  # lines that are parsed at once
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


@dataclass(frozen=True, eq=False)
class TakeDownList:
    """The entries of a take-down list, without repetitions; an entry has a number, its place in the list.

    A list may have millions of content hashes: they take 72 bytes each, and no Python objects.
    """

    contents: np.ndarray
    """Content hashes in ascending order, as :func:`digests`: uint64 [C, 4]."""
    content_numbers: np.ndarray
    """Number of each, int64 [C]."""
    others: dict[int, tuple[str, str]]
    """(kind, name) of the other entries, by number. The kind is a column of the image table: ``key``, ``subject`` or
    ``source``; the name is :func:`trimmed`."""

    def __len__(self) -> int:
        return len(self.contents) + len(self.others)

    def entry(self, number: int) -> tuple[str, str]:
        """Return (kind, name) of an entry; the kind is ``sha256``, ``key``, ``subject`` or ``source``."""
        other = self.others.get(number)
        return other or ("sha256", self.contents[self._place_of[number]].astype(">u8").tobytes().hex())

    def name(self, number: int) -> str:
        """Return an entry as a line of a list."""
        return ":".join(self.entry(number))

    @property
    def entries(self) -> tuple[tuple[str, str], ...]:
        """All entries, in the order of the list."""
        return tuple(map(self.entry, range(len(self))))

    @property
    def names(self) -> list[str]:
        """Each entry as a line of a list."""
        return [self.name(number) for number in range(len(self))]

    @classmethod
    def parse(cls, text: str, origin: str) -> "TakeDownList":
        """Parse a list. Raises InputError if a line is not an entry: a typing error must not prevent a removal."""
        return cls._of(_parsed(text, origin), np.zeros((0, 4), np.uint64))

    @classmethod
    def decode(cls, data: bytes, origin: str) -> "TakeDownList":
        """Parse the bytes of a list as :meth:`parse` does its text. Lines with hashes at its end, of which a list that
        was widened may have millions, are parsed at once."""
        head, hashes = _without_hashes(data)
        return cls._of(_parsed(decode_text(head, origin, len(head)), origin) if head else {}, hashes)

    @classmethod
    def _of(cls, first: dict[tuple[str, str], None], more: np.ndarray) -> "TakeDownList":
        """The entries ``first``, followed by content hashes [N, 4]."""
        named = [(number, name) for number, (kind, name) in enumerate(first) if kind == "sha256"]
        hashes = np.concatenate([digests([name for _, name in named]), more])
        places = np.concatenate([np.array([n for n, _ in named], np.int64), len(first) + np.arange(len(more))])
        kept = first_of_each(hashes)
        unique = np.ones(len(first) + len(more), bool)
        unique[places] = False
        unique[places[kept]] = True
        number = np.cumsum(unique) - 1
        others = {int(number[n]): entry for n, entry in enumerate(first) if entry[0] != "sha256"}
        return cls(hashes[kept], number[places[kept]], others)

    def with_contents(self, hashes: np.ndarray) -> bytes:
        """Return the list as text, with those of ``hashes`` (uint64 [N, 4]) that it lacks at its end."""
        hashes = hashes[first_of_each(hashes)]
        lines = "".join(f"{name}\n" for name in self.names).encode()
        return lines + _hash_lines(hashes[self.find(hashes) < 0])

    def find(self, hashes: np.ndarray) -> np.ndarray:
        """Return the number of each content hash of ``hashes`` (uint64 [N, 4]), -1 if there is none: int64 [N]."""
        numbers = np.full(len(hashes), -1, np.int64)
        place = np.searchsorted(self.contents[:, 0], hashes[:, 0])
        while len(left := np.flatnonzero((place < len(self.contents)) & (numbers < 0))):
            same = self.contents[place[left]] == hashes[left]
            found = same.all(axis=1)
            numbers[left[found]] = self.content_numbers[place[left[found]]]
            place[left] = np.where(same[:, 0], place[left] + 1, len(self.contents))  # others may begin alike
        return numbers

    def matches(self, rows: pa.Table) -> tuple[np.ndarray, np.ndarray]:
        """Return which rows of an image table the list names, bool [N], and how many each entry names, int [E]."""
        named, counts = np.zeros(len(rows), bool), np.zeros(len(self), np.int64)
        places, hashes = contents_of(rows["sha256"])
        numbers = self.find(hashes)
        named[places[numbers >= 0]] = True
        np.add.at(counts, numbers[numbers >= 0], 1)
        for kind, of_kind in self._numbers.items():
            column = rows[kind].combine_chunks().dictionary_encode()  # many rows have the same subject or source
            values = [
                -1 if value is None else of_kind.get(comparable(kind, value), -1)
                for value in column.dictionary.to_pylist()
            ]
            value_N = column.indices.fill_null(len(values)).to_numpy(zero_copy_only=False)
            entry_N = np.array([*values, -1], np.int64)[value_N]
            named |= entry_N >= 0
            np.add.at(counts, entry_N[entry_N >= 0], 1)
        for number, first in self._repeated.items():
            counts[number] = counts[first]
        return named, counts

    @cached_property
    def _numbers(self) -> dict[str, dict[str, int]]:
        """The number of each other entry by kind and :func:`comparable` name; of equal entries that of the first."""
        numbers: dict[str, dict[str, int]] = {}
        for number, (kind, name) in self.others.items():
            numbers.setdefault(kind, {}).setdefault(comparable(kind, name), number)
        return numbers

    @cached_property
    def _repeated(self) -> dict[int, int]:
        """The number of the first equal entry, by the numbers of those that are only spelled in another way."""
        firsts = ((n, self._numbers[kind][comparable(kind, name)]) for n, (kind, name) in self.others.items())
        return {number: first for number, first in firsts if number != first}

    @cached_property
    def _place_of(self) -> np.ndarray:
        """The place in ``contents`` of each number: int64 [E]."""
        places = np.full(len(self), -1, np.int64)
        places[self.content_numbers] = np.arange(len(self.contents))
        return places


def digests(contents: Sequence[str]) -> np.ndarray:
    """Return SHA-256 hashes in hexadecimal digits as words of 64 bits, which sort as the texts do: uint64 [N, 4]."""
    return np.frombuffer(bytes.fromhex("".join(contents)), ">u8").reshape(-1, 4).astype(np.uint64)


def contents_of(column: pa.ChunkedArray) -> tuple[np.ndarray, np.ndarray]:
    """Return the places of the content hashes in a column ``sha256``, int64 [M], and these as :func:`digests`."""
    valid = pc.fill_null(pc.match_substring_regex(column, "^[0-9a-f]{64}$"), False)
    return np.flatnonzero(valid), digests(column.filter(valid).to_pylist())


def first_of_each(hashes: np.ndarray) -> np.ndarray:
    """Return where each hash of ``hashes`` (uint64 [N, 4]) first is, in ascending order of the hashes: int64 [M]."""
    order = np.argsort(hashes[:, 0], kind="stable")
    same = (hashes[order[1:]] == hashes[order[:-1]]).all(axis=1)
    if ((hashes[order[1:], 0] == hashes[order[:-1], 0]) & ~same).any():  # different ones that begin alike
        order = np.lexsort(hashes.T[::-1])
        same = (hashes[order[1:]] == hashes[order[:-1]]).all(axis=1)
    return np.asarray(order[np.concatenate([np.ones(min(1, len(order)), bool), ~same])])


def _parsed(text: str, origin: str) -> dict[tuple[str, str], None]:
    """The entries, in their order."""
    entries: dict[tuple[str, str], None] = {}
    for number, line in enumerate(_LINE.split(text), start=1):
        written = trimmed(line)
        if written and not written.startswith("#"):
            entries[parse_entry(written, f"line {number} of the take-down list", origin)] = None
    return entries


def _hash_lines(hashes: np.ndarray) -> bytes:
    digits = hashes.astype(">u8").tobytes().hex()
    return "".join(f"sha256:{digits[at : at + 64]}\n" for at in range(0, len(digits), 64)).encode()


def _without_hashes(data: bytes) -> tuple[bytes, np.ndarray]:
    """Divide a list into its first bytes, and the content hashes of those lines at its end that are nothing else."""
    mark, width = np.frombuffer(b"sha256:", np.uint8), len("sha256:") + 64 + 1
    rest = len(data) % width
    rows = np.frombuffer(memoryview(data)[rest:], np.uint8).reshape(-1, width)
    blocks: list[np.ndarray] = []
    first = len(rows)
    while first == len(rows) - sum(map(len, blocks)) and first:
        block = rows[max(0, first - _BLOCK) : first]
        digits = block[:, len(mark) : -1]
        valid = (((digits >= ord("0")) & (digits <= ord("9"))) | ((digits >= ord("a")) & (digits <= ord("f")))).all(1)
        valid &= (block[:, : len(mark)] == mark).all(axis=1) & (block[:, -1] == ord("\n"))
        start = int(np.flatnonzero(~valid)[-1]) + 1 if not valid.all() else 0
        blocks.insert(0, digests([digits[start:].tobytes().decode()]))
        first -= len(block)
    hashes = np.concatenate([np.zeros((0, 4), np.uint64), *blocks])
    end = len(data) - len(hashes) * width
    if 0 < end < len(data) and data[end - 1 : end] not in (b"\n", b"\r"):  # the first one is the rest of a line
        return data[: end + width], hashes[1:]
    return data[:end], hashes


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
    TakeDownList.decode(data, uri)
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


@lru_cache(maxsize=4)
def read_list(pinned: str) -> TakeDownList:
    """Return the list at a URI that :func:`keep` returned; the copy never changes, so it is cached."""
    store, key = locate_object(pinned)
    return TakeDownList.decode(store.read(key), pinned)
