"""The take-down list: its entries, the copy that a curation run keeps, and how many images each entry matches."""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lookalike.data.text import decode_text, normal
from lookalike.documents import decoding
from lookalike.errors import ConfigError, InputError
from lookalike.scratch import scratch
from lookalike.storage import ObjectInfo, Store, locate_object, location, open_store, read_at_most, version_store
from pipelines.actors import Columns
from pipelines.curate.tables import read_columns
from pipelines.curate.workspace import IMAGES_TABLE, Workspace, take_down_hash, take_down_list

_RESTORE = "restore it, or remove that version and its file in published/ if nothing needs it"
_MAX_BYTES = 1 << 30  # of a list: 16 million hashes
_SHOWN = 20  # entries in a job's output
_KINDS = ("sha256", "key", "subject", "source")  # columns of the image table
_HASH_LINE = re.compile(r"(?:sha256\s*:)?\s*([0-9a-f]{64})\s*(?:\s#.*)?", re.IGNORECASE)
_LINE = re.compile(r"\r\n|\n|\r")  # str.splitlines would also divide a name at a form feed or U+2028
# Spaces of no width and marks of direction: what comes along when a name is copied out of a page or a file manager.
_UNSEEN = "\u200b\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2060\u2066\u2067\u2068\u2069\ufeff"


def trimmed(name: str) -> str:
    """The form in which names are compared: Unicode's NFC, without spaces and invisible marks at the ends."""
    text = normal(name)
    while (shorter := text.strip().strip(_UNSEEN)) != text:
        text = shorter
    return text


def comparable(kind: str, name: str) -> str:
    """What two names of that kind have in common if they name the same: :func:`trimmed`, and for a source that is a
    ``file:`` URI its path, since blanks and other marks of it may be percent-encoded or not."""
    name = trimmed(name)
    if kind != "source" or not name.lower().startswith("file:"):
        return name
    try:
        return trimmed(f"file://{location.local_path(name)}")
    except ConfigError:  # such as that of another host
        return name


@dataclass(frozen=True)
class TakeDownList:
    """What is to be removed."""

    entries: tuple[tuple[str, str], ...]
    """(kind, name) of each entry, in the order of the list and once each. The kind is a column of the image table:
    ``sha256``, ``key``, ``subject`` or ``source``; the name is as :func:`trimmed` gives it."""

    def __len__(self) -> int:
        return len(self.entries)

    @property
    def names(self) -> list[str]:
        """Each entry as it could be written."""
        return [f"{kind}:{name}" for kind, name in self.entries]

    @classmethod
    def parse(cls, text: str, origin: str) -> "TakeDownList":
        """Read a list. Raises InputError for a line that is not an entry: a removal must not be lost to a typing
        error."""
        entries: dict[tuple[str, str], None] = {}
        for number, line in enumerate(_LINE.split(text), start=1):
            written = trimmed(line)
            if written and not written.startswith("#"):
                entries[_entry(written, f"line {number} of the take-down list", origin)] = None
        return cls(tuple(entries))

    def matches(self, rows: pa.Table) -> tuple[np.ndarray, np.ndarray]:
        """Which rows of an image table the list names (bool [N]), and how many each entry names (int [entries])."""
        named, counts = np.zeros(len(rows), bool), np.zeros(len(self), np.int64)
        for kind, numbers in self._numbers.items():
            column = rows[kind].combine_chunks().dictionary_encode()  # a subject or source stands in many rows
            values = [
                -1 if value is None else numbers.get(comparable(kind, value), -1)
                for value in column.dictionary.to_pylist()
            ]
            places = column.indices.fill_null(len(values)).to_numpy(zero_copy_only=False)
            entry_N = np.array([*values, -1], np.int64)[places]
            named |= entry_N >= 0
            counts += np.bincount(entry_N[entry_N >= 0], minlength=len(self))
        return named, counts[_first_of_each(self.entries)]

    def named(self, rows: pa.Table) -> np.ndarray:
        """Which rows of an image table the list names: bool [N]."""
        return self.matches(rows)[0]

    @property
    def _numbers(self) -> dict[str, dict[str, int]]:
        return _numbered(self.entries)


