"""Convert images to RGB and crop them: one implementation for curation, jobs and the pipeline API."""

import numpy as np
from PIL import Image

_ORIENTATION_TAG = 0x0112
_STRIP = 256  # rows that are composed at a time
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def crop_resize(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resize the largest centred crop that has the aspect of the result: uint8 ``[H, W, 3]`` to ``[height, width, 3]``.

    Both axes are scaled by the same factor.
    """
    source_height, source_width = image.shape[:2]
    if (source_height, source_width) == (height, width):
        return image
    scale = min(source_height / height, source_width / width)
    box_height, box_width = min(height * scale, source_height), min(width * scale, source_width)
    top, left = (source_height - box_height) / 2, (source_width - box_width) / 2
    box = (left, top, left + box_width, top + box_height)
    resized = Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC, box=box, reducing_gap=3)
    return np.asarray(resized)


def to_rgb(image: Image.Image) -> np.ndarray:
    """Convert a PIL image of any mode to uint8 RGB ``[H, W, 3]``, turned upright by its EXIF orientation.

    Transparency (an alpha channel, a transparent palette entry, a transparent colour) becomes white. 16-bit values
    are scaled to 8 bits (``>> 8``; modes ``I`` and ``I;16*`` hold 16 bits, as PIL writes them to a PNG). Mode ``F``
    holds 0–255, as in PIL. Of an animation, the current frame is converted. An orientation that cannot be read, or that
    EXIF does not define, counts as upright. PIL's errors (OSError, ValueError, SyntaxError, ...) for pixels that it
    cannot decode, or for a mode that it cannot convert, go through.
    """
    image.load()  # before the EXIF, which a PNG may hold at its end, so that damaged pixels are reported as such
    orientation, _ = read_orientation(image)
    return np.asarray(turn_upright(_opaque(image), orientation))


def read_orientation(image: Image.Image) -> tuple[int, str]:
    """Return the EXIF orientation (1 to 8; 1 if it is missing or not valid), and a note if it is not valid."""
    try:
        value = image.getexif().get(_ORIENTATION_TAG, 1)
        first = value[0] if isinstance(value, (tuple, list)) and len(value) == 1 else value
        number = int(first)
        if 1 <= number <= 8 and number == first:
            return number, ""
    except Exception as error:  # of damaged EXIF: struct.error, ZeroDivisionError, RecursionError and others
        return 1, f"the EXIF cannot be read ({type(error).__name__})"
    return 1, f"the EXIF orientation {str(value)[:20]!r} is not one of 1 to 8"


def turn_upright(image: Image.Image, orientation: int) -> Image.Image:
    """Undo an EXIF orientation of 2 to 8; with 1, return the image unchanged."""
    method = _TURNS.get(orientation)
    return image if method is None else image.transpose(method)


def _opaque(image: Image.Image) -> Image.Image:
    """The image in mode RGB; transparency becomes white."""
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith("I"):
        return _from_16_bits(image)
    if image.mode == "F":
        values = np.nan_to_num(np.asarray(image), nan=0.0, posinf=255.0, neginf=0.0)
        return Image.fromarray(values.clip(0, 255).astype(np.uint8)).convert("RGB")
    if image.mode in ("La", "RGBa"):  # premultiplied modes, which PIL converts to LA and RGBA only
        image = image.convert("LA" if image.mode == "La" else "RGBA")
    try:
        if image.has_transparency_data:
            return _on_white(image)
    except (ValueError, TypeError, IndexError, OverflowError):  # a transparent colour that the mode cannot hold
        image = image.copy()
        image.info.pop("transparency", None)
    return image.convert("RGB")


def _on_white(image: Image.Image) -> Image.Image:
    layer = image if image.mode == "RGBA" else image.convert("RGBA")
    for top in range(0, layer.height, _STRIP):  # in strips: whole copies of a large image would take gigabytes
        box = (0, top, layer.width, min(top + _STRIP, layer.height))
        strip = layer.crop(box)
        layer.paste(Image.alpha_composite(Image.new("RGBA", strip.size, "white"), strip), box)
    return layer.convert("RGB")


def _from_16_bits(image: Image.Image) -> Image.Image:
    values = np.asarray(image)
    grey = (values.clip(0, 0xFFFF) >> 8).astype(np.uint8)
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        grey = np.where(values == transparent, np.uint8(255), grey)
    return Image.fromarray(grey).convert("RGB")
