"""Image bytes to upright RGB arrays and back. Nothing is stretched, and broken pixels are never made up.

A flaw in metadata (EXIF, profiles, texts, a checksum beside the pixels, a second image) is not damage: the pixels are
decoded without it, and this is noted. Damaged or missing pixels are an :class:`ImageError`.
"""

import importlib.util
import io
from collections.abc import Mapping
from dataclasses import dataclass
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
    """Bytes that are no image, or not a whole one."""

    def __init__(self, what: str, *, value: object = None, fix: str = "replace or remove the file") -> None:
        super().__init__(what, value=value, fix=fix)


@dataclass(frozen=True)
class Decoded:
    """A decoded photo."""

    pixels: np.ndarray
    """uint8 RGB ``[H, W, 3]``, upright; possibly at a reduced scale."""
    height: int
    """Pixels of the whole photo, upright."""
    width: int
    """Pixels of the whole photo, upright."""
    note: str = ""
    """Which flaw in the metadata was passed over, if any."""


def decode(data: bytes) -> np.ndarray:
    """Decode to uint8 RGB ``[H, W, 3]``, upright by its EXIF orientation.

    CMYK and 16-bit images are converted, transparency becomes white, and the first frame of an animation is taken.
    Raises :class:`ImageError` for anything that does not decode to its last row, and for a JPEG whose pixels libjpeg
    complains about, also if it could continue.
    """
    return decode_noted(data).pixels


def decode_at_least(data: bytes, side: int) -> tuple[np.ndarray, tuple[int, int]]:
    """Decode at a cheap scale whose short side is still ≥ ``side`` pixels: the image, and its full (height, width).

    A JPEG is decoded by libjpeg-turbo at n/8 of its size, several times faster than a full decode. A JPEG whose pixels
    libjpeg complains about is an :class:`ImageError`, also if it could continue: a half-decoded image would teach grey.
    """
    decoded = decode_noted(data, side)
    return decoded.pixels, (decoded.height, decoded.width)


def decode_noted(data: bytes, side: int | None = None, max_pixels: int = MAX_PIXELS) -> Decoded:
    """Decode as :func:`decode` does, or with a ``side`` as :func:`decode_at_least`; the note names a flaw, if any.

    An image of more than ``max_pixels`` is refused by its header.

    Raises:
        ImageError: not a format that we read, too many pixels, damaged or missing pixels.
    """
    try:
        return _decode(data, side, max_pixels)
    except ImageError as error:
        if error.what.startswith(_TOO_MANY):
            raise
        bare = without_metadata(data)
        if bare is None:
            raise
        try:
            decoded = _decode_bare(*bare, side, max_pixels)
        except ImageError:
            raise error from None
        return Decoded(decoded.pixels, decoded.height, decoded.width, f"decoded without its metadata ({error.what})")


def decodes_as_it_is(data: bytes) -> bool:
    """Whether the file decodes with its metadata: then other readers open it too, which know no way around flaws."""
    try:
        _decode(data, 1)
    except ImageError:
        return False
    return True


def short_side(data: bytes) -> int:
    """Pixels of the short side, from the header alone."""
    try:
        return min(_open(data).size)
    except ImageError:
        bare = without_metadata(data)
        if bare is None:
            raise
        return min(_open(bare[0]).size)


def fit_within(image: np.ndarray, short_side: int) -> np.ndarray:
    """Scale ``image`` down so that its short side is ``short_side`` pixels; a smaller one is returned as it is."""
    height, width = image.shape[:2]
    scale = short_side / min(height, width)
    if scale >= 1:
        return image
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC, reducing_gap=3))


def encode_jpeg(image: np.ndarray, quality: int = 95) -> bytes:
    """uint8 RGB ``[H, W, 3]`` as JPEG without chroma subsampling: equal pixels give equal bytes."""
    pixels = np.ascontiguousarray(image)
    return bytes(simplejpeg.encode_jpeg(pixels, quality=quality, colorspace="RGB", colorsubsampling="444"))


def encode_png(image: np.ndarray, text: Mapping[str, str] | None = None) -> bytes:
    """uint8 RGB ``[H, W, 3]`` as PNG; ``text`` goes into its text chunks, where image viewers and PIL find it."""
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
    """Names of PIL's formats that are opened; no other is tried, since some start programs or read other files."""
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
    except Exception as error:  # plugins of PIL raise whatever a damaged file makes them raise
        if needs_heic(data) and not HEIC_INSTALLED:
            raise ImageError(
                f"{what_it_is(data)} needs an extra: pip install 'lookalike[heic]'",
                fix="install it, or convert the file to JPEG",
            ) from error
        kind = f"a damaged {what_it_is(data)}" if needs_heic(data) else what_it_is(data)
        raise ImageError(f"not an image of a format that we read: {kind}", value=data[:8]) from error
    if image.width * image.height > max_pixels:
        size = f"{image.width}x{image.height}"
        raise ImageError(f"{_TOO_MANY} ({size}; limits.max_pixels is {max_pixels})", fix="scale it down")
    return image


def _decode(data: bytes, side: int | None, max_pixels: int = MAX_PIXELS) -> Decoded:
    image = _open(data, max_pixels)
    width, height = image.size
    is_jpeg = image.format in ("JPEG", "MPO")  # PIL passes over damaged pixels of these
    if not is_jpeg or image.mode not in ("RGB", "L"):
        if is_jpeg and image.mode == "CMYK":
            _strict_jpeg(data, 1, 1, "CMYK")  # for its complaints alone; PIL knows which are stored inverted
        pixels = _load(image)
        orientation, note = read_orientation(image)
        return Decoded(pixels, *_upright_size(height, width, orientation), note)
    scale = 1 if side is None else min(1, side / max(1, min(width, height)))
    pixels = _strict_jpeg(data, int(height * scale), int(width * scale))
    return _turned(pixels, height, width, *read_orientation(image))


def _decode_bare(data: bytes, exif: bytes, side: int | None, max_pixels: int) -> Decoded:
    """Decode a file that was rewritten without metadata; a JPEG strictly, since PIL passes over damaged pixels."""
    image = _open(data, max_pixels)
    width, height = image.size
    if image.format == "JPEG" and image.mode in ("RGB", "L"):
        scale = 1 if side is None else min(1, side / max(1, min(width, height)))
        pixels = _unpadded_jpeg(data, int(height * scale), int(width * scale))
    else:
        if image.format == "JPEG" and image.mode == "CMYK":
            _unpadded_jpeg(data, 1, 1, "CMYK")
        pixels = _load(image)
    return _turned(pixels, height, width, *_orientation_in(exif))


def _unpadded_jpeg(data: bytes, min_height: int, min_width: int, space: str = "RGB") -> np.ndarray:
    """Decode strictly, without the padding between pixels and end mark that libjpeg counts, some of it at a time."""
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
    except Exception as error:  # decoders raise whatever a damaged file makes them raise
        name = "" if isinstance(error, (OSError, ValueError, SyntaxError)) else f"{type(error).__name__}: "
        raise ImageError(f"the image is damaged: {name}{error}") from error


def _turned(pixels: np.ndarray, height: int, width: int, orientation: int, note: str) -> Decoded:
    upright = np.asarray(turn_upright(Image.fromarray(pixels), orientation))
    return Decoded(upright, *_upright_size(height, width, orientation), note)


def _upright_size(height: int, width: int, orientation: int) -> tuple[int, int]:
    return (width, height) if orientation >= 5 else (height, width)


def _orientation_in(exif: bytes) -> tuple[int, str]:
    image = Image.new("L", (1, 1))
    image.info["exif"] = exif
    return read_orientation(image)
