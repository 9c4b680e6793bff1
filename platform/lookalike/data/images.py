"""Decode image bytes to upright RGB arrays, and encode them. Damaged pixels are an error, never filled in.

Flawed metadata (EXIF, ICC profiles, XMP, texts, a checksum beside the pixels, a second image) is not damage: the pixels
are decoded without it, and a note says so. Damaged or missing pixels are an :class:`ImageError`.

The size of metadata is bounded by the size of the file, since only PNG compresses it, and PIL unpacks at most 1 MiB of
a PNG's text or profile (``PngImagePlugin.MAX_TEXT_CHUNK``); a longer one is a flaw as above.
"""

import importlib.util
import io
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
import simplejpeg
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from lookalike.data.containers import without_metadata, without_padding
from lookalike.data.formats import HEIC_EXTENSIONS, needs_heic, what_it_is
from lookalike.data.limits import MAX_PIXELS
from lookalike.errors import InputError
from lookalike.pixels import read_orientation, to_rgb, turn_upright

HEIC_INSTALLED = importlib.util.find_spec("pillow_heif") is not None  # the extra `heic`
EXTENSIONS = ("jpg", "jpeg", "jfif", "png", "webp", *(HEIC_EXTENSIONS if HEIC_INSTALLED else ()))


class ImageError(InputError):
    """Bytes that are not an image, or are a damaged or truncated one."""

    def __init__(self, what: str, *, value: object = None, fix: str = "replace or remove the file") -> None:
        super().__init__(what, value=value, fix=fix)


@dataclass(frozen=True)
class Decoded:
    """A decoded photo."""

    pixels: np.ndarray
    """uint8 RGB ``[H, W, 3]``, or luma ``[H, W]`` if that was requested; upright, at a reduced scale if one was
    requested."""
    height: int
    """Height of the photo at full scale, upright, in pixels."""
    width: int
    """Width of the photo at full scale, upright, in pixels."""
    note: str = ""
    """The flaw in the metadata that was ignored; empty if there was none."""
    rgb: np.ndarray | None = None
    """Where luma was requested of a file without a plane of luma: the RGB pixels that it was computed from."""


def decode(data: bytes, side: int | None = None) -> np.ndarray:
    """Decode an image to uint8 RGB ``[H, W, 3]``, upright by its EXIF orientation.

    With ``side``, a JPEG is decoded at a reduced scale whose short side has at least that many pixels: libjpeg-turbo
    decodes at n/8 of the size, several times faster than at full scale.
    CMYK and 16-bit images are converted, transparency becomes white, and the first frame of an animation is decoded.

    Raises ImageError: the image does not decode to its last row, or is a JPEG for whose pixels libjpeg gives a warning.
    """
    return decode_noted(data, side).pixels


def decode_noted(data: bytes, side: int | None = None, max_pixels: int = MAX_PIXELS, *, luma: bool = False) -> Decoded:
    """Decode as :func:`decode` does, and note flaws in the metadata.

    An image of more than ``max_pixels`` is refused by its header, before anything is decoded. With ``luma``, only luma
    (ITU-R 601) is decoded, which is a plane of a JPEG and takes three quarters of the time of RGB.

    Raises ImageError: the format is not supported, the image has too many pixels, or its pixels are damaged or missing.
    """
    try:
        return _decode(data, side, max_pixels, luma)
    except ImageError as error:
        if error.what.startswith(_TOO_MANY):
            raise
        bare = without_metadata(data)
        if bare is None:
            raise
        try:
            decoded = _decode(bare[0], side, max_pixels, luma, exif=bare[1])
        except ImageError:
            raise error from None
        return replace(decoded, note=f"decoded without its metadata ({error.what})")


def decodes_as_it_is(data: bytes) -> bool:
    """Return whether the file decodes with its metadata, so that readers without a fallback can open it too."""
    try:
        _decode(data, 1)
    except ImageError:
        return False
    return True


def short_side(data: bytes) -> int:
    """Return the length of the short side in pixels, which is read from the header."""
    try:
        return min(_open(data).size)
    except ImageError:
        bare = without_metadata(data)
        if bare is None:
            raise
        return min(_open(bare[0]).size)


def fit_within(image: np.ndarray, short_side: int) -> np.ndarray:
    """Scale ``image`` down so that its short side has ``short_side`` pixels; return a smaller image unchanged."""
    height, width = image.shape[:2]
    scale = short_side / min(height, width)
    if scale >= 1:
        return image
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC, reducing_gap=3))


def encode_jpeg(image: np.ndarray, quality: int = 95) -> bytes:
    """Encode uint8 RGB ``[H, W, 3]`` as JPEG without chroma subsampling. Equal pixels give equal bytes."""
    pixels = np.ascontiguousarray(image)
    return bytes(simplejpeg.encode_jpeg(pixels, quality=quality, colorspace="RGB", colorsubsampling="444"))


