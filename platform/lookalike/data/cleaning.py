"""Remove from photos what the pixels do not need: EXIF with places and cameras, texts, profiles, appended videos."""

import numpy as np

from lookalike.data.containers import without_metadata
from lookalike.data.images import ImageError, decode, decodes_as_it_is, encode_jpeg, encode_png, orientation_in

_PNG, _RIFF, _JPEG = b"\x89PNG", b"RIFF", b"\xff\xd8\xff"


def stripped(data: bytes) -> bytes | None:
    """Return a JPEG, PNG or WebP without metadata, its pixels copied byte for byte.

    A file without metadata is returned as it is. None if that loses something: for other formats, damaged files, and
    photos that only their EXIF turns upright.
    """
    bare = without_metadata(data)
    if bare is None or orientation_in(bare[1]) != 1 or not decodes_as_it_is(bare[0]):
        return None
    return bare[0]


def clean_photo(data: bytes) -> tuple[bytes, str]:
    """Return a photo upright and without metadata, and the extension of its format: ``jpg``, ``png`` or ``webp``.

    The pixels of an upright JPEG, PNG or WebP are copied byte for byte. Others are decoded (transparency becomes white)
    and encoded again: as PNG if they were one, else as JPEG of quality 95. Equal bytes give equal bytes.

    Raises ImageError: the photo cannot be decoded.
    """
    bare = stripped(data)
    if bare is not None and np.array_equal(decode(bare), decode(data)):
        return bare, _extension(bare)
    pixels = decode(data)
    return (encode_png(pixels), "png") if data.startswith(_PNG) else (encode_jpeg(pixels), "jpg")


def _extension(data: bytes) -> str:
    for beginning, extension in ((_JPEG, "jpg"), (_PNG, "png"), (_RIFF, "webp")):
        if data.startswith(beginning):
            return extension
    raise ImageError("the file is not a JPEG, PNG or WebP", value=data[:8])
