"""Read every member of a tar, in order: where its bytes lie, or why there are none to read.

Three things that ``tarfile`` leaves out by default are read here: what follows the end mark in joined tars
(``cat a.tar b.tar``), and hard and symbolic links, which are resolved to the member that they name in the same file. A
link to anywhere else is never followed.
"""

import io
import posixpath
import tarfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import BinaryIO, TypeVar

from lookalike.data.formats import HEAD_BYTES, archive_kind
from lookalike.data.limits import Limits
from lookalike.errors import LookalikeError

T = TypeVar("T")

_BLOCK = tarfile.BLOCKSIZE
_ZERO_BLOCK = tarfile.NUL * _BLOCK
_CHUNK = 1 << 20  # bytes of padding that are looked through at a time
_MAX_HOPS = 40  # links in a chain; as in Linux
_LONG_HEADERS = (
    *(tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE),
    *(tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK),
)


@dataclass(frozen=True)
class Member:
    """Where a member's bytes lie in its tar: ``offset`` of the first byte and ``length``, both in bytes."""

    offset: int
    length: int
    linked: bool = False
    """Whether the tar names these bytes by a link: then another member has the same place."""


@dataclass(frozen=True)
class Entry:
    """One header of a tar. ``reason``: why a member without a place is passed over."""

    name: str
    member: Member | None
    reason: str = ""


def read_entries(file: BinaryIO, limits: Limits | None = None) -> Iterator[Entry]:
    """Yield the entry of every header, in order, also behind end marks; the members' bytes are not read.

    Raises :class:`tarfile.ReadError` if the file breaks off, is not a tar, or exceeds ``limits``.
    """
    limits = limits or Limits()
    size = file.seek(0, io.SEEK_END)
    links: _Names | None = None
    shown: set[tuple[str, Member]] = set()
    for info in _headers(file, size, limits):
        if not (info.islnk() or info.issym()):
            yield _own_entry(info, limits)
            continue
        if links is None:  # archives without links do not pay for this
            links = _Names(file, size, limits)
        target = links.resolve(info)
        if isinstance(target, str):
            yield Entry(info.name, None, target)
        elif (info.name, target) in shown or links.is_own(info.name, target):
            yield Entry(info.name, None, "repeated_link")
        else:
            shown.add((info.name, target))
            yield Entry(info.name, target)


def _own_entry(info: tarfile.TarInfo, limits: Limits) -> Entry:
    if len(info.name) > limits.max_name_characters:
        return Entry(info.name, None, "long_name")
    if info.isdir():
        return Entry(info.name, None, "folder")
    if info.issparse():
        return Entry(info.name, None, "sparse_file")
    if info.isreg():
        return Entry(info.name, Member(info.offset_data, info.size))
    return Entry(info.name, None, "special_file")


def _bounded_header(max_kib: int) -> type[tarfile.TarInfo]:
    """Headers that are read only if they are of at most that size."""

    class Header(tarfile.TarInfo):
        def _proc_member(self, tar: tarfile.TarFile) -> tarfile.TarInfo:
            if self.type in _LONG_HEADERS and self.size > max_kib << 10:
                raise tarfile.ReadError(f"a header of {self.size} bytes; limits.max_header_kib is {max_kib}")
            return super()._proc_member(tar)  # type: ignore[misc,no-any-return]

    return Header


def _headers(file: BinaryIO, size: int, limits: Limits) -> Iterator[tarfile.TarInfo]:
    """The headers of all tars that stand one behind the other in ``file``."""
    if size == 0:
        raise tarfile.ReadError("it is empty")
    file.seek(0)
    kind = archive_kind(file.read(HEAD_BYTES))
    if kind is not None:
        raise tarfile.ReadError(f"it is {kind}, not a tar")
    start, number, header = 0, 0, _bounded_header(limits.max_header_kib)
    while True:
        file.seek(start)
        with _guarded(lambda: tarfile.open(fileobj=file, mode="r:", tarinfo=header)) as tar:
            last = start - 1
            while (info := _guarded(tar.next)) is not None:
                tar.members.clear()  # type: ignore[attr-defined]  # tarfile would keep every header in memory
                if info.size < 0 or tar.offset <= last:
                    raise tarfile.ReadError(f"the header of {info.name!r} has an impossible size")
                last = tar.offset
                number += 1
                if number > limits.max_members:
                    raise tarfile.ReadError(f"it has more than {limits.max_members} files, by limits.max_members")
                yield info
            stop = tar.offset
        # tarfile takes any unreadable header for the end, so look for the end mark that POSIX requires
        file.seek(stop)
        if file.read(_BLOCK) != _ZERO_BLOCK:
            if start == stop > 0:
                raise tarfile.ReadError(f"the data after its end mark, at byte {stop} of {size}, is not a tar")
            raise tarfile.ReadError(f"no end mark at byte {stop} of {size}")
        following = _next_block(file, stop + _BLOCK, size)
        if following is None:
            return
        start = following


