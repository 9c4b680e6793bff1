"""Name the format of a file by its first bytes, for errors. Nothing is parsed."""

import re

HEAD_BYTES = 512  # bytes that archive_kind needs
_HEAD = 1024  # bytes of a text file that are examined

HEIC_EXTENSIONS = ("heic", "heif", "avif")
_HEIC_BRANDS = {
    **dict.fromkeys([b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1"], "HEIC"),
    **dict.fromkeys([b"avif", b"avis"], "AVIF"),
}
_BEGINNINGS = (
    (b"\xff\xd8\xff", "a damaged JPEG"),
    (b"\x89PNG", "a damaged PNG"),
    (b"GIF8", "a GIF"),
    (b"II*\0", "a TIFF or raw photo"),
    (b"MM\0*", "a TIFF or raw photo"),
    (b"II+\0", "a BigTIFF"),
    (b"MM\0+", "a BigTIFF"),
    (b"BM", "a BMP"),
    (b"8BPS", "a PSD"),
    (b"%!PS", "an EPS"),
    (b"\xc5\xd0\xd3\xc6", "an EPS"),
    (b"%PDF", "a PDF"),
    (b"\xff\x0a", "a JPEG XL"),
    (b"\0\0\0\x0cJXL ", "a JPEG XL"),
    (b"\0\0\0\x0cjP  ", "a JPEG 2000"),
    (b"\xff\x4f\xff\x51", "a JPEG 2000"),
    (b"\0\0\1\0", "an ICO"),
    (b"qoif", "a QOI"),
    (b"DDS ", "a DDS"),
    (b"gimp xcf", "an XCF"),
    (b"version https://git-lfs", "a Git LFS pointer in place of the file"),
)
_ARCHIVES = {
    "gzip": re.compile(rb"\x1f\x8b\x08"),
    "bzip2": re.compile(rb"BZh[1-9](1AY&SY|\x17rE8P\x90)"),
    "xz": re.compile(rb"\xfd7zXZ\x00"),
    "zstd": re.compile(rb"\x28\xb5\x2f\xfd"),
    "lz4": re.compile(rb"\x04\x22\x4d\x18"),
    "zip": re.compile(rb"PK(\x03\x04|\x05\x06)"),
    "7z": re.compile(rb"7z\xbc\xaf\x27\x1c"),
    "rar": re.compile(rb"Rar!\x1a\x07"),
}
_TEXTS = ((b"<svg", "an SVG"), (b"<!doctype html", "an HTML page"), (b"<html", "an HTML page"), (b"{", "JSON"))


def archive_kind(head: bytes) -> str | None:
    """Return the kind of an archive by its first :data:`HEAD_BYTES`: ``gzip``, ``bzip2``, ``xz``, ``zstd``, ``lz4``,
    ``zip``, ``7z`` or ``rar``; None for every other file, tars included."""
    if head[257:262] == b"ustar":
        return None
    return next((kind for kind, magic in _ARCHIVES.items() if magic.match(head)), None)


def what_it_is(data: bytes) -> str:
    """Return a short name of the format of a file, such as ``a GIF``."""
    if not data:
        return "an empty file"
    if data[:4] == b"RIFF":
        return "a damaged WebP" if data[8:12] == b"WEBP" else "a RIFF file"
    if data[4:8] == b"ftyp":
        return _HEIC_BRANDS.get(_brand(data), "a video or another ISO media file")
    for beginning, name in _BEGINNINGS:
        if data.startswith(beginning):
            return name
    if kind := archive_kind(data[:HEAD_BYTES]):
        return f"an archive ({kind})"
    text = data[:_HEAD].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    for beginning, name in _TEXTS:
        if text.startswith(beginning) or (beginning == b"<svg" and text.startswith(b"<?xml") and beginning in text):
            return name
    if not data[:_HEAD].strip(b"\0"):
        return "zeros"
    return "an unknown format"


def needs_heic(data: bytes) -> bool:
    """Return whether a file is HEIC, HEIF or AVIF, which need the extra ``heic``."""
    return data[4:8] == b"ftyp" and _brand(data) in _HEIC_BRANDS


def _brand(data: bytes) -> bytes:
    """The major brand of an ISO media file, or the first compatible brand of an image format."""
    brands = [data[8:12], *(data[i : i + 4] for i in range(16, min(len(data), 64), 4))]
    return next((brand for brand in brands if brand in _HEIC_BRANDS), data[8:12])
