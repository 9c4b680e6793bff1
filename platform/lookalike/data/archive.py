"""Read every header of a tar, in order: the place of a member's bytes, or the reason why it has none.

Unlike ``tarfile`` by default, this reads the data after the end mark of joined tars (``cat a.tar b.tar``), and resolves
hard and symbolic links to the member that they name in the same tar. Other links are never followed.
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
_CHUNK = 1 << 20  # bytes of padding that are searched at a time
_MAX_HOPS = 40  # links in a chain, as in Linux
_LONG_HEADERS = (
    *(tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE),
    *(tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK),
)


@dataclass(frozen=True)
class Member:
    """The place of a member's bytes in its tar: ``offset`` of the first byte and ``length``, both in bytes."""

    offset: int
    length: int
    linked: bool = False
    """Whether this is a link, so that another member has the same place."""


@dataclass(frozen=True)
class Entry:
    """One header of a tar. ``reason`` says why a header without a member is passed over."""

    name: str
    member: Member | None
    reason: str = ""


def read_entries(file: BinaryIO, limits: Limits | None = None) -> Iterator[Entry]:
    """Yield the entry of every header, in order, also after end marks. The members' bytes are not read.

    Raises :class:`tarfile.ReadError` if the file is truncated, is not a tar, or exceeds ``limits``.
    """
    limits = limits or Limits()
    size = file.seek(0, io.SEEK_END)
    links: _Names | None = None
    shown: set[tuple[str, Member]] = set()
    for info in _headers(file, size, limits):
        if not (info.islnk() or info.issym()):
            yield _own_entry(info, limits)
            continue
        if links is None:  # archives without links skip this second pass
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
    """A TarInfo that refuses extended headers of more than ``max_kib`` KiB."""

    class Header(tarfile.TarInfo):
        def _proc_member(self, tar: tarfile.TarFile) -> tarfile.TarInfo:
            if self.type in _LONG_HEADERS and self.size > max_kib << 10:
                raise tarfile.ReadError(f"a header has {self.size} bytes, but limits.max_header_kib is {max_kib}")
            return super()._proc_member(tar)  # type: ignore[misc,no-any-return]

    return Header


def _headers(file: BinaryIO, size: int, limits: Limits) -> Iterator[tarfile.TarInfo]:
    """The headers of all tars that are concatenated in ``file``."""
    if size == 0:
        raise tarfile.ReadError("the file is empty")
    file.seek(0)
    kind = archive_kind(file.read(HEAD_BYTES))
    if kind is not None:
        raise tarfile.ReadError(f"the file is a {kind} archive, not a tar")
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
                    raise tarfile.ReadError(
                        f"it has more than the {limits.max_members} files that limits.max_members allows"
                    )
                yield info
            stop = tar.offset
        # tarfile ends at any unreadable header, so check for the end mark that POSIX requires
        file.seek(stop)
        if file.read(_BLOCK) != _ZERO_BLOCK:
            if start == stop > 0:
                raise tarfile.ReadError(f"the data after its end mark, at byte {stop} of {size}, is not a tar")
            raise tarfile.ReadError(f"there is no end mark at byte {stop} of {size}")
        following = _next_block(file, stop + _BLOCK, size)
        if following is None:
            return
        start = following


def _guarded(read: Callable[[], T]) -> T:
    """Turn exceptions that ``tarfile`` does not catch (malformed numbers, long chains of headers) into a ReadError."""
    try:
        return read()
    except (tarfile.TarError, EOFError, OSError, LookalikeError):
        raise
    except Exception as error:
        raise tarfile.ReadError(f"a header cannot be read: {type(error).__name__}: {error}") from error


def _next_block(file: BinaryIO, start: int, size: int) -> int | None:
    """Offset of the first block from ``start`` that is not all zeros; None if there is none."""
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
    """The target of a link to one header: a member, another link, or the reason why there is none."""

    header: int
    member: Member | None
    link: str | None
    reason: str


class _Names:
    """Members of an archive by normalised name, to resolve links. Reads all headers once."""

    def __init__(self, file: BinaryIO, size: int, limits: Limits) -> None:
        self._named: dict[str, list[_Named]] = {}
        with suppress(tarfile.TarError, EOFError):  # of a truncated archive, the members before the break
            for info in _headers(file, size, limits):
                name = posixpath.normpath(info.name)
                link = _target_of(info) if info.islnk() or info.issym() else None
                own = _own_entry(info, limits)
                fits = own.member is not None and own.member.offset + own.member.length <= size
                named = _Named(info.offset, own.member if fits else None, link, own.reason)
                self._named.setdefault(name, []).append(named)

    def resolve(self, info: tarfile.TarInfo) -> Member | str:
        """Return the member that a link leads to, or the reason why it leads to none."""
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
        """Return whether a member of the same name has these bytes, so that the link repeats it."""
        places = (named.member for named in self._named.get(posixpath.normpath(name), ()))
        return any(place is not None and place.offset == target.offset for place in places)

    def _at(self, path: str, header: int) -> _Named | None:
        """The last member of that name before ``header``, or else the first one after it."""
        named = self._named.get(path)
        if not named:
            return None
        return next((each for each in reversed(named) if each.header < header), named[0])

    def _through_a_folder(self, path: str, header: int) -> str | None:
        """``path`` with its first folder that is a link replaced by the target of the link."""
        parts = path.split("/")
        for end in range(1, len(parts)):
            named = self._at("/".join(parts[:end]), header)
            if named is not None and named.link is not None:
                return posixpath.normpath(posixpath.join(named.link, *parts[end:]))
        return None


def _target_of(info: tarfile.TarInfo) -> str:
    if info.islnk():  # a hard link names a member, a symbolic link a path relative to its own folder
        return posixpath.normpath(info.linkname)
    return posixpath.normpath(posixpath.join(posixpath.dirname(info.name), info.linkname))