def _guarded(read: Callable[[], T]) -> T:
    """Turn what ``tarfile`` does not catch (malformed numbers, chains of a thousand headers) into a ReadError."""
    try:
        return read()
    except (tarfile.TarError, EOFError, OSError, LookalikeError):
        raise
    except Exception as error:
        raise tarfile.ReadError(f"a header cannot be read: {type(error).__name__}: {error}") from error


def _next_block(file: BinaryIO, start: int, size: int) -> int | None:
    """Offset of the first block from ``start`` that holds anything but zeros; None if none does."""
    file.seek(start)
    while start < size:
        chunk = file.read(min(_CHUNK, size - start))
        if not chunk:
            return None
        rest = chunk.lstrip(tarfile.NUL)
        if rest:
            return start + (len(chunk) - len(rest)) // _BLOCK * _BLOCK
        start += len(chunk)
    return None


@dataclass(frozen=True)
class _Named:
    """What a link to one header resolves to: a place, another link, or the reason why there is none."""

    header: int
    member: Member | None
    link: str | None
    reason: str


class _Names:
    """The members of an archive by their normalised name, to resolve links. Only headers are read, once."""

    def __init__(self, file: BinaryIO, size: int, limits: Limits) -> None:
        self._named: dict[str, list[_Named]] = {}
        with suppress(tarfile.TarError, EOFError):  # of an archive that breaks off, what stands before the break
            for info in _headers(file, size, limits):
                name = _tidy(info.name)
                link = _target_of(info) if info.islnk() or info.issym() else None
                own = _own_entry(info, limits)
                fits = own.member is not None and own.member.offset + own.member.length <= size
                named = _Named(info.offset, own.member if fits else None, link, own.reason)
                self._named.setdefault(name, []).append(named)

    def resolve(self, info: tarfile.TarInfo) -> Member | str:
        """The bytes that a link leads to, or the reason why it leads to none."""
        path = _target_of(info)
        for _ in range(_MAX_HOPS):
            if path == ".." or path.startswith("../"):
                return "link_outside"
            named = self._at(path, info.offset)
            if named is None:
                further = self._through_a_folder(path, info.offset)
                if further is None:
                    return "link_outside" if path.startswith("/") else "link_to_nothing"
                path = further
            elif named.link is not None:
                path = named.link
            elif named.member is not None:
                return Member(named.member.offset, named.member.length, linked=True)
            else:
                return "link_to_folder" if named.reason == "folder" else "link_to_nothing"
        return "link_loop"

    def is_own(self, name: str, target: Member) -> bool:
        """Whether a member of that very name has these bytes: the link repeats it."""
        places = (named.member for named in self._named.get(_tidy(name), ()))
        return any(place is not None and place.offset == target.offset for place in places)

    def _at(self, path: str, header: int) -> _Named | None:
        """The last member of that name before ``header``, or the first behind it."""
        named = self._named.get(path)
        if not named:
            return None
        return next((each for each in reversed(named) if each.header < header), named[0])

    def _through_a_folder(self, path: str, header: int) -> str | None:
        """``path`` with the first folder that is a link replaced by what it links to."""
        parts = path.split("/")
        for end in range(1, len(parts)):
            named = self._at("/".join(parts[:end]), header)
            if named is not None and named.link is not None:
                return _tidy(posixpath.join(named.link, *parts[end:]))
        return None


def _target_of(info: tarfile.TarInfo) -> str:
    if info.islnk():  # names a member; a symbolic link names a path from its own folder
        return _tidy(info.linkname)
    return _tidy(posixpath.join(posixpath.dirname(info.name), info.linkname))


def _tidy(name: str) -> str:
    return posixpath.normpath(name)
