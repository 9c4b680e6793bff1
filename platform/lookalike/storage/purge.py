"""Remove everything below a prefix: also old versions, delete markers, unfinished uploads, links, half-written files.

Listings are read in pages and never held whole. Nothing outside of the prefix is touched: a symbolic link is removed
itself, and what it leads to stays (folders are opened relative to their parents without following links).
"""

import errno
import os
import stat
from collections.abc import Callable, Container, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lookalike.errors import ConfigError, InputError, LookalikeError
from lookalike.storage.base import ObjectInfo, Store
from lookalike.storage.local import LocalStore

if TYPE_CHECKING:
    from lookalike.storage.s3 import S3Store

_PAGE = 1000  # keys of a page, and of one request to delete; S3's own limit


@dataclass(frozen=True)
class Entry:
    """Something below a prefix that a purge removes."""

    key: str
    """Its key below the store."""
    size: int
    """Bytes."""
    etag: str
    """Changes with the content; empty for what has none."""
    kind: str = "object"
    """``object``, ``version`` (an older one), ``delete marker``, ``upload`` (unfinished), ``link`` or ``folder``."""
    version: str = ""
    """Id of the version or of the upload."""


def entries(store: Store) -> Iterator[list[Entry]]:
    """Yield pages of everything that lies below ``store``, in no order. Empty local folders count as entries.

    Raises ConfigError if the prefix itself is a symbolic link: what it leads to belongs to another place.
    """
    if isinstance(store, LocalStore):
        yield from _local_pages(store.root)
    else:
        yield from _s3_pages(store)  # type: ignore[arg-type]


def pages(store: Store) -> Iterator[list[ObjectInfo]]:
    """Yield the current objects below ``store`` in pages, in no order, without holding the whole listing.

    In a file system the root may be a link; links below it are not followed, and are left out.
    """
    here = isinstance(store, LocalStore)
    for page in _local_pages(Path(os.path.realpath(store.root))) if here else _s3_objects(store):  # type: ignore
        yield [ObjectInfo(entry.key, entry.size, entry.etag) for entry in page if entry.kind == "object"]


def purge(
    store: Store,
    keep: str = "",
    check: Callable[[int], None] = lambda removed: None,
    only: Container[str] | None = None,
) -> int:
    """Remove everything below ``store`` except keys that begin with ``keep``; returns the number of removed entries.

    With ``only``, nothing but these keys is removed. ``check`` is called after each page with the number so far; what
    it raises ends the purge. A purge that was interrupted is completed by another one.
    """
    removed = 0
    remove = _remove_local if isinstance(store, LocalStore) else _remove_s3
    for page in entries(store):
        doomed = [entry for entry in page if not keep or not f"{entry.key}/".startswith(keep)]
        doomed = [entry for entry in doomed if only is None or entry.key in only]
        remove(store, doomed)  # type: ignore[arg-type]
        removed += len(doomed)
        check(removed)
    if isinstance(store, LocalStore) and not keep and only is None and store.root.is_dir():
        _remove_folders(store.root)
    return removed


def remove_if_empty(store: Store) -> None:
    """Remove the folder of a local store if nothing is in it; other stores have no folders."""
    if isinstance(store, LocalStore) and not store.root.is_symlink():
        with suppress(OSError):  # it is missing, or something is in it
            store.root.rmdir()


def _local_pages(root: Path) -> Iterator[list[Entry]]:
    if root.is_symlink():
        raise ConfigError(
            f"the prefix is a symbolic link to {os.path.realpath(root)}, and erasing never follows a link",
            value=LocalStore(root).uri,
            fix="replace the link by the folder itself, or erase at the link's target and remove the link",
        )
    page: list[Entry] = []
    walk = os.fwalk(root, topdown=False, onerror=_raise, follow_symlinks=False) if root.is_dir() else ()
    for folder, folders, files, handle in walk:
        below = Path(folder).relative_to(root)
        links = [name for name in folders if stat.S_ISLNK(os.lstat(name, dir_fd=handle).st_mode)]
        for name in (*files, *links):
            try:
                found = os.lstat(name, dir_fd=handle)
            except FileNotFoundError:  # removed meanwhile
                continue
            kind = "object" if stat.S_ISREG(found.st_mode) else "link" if stat.S_ISLNK(found.st_mode) else "special"
            page.append(Entry((below / name).as_posix(), found.st_size, f"{found.st_mtime_ns:x}", kind))
            if len(page) == _PAGE:
                yield page
                page = []
        if folder != str(root):
            page.append(Entry(below.as_posix(), 0, "", "folder"))
    if page:
        yield page


