"""List a folder of a file system, and say which symbolic links are followed: those that stay within the store, or lead
into folders that an operator names.

A snapshot in the Hub's cache (``models--ORG--NAME/snapshots/REVISION``, the layout of ``huggingface_hub``) consists of
links into the ``blobs`` folder beside it, which counts as a part of the snapshot.
"""

import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from lookalike.storage.base import ObjectInfo

LINK_ROOTS = "LOOKALIKE_LINK_ROOTS"
"""Environment variable: folders, separated by ``:``, into which links may lead out of a store. Empty by default: a link
that another user puts into a store could otherwise make any file of this machine an input or an output."""

_HUB_SNAPSHOT = re.compile(r"(.*/(?:models|datasets|spaces)--[^/]+)/snapshots/[^/]+(?:/|\Z)", re.DOTALL)
PART = ".part-"  # prefix of files that are still being written
_MAX_LINKED = 10_000  # folders entered through links: links to each other would otherwise multiply without a bound


@dataclass(frozen=True)
class Skipped:
    """A name below a store that gives no object, with its key and the reason."""

    key: str
    reason: str
    """``link_outside`` (it leads out of the store), ``dangling_link``, ``link_loop``, ``too_many_links``,
    ``unreadable``, ``special_file`` (a device, a socket, a pipe), ``half_written`` (by a process that was killed), or
    ``empty_folder``."""


def walk(root: Path, prefix: str = "", *, follow: bool = False) -> Iterator[ObjectInfo | Skipped]:
    """Yield the files whose key below ``root`` starts with ``prefix``, and names that give no file, sorted by key.

    Without ``follow``, linked folders are left out and linked files are listed wherever they lead. With ``follow``,
    for folders that other programs have filled, links to files and folders are followed as far as
    :func:`stays_within` allows, and other links are yielded as skipped.
    """
    real_root = os.path.realpath(root)
    entries: list[ObjectInfo | Skipped] = []
    first = prefix.rpartition("/")[0]
    folders: list[tuple[str, tuple[str, ...]]] = [(first, (os.path.realpath(root / first),))]
    linked = 0
    while folders:
        folder, chain = folders.pop()
        try:
            with os.scandir(root / folder) as scan:
                children = list(scan)
        except (FileNotFoundError, NotADirectoryError):  # removed during the listing, or missing from the start
            continue
        except OSError:
            entries.append(Skipped(folder, "unreadable"))
            continue
        if not children and folder != first:
            entries.append(Skipped(folder, "empty_folder"))
        for child in children:
            key = f"{folder}/{child.name}" if folder else child.name
            if not key.startswith(prefix):
                continue
            if child.name.startswith(PART):
                entries.append(Skipped(key, "half_written"))
                continue
            if not child.is_symlink():
                if child.is_dir(follow_symlinks=False):
                    folders.append((key, (*chain, f"{chain[-1].rstrip(os.sep)}{os.sep}{child.name}")))
                    continue
            elif follow and not stays_within(real_root, os.path.realpath(child.path)):
                entries.append(Skipped(key, "link_outside"))
                continue
            try:
                status = child.stat()
            except FileNotFoundError:  # removed during the listing, or a dangling link
                if child.is_symlink():
                    entries.append(Skipped(key, "dangling_link"))
                continue
            except PermissionError:
                entries.append(Skipped(key, "unreadable"))
                continue
            except OSError:  # too many levels of links
                entries.append(Skipped(key, "link_loop"))
                continue
            if stat.S_ISDIR(status.st_mode):
                if not follow:
                    continue
                target = os.path.realpath(child.path)
                linked += 1
                if target in chain or linked > _MAX_LINKED:
                    entries.append(Skipped(key, "link_loop" if target in chain else "too_many_links"))
                    continue
                folders.append((key, (*chain, target)))
            elif stat.S_ISREG(status.st_mode):
                etag = f"{status.st_size:x}-{status.st_mtime_ns:x}"
                entries.append(ObjectInfo(key, status.st_size, etag, status.st_mtime))
            else:
                entries.append(Skipped(key, "special_file"))
    yield from sorted(entries, key=lambda entry: entry.key)


def stays_within(root: str, path: str) -> bool:
    """Return whether ``path`` lies in ``root`` or in a folder of :data:`LINK_ROOTS`; both are resolved by
    :func:`os.path.realpath`."""
    if _holds(root, path) or ((hub := _HUB_SNAPSHOT.match(root)) and _holds(f"{hub[1]}/blobs", path)):
        return True
    named = os.environ.get(LINK_ROOTS, "").split(os.pathsep)
    return any(_holds(os.path.realpath(place), path) for place in named if place)


def _holds(folder: str, path: str) -> bool:
    return os.path.commonpath([folder, path]) == folder
