"""WebDataset shards: read as a stream with byte offsets, and written deterministically.

A shard is a tar of members ``key.extension``; consecutive members with one key are one sample, and the key ends at the
first dot of the file name (the grouping rule of the ``webdataset`` library, ``webdataset.tariterators``). There is one
difference: if an extension repeats, ``webdataset`` raises, while here a new sample with the same key begins.

Of a truncated tar (a failed upload, a full disk), :func:`iter_samples` yields every complete sample, and then raises
:class:`BrokenTarError`.

Every member of a tar is part of a sample or is counted as passed over, with a reason. Data after an end mark is read,
and links within the tar are followed, see :mod:`lookalike.data.archive`.
"""

import io
import re
import tarfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, cast

from lookalike.data.archive import Member, read_entries
from lookalike.data.limits import Limits
from lookalike.data.passed_over import PassedOver
from lookalike.errors import InputError
from lookalike.storage import ObjectInfo, Store

READ_AHEAD_BYTES = 4 << 20  # per range request, so that a shard is read in constant memory
_KEY_AND_EXTENSION = re.compile(r"^((?:.*/|)[^.]+)[.]([^/]*)$")
_META = re.compile(r"__[^/]*__($|/)")  # names that webdataset ignores


@dataclass(frozen=True)
class Sample:
    """One sample of a shard: its key and its members by lower-case extension, in the order of the tar."""

    key: str
    members: dict[str, Member] = field(default_factory=dict)


class BrokenTarError(InputError):
    """A tar that ends before its end mark. ``lost_keys``: samples whose names were read, but not all of their bytes."""

    def __init__(self, what: str, *, value: object = None, fix: str, lost_keys: tuple[str, ...] = ()) -> None:
        super().__init__(what, value=value, fix=fix)
        self.lost_keys = lost_keys

    def __reduce__(self) -> tuple[object, ...]:
        return (_rebuild_broken, (self.what, self.value, self.fix, self.lost_keys))


def _rebuild_broken(what: str, value: object, fix: str, lost_keys: tuple[str, ...]) -> BrokenTarError:
    return BrokenTarError(what, value=value, fix=fix, lost_keys=lost_keys)


def split_name(name: str) -> tuple[str, str] | None:
    """Split ``folder/key.ref0.JPG`` into ``("folder/key", "ref0.jpg")``; None for a name that is not in a sample."""
    match = _KEY_AND_EXTENSION.match(name)
    if match is None or _META.match(name):
        return None
    return match.group(1), match.group(2).lower()


def open_object(store: Store, info: ObjectInfo, read_ahead: int = READ_AHEAD_BYTES) -> BinaryIO:
    """Open an object as a seekable, read-only file over range reads, which buffers ``read_ahead`` bytes."""
    return cast(BinaryIO, io.BufferedReader(_RangeFile(store, info), buffer_size=read_ahead))


def iter_samples(
    file: BinaryIO, passed_over: PassedOver | None = None, limits: Limits | None = None
) -> Iterator[tuple[Sample, dict[str, bytes]]]:
    """Yield every complete sample of a tar with its members' bytes, in order; one sample is in memory at a time.

    ``passed_over`` counts the members that are not part of a sample. Its ``found`` counts every header that was read,
    that is, members of complete and incomplete samples, and members that are passed over. A member of more than
    ``limits.max_member_mib``, or with which its sample exceeds ``limits.max_sample_mib``, is passed over.

    Raises:
        BrokenTarError: the tar is truncated; raised after the last complete sample. The sample before the break counts
            as incomplete unless it has its ``json``, since more members may have followed.
    """
    passed_over = PassedOver() if passed_over is None else passed_over
    sample: Sample | None = None
    payload: dict[str, bytes] = {}
    reached: list[str] = []  # key of the member whose header was read last, until its bytes are known to exist
    try:
        for key, extension, member, data in _members(file, reached, passed_over, limits or Limits()):
            if sample is None or key != sample.key or extension in sample.members:
                if sample is not None:
                    yield sample, payload
                sample, payload = Sample(key), {}
            sample.members[extension] = member
            payload[extension] = data
    except (tarfile.TarError, EOFError) as error:
        lost = list(reached)
        if sample is not None and ("json" not in sample.members or sample.key in lost):
            lost.insert(0, sample.key)
        elif sample is not None:
            yield sample, payload
        raise BrokenTarError(
            f"the shard breaks off: {error or type(error).__name__}",
            fix="upload the shard again; the samples before the break were read",
            lost_keys=tuple(dict.fromkeys(lost)),
        ) from error
    if sample is not None:
        yield sample, payload


