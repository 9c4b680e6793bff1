"""Unpack compressed raw shards: their tar is copied once, since a compressed stream cannot be read by range.

They are recognised by their first bytes: a gzip named ``.tar`` is read, and so is a tar named ``.tar.gz``.
"""

import bz2
import lzma
import zlib
from collections.abc import Callable, Iterator
from typing import BinaryIO

import pyarrow as pa

from lookalike.data.formats import HEAD_BYTES, archive_kind
from lookalike.data.limits import Limits
from lookalike.data.shards import open_object
from lookalike.scratch import scratch
from lookalike.storage import ObjectInfo, Store

_CHUNK = 1 << 20  # bytes that are inflated at a time, for any compression ratio
_MAX_DICTIONARY = 512 << 20  # maximum bytes of memory of an xz stream; `xz -9` takes 65 MiB
_TAIL = 4 << 10  # bytes of a zstd or lz4 stream that are read at a time, and lost before a break


def compression_of(raw: Store, info: ObjectInfo) -> str | None:
    """Return ``gzip``, ``bzip2``, ``xz``, ``zstd`` or ``lz4``; None if the shard is not compressed."""
    kind = archive_kind(raw.read_range(info.key, 0, min(info.size, HEAD_BYTES)))
    return kind if kind in _INFLATE else None


def unpack(raw: Store, info: ObjectInfo, kind: str, dataset: Store, key: str, limits: Limits) -> tuple[ObjectInfo, str]:
    """Write the tar in the compressed shard ``info`` to ``key`` of the dataset, unless it exists.

    Return the copy, and how the stream breaks off (empty if it does not). The copy of a broken stream holds the bytes
    before the break.
    """
    broken_key = f"{key}.broken"
    if not dataset.exists(key):
        with scratch("shard") as folder:
            path = folder / "shard.tar"
            broken = ""
            with path.open("wb") as file:
                try:
                    for data in _INFLATE[kind](open_object(raw, info)):
                        if file.tell() + len(data) > limits.unpacked_bytes(info.size):
                            most = f"{limits.unpacked_bytes(info.size)} bytes, by limits.max_inflation"
                            raise _BrokenStreamError(f"inflates to more than {most} and limits.max_unpacked_mib")
                        file.write(data)
                except _BrokenStreamError as error:
                    broken = f"its {kind} stream {error}"
            if broken:
                dataset.write(broken_key, broken.encode())
            dataset.upload(key, path)  # last, so that a copy that exists has its note
    broken = dataset.read(broken_key).decode() if dataset.exists(broken_key) else ""
    return next(copy for copy in dataset.list(key) if copy.key == key), broken


class _BrokenStreamError(Exception):
    """A compressed stream ends too early, is damaged, or is followed by other data."""


class _Gzip:
    """``zlib`` with the interface of ``bz2.BZ2Decompressor`` and ``lzma.LZMADecompressor``."""

    def __init__(self) -> None:
        self._stream = zlib.decompressobj(wbits=31)
        self.eof, self.needs_input, self.unused_data = False, True, b""

    def decompress(self, data: bytes, max_length: int) -> bytes:
        inflated = self._stream.decompress(self._stream.unconsumed_tail + data, max_length)
        self.eof, self.unused_data = self._stream.eof, self._stream.unused_data
        self.needs_input = not self._stream.unconsumed_tail
        return inflated


_Decompressor = bz2.BZ2Decompressor | lzma.LZMADecompressor | _Gzip


def _streams(make: Callable[[], _Decompressor]) -> Callable[[BinaryIO], Iterator[bytes]]:
    """Return a function that inflates a file of concatenated streams; zeros after the last one are padding."""

    def inflate(file: BinaryIO) -> Iterator[bytes]:
        stream, begun, read = make(), False, 0
        while data := file.read(_CHUNK):
            read += len(data)
            while data or not stream.needs_input:
                if not begun:
                    data = data.lstrip(b"\0")
                    if not data:
                        break
                    begun = True
                try:
                    inflated = stream.decompress(data, _CHUNK)
                except (zlib.error, lzma.LZMAError, OSError, EOFError, ValueError) as error:
                    raise _BrokenStreamError(f"cannot be read up to byte {read}: {error}") from None
                yield inflated
                data = b""
                if stream.eof:
                    data, stream, begun = stream.unused_data, make(), False
        if begun:
            raise _BrokenStreamError(f"ends too early, at byte {read}")

    return inflate


def _arrow_stream(codec: str) -> Callable[[BinaryIO], Iterator[bytes]]:
    def inflate(file: BinaryIO) -> Iterator[bytes]:
        stream = pa.CompressedInputStream(pa.PythonFile(file, "r"), codec)
        written = 0
        try:
            while data := stream.read(_TAIL):
                written += len(data)
                yield data
        except (pa.ArrowException, OSError) as error:
            raise _BrokenStreamError(f"cannot be read after its first {written} bytes: {error}") from None

    return inflate


_INFLATE: dict[str, Callable[[BinaryIO], Iterator[bytes]]] = {
    "gzip": _streams(_Gzip),
    "bzip2": _streams(bz2.BZ2Decompressor),
    "xz": _streams(lambda: lzma.LZMADecompressor(format=lzma.FORMAT_AUTO, memlimit=_MAX_DICTIONARY)),
    "zstd": _arrow_stream("zstd"),
    "lz4": _arrow_stream("lz4"),
}
