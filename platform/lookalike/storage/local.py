"""The store on a file system: atomic renames for writes, hard links for conditional writes."""

import errno
import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from lookalike.errors import ConfigError, ConflictError, InputError
from lookalike.storage import location
from lookalike.storage.base import ObjectInfo, Store, check_key
from lookalike.storage.walk import LINK_ROOTS, PART, Skipped, stays_within, walk

_READING = "check the disk, and run the same command again"
_WRITING = "free some space, or choose another location; the partial file was removed"


@dataclass(frozen=True)
class LocalStore:
    """Objects are files below ``root``, an absolute path. Links are followed as far as
    :mod:`lookalike.storage.walk` allows; others are errors that name them. ``root`` itself may be a link."""

    root: Path

    @property
    def uri(self) -> str:
        return location.local_uri(self.root)

    @property
    def name(self) -> str:
        return self.root.name

    @property
    def parent(self) -> "LocalStore":
        if self.root.parent == self.root:
            raise ConfigError("the root folder has no parent", value=self.uri, fix="name a folder below it")
        return LocalStore(self.root.parent)

    def uri_of(self, key: str) -> str:
        return location.local_uri(self._path(key))

    def prefix_in(self, outer: Store) -> str | None:
        if not isinstance(outer, LocalStore) or not self.root.is_relative_to(outer.root):
            return None
        below = self.root.relative_to(outer.root).as_posix()
        return "" if below == "." else f"{below}/"

    def child(self, prefix: str) -> "LocalStore":
        return LocalStore(self._checked(prefix.strip("/")))

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        self._path(prefix)
        self._checked(prefix.rpartition("/")[0])
        for entry in walk(self.root, prefix):
            if isinstance(entry, ObjectInfo):
                yield entry
            elif entry.reason == "unreadable":
                raise InputError(
                    "the folder or file cannot be listed",
                    value=self.uri_of(entry.key) if entry.key else self.uri,
                    fix="check its permissions and its disk, or move it away",
                )

    def survey(self, prefix: str = "") -> Iterator[ObjectInfo | Skipped]:
        """Yield objects as :meth:`list` does, for a folder that other programs have filled: links are followed within
        the store, and every name that gives no object is yielded with its reason.

        Raises:
            InputError: the folder itself cannot be listed.
        """
        self._path(prefix)
        self._checked(prefix.rpartition("/")[0])
        for entry in walk(self.root, prefix, follow=True):
            if isinstance(entry, Skipped) and entry.reason == "unreadable" and entry.key in ("", prefix.strip("/")):
                raise InputError("the folder cannot be listed", value=self.uri, fix="check its permissions")
            yield entry

    def exists(self, key: str) -> bool:
        with self._frame("read", key):
            return self._checked(key).is_file()

    def read(self, key: str) -> bytes:
        with self._reading(key) as file:
            return file.read()

    def read_range(self, key: str, offset: int, length: int) -> bytes:
        with self._reading(key) as file:
            inside = min(offset, length) >= 0 and offset + length <= os.fstat(file.fileno()).st_size
            file.seek(offset if inside else 0)
            data = file.read(length) if inside else b""  # Python reserves memory for all of length
        if not inside or len(data) != length:
            raise InputError(
                "the object is shorter than its index entry says", value=self.uri_of(key), fix="index it again"
            )
        return data

    def write(self, key: str, data: bytes) -> None:
        with self._writing(key, lambda file: file.write(data)) as part:
            part.replace(self._path(key))

    def create(self, key: str, data: bytes) -> None:
        with self._writing(key, lambda file: file.write(data)) as part:
            try:
                os.link(part, self._path(key))
            except FileExistsError:
                raise ConflictError(
                    "the object exists already", value=self.uri_of(key), fix="choose another location"
                ) from None

    def upload(self, key: str, path: Path) -> None:
        if self._path(key) == path.absolute():
            return
        with path.open("rb") as source, self._writing(key, lambda file: shutil.copyfileobj(source, file)) as part:
            part.replace(self._path(key))

    def download(self, key: str, path: Path) -> None:
        with self._reading(key):  # errors of the source name the source, not the target
            LocalStore(path.parent.absolute()).upload(path.name, self._path(key))

    def delete(self, key: str) -> None:
        with self._frame("delete", key):
            self._checked(key.rpartition("/")[0])  # a link itself may be removed
            self._path(key).unlink(missing_ok=True)

    def _path(self, key: str) -> Path:
        check_key(key, key)
        if "//" in key:
            raise ConfigError(
                "the key of a file has an empty segment", value=key, fix="write one slash in place of two"
            )
        if "\0" in key:
            raise ConfigError("the key holds a NUL character", value=key, fix="use a name without it")
        return self.root / key

    def _checked(self, key: str) -> Path:
        """The path of ``key``. Raises InputError if a link in it leads out of the store."""
        path = self._path(key)
        real = os.path.realpath(path)
        if not stays_within(os.path.realpath(self.root), real):
            raise InputError(
                f"a link leads out of the store, to {real}",
                value=location.local_uri(path),
                fix=f"copy its target into the store, or add its target's folder to {LINK_ROOTS} if you made the link",
            )
        return path

    @contextmanager
    def _reading(self, key: str) -> Iterator[BinaryIO]:
        with self._frame("read", key), self._checked(key).open("rb") as file:
            yield file

    @contextmanager
    def _frame(self, verb: str, key: str) -> Iterator[None]:
        """Turn errors of the file system into InputErrors that name the object."""
        try:
            yield
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
            raise InputError("no such object", value=self.uri_of(key), fix="check the location") from error
        except PermissionError as error:
            raise InputError(
                f"permission to {verb} is denied",
                value=self.uri_of(key),
                fix="check the owner and permissions of the file and its folder",
            ) from error
        except OSError as error:  # a name that is too long, a loop of links, a broken disk, too many open files
            raise InputError(
                f"cannot {verb}: {error.strerror or error}", value=self.uri_of(key), fix=_fix(error, _READING)
            ) from error

    @contextmanager
    def _writing(self, key: str, write: Callable[[BinaryIO], object]) -> Iterator[Path]:
        """Yield a complete temporary file beside the target, to be renamed or linked there; it is always removed."""
        target = self._path(key)
        self._checked(key.rpartition("/")[0])  # a link at the key itself is replaced
        part = target.with_name(f"{PART}{uuid.uuid4().hex}")
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with part.open("xb") as file:
                write(file)
                file.flush()
                os.fsync(file.fileno())
            yield part
        except OSError as error:  # a full disk, a read-only folder, a folder where the file should be
            raise InputError(
                f"cannot write: {error.strerror or error}", value=self.uri_of(key), fix=_fix(error, _WRITING)
            ) from error
        finally:
            with suppress(OSError):
                part.unlink(missing_ok=True)


def _fix(error: OSError, otherwise: str) -> str:
    return {
        errno.ENAMETOOLONG: "choose a shorter name",
        errno.EMFILE: "raise the limit of open files (ulimit -n)",
        errno.ELOOP: "remove the link that leads to itself",
    }.get(error.errno or 0, otherwise)