@lru_cache(maxsize=2)
def _numbered(entries: tuple[tuple[str, str], ...]) -> dict[str, dict[str, int]]:
    """The number of each entry by kind and :func:`comparable` name; of entries that name the same the first one's."""
    numbers: dict[str, dict[str, int]] = {}
    for number, (kind, name) in enumerate(entries):
        numbers.setdefault(kind, {}).setdefault(comparable(kind, name), number)
    return numbers


@lru_cache(maxsize=2)
def _first_of_each(entries: tuple[tuple[str, str], ...]) -> np.ndarray:
    """For each entry the number of the first that names the same: int [entries]."""
    numbers = _numbered(entries)
    return np.array([numbers[kind][comparable(kind, name)] for kind, name in entries], np.int64)


def _entry(written: str, where: str, origin: str) -> tuple[str, str]:
    """(kind, name) of one line."""
    content = _HASH_LINE.fullmatch(written)
    if content is not None:
        return "sha256", content.group(1).lower()
    kind, _, name = written.partition(":")
    kind, name = kind.strip().lower(), trimmed(name)
    if kind not in _KINDS[1:] or not name:
        raise InputError(
            f"{where} is not an entry",
            value=written,
            fix=f"write a SHA-256, key:KEY, subject:NAME or source:TEXT in {origin}, one a line and without quotes",
        )
    return kind, name


def pin(uri: str, dataset: Store) -> str:
    """Copy the list at ``uri`` below the dataset, by its content, and return the URI of the copy.

    Tasks read the copy: whoever changes the list in the middle of a curation changes the next one.

    Raises:
        InputError: no list there, or a line that is not an entry.
    """
    data = _read(uri)
    TakeDownList.parse(decode_text(data, uri, _MAX_BYTES), uri)
    key = take_down_list(hashlib.sha256(data).hexdigest())
    if not dataset.exists(key):
        dataset.write(key, data)
    return dataset.uri_of(key)


def pinned_hash(uri: str) -> str:
    """SHA-256 of the list that :func:`pin` has copied to ``uri``, by its name."""
    return take_down_hash(locate_object(uri)[1])


@lru_cache(maxsize=2)
def read_list(pinned: str) -> TakeDownList:
    """The list at the URI that :func:`pin` gave; what lies there never changes."""
    return TakeDownList.parse(decode_text(_read(pinned), pinned, _MAX_BYTES), pinned)


@dataclass(frozen=True)
class TakeDownWork:
    """Unit ``i`` is the table of image rows ``rows[i]``, or the snapshot ``versions[i]``."""

    dataset: str
    list: str
    rows: tuple[ObjectInfo, ...] = ()
    versions: tuple[int, ...] = ()
    workspace: Workspace | None = None
    """Where :func:`count_matches` writes content hashes; None if only snapshots are searched."""


def count_matches(work: TakeDownWork, unit: int) -> Columns:
    """How many images of one raw shard each entry names; entries that name none are left out. The hashes of these
    images are written for :func:`widen`."""
    store = open_store(work.dataset)
    rows = read_columns(store, work.rows[unit], _KINDS)
    named, counts = read_list(work.list).matches(rows)
    contents = sorted({content for content in rows.filter(pa.array(named))["sha256"].to_pylist() if content})
    store.write(_contents_key(work, unit), "".join(f"sha256:{content}\n" for content in contents).encode())
    return _sparse(counts, int(named.sum()), unit)


def widen(work: TakeDownWork, unit: int) -> Columns:
    """Pin the list with the contents of all images that it names: a photo that is removed by its key, subject or source
    does not come back as an equal file under another one. Returns the URI and how many contents were added."""
    store, taken = open_store(work.dataset), read_list(work.list)
    contents = {
        line for unit in range(len(work.rows)) for line in store.read(_contents_key(work, unit)).decode().splitlines()
    }
    added = sorted(contents.difference(taken.names))
    uri = work.list
    if added:
        data = "".join(f"{line}\n" for line in [*taken.names, *added]).encode()
        key = take_down_list(hashlib.sha256(data).hexdigest())
        store.write(key, data)
        uri = store.child(key).uri
    return {"uri": np.array([uri], object), "added": np.array([len(added)])}


