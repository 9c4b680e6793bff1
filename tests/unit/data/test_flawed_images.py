"""Flawed image files of phones, scanners and servers: flawed metadata is noted, damaged pixels are refused."""

import io
import random
import struct
import zlib
from collections.abc import Callable, Iterator
from functools import cache

import numpy as np
import pillow_heif
import pytest
from PIL import Image
from skimage import data as photographs

from lookalike.data.images import HEIC_INSTALLED, ImageError, decode, decode_noted, short_side


def file_of(image: Image.Image, kind: str = "JPEG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@cache
def cat() -> Image.Image:
    return Image.fromarray(photographs.chelsea()).resize((226, 150))


@cache
def jpeg() -> bytes:
    return file_of(cat(), quality=90)


@cache
def png() -> bytes:
    return file_of(cat(), "PNG")


def exif(value: bytes, kind: int = 3, count: int = 1) -> bytes:
    """An EXIF block whose only entry is the orientation."""
    entry = struct.pack(">HHI", 0x112, kind, count) + value.ljust(4, b"\0")
    return b"Exif\0\0MM\0*" + struct.pack(">IH", 8, 1) + entry + struct.pack(">I", 0) + struct.pack(">II", 1, 0) * 2


def segment(marker: int, content: bytes, length: int | None = None) -> bytes:
    """The JPEG with one more segment after its first two bytes."""
    size = len(content) + 2 if length is None else length
    return jpeg()[:2] + struct.pack(">BBH", 0xFF, marker, size) + content + jpeg()[2:]


def chunk(name: bytes, content: bytes, checksum: int | None = None) -> bytes:
    """The PNG with one more chunk after its header."""
    crc = zlib.crc32(name + content) if checksum is None else checksum
    return png()[:33] + struct.pack(">I", len(content)) + name + content + struct.pack(">I", crc) + png()[33:]


def instead_of_jfif(content: bytes) -> bytes:
    return jpeg()[:2] + content + jpeg()[20:]


def webp(change: Callable[[bytes], bytes]) -> bytes:
    return change(file_of(cat(), "WEBP", lossless=True, exif=exif(b"\0\1"), icc_profile=b"x" * 100))


def padded(padding: bytes) -> bytes:
    return jpeg()[:-2] + padding + jpeg()[-2:]


def scan_header(last: int) -> bytes:
    data = bytearray(jpeg())
    start = data.index(b"\xff\xda")
    data[start + 1 + int.from_bytes(data[start + 2 : start + 4], "big")] = last
    return bytes(data)


BOMB = zlib.compress(bytes(80 << 20))
FLAWS: dict[str, Callable[[], bytes]] = {
    "jpeg without an end mark": lambda: jpeg()[:-2],
    "jpeg with 12 bytes before its end mark": lambda: padded(b"abcdefghijkl"),
    "jpeg padded with zeros": lambda: padded(bytes(3000)),
    "jpeg padded with fill bytes": lambda: padded(b"\xff" * 300),
    "jpeg with trailing bytes": lambda: jpeg() + b"<html>" * 99,
    "jpeg with bytes between segments": lambda: jpeg().replace(b"\xff\xdb", b"junk\xff\xdb", 1),
    "jpeg of a later JFIF": lambda: instead_of_jfif(b"\xff\xe0\0\x10JFIF\0\2\5\0\0\1\0\1\0\0"),
    "jpeg of a JFIF that is cut": lambda: instead_of_jfif(b"\xff\xe0\0\x07JFIF\0"),
    "jpeg of an unknown Adobe transform": lambda: instead_of_jfif(b"\xff\xee\0\x0eAdobe\0d\0\0\0\0\7"),
    "jpeg without JFIF": lambda: instead_of_jfif(b""),
    "jpeg with a cut Adobe marker": lambda: segment(0xEE, b"Adobe\0d"),
    "jpeg with odd scan parameters": lambda: scan_header(0x11),
    "jpeg with an ICC profile out of order": lambda: segment(0xE2, b"ICC_PROFILE\0\x63\x01" + bytes(50)),
    "jpeg with a broken index of a second image": lambda: segment(0xE2, b"MPF\0MM\0*\0\0\0\x08\xff\xff" + bytes(20)),
    "jpeg with a broken Photoshop block": lambda: segment(0xED, b"Photoshop 3.0\x008BIM\4\4\0\0\xff\xff\xff\xff"),
    "jpeg with EXIF of a wrong length": lambda: segment(0xE1, exif(b"\0\1"), 20),
    "jpeg with EXIF of no length": lambda: segment(0xE1, exif(b"\0\1"), 0),
    "jpeg with EXIF that is garbage": lambda: segment(0xE1, b"Exif\0\0" + b"\x99" * 30),
    "jpeg with EXIF that points outside": lambda: segment(0xE1, b"Exif\0\0MM\0*\xff\xff\xff\xff"),
    "jpeg turned by 0": lambda: segment(0xE1, exif(b"\0\0")),
    "jpeg turned by 9": lambda: segment(0xE1, exif(b"\0\x09")),
    "jpeg turned by text": lambda: segment(0xE1, exif(b"6\0", 2, 2)),
    "jpeg turned by x/0": lambda: segment(0xE1, exif(struct.pack(">I", 26), 5)),
    "jpeg turned by NaN": lambda: segment(0xE1, exif(struct.pack(">f", np.nan), 11)),
    "jpeg turned by infinity": lambda: segment(0xE1, exif(struct.pack(">f", np.inf), 11)),
    "jpeg turned by a list": lambda: segment(0xE1, exif(struct.pack(">I", 26), 3, 3)),
    "jpeg turned by a huge list": lambda: segment(0xE1, exif(b"\0\0\0\1", 3, 1 << 31)),
    "png with a text of a wrong checksum": lambda: chunk(b"tEXt", b"a\0b", 0),
    "png with a text that unpacks to 80 MiB": lambda: chunk(b"zTXt", b"a\0\0" + BOMB),
    "png with a profile that unpacks to 80 MiB": lambda: chunk(b"iCCP", b"a\0\0" + BOMB),
    "png with a broken profile": lambda: chunk(b"iCCP", b"a\0\0zzzz"),
    "png with a cut gamma": lambda: chunk(b"gAMA", b"\0"),
    "png with an empty colour space": lambda: chunk(b"sRGB", b""),
    "png with cut chromaticities": lambda: chunk(b"cHRM", b"12"),
    "png with a cut density": lambda: chunk(b"pHYs", b"\0"),
    "png with a broken animation": lambda: chunk(b"acTL", b"\0"),
    "png with broken EXIF": lambda: chunk(b"eXIf", b"MM\0*\xff\xff"),
    "png with a transparency of a wrong checksum": lambda: chunk(b"tRNS", bytes(6), 1),
    "png without an end": lambda: png()[:-12],
    "png with trailing bytes": lambda: png() + b"x" * 99,
    "webp that says it is longer": lambda: webp(lambda b: b[:4] + struct.pack("<I", len(b) + 5000) + b[8:]),
    "webp that says it is shorter": lambda: webp(lambda b: b[:4] + struct.pack("<I", 100) + b[8:]),
    "webp with EXIF of a wrong length": lambda: webp(lambda b: b.replace(b"EXIF", b"EXIF\xff\xff\xff\x7f")),
    "webp without its EXIF": lambda: webp(lambda b: b[: b.index(b"EXIF")]),
    "webp with trailing bytes": lambda: webp(lambda b: b + b"x" * 11),
}  # fmt: skip


@pytest.mark.parametrize("name", FLAWS)
def test_flawed_metadata_changes_no_pixel(name: str) -> None:
    data = FLAWS[name]()
    plain = jpeg() if name.startswith("jpeg") else png()
    assert short_side(data) == 150
    for side in (None, 64):
        photo, expected = decode_noted(data, side), decode_noted(plain, side)
        assert (photo.height, photo.width) == (150, 226)
        # the two libraries that decode JPEGs round differently
        assert np.abs(photo.pixels.astype(int) - expected.pixels).max() <= (3 if name.startswith("jpeg") else 0)


def test_flawed_metadata_is_noted() -> None:
    noted = {name for name, make in FLAWS.items() if decode_noted(make(), 64).note}
    assert len(noted) > 25
    assert "jpeg turned by 9" in noted
    assert decode_noted(jpeg(), 64).note == decode_noted(png()).note == ""


def test_orientation_is_read_despite_flawed_metadata() -> None:
    turned = exif(b"\0\6")
    of_png, of_webp = (file_of(cat(), kind, exif=turned) for kind in ("PNG", "WEBP"))
    for data in (
        segment(0xE1, turned)[:-2],
        of_png[:33] + chunk(b"gAMA", b"\0")[33:46] + of_png[33:],
        of_webp[:4] + bytes(4) + of_webp[8:],
    ):
        photo = decode_noted(data, 64)
        assert (photo.height, photo.width, photo.pixels.shape[0] > photo.pixels.shape[1]) == (226, 150, True)
        assert photo.note


def test_first_of_two_images_in_a_file_is_decoded() -> None:
    data = file_of(cat(), "MPO", save_all=True, append_images=[cat().resize((50, 40))])
    assert decode_noted(data, 64).note == ""
    assert decode(data).shape == decode(data[: len(jpeg()) + 500]).shape == (150, 226, 3)


def damaged() -> Iterator[tuple[str, bytes]]:
    data = jpeg()
    yield "half", data[: len(data) // 2]
    yield "half with an end mark", data[: len(data) // 2] + b"\xff\xd9"
    yield "the last 40 bytes lack", data[:-42] + b"\xff\xd9"
    yield "noise", data[:700] + random.Random(0).randbytes(len(data))
    restarts = file_of(cat(), restart_marker_blocks=4)
    lost = restarts.index(b"\xff\xd3")
    yield "a lost restart", restarts[:lost] + restarts[lost + 2 :]
    progressive = file_of(cat(), progressive=True)
    yield "half progressive", progressive[: len(progressive) // 2]
    yield "many bytes before the end mark", padded(bytes(range(200)))
    yield "a thumbnail in EXIF of a wrong length", segment(0xE1, b"Exif\0\0" + file_of(cat().resize((40, 30))), 8)
    yield "png half", png()[: len(png()) // 2]
    yield "png cut", png()[:-60]
    yield "png with a changed byte", png()[:9000] + bytes([png()[9000] ^ 1]) + png()[9001:]
    yield "webp half", webp(lambda b: b[: len(b) // 2])


def rotten() -> Iterator[tuple[str, bytes]]:
    """JPEGs with overwritten bytes between an intact start and end, as after a disk or transfer error."""
    noise = random.Random(1).randbytes(512).replace(b"\xff", b"x")
    for mode in ("RGB", "L", "CMYK"):
        for progressive in (False, True):
            data = file_of(cat().convert(mode), quality=90, progressive=progressive)
            start = len(data) // 2
            for what, bad in (("zeros", bytes(2048)), ("noise", noise)):
                yield f"{what} in {mode} {'progressive' * progressive}", data[:start] + bad + data[start + len(bad) :]


BROKEN = [*damaged(), *rotten()]


@pytest.mark.parametrize("side", [64, None])
@pytest.mark.parametrize(("name", "data"), BROKEN, ids=[name for name, _ in BROKEN])
def test_damaged_pixels_are_refused(name: str, data: bytes, side: int | None) -> None:
    with pytest.raises(ImageError):
        decode_noted(data, side)


OTHERS = {
    "a GIF": lambda: file_of(cat(), "GIF"),
    "a TIFF": lambda: file_of(cat(), "TIFF"),
    "a BMP": lambda: file_of(cat(), "BMP"),
    "an EPS": lambda: file_of(cat(), "EPS"),
    "a PDF": lambda: file_of(cat(), "PDF"),
    "a JPEG 2000": lambda: file_of(cat(), "JPEG2000"),
    "a PSD": lambda: b"8BPS\0\1" + bytes(40),
    "an SVG": lambda: b"<?xml version='1.0'?>\n<svg xmlns='http://www.w3.org/2000/svg'/>",
    "an HTML page": lambda: b"\n<!DOCTYPE html><title>404</title>",
    "Git LFS": lambda: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n",
    "an empty file": lambda: b"",
    "zeros": lambda: bytes(5000),
    "a video": lambda: b"\0\0\0\x18ftypisom" + bytes(100),
}


@pytest.mark.parametrize("name", OTHERS)
def test_unsupported_formats_are_named_without_being_opened(name: str) -> None:
    with pytest.raises(ImageError, match=name):
        decode(OTHERS[name]())


def phone_photo(brand: bytes) -> bytes:
    return b"\0\0\0\x18ftyp" + brand + b"\0\0\0\0mif1heic" + bytes(200)


@pytest.mark.usefixtures("without_heic")
@pytest.mark.parametrize(("brand", "kind"), [(b"heic", "HEIC"), (b"mif1", "HEIC"), (b"avif", "AVIF")])
def test_heic_without_the_extra_is_an_error_that_names_it(brand: bytes, kind: str) -> None:
    with pytest.raises(ImageError, match=rf"{kind} needs an extra: pip install 'lookalike\[heic\]'"):
        decode(phone_photo(brand))


@pytest.mark.parametrize(("brand", "kind"), [(b"heic", "HEIC"), (b"mif1", "HEIC"), (b"avif", "AVIF")])
def test_damaged_heic_is_an_image_error(brand: bytes, kind: str) -> None:
    assert HEIC_INSTALLED, "the extra heic is part of the extra dev"
    with pytest.raises(ImageError, match=f"a damaged {kind}"):
        decode(phone_photo(brand))


def test_heic_is_read_with_the_extra() -> None:
    pillow_heif.register_heif_opener()
    for kind in ("HEIF", "AVIF"):
        pixels = decode(file_of(cat(), kind, quality=95))
        assert np.abs(pixels.astype(int) - np.asarray(cat())).mean() < 4


@pytest.mark.parametrize("plain", [jpeg, png, lambda: webp(lambda b: b)])
def test_changed_bytes_decode_or_are_an_image_error(plain: Callable[[], bytes]) -> None:
    chance, original = random.Random(0), plain()
    for _ in range(150):
        data = bytearray(original)
        for _ in range(chance.choice((1, 3, 30))):
            data[chance.randrange(min(len(data), chance.choice((100, 1000, len(data)))))] = chance.randrange(256)
        try:
            decode_noted(bytes(data), 64)
        except ImageError as error:
            assert error.what  # noqa: PT017
