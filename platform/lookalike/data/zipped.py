"""A zip archive as a read-only store: members are read where they lie, by range, and never unpacked to disk.

An archive comes from outside. Its names are labels only: one that would leave the archive is listed with a reason, and
nothing is written under it. The sizes that the archive declares are bounded before anything is inflated, and no more is
inflated than declared.
"""

import io
import stat
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import IO, NoReturn, cast

from lookalike.data.formats import archive_kind
from lookalike.data.shards import open_object
from lookalike.errors import ConfigError, InputError, first_line
from lookalike.storage.base import ObjectInfo, Store, check_key
from lookalike.storage.store import size_of
from lookalike.storage.walk import Skipped

_MAX_FILES = 1_000
_MAX_ARCHIVE_BYTES = 2 << 30
_MAX_DIRECTORY_BYTES = 4 << 20  # the list of members, which zipfile reads into memory at once
_MAX_MEMBER_BYTES = 256 << 20
_MAX_TOTAL_BYTES = 2 << 30
_MAX_RATIO = 100  # of a member of more than a MiB; photos are compressed already, and a bomb has 1,000
_READ_AHEAD = 1 << 20
_AGAIN = "make the archive again, with the photos alone, and upload it"


@dataclass(frozen=True)
class ZipStore:
    """The files of the archive at ``key`` in ``outer``, by their names; folders and ``__MACOSX`` are left out.

    Every method of :class:`~lookalike.storage.Store` that would write raises ConfigError. Raises InputError at the
    first use if the archive is damaged, encrypted or too large.
    """

    outer: Store
    key: str

    @property
    def uri(self) -> str:
        return self.outer.uri_of(self.key)

    @property
    def name(self) -> str:
        return self.key.rpartition("/")[2]

    def uri_of(self, key: str) -> str:
        return f"{self.uri}!/{key}"

    def prefix_in(self, outer: Store) -> str | None:
        return "" if outer == self else None

    @property
    def parent(self) -> Store:
        return self.outer

    def survey(self) -> Iterator[ObjectInfo | Skipped]:
        """Yield each file sorted by name, and each name that gives none with its reason, as a sentence part."""
        files, skipped = self._members
        yield from (ObjectInfo(key, info.file_size, f"{info.CRC:08x}") for key, info in sorted(files.items()))
        yield from (Skipped(key, reason) for key, reason in sorted(skipped.items()))

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        for entry in self.survey():
            if isinstance(entry, ObjectInfo) and entry.key.startswith(prefix):
                yield entry

    def exists(self, key: str) -> bool:
        return key in self._members[0]

    def read(self, key: str) -> bytes:
        return self.read_range(key, 0, self._info(key).file_size)

    def read_range(self, key: str, offset: int, length: int) -> bytes:
        left, data = offset, bytearray()
        with self._reading(key) as file:  # in pieces; at the end of the file zipfile compares the checksum
            while left and (skipped := file.read(min(left, _READ_AHEAD))):
                left -= len(skipped)
            while len(data) < length and (piece := file.read(min(length - len(data), _READ_AHEAD))):
                data += piece
        if left or len(data) != length:
            raise InputError("the file in the archive is shorter than declared", value=self.uri_of(key), fix=_AGAIN)
        return bytes(data)

    def download(self, key: str, path: Path) -> None:
        path.write_bytes(self.read(key))

    def _refuse(self, key: str, *_: object) -> NoReturn:
        raise ConfigError("a zip archive is read only", value=self.uri_of(key), fix="name a folder or an S3 prefix")

    write = create = upload = delete = child = _refuse

    @contextmanager
    def _reading(self, key: str) -> Iterator[IO[bytes]]:
        try:
            with self._archive.open(self._info(key)) as file:
                yield file
        except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, OSError) as error:
            problem = first_line(error) or type(error).__name__
            what = f"the file in the archive is damaged, or packed in a way that is not read: {problem}"
            raise InputError(what, value=self.uri_of(key), fix=_AGAIN) from error

    def _info(self, key: str) -> zipfile.ZipInfo:
        info = self._members[0].get(key)
        if info is None:
            raise InputError("no such file in the archive", value=self.uri_of(key), fix="check its name")
        return info

    @cached_property
    def _archive(self) -> zipfile.ZipFile:
        size = size_of(self.outer, self.key)
        if size > _MAX_ARCHIVE_BYTES:
            limit = f"more than the {_MAX_ARCHIVE_BYTES >> 20} MiB of an archive of photos"
            raise InputError(f"the archive has {size >> 20} MiB, {limit}", value=self.uri, fix=_AGAIN)
        whole = cast(io.BufferedReader, open_object(self.outer, ObjectInfo(self.key, size, "")))
        try:
            return zipfile.ZipFile(_Bounded(whole.detach(), _READ_AHEAD))
        except (zipfile.BadZipFile, zipfile.LargeZipFile, EOFError, OSError, ValueError, NotImplementedError) as error:
            problem = first_line(error) or type(error).__name__
            raise InputError(f"not a readable zip archive: {problem}", value=self.uri, fix=_AGAIN) from error

    @cached_property
    def _members(self) -> tuple[dict[str, zipfile.ZipInfo], dict[str, str]]:
        """The files by name, and why other names give none."""
        infos = self._archive.infolist()
        if len(infos) > _MAX_FILES:
            what = f"the archive has {len(infos)} entries, more than {_MAX_FILES}"
            raise InputError(what, value=self.uri, fix=_AGAIN)
        if encrypted := sum(info.flag_bits & 1 for info in infos):
            what = f"{encrypted} files of the archive are encrypted"
            raise InputError(what, value=self.uri, fix="make the archive again, without a password")
        files: dict[str, zipfile.ZipInfo] = {}
        skipped: dict[str, str] = {}
        for info in infos:
            name = info.filename
            reason = _why_not(info)
            if reason is None and name in files:
                reason, name = "a second file of this name", f"{name} (at byte {info.header_offset})"
            if reason is None:
                files[name] = info
            elif reason:
                skipped[_shown(name)] = reason
        if (total := sum(info.file_size for info in files.values())) > _MAX_TOTAL_BYTES:
            what = f"the files of the archive unpack to {total >> 20} MiB, more than {_MAX_TOTAL_BYTES >> 20}"
            raise InputError(what, value=self.uri, fix=_AGAIN)
        return files, skipped