def encode_png(image: np.ndarray, text: Mapping[str, str] | None = None) -> bytes:
    """Encode uint8 RGB ``[H, W, 3]`` as PNG; ``text`` is written into its iTXt chunks."""
    chunks = PngInfo()
    for key, value in (text or {}).items():
        chunks.add_itxt(key, value)
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="PNG", pnginfo=chunks)
    return buffer.getvalue()


_TOO_MANY = "too many pixels"
_PADDING_TRIES = 4


@cache
def _formats() -> tuple[str, ...]:
    """PIL's names of the formats that are opened. Others are not tried: some start programs or read other files."""
    if not HEIC_INSTALLED:
        return ("JPEG", "PNG", "WEBP")
    import pillow_heif

    pillow_heif.register_heif_opener()
    return ("JPEG", "PNG", "WEBP", "HEIF", "AVIF")


def _open(data: bytes, max_pixels: int = MAX_PIXELS) -> Image.Image:
    try:
        image = Image.open(io.BytesIO(data), formats=_formats())
    except Image.DecompressionBombError as error:
        raise ImageError(_TOO_MANY) from error
    except Exception as error:  # PIL's plugins raise many classes for damaged files
        if needs_heic(data) and not HEIC_INSTALLED:
            raise ImageError(
                f"{what_it_is(data)} needs an extra: pip install 'lookalike[heic]'",
                fix="install it, or convert the file to JPEG",
            ) from error
        kind = f"a damaged {what_it_is(data)}" if needs_heic(data) else what_it_is(data)
        raise ImageError(f"the file is not an image of a supported format: {kind}", value=data[:8]) from error
    if image.width * image.height > max_pixels:
        size = f"{image.width}x{image.height}"
        raise ImageError(f"{_TOO_MANY} ({size}; limits.max_pixels is {max_pixels})", fix="scale it down")
    return image


def _decode(
    data: bytes, side: int | None, max_pixels: int = MAX_PIXELS, luma: bool = False, exif: bytes | None = None
) -> Decoded:
    """Decode a file with its metadata, or one that was rewritten without metadata and had the EXIF block ``exif``."""
    image = _open(data, max_pixels)
    width, height = image.size
    is_jpeg = image.format in ("JPEG", "MPO")  # decoded strictly, since PIL ignores damaged pixels in these
    decode_jpeg = _strict_jpeg if exif is None else _unpadded_jpeg
    scaled = is_jpeg and image.mode in ("RGB", "L")
    if scaled:
        scale = 1 if side is None else min(1, side / max(1, min(width, height)))
        pixels = decode_jpeg(data, int(height * scale), int(width * scale), "GRAY" if luma else "RGB")
        pixels = pixels[:, :, 0] if luma else pixels
    else:
        if is_jpeg and image.mode == "CMYK":
            decode_jpeg(data, 1, 1, "CMYK")  # checks the pixels; PIL decodes them, since it handles inverted CMYK
        pixels = _load(image)
    orientation, note = read_orientation(image) if exif is None else _orientation_in(exif)
    if orientation != 1 and (scaled or exif is not None):  # else _load has turned them
        pixels = np.asarray(turn_upright(Image.fromarray(pixels), orientation))
    rgb = None
    if luma and not scaled:
        rgb, pixels = pixels, np.asarray(Image.fromarray(pixels).convert("L"))
    return Decoded(pixels, *((width, height) if orientation >= 5 else (height, width)), note, rgb)


def _unpadded_jpeg(data: bytes, min_height: int, min_width: int, space: str = "RGB") -> np.ndarray:
    """Decode strictly, after removing the padding before the end mark, which libjpeg reports in parts."""
    for _ in range(_PADDING_TRIES):
        try:
            return _strict_jpeg(data, min_height, min_width, space)
        except ImageError as error:
            shorter = without_padding(data, error.what)
            if shorter is None:
                raise
            data = shorter
    return _strict_jpeg(data, min_height, min_width, space)


def _strict_jpeg(data: bytes, min_height: int, min_width: int, space: str = "RGB") -> np.ndarray:
    try:
        return np.asarray(simplejpeg.decode_jpeg(data, space, min_height=min_height, min_width=min_width))
    except Exception as error:
        raise ImageError(f"the JPEG is damaged: {error}") from error


def _load(image: Image.Image) -> np.ndarray:
    try:
        return to_rgb(image)
    except Exception as error:  # decoders raise many classes for damaged files
        name = "" if isinstance(error, (OSError, ValueError, SyntaxError)) else f"{type(error).__name__}: "
        raise ImageError(f"the image is damaged: {name}{error}") from error


def orientation_in(exif: bytes) -> int:
    """Return the orientation (1 to 8) in an EXIF block; 1 if it is empty or has no valid one."""
    return _orientation_in(exif)[0]


def _orientation_in(exif: bytes) -> tuple[int, str]:
    image = Image.new("L", (1, 1))
    image.info["exif"] = exif
    return read_orientation(image)
