"""The take-down list: its entries, the copy that a curation run reads, and the images that each entry matches."""

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

_RESTORE = "restore it, or remove that version and its file in published/ if it is not used"
_SHOWN = 20  # maximum entries in a job's output
_KINDS = ("sha256", "key", "subject", "source")  # columns of the image table
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
        """Parse a list.

        Raises:
            InputError: a line is not an entry, so that a typing error does not prevent a removal.
        """
        entries: dict[tuple[str, str], None] = {}
        for number, line in enumerate(_LINE.split(text), start=1):
            written = trimmed(line)
            if written and not written.startswith("#"):
                entries[_entry(written, f"line {number} of the take-down list", origin)] = None
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
        return named, counts[_first_of_each(self.entries)]

    def named(self, rows: pa.Table) -> np.ndarray:
        """Return which rows of an image table the list names: bool [N]."""
        return self.matches(rows)[0]

    @property
    def _numbers(self) -> dict[str, dict[str, int]]:
        return _numbered(self.entries)


@lru_cache(maxsize=2)
def _numbered(entries: tuple[tuple[str, str], ...]) -> dict[str, dict[str, int]]:
    """Return the number of each entry by kind and :func:`comparable` name; of equal entries that of the first."""
    numbers: dict[str, dict[str, int]] = {}
    for number, (kind, name) in enumerate(entries):
        numbers.setdefault(kind, {}).setdefault(comparable(kind, name), number)
    return numbers


@lru_cache(maxsize=2)
def _first_of_each(entries: tuple[tuple[str, str], ...]) -> np.ndarray:
    """Return for each entry the number of the first entry that is equal to it: int [entries]."""
    numbers = _numbered(entries)
    return np.array([numbers[kind][comparable(kind, name)] for kind, name in entries], np.int64)


def _entry(written: str, where: str, origin: str) -> tuple[str, str]:
    """Return (kind, name) of one line."""
    content = _HASH_LINE.fullmatch(written)
    if content is not None:
        return "sha256", content.group(1).lower()
    kind, _, name = written.partition(":")
    kind, name = kind.strip().lower(), trimmed(name)
    if kind not in _KINDS[1:] or not name:
        raise InputError(
            f"{where} is not an entry",
            value=written,
            fix=f"write a SHA-256, key:KEY, subject:NAME or source:TEXT in {origin}, one per line and without quotes",
        )
    return kind, name


def pin(uri: str, dataset: Store, max_mib: int = 1024) -> str:
    """Copy the list at ``uri`` below the dataset, under the hash of its bytes, and return the URI of the copy.

    Tasks read the copy, so a list that changes during a curation run affects the next run only.

    Raises:
        InputError: no list at ``uri``, one of more than ``max_mib`` MiB, or a line that is not an entry.
    """
    data = read_at_most(*locate_object(uri), max_mib, "filters.taken_down.max_list_mib")
    TakeDownList.parse(decode_text(data, uri, len(data)), uri)
    key = take_down_list(hashlib.sha256(data).hexdigest())
    if not dataset.exists(key):
        dataset.write(key, data)
    return dataset.uri_of(key)


def pinned_hash(uri: str) -> str:
    """Return the SHA-256 of the list that :func:`pin` has copied to ``uri``, from its name."""
    return take_down_hash(locate_object(uri)[1])


@lru_cache(maxsize=2)
def read_list(pinned: str) -> TakeDownList:
    """Return the list at a URI that :func:`pin` returned; the copy never changes, so it is cached."""
    store, key = locate_object(pinned)
    data = store.read(key)
    return TakeDownList.parse(decode_text(data, pinned, len(data)), pinned)


@dataclass(frozen=True)
class TakeDownWork:
    """What a task gets; unit ``i`` is the table of image rows ``rows[i]``, or the snapshot ``versions[i]``."""

    dataset: str
    list: str
    rows: tuple[ObjectInfo, ...] = ()
    versions: tuple[int, ...] = ()
    workspace: Workspace | None = None
    """Where :func:`count_matches` writes content hashes; None if only snapshots are searched."""


def count_matches(work: TakeDownWork, unit: int) -> Columns:
    """Count the images of one raw shard that each entry names, and write the hashes of these images for :func:`widen`.

    Entries that name no image are left out of the result.
    """
    store = open_store(work.dataset)
    rows = read_columns(store, work.rows[unit], _KINDS)
    named, counts = read_list(work.list).matches(rows)
    contents = sorted({content for content in rows.filter(pa.array(named))["sha256"].to_pylist() if content})
    store.write(_contents_key(work, unit), "".join(f"sha256:{content}\n" for content in contents).encode())
    return _sparse(counts, int(named.sum()), unit)


def widen(work: TakeDownWork, unit: int) -> Columns:
    """Pin the list with the content hashes of all images that it names; return its URI and how many hashes were added.

    So a photo that is removed by its key, subject or source is also removed as an equal file under another name.
    """
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
    """Count the images of a snapshot that the list names, and the rows of its image table that each entry names.

    ``list`` may be a widened one. The table is read in batches.
    """
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
    """Return the sums over all tables: images that each entry names, int [entries], and images by unit that has any."""
    counts, held = np.zeros(entries, np.int64), dict[int, int]()
    for table in tables:
        for row in table.to_pylist():
            for entry, images in json.loads(row["matched"]):
                counts[entry] += images
            if row["held"]:
                held[row["of"]] = row["held"]
    return counts, held


def check_matched(taken: TakeDownList, counts: np.ndarray, before: np.ndarray, allowed: Sequence[str]) -> None:
    """Check that every entry names an image of the raw shards (``counts``) or of an earlier snapshot (``before``).

    Raises:
        InputError: entries name no image and are not in ``allowed``.
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
            " correct them (names are compared exactly, with case, %xx and what follows a #), or allow them:"
            f" --filters.taken_down.allow_unmatched '{_flag(shown)}'",
        )


def entry_lines(taken_down: Mapping[str, Any] | None) -> list[str]:
    """Return lines of a job's output: the images that each entry of the list names, entries without any first."""
    if taken_down is None:
        return []
    matched = sorted(taken_down.get("matched", {}).items(), key=lambda item: item[1] > 0)
    lines = [f"taken down: {entry!r} names {images} images" for entry, images in matched[:_SHOWN]]
    more = taken_down["entries"] - len(lines)
    return [*lines, f"taken down: {more} more entries, see manifest.json"] if more else lines


def _flag(entries: list[str]) -> str:
    """Return the entries as a YAML list for single quotes in a shell."""
    quoted = ('"' + entry.replace("\\", "\\\\").replace('"', '\\"') + '"' for entry in entries)
    return f"[{', '.join(quoted)}]".replace("'", "'\\''")


def _contents_key(work: TakeDownWork, unit: int) -> str:
    assert work.workspace is not None
    return work.workspace.take_down_contents(unit)


def _sparse(counts: np.ndarray, held: int, of: int) -> Columns:
    """Return one row; the entries that name images are JSON, since rows of a batch have different lengths."""
    matched = json.dumps([[int(entry), int(counts[entry])] for entry in np.flatnonzero(counts)])
    return {"of": np.array([of]), "held": np.array([held]), "matched": np.array([matched], object)}