def write_tar(target: Path | BinaryIO, samples: Iterable[tuple[str, Mapping[str, bytes]]]) -> list[Sample]:
    """Write ``(key, {extension: bytes})`` samples as a tar, and return the place of each member.

    Equal samples give equal bytes: members keep the given order, and times, owners and modes are constant.

    Raises InputError: a key has a dot or repeats, so that readers would group its members differently.
    """
    if isinstance(target, Path):
        with target.open("wb") as file:
            return write_tar(file, samples)
    written: list[Sample] = []
    keys: set[str] = set()
    with tarfile.open(fileobj=target, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for key, payload in samples:
            if key in keys:
                raise InputError(
                    "two samples of a shard have the same key", value=key, fix="give each sample its own key"
                )
            keys.add(key)
            sample = Sample(key)
            for extension, data in payload.items():
                name = f"{key}.{extension}"
                if split_name(name) != (key, extension):
                    raise InputError(
                        "readers would assign the member to another sample",
                        value=name,
                        fix="use keys without dots or leading '__', and lower-case extensions",
                    )
                info = tarfile.TarInfo(name)
                info.size, info.mode, info.mtime = len(data), 0o644, 0
                header = len(info.tobuf(tar.format, tar.encoding or "utf-8", tar.errors or "strict"))
                sample.members[extension] = Member(offset=tar.offset + header, length=len(data))
                tar.addfile(info, io.BytesIO(data))
            written.append(sample)
    return written


def _members(
    file: BinaryIO, reached: list[str], passed_over: PassedOver, limits: Limits
) -> Iterator[tuple[str, str, Member, bytes]]:
    """(key, extension, place, bytes) of the members that are part of a sample, in order; others are counted.

    ``reached`` holds the key of a header whose bytes are not yet known to exist.
    """
    size = file.seek(0, io.SEEK_END)
    held: dict[str, int] = {}  # bytes of the sample's members by extension
    held_key = None
    for entry in read_entries(file, limits):
        passed_over.found += 1
        member, parts = entry.member, split_name(entry.name)
        if member is None or parts is None:
            passed_over.add(entry.reason or _why_no_sample(entry.name), entry.name)
        if member is None:
            continue
        reached[:] = [] if parts is None else parts[:1]
        end = member.offset + member.length
        if end > size:
            raise tarfile.ReadError(f"{entry.name!r} needs {end} bytes of {size}")
        reached.clear()
        if parts is None:
            continue
        if parts[0] != held_key or parts[1] in held:
            held, held_key = {}, parts[0]
        whole = sum(held.values()) + member.length
        if member.length > limits.max_member_mib << 20 or whole > limits.max_sample_mib << 20:
            passed_over.add("too_large", entry.name)
            continue
        held[parts[1]] = member.length
        file.seek(member.offset)
        yield *parts, member, file.read(member.length)


def _why_no_sample(name: str) -> str:
    if _META.match(name):
        return "webdataset_meta"
    return "hidden_file" if name.rpartition("/")[2].startswith(".") else "no_extension"


class _RangeFile(io.RawIOBase):
    def __init__(self, store: Store, info: ObjectInfo) -> None:
        self._store, self._info, self._position = store, info, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._info.size}[whence]
        self._position = max(0, base + offset)
        return self._position

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        length = min(len(buffer), max(0, self._info.size - self._position))
        if length:
            buffer[:length] = self._store.read_range(self._info.key, self._position, length)
            self._position += length
        return length
