"""The store on a file system: atomic renames for writes, hard links for conditional ones."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from lookalike.errors import ConfigError, ConflictError, InputError
from lookalike.storage.store import ObjectInfo

_PART = ".part-"  # prefix of files that are still being written; no listing shows them


class LocalStore:
    """Objects are files below ``root``."""

    def __init__(self, root: Path) -> None:
        self.root = root

    @property
    def uri(self) -> str:
        return f"file://{self.root.as_posix()}"

    def child(self, prefix: str) -> "LocalStore":
        return LocalStore(self._path(prefix))

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        folder = self.root / prefix
        base = folder if folder.is_dir() else folder.parent
        if not base.is_dir():
            return
        for path in sorted(p for p in base.rglob("*") if p.is_file() and not p.name.startswith(_PART)):
            key = path.relative_to(self.root).as_posix()
            if key.startswith(prefix):
                stat = path.stat()
                yield ObjectInfo(key, stat.st_size, f"{stat.st_size:x}-{stat.st_mtime_ns:x}")

    def exists(self, key: str) -> bool:
        return self._path(key).is_file()

    def read(self, key: str) -> bytes:
        try:
            return self._path(key).read_bytes()
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
            raise self._missing(key) from None

    def read_range(self, key: str, offset: int, length: int) -> bytes:
        try:
            with self._path(key).open("rb") as file:
                file.seek(offset)
                data = file.read(length)
        except FileNotFoundError:
            raise self._missing(key) from None
        if len(data) != length:
            raise InputError("object is shorter than its index says", value=f"{self.uri}/{key}", fix="index it again")
        return data

    def write(self, key: str, data: bytes) -> None:
        part = self._write_part(key, data)
        part.replace(self._path(key))

    def create(self, key: str, data: bytes) -> None:
        part = self._write_part(key, data)
        try:
            os.link(part, self._path(key))
        except FileExistsError:
            raise ConflictError(
                "the object exists already", value=f"{self.uri}/{key}", fix="choose another location"
            ) from None
        finally:
            part.unlink()

    def upload(self, key: str, path: Path) -> None:
        target = self._path(key)
        if target == path.absolute():
            return
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, part = tempfile.mkstemp(prefix=_PART, dir=target.parent)
        os.close(handle)
        try:
            shutil.copyfile(path, part)
            Path(part).replace(target)
        except OSError as error:
            Path(part).unlink(missing_ok=True)
            raise self._unwritable(key, error) from error

    def download(self, key: str, path: Path) -> None:
        if not self.exists(key):
            raise self._missing(key)
        LocalStore(path.parent.absolute()).upload(path.name, self._path(key))

    def delete(self, key: str) -> None:
        self._path(key).unlink(missing_ok=True)

    def _path(self, key: str) -> Path:
        if key.startswith("/") or ".." in key.split("/"):
            raise ConfigError("a key leaves its store", value=key, fix="use a relative key without '..'")
        return self.root / key

    def _write_part(self, key: str, data: bytes) -> Path:
        target = self._path(key)
        part: Path | None = None
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            handle, name = tempfile.mkstemp(prefix=_PART, dir=target.parent)
            part = Path(name)
            with os.fdopen(handle, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:  # a full disk, a read-only folder
            if part is not None:
                part.unlink(missing_ok=True)
            raise self._unwritable(key, error) from error
        return part

    def _missing(self, key: str) -> InputError:
        return InputError("no such object", value=f"{self.uri}/{key}", fix="check the location")

    def _unwritable(self, key: str, error: OSError) -> InputError:
        return InputError(
            f"cannot write: {error.strerror or error}",
            value=f"{self.uri}/{key}",
            fix="free some space or choose another location; nothing half-written was left",
        )
