"""Rewrite image files without their metadata, so that flaws in the metadata do not prevent decoding the pixels.

It reads the containers of JPEG, PNG and WebP, not the compressed pixels. Parts that determine the pixels are copied
byte for byte; EXIF, ICC profiles, texts, thumbnails, second images and stray bytes are left out.
"""

import re
import struct
import zlib

_EXTRANEOUS = re.compile(r"(\d+) extraneous bytes before marker 0xd9")
_FEW_BYTES = 16  # of padding with any content; longer padding must be one repeated byte
_PNG = b"\x89PNG\r\n\x1a\n"
_PNG_CHUNKS = (b"IHDR", b"PLTE", b"tRNS", b"IDAT")
_WEBP_CHUNKS = (b"VP8X", b"ALPH", b"VP8 ", b"VP8L", b"ANIM", b"ANMF")
_JPEG_TABLES = {0xC4, 0xCC, 0xDB, 0xDD}  # DHT, DAC, DQT, DRI
_JPEG_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
_JFIF = b"\xff\xe0\x00\x10JFIF\x00\x01\x01\x00\x00\x01\x00\x01\x00\x00"


def without_metadata(data: bytes) -> tuple[bytes, bytes] | None:
    """Return the file with only its pixels, and its EXIF block (empty if it has none).

    Returns None for other formats, and for files in which the pixels are not found. A file without an end mark gets
    one, so a strict decoder must check whether its pixels are complete.
    """
    if data[:3] == b"\xff\xd8\xff":
        return _jpeg(data)
    if data[:8] == _PNG:
        return _png(data)
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return _webp(data)
    return None


def without_padding(jpeg: bytes, complaint: str) -> bytes | None:
    """Return a JPEG without the padding between its pixels and its end mark, which some phones write.

    ``complaint`` is the warning of libjpeg that counts these bytes. Returns None unless they are few or all equal,
    since other bytes may be pixels that the decoder of a damaged stream did not reach.
    """
    match = _EXTRANEOUS.search(complaint)
    end = jpeg.rfind(b"\xff\xd9")
    if match is None or end < 0:
        return None
    start = end - int(match.group(1))
    padding = jpeg[start:end]
    if len(padding) > _FEW_BYTES and len(set(padding)) > 1:
        return None
    return jpeg[:start] + jpeg[end:]


def _jpeg(data: bytes) -> tuple[bytes, bytes] | None:
    """The segments that determine the pixels, in order; None if a second image begins before the first ends."""
    kept, exif = [data[:2]], b""
    position, sequential, jfif = 2, False, False
    while (position := data.find(b"\xff", position)) >= 0 and position + 4 <= len(data):
        marker = data[position + 1]
        if marker == 0xD8:  # a thumbnail, so the length of its EXIF block is wrong
            return None
        if marker in (0x00, 0xFF) or 0xD0 <= marker <= 0xD7:  # stuffing, a fill byte, or a marker without content
            position += 1
            continue
        if marker == 0xD9:
            break
        length = int.from_bytes(data[position + 2 : position + 4], "big")
        segment = data[position : position + 2 + length]
        if marker in _JPEG_FRAMES:
            sequential = marker in (0xC0, 0xC1)
            kept.append(segment)
        elif marker in _JPEG_TABLES:
            kept.append(segment)
        elif marker == 0xE0 and segment[4:8] == b"JFIF" and not jfif:
            jfif = True  # JFIF means YCbCr, whatever the ids of its components are
            kept.insert(1, _JFIF)
        elif marker == 0xEE and segment[4:9] == b"Adobe" and segment[15:16] in (b"\0", b"\1", b"\2"):
            kept.append(segment)
        elif marker == 0xE1 and segment[4:10] == b"Exif\0\0" and not exif:
            exif = segment[4:]
        elif marker == 0xDA:
            end = _end_of_scan(data, position + 2 + length)
            header = (
                segment[:-3] + b"\x00\x3f\x00" if sequential else segment
            )  # the only valid values of a sequential scan
            kept += [header, data[position + 2 + length : end]]
            position = end
            continue
        elif not (0xE0 <= marker <= 0xEF or marker == 0xFE):  # stray bytes between segments
            position += 1
            continue
        position += 2 + max(2, length)
    return b"".join(kept) + b"\xff\xd9", exif


def _end_of_scan(data: bytes, position: int) -> int:
    """End of the compressed pixels from ``position``: the next marker that is not a restart marker."""
    while (position := data.find(b"\xff", position)) >= 0 and position + 1 < len(data):
        marker = data[position + 1]
        if marker not in (0x00, 0xFF) and not 0xD0 <= marker <= 0xD7:
            return position
        position += 1
    return len(data)


def _png(data: bytes) -> tuple[bytes, bytes]:
    """The critical chunks and tRNS. One with a wrong checksum is copied too, so that decoding it fails."""
    kept, exif, position = [_PNG], b"", len(_PNG)
    while position + 12 <= len(data):
        (length,) = struct.unpack_from(">I", data, position)
        name = data[position + 4 : position + 8]
        chunk = data[position : position + 12 + length]
        whole = len(chunk) == 12 + length and zlib.crc32(chunk[4:-4]) == int.from_bytes(chunk[-4:], "big")
        if name == b"IEND":
            break
        if name == b"eXIf" and whole:
            exif = b"Exif\0\0" + chunk[8:-4]
        elif name in _PNG_CHUNKS and (whole or name != b"tRNS"):
            kept.append(chunk)
        position += 12 + length
    return b"".join(kept) + b"\0\0\0\0IEND\xaeB`\x82", exif


def _webp(data: bytes) -> tuple[bytes, bytes]:
    """The chunks of the image or animation, with the size in the header corrected."""
    kept, exif, position = [], b"", 12
    while position + 8 <= len(data):
        name, length = data[position : position + 4], int.from_bytes(data[position + 4 : position + 8], "little")
        chunk = data[position : position + 8 + length + length % 2]
        if name == b"VP8X" and len(chunk) > 8:
            chunk = chunk[:8] + bytes([chunk[8] & 0b00010010]) + chunk[9:]  # only the flags of alpha and animation
        if name in _WEBP_CHUNKS:
            kept.append(chunk)
        elif name == b"EXIF" and not exif:
            exif = chunk[8 : 8 + length]
        position += 8 + length + length % 2
    body = b"WEBP" + b"".join(kept)
    return b"RIFF" + struct.pack("<I", len(body)) + body, exif