def open_zip(store: Store, key: str) -> ZipStore | None:
    """Return the archive at ``key``; None if the object is not a zip archive, by its name and its first bytes."""
    head = store.read_range(key, 0, min(4, size_of(store, key)))
    return ZipStore(store, key) if key.lower().endswith(".zip") or archive_kind(head) == "zip" else None


def _why_not(info: zipfile.ZipInfo) -> str | None:
    """Why an entry is no file; empty for folders and what a Mac adds, which nobody misses; None for a file."""
    name, kind = info.filename, info.external_attr >> 16
    parts = name.split("/")
    if info.is_dir() or parts[0] == "__MACOSX" or parts[-1] == ".DS_Store":
        return ""
    if "\\" in name or ":" in parts[0] or "" in parts or any(ord(letter) < 32 for letter in name):
        return "its name is not a relative path"
    try:
        check_key(name, name)
    except ConfigError:
        return "its name leads out of the archive"
    if stat.S_IFMT(kind) not in (0, stat.S_IFREG):
        return "a link or a special file, not a photo"
    if info.file_size > _MAX_MEMBER_BYTES:
        return f"more than {_MAX_MEMBER_BYTES >> 20} MiB"
    if info.file_size > max(1 << 20, _MAX_RATIO * info.compress_size):
        return f"it unpacks to more than {_MAX_RATIO} times its size"
    return None


def _shown(name: str) -> str:
    return name.encode("unicode_escape").decode()[:200]


class _Bounded(io.BufferedReader):
    """A file that refuses to read more at once than a list of members may have, as zipfile would."""

    def read(self, size: int | None = -1) -> bytes:
        size = _MAX_DIRECTORY_BYTES if size is None or size < 0 else size
        if size > _MAX_DIRECTORY_BYTES:
            raise zipfile.BadZipFile(f"its list of files has more than {_MAX_DIRECTORY_BYTES >> 20} MiB")
        return super().read(size)