def _remove_local(store: LocalStore, doomed: list[Entry]) -> None:
    for entry in doomed:
        folder = _opened(store.root, entry.key.rpartition("/")[0])
        if folder is None:
            continue
        name = entry.key.rpartition("/")[2]
        try:
            if entry.kind == "folder":
                os.rmdir(name, dir_fd=folder)
            else:
                os.unlink(name, dir_fd=folder)
        except FileNotFoundError:
            pass
        except OSError as error:
            if entry.kind != "folder" or error.errno not in (errno.ENOTEMPTY, errno.EEXIST):  # it holds what is kept
                raise _denied(store, entry.key, error) from error
        finally:
            os.close(folder)


def _opened(root: Path, below: str) -> int | None:
    """Open the folder ``below`` of ``root`` without following a link in it; None if it is missing or a link."""
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    handle = -1
    try:
        handle = os.open(root, flags)
        for segment in filter(None, below.split("/")):
            inner = os.open(segment, flags, dir_fd=handle)
            os.close(handle)
            handle = inner
        return handle
    except (FileNotFoundError, NotADirectoryError):
        if handle >= 0:
            os.close(handle)
        return None


def _remove_folders(root: Path) -> None:
    """Remove the prefix's own folder, which is empty."""
    try:
        root.rmdir()
    except OSError as error:
        if any(root.iterdir()):  # written meanwhile: the caller looks again
            return
        raise _denied(LocalStore(root), "", error) from error


def _denied(store: LocalStore, key: str, error: OSError) -> InputError:
    return InputError(
        f"cannot remove: {error.strerror or error}",
        value=store.uri_of(key) if key else store.uri,
        fix="give this user the permission to remove it, and run the same command again",
    )


def _raise(error: OSError) -> None:
    raise InputError(
        f"the folder cannot be listed: {error.strerror or error}",
        value=str(error.filename),
        fix="give this user the permission to read it, and run the same command again",
    )


def _s3_pages(store: "S3Store") -> Iterator[list[Entry]]:
    """All versions, or the objects of a server that has no versions; then unfinished uploads."""
    with store.errors():
        versions = store.client.get_paginator("list_object_versions").paginate(Bucket=store.bucket, Prefix=store.prefix)
        found = False
        for page in versions:
            listed = [_version(store, item) for item in page.get("Versions", [])]
            listed += [_version(store, item, marker=True) for item in page.get("DeleteMarkers", [])]
            found = found or bool(listed)
            if listed:
                yield listed
        if not found:  # some servers list no versions of buckets that keep none
            yield from _s3_objects(store)
        uploads = store.client.get_paginator("list_multipart_uploads").paginate(
            Bucket=store.bucket, Prefix=store.prefix
        )
        for part in uploads:
            begun = [item for item in part.get("Uploads", []) if item["Key"].startswith(store.prefix)]
            if begun:
                yield [Entry(i["Key"][len(store.prefix) :], 0, "", "upload", i["UploadId"]) for i in begun]


def _s3_objects(store: "S3Store") -> Iterator[list[Entry]]:
    with store.errors():
        for page in store.client.get_paginator("list_objects_v2").paginate(Bucket=store.bucket, Prefix=store.prefix):
            items = page.get("Contents", [])
            if items:
                yield [Entry(item["Key"][len(store.prefix) :], item["Size"], item["ETag"].strip('"')) for item in items]


def _version(store: "S3Store", item: Any, marker: bool = False) -> Entry:
    kind = "delete marker" if marker else "object" if item["IsLatest"] else "version"
    etag = str(item.get("ETag", "")).strip('"')
    return Entry(item["Key"][len(store.prefix) :], item.get("Size", 0), etag, kind, item.get("VersionId") or "null")


def _remove_s3(store: "S3Store", doomed: list[Entry]) -> None:
    with store.errors():
        for entry in doomed:
            if entry.kind == "upload":
                key = store.prefix + entry.key
                store.client.abort_multipart_upload(Bucket=store.bucket, Key=key, UploadId=entry.version)
        named: list[Any] = [
            {"Key": store.prefix + entry.key} | ({"VersionId": entry.version} if entry.version else {})
            for entry in doomed
            if entry.kind != "upload"
        ]
        for first in range(0, len(named), _PAGE):
            batch = named[first : first + _PAGE]
            answer = store.client.delete_objects(Bucket=store.bucket, Delete={"Objects": batch, "Quiet": True})
            if errors := answer.get("Errors"):
                problem = errors[0]
                raise LookalikeError(
                    f"S3 did not remove {len(errors)} of {len(batch)} objects: {problem.get('Code')} "
                    f"{problem.get('Message', '')}".rstrip(),
                    value=f"s3://{store.bucket}/{problem.get('Key')}",
                    fix="allow s3:DeleteObject and s3:DeleteObjectVersion there (also an object lock refuses), and run "
                    "the same command again",
                )
