"""The store on a file system: atomic renames for writes, hard links for conditional ones."""

import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from lookalike.errors import ConfigError, ConflictError, InputError
from lookalike.storage.store import ObjectInfo
from lookalike.storage.walk import PART, Skipped, walk


class LocalStore:
    """Objects are files below ``root``."""

    def __init__(self, root: Path) -> None:
        self.root = root

    @property
    def uri(self) -> str:
        return f"file://{self.root.as_posix()}"

    def child(self, prefix: str) -> "LocalStore":
        return LocalStore(self._path(prefix.strip("/")))

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        self._path(prefix)
        for entry in walk(self.root, prefix):
            if isinstance(entry, ObjectInfo):
                yield entry
            elif entry.reason == "unreadable":
                raise InputError(
                    "this cannot be listed",
                    value=str(self.root / entry.key),
                    fix="check its permissions, or move it away",
                )

    def survey(self, prefix: str = "") -> Iterator[ObjectInfo | Skipped]:
        """Objects as in :meth:`list`, for a folder that others have filled: links are followed within the store, and
        every name that gives no object is there with its reason.

        Raises:
            InputError: the folder itself cannot be listed.
        """
        self._path(prefix)
        for entry in walk(self.root, prefix, follow=True):
            if isinstance(entry, Skipped) and entry.reason == "unreadable" and entry.key in ("", prefix.strip("/")):
                raise InputError("this cannot be listed", value=str(self.root), fix="check its permissions")
            yield entry

    def exists(self, key: str) -> bool:
        return self._path(key).is_file()

    def read(self, key: str) -> bytes:
        with self._reading(key) as file:
            return file.read()

    def read_range(self, key: str, offset: int, length: int) -> bytes:
        with self._reading(key) as file:
            file.seek(offset)
            data = file.read(length)
        if len(data) != length:
            raise InputError("object is shorter than its index says", value=f"{self.uri}/{key}", fix="index it again")
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
                    "the object exists already", value=f"{self.uri}/{key}", fix="choose another location"
                ) from None

    def upload(self, key: str, path: Path) -> None:
        if self._path(key) == path.absolute():
            return
        with path.open("rb") as source, self._writing(key, lambda file: shutil.copyfileobj(source, file)) as part:
            part.replace(self._path(key))

    def download(self, key: str, path: Path) -> None:
        with self._reading(key):  # the source is what is missing or unreadable, not the target
            LocalStore(path.parent.absolute()).upload(path.name, self._path(key))

    def delete(self, key: str) -> None:
        self._path(key).unlink(missing_ok=True)

    def _path(self, key: str) -> Path:
        if key.startswith("/") or ".." in key.split("/"):
            raise ConfigError("a key leaves its store", value=key, fix="use a relative key without '..'")
        return self.root / key

    @contextmanager
    def _reading(self, key: str) -> Iterator[BinaryIO]:
        where = f"{self.uri}/{key}"
        try:
            with self._path(key).open("rb") as file:
                yield file
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
            raise InputError("no such object", value=where, fix="check the location") from None
        except PermissionError as error:
            raise InputError("no permission to read", value=where, fix="check who owns the file") from error

    @contextmanager
    def _writing(self, key: str, write: Callable[[BinaryIO], object]) -> Iterator[Path]:
        """A complete file beside the target, to be moved or linked there; gone afterwards whatever happens."""
        target = self._path(key)
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
                f"cannot write: {error.strerror or error}",
                value=f"{self.uri}/{key}",
                fix="free some space or choose another location; nothing half-written was left",
            ) from error
        finally:
            with suppress(OSError):
                part.unlink(missing_ok=True)
