"""Image bytes to upright RGB arrays and back. Nothing is stretched, and nothing is guessed about broken bytes."""

import io
from collections.abc import Mapping

import numpy as np
import simplejpeg
from PIL import Image, UnidentifiedImageError
from PIL.PngImagePlugin import PngInfo

from lookalike.errors import InputError
from lookalike.pixels import orientation_of, to_rgb, turn_upright

EXTENSIONS = ("jpg", "jpeg", "png", "webp")
MAX_PIXELS = 128_000_000  # an image that says it is larger is refused before a byte of it is unpacked


class ImageError(InputError):
    """Bytes that are no image, or not a whole one."""

    def __init__(self, what: str, *, value: object = None, fix: str = "replace or remove the file") -> None:
        super().__init__(what, value=value, fix=fix)


def decode(data: bytes) -> np.ndarray:
    """Decode to uint8 RGB ``[H, W, 3]``, turned as its EXIF orientation says.

    CMYK and 16-bit images are converted, transparency is laid on white, of an animation the first frame is taken.
    Raises :class:`ImageError` for anything that does not decode to its last row.
    """
    return _load(_open(data))


def decode_at_least(data: bytes, side: int) -> tuple[np.ndarray, tuple[int, int]]:
    """Decode at a cheap scale whose short side is still ≥ ``side`` pixels: the image, and its full (height, width).

    A JPEG is decoded by libjpeg-turbo at n/8 of its size, several times faster than a full decode. A JPEG that
    libjpeg complains about is an :class:`ImageError`, also where it could go on: half an image teaches grey.
    """
    image = _open(data)
    orientation = orientation_of(image)
    width, height = image.size
    if image.format == "JPEG" and image.mode in ("RGB", "L"):
        scale = side / max(1, min(width, height))
        try:
            pixels = simplejpeg.decode_jpeg(
                data, "RGB", min_height=min(height, int(height * scale)), min_width=min(width, int(width * scale))
            )
        except ValueError as error:
            raise ImageError(f"the JPEG is damaged: {error}") from error
        upright = np.asarray(turn_upright(Image.fromarray(pixels), orientation))
    else:
        upright = _load(image)
    return upright, ((width, height) if orientation >= 5 else (height, width))


def short_side(data: bytes) -> int:
    """Pixels of the short side, from the header alone."""
    return min(_open(data).size)


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


def _open(data: bytes) -> Image.Image:
    try:
        image = Image.open(io.BytesIO(data))
    except Image.DecompressionBombError as error:
        raise ImageError("too many pixels") from error
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError) as error:
        raise ImageError("no image format that we know", value=data[:8]) from error
    if image.width * image.height > MAX_PIXELS:
        raise ImageError("too many pixels", value=f"{image.width}x{image.height}")
    return image


def _load(image: Image.Image) -> np.ndarray:
    try:
        return to_rgb(image)
    except (OSError, ValueError, SyntaxError, IndexError) as error:
        raise ImageError(f"the image is damaged: {error}") from error
