"""Plant the defects of real shards into the sample world, to test whether curation finds them."""

import io
from dataclasses import replace

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from lookalike.errors import ConfigError
from pipelines.ingest.config import SampleWorldConfig
from pipelines.ingest.sample.world import Photo, Subject, photo

KINDS = (
    *("blurred", "flat", "strip", "truncated"),
    *("corrupt", "tiny", "exact_duplicate", "near_duplicate", "wrong_subject"),
)
_DEFECT = 3  # purpose in a seed, see world.py
_QUALITY = 92  # of a normal photo's JPEG
_TINY_PX = (24, 32, 16)
_WORDS = ("SAMPLE STOCK PHOTO", "www.studio.example", "SALE 50% OFF")


def plan_photos(config: SampleWorldConfig, things: list[Subject]) -> dict[str, list[Photo]]:
    """Return the photos of every subject by the subject's name, with planted ones after the normal ones.

    The last subject gets no planted photo, since its shard is the truncated one.

    Raises ConfigError if there are fewer than two subjects for planted defects.
    """
    photos = {
        thing.name: [photo(thing, i, config.views, bare_captions=config.bare_captions) for i in range(config.views)]
        for thing in things
    }
    if not config.defects:
        return photos
    rng = np.random.default_rng([_DEFECT, config.seed, config.first_subject])
    hosts = [things[i] for i in rng.permutation(len(things) - 1)]
    if not hosts:
        raise ConfigError(
            "sample.defects needs at least two subjects",
            value=[thing.name for thing in things],
            fix="choose more subjects, or set --sample.defects false",
        )
    each = config.defects_of_each or max(3, len(things) // 40)
    kinds = (*reversed(KINDS), *config.more_defects)
    for number, kind in enumerate(kind for kind in kinds for _ in range(each)):
        host = hosts[number % len(hosts)]
        photos[host.name].append(_plant(kind, number, host, photos[host.name], things, config.views))
    return photos


def encode(pixels: npt.NDArray[np.uint8], defect: str | None, variant: int) -> bytes:
    """Encode a rendered photo, uint8 RGB [H, W, 3], as JPEG with variant ``variant`` of a ``defect``."""
    image = Image.fromarray(pixels)
    if defect == "tiny":
        side = _TINY_PX[variant % len(_TINY_PX)]
        return _jpeg(image.resize((side, side), Image.Resampling.BICUBIC), _QUALITY)
    if defect == "near_duplicate":
        return _again(image, variant)
    if defect == "blurred":
        image = image.filter(ImageFilter.GaussianBlur(image.width / (24, 32, 48)[variant % 3]))
    if defect == "flat":
        image = Image.new("RGB", image.size, ("black", "white", image.getpixel((0, 0)))[variant % 3])
    if defect == "strip":
        image = Image.fromarray(np.tile(pixels, ((1, 4, 1), (5, 1, 1))[variant % 2]))
    if defect == "overlaid_text":
        image = _overlaid(image, variant)
    data = _jpeg(image, _QUALITY)
    if defect == "truncated":
        return data[: len(data) * (2 + variant % 7) // 10]
    if defect == "corrupt":
        noise = np.random.default_rng([_DEFECT, variant]).bytes(len(data))
        return (data[: len(data) // 2], data[:300] + noise[300:], b"<html>404 Not Found</html>\n")[variant % 3]
    return data


def _plant(kind: str, number: int, host: Subject, taken: list[Photo], things: list[Subject], views: int) -> Photo:
    key = f"{host.name}-{len(taken):02d}"
    if kind in ("exact_duplicate", "near_duplicate"):
        original = taken[number % views]
        return replace(original, key=key, bare=False, defect=kind, variant=number, original=original.key)
    shown = _other_subject(host, number, things) if kind == "wrong_subject" else host
    return replace(photo(host, len(taken), views, key), subject=shown, defect=kind, variant=number)


def _other_subject(host: Subject, number: int, things: list[Subject]) -> Subject:
    """A subject of another shape, and if possible of other colours."""
    others = [thing for thing in things if thing.shape != host.shape] or [t for t in things if t is not host]
    different = [thing for thing in others if not set(thing.colours) & set(host.colours)] or others
    return different[number * 7 % len(different)]


def _again(image: Image.Image, variant: int) -> bytes:
    """A near copy of the photo: recompressed, slightly cropped, or resized."""
    side = image.width
    if variant % 3 == 0:
        return _jpeg(image, 60)
    if variant % 3 == 1:
        edge = max(1, side // 40)
        return _jpeg(image.crop((edge, edge, side - edge, side - edge)), _QUALITY)
    return _jpeg(image.resize((side * 7 // 8, side * 7 // 8), Image.Resampling.LANCZOS), 80)


def _overlaid(image: Image.Image, variant: int) -> Image.Image:
    """Text across four fifths of the width, at the top, in the middle or at the bottom, like a watermark."""
    words, height = _WORDS[variant % 3], (0.12, 0.5, 0.88)[variant // 3 % 3]
    wide = ImageFont.load_default(100).getlength(words)
    font = ImageFont.load_default(80 * image.width / wide)
    layer = Image.new("RGBA", image.size)
    place = (image.width / 2, image.height * height)
    pen = ImageDraw.Draw(layer)
    pen.text(place, words, (255, 255, 255, 210), font, anchor="mm", stroke_width=1, stroke_fill=(0, 0, 0, 210))
    return Image.alpha_composite(image.convert("RGBA"), layer).convert("RGB")


def _jpeg(image: Image.Image, quality: int) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()