def find_holders(work: TakeDownWork, unit: int) -> Columns:
    """How many images that the list names a snapshot holds, and how many rows of its image table, which streams by,
    each entry names. ``list`` may be a widened one."""
    version, taken, held = work.versions[unit], read_list(work.list), 0
    counts = np.zeros(len(taken), np.int64)
    store, name = version_store(open_store(work.dataset), version), IMAGES_TABLE
    with scratch("images") as folder, decoding("an image table", store.uri_of(name), fix=_RESTORE):
        path = folder / name
        store.download(name, path)
        for batch in pq.ParquetFile(path).iter_batches(batch_size=65536, columns=[*_KINDS, "drop_reason"]):
            rows = pa.Table.from_batches([batch])
            named, matched = taken.matches(rows)
            held += int((named & np.asarray(rows["drop_reason"].is_null())).sum())
            counts += matched
    return _sparse(counts, held, version)


def summed(tables: Iterable[pa.Table], entries: int) -> tuple[np.ndarray, dict[int, int]]:
    """Images that each entry names (int [entries]), and the images held by each unit that holds any, of all tables."""
    counts, held = np.zeros(entries, np.int64), dict[int, int]()
    for table in tables:
        for row in table.to_pylist():
            for entry, images in json.loads(row["matched"]):
                counts[entry] += images
            if row["held"]:
                held[row["of"]] = row["held"]
    return counts, held


def check_matched(taken: TakeDownList, counts: np.ndarray, before: np.ndarray, allowed: Sequence[str]) -> None:
    """Every entry names an image of these raw shards (``counts``) or of an earlier snapshot (``before``).

    Raises:
        InputError: entries that name none and are not in ``allowed``, each as the list has it.
    """
    of_setting = (_entry(trimmed(entry), "filters.taken_down.allow_unmatched", "the setting") for entry in allowed)
    permitted = {(kind, comparable(kind, name)) for kind, name in of_setting}
    missing = [
        name
        for name, (kind, text), count, earlier in zip(taken.names, taken.entries, counts, before, strict=True)
        if not count and not earlier and (kind, comparable(kind, text)) not in permitted
    ]
    if missing:
        shown = missing[:10]
        more = f" (10 of {len(missing)} are shown)" if len(missing) > 10 else ""
        raise InputError(
            f"{len(missing)} of {len(taken)} entries of the take-down list name no image{more}",
            value=shown,
            fix="compare them with the columns sha256, key, subject and source of the snapshots' images.parquet and"
            " correct them (names count exactly, with case, %xx and whatever follows a #), or allow them by name:"
            f" --filters.taken_down.allow_unmatched '{_flag(shown)}'",
        )


def entry_lines(taken_down: Mapping[str, Any] | None) -> list[str]:
    """For a job's output: how many images each entry of the list has matched, those that matched none first."""
    if taken_down is None:
        return []
    matched = sorted(taken_down.get("matched", {}).items(), key=lambda item: item[1] > 0)
    lines = [f"taken down: {entry!r} names {images} images" for entry, images in matched[:_SHOWN]]
    more = taken_down["entries"] - len(lines)
    return [*lines, f"taken down: {more} more entries, see manifest.json"] if more else lines


def _flag(entries: list[str]) -> str:
    """The entries as a list of YAML within single quotes of a shell."""
    quoted = ('"' + entry.replace("\\", "\\\\").replace('"', '\\"') + '"' for entry in entries)
    return f"[{', '.join(quoted)}]".replace("'", "'\\''")


def _contents_key(work: TakeDownWork, unit: int) -> str:
    assert work.workspace is not None
    return work.workspace.take_down_contents(unit)


def _sparse(counts: np.ndarray, held: int, of: int) -> Columns:
    """One row; the entries that name images as JSON, since a batch may hold rows of different lengths."""
    matched = json.dumps([[int(entry), int(counts[entry])] for entry in np.flatnonzero(counts)])
    return {"of": np.array([of]), "held": np.array([held]), "matched": np.array([matched], object)}


def _read(uri: str) -> bytes:
    store, key = locate_object(uri)
    return read_at_most(store, key, _MAX_BYTES)
