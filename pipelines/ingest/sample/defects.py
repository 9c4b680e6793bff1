"""Plant the defects of real shards into the sample world, to test whether curation finds them."""

import io
from dataclasses import dataclass

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


@dataclass(frozen=True)
class Shot:
    """A photo of a shard, with its planted defect if it has one."""

    photo: Photo
    """The photo to render, with its key."""
    defect: str | None = None
    """One of KINDS or MORE_DEFECTS, or None."""
    variant: int = 0
    """Number that selects a variant of the defect."""
    original: str | None = None
    """Key of the photo that a duplicate repeats."""


def plan_shots(config: SampleWorldConfig, things: list[Subject]) -> dict[str, list[Shot]]:
    """Return the photos of every subject by the subject's name, with planted ones after the normal ones.

    The last subject gets no planted photo, since its shard is the truncated one.

    Raises ConfigError if there are fewer than two subjects for planted defects.
    """
    bare = config.bare_captions
    shots = {
        thing.name: [Shot(photo(thing, i, config.views, bare_captions=bare)) for i in range(config.views)]
        for thing in things
    }
    if not config.defects:
        return shots
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
        shots[host.name].append(_plant(kind, number, host, shots[host.name], things, config.views))
    return shots


def encode(pixels: npt.NDArray[np.uint8], shot: Shot) -> bytes:
    """Encode a rendered photo, uint8 RGB [H, W, 3], as JPEG with the defect of ``shot``."""
    image = Image.fromarray(pixels)
    if shot.defect == "tiny":
        side = _TINY_PX[shot.variant % len(_TINY_PX)]
        return _jpeg(image.resize((side, side), Image.Resampling.BICUBIC), _QUALITY)
    if shot.defect == "near_duplicate":
        return _again(image, shot.variant)
    if shot.defect == "blurred":
        image = image.filter(ImageFilter.GaussianBlur(image.width / (24, 32, 48)[shot.variant % 3]))
    if shot.defect == "flat":
        image = Image.new("RGB", image.size, ("black", "white", image.getpixel((0, 0)))[shot.variant % 3])
    if shot.defect == "strip":
        image = Image.fromarray(np.tile(pixels, ((1, 4, 1), (5, 1, 1))[shot.variant % 2]))
    if shot.defect == "overlaid_text":
        image = _overlaid(image, shot.variant)
    data = _jpeg(image, _QUALITY)
    if shot.defect == "truncated":
        return data[: len(data) * (2 + shot.variant % 7) // 10]
    if shot.defect == "corrupt":
        noise = np.random.default_rng([_DEFECT, shot.variant]).bytes(len(data))
        return (data[: len(data) // 2], data[:300] + noise[300:], b"<html>404 Not Found</html>\n")[shot.variant % 3]
    return data


def _plant(kind: str, number: int, host: Subject, taken: list[Shot], things: list[Subject], views: int) -> Shot:
    key = f"{host.name}-{len(taken):02d}"
    if kind in ("exact_duplicate", "near_duplicate"):
        original = taken[number % views].photo
        copy = Photo(key, original.subject, original.filed_under, original.view, original.place)
        return Shot(copy, kind, number, original=original.key)
    fresh = photo(host, len(taken), views, key)
    if kind == "wrong_subject":
        stranger = _stranger(host, number, things)
        fresh = Photo(key, stranger, host, fresh.view, fresh.place)
    return Shot(fresh, kind, number)


def _stranger(host: Subject, number: int, things: list[Subject]) -> Subject:
    """A subject of another shape, and if possible of other colours."""
    others = [thing for thing in things if thing.shape != host.shape] or [t for t in things if t is not host]
    unlike = [thing for thing in others if not set(thing.colours) & set(host.colours)] or others
    return unlike[number * 7 % len(unlike)]


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
