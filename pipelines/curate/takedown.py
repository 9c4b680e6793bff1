"""The take-down list: what it names, the copy that a curation keeps of it, and which snapshots held what it names."""

import hashlib
import re
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lookalike.errors import InputError
from lookalike.scratch import scratch
from lookalike.storage import Store, locate_object, open_store, version_store
from pipelines.actors import Columns

FOLDER = "work/taken-down"
_KINDS = ("sha256", "key", "subject", "source")  # columns of the image table
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class TakeDownList:
    """What is to be removed: for each kind of name (a column of the image table) the names."""

    names: dict[str, frozenset[str]]
    """``sha256``, ``key``, ``subject`` and ``source``, those that occur."""

    def __len__(self) -> int:
        return sum(map(len, self.names.values()))

    @classmethod
    def parse(cls, text: str, origin: str) -> "TakeDownList":
        """Read a list. Raises InputError for a line that is no entry: a removal must not be lost to a typing error."""
        names: dict[str, set[str]] = {}
        for number, line in enumerate(text.splitlines(), start=1):
            entry = line.partition("#")[0].strip()
            if not entry:
                continue
            kind, colon, name = entry.partition(":")
            if not colon and _SHA256.fullmatch(entry.lower()):
                kind, name = "sha256", entry
            name = name.strip().lower() if kind == "sha256" else name.strip()
            if kind not in _KINDS or not name or (kind == "sha256" and not _SHA256.fullmatch(name)):
                raise InputError(
                    f"line {number} of the take-down list is no entry",
                    value=entry,
                    fix=f"write a SHA-256, key:KEY, subject:NAME or source:TEXT in {origin}",
                )
            names.setdefault(kind, set()).add(name)
        return cls({kind: frozenset(found) for kind, found in sorted(names.items())})

    def named(self, rows: pa.Table) -> np.ndarray:
        """Which rows of an image table the list names: bool [N]."""
        found = np.zeros(len(rows), bool)
        for kind, names in self.names.items():
            found |= np.array([value in names for value in rows[kind].to_pylist()], bool)
        return found


def pin(uri: str, dataset: Store) -> str:
    """Copy the list at ``uri`` below the dataset, by its content, and return the URI of the copy.

    Tasks read the copy: whoever changes the list in the middle of a curation changes the next one.

    Raises:
        InputError: no list there, or a line that is no entry.
    """
    data = _read(uri)
    TakeDownList.parse(_text(data, uri), uri)
    key = f"{FOLDER}/{hashlib.sha256(data).hexdigest()}.txt"
    if not dataset.exists(key):
        dataset.write(key, data)
    return dataset.uri_of(key)


def pinned_hash(uri: str) -> str:
    """SHA-256 of the list that :func:`pin` has copied to ``uri``, by its name."""
    return locate_object(uri)[1].removesuffix(".txt")


@lru_cache(maxsize=2)
def read_list(pinned: str) -> TakeDownList:
    """The list at the URI that :func:`pin` gave; what lies there never changes."""
    return TakeDownList.parse(_text(_read(pinned), pinned), pinned)


@dataclass(frozen=True)
class HoldersWork:
    """Unit ``i`` is the snapshot ``versions[i]``."""

    dataset: str
    list: str
    versions: tuple[int, ...]


def find_holders(work: HoldersWork, unit: int) -> Columns:
    """How many images that the list names a snapshot holds; its image table streams by."""
    version, taken, held = work.versions[unit], read_list(work.list), 0
    with scratch("images") as folder:
        path = folder / "images.parquet"
        version_store(open_store(work.dataset), version).download(path.name, path)
        for batch in pq.ParquetFile(path).iter_batches(batch_size=65536, columns=[*_KINDS, "drop_reason"]):
            rows = pa.Table.from_batches([batch])
            held += int((taken.named(rows) & np.asarray(rows["drop_reason"].is_null())).sum())
    return {"version": np.array([version]), "images": np.array([held])}


def _read(uri: str) -> bytes:
    store, key = locate_object(uri)
    return store.read(key)


def _text(data: bytes, uri: str) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError("the take-down list is no UTF-8 text", value=uri, fix="save it as UTF-8") from error
