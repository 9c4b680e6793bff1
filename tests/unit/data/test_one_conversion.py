"""A file gives the same pixels in a job and, as a PIL image, in the API."""

import io
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image, ImageDraw
from skimage import data as photographs

from lookalike.data.images import decode
from lookalike.diffusion.inputs import pair_references
from lookalike.errors import InputError
from lookalike.pixels import read_orientation, to_rgb


def photo() -> Image.Image:
    return Image.fromarray(photographs.chelsea()).resize((96, 64))


def disc() -> Image.Image:
    mask = Image.new("L", photo().size, 0)
    ImageDraw.Draw(mask).ellipse((20, 10, 70, 50), fill=255)
    return mask


def with_alpha(alpha: Image.Image, mode: str = "RGBA") -> Image.Image:
    image = photo().convert(mode[:-1] if mode == "LA" else "RGB")
    image.putalpha(alpha)
    return image


def file_of(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def turned() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


def grey16() -> Image.Image:
    return Image.fromarray(np.asarray(photo().convert("L")).astype(np.uint16) * 257)


FILES: dict[str, Callable[[], bytes]] = {
    "rgb": lambda: file_of(photo()),
    "cut-out": lambda: file_of(with_alpha(disc())),
    "soft alpha": lambda: file_of(with_alpha(Image.linear_gradient("L").resize((96, 64)))),
    "grey with alpha": lambda: file_of(with_alpha(disc(), "LA")),
    "16 bits": lambda: file_of(grey16()),
    "16 bits, a transparent value": lambda: file_of(grey16(), transparency=257 * 100),
    "grey": lambda: file_of(photo().convert("L")),
    "1 bit": lambda: file_of(photo().convert("1")),
    "palette": lambda: file_of(photo().quantize(16)),
    "palette, a transparent entry": lambda: file_of(photo().quantize(16), transparency=0),
    "palette, alpha of entries": lambda: file_of(photo().quantize(16), transparency=bytes(range(0, 256, 16))),
    "rgb, a transparent colour": lambda: file_of(photo(), transparency=(120, 90, 60)),
    "turned jpeg": lambda: file_of(photo(), "JPEG", exif=turned()),
    "turned png": lambda: file_of(photo(), exif=turned()),
    "turned webp": lambda: file_of(photo(), "WEBP", exif=turned()),
    "cmyk jpeg": lambda: file_of(photo().convert("CMYK"), "JPEG"),
    "webp with alpha": lambda: file_of(with_alpha(disc()), "WEBP"),
    "animation": lambda: file_of(photo(), "WEBP", save_all=True, append_images=[photo().rotate(90)]),
}


@pytest.mark.parametrize("name", FILES)
def test_jobs_and_api_decode_the_same_pixels(name: str) -> None:
    data = FILES[name]()
    by_job = decode(data)
    ((by_api,),) = pair_references([Image.open(io.BytesIO(data))], 1)
    assert by_job.shape == by_api.shape
    assert (by_job.dtype, by_api.dtype) == (np.uint8, np.uint8)
    assert np.array_equal(by_job, by_api)


def test_transparency_becomes_white_and_16_bits_are_scaled() -> None:
    cut_out = decode(FILES["cut-out"]())
    assert (cut_out[0, 0] == 255).all()
    assert np.array_equal(cut_out[30, 45], np.asarray(photo())[30, 45])
    deep = np.asarray(photo().convert("L").convert("RGB"))
    assert np.array_equal(decode(FILES["16 bits"]()), deep)
    assert (decode(FILES["16 bits, a transparent value"]())[deep == 100] == 255).all()


@pytest.mark.parametrize(
    "mode",
    ["1", "L", "P", "RGB", "RGBA", "CMYK", "YCbCr", "HSV", "LAB", "I", "F", "LA", "PA", "RGBX", "La", "RGBa", "I;16B"],
)
def test_every_mode_of_pil_is_converted(mode: str) -> None:
    if mode in ("I", "I;16B", "LAB"):
        image = Image.new(mode, (9, 7))
    elif mode in ("La", "RGBa"):
        image = photo().convert("LA" if mode == "La" else "RGBA").convert(mode)
    else:
        image = photo().convert(mode)
    pixels = to_rgb(image)
    assert (pixels.shape, pixels.dtype) == ((*image.size[::-1], 3), np.uint8)


def test_numbers_outside_of_a_mode_are_clipped() -> None:
    assert to_rgb(Image.fromarray(np.array([[-5, 0x1234, 1 << 20]], np.int32)))[0, :, 0].tolist() == [0, 0x12, 255]
    values = np.array([[np.nan, -np.inf, np.inf, 17.9]], np.float32)
    assert to_rgb(Image.fromarray(values))[0, :, 0].tolist() == [0, 0, 255, 17]


@pytest.mark.parametrize("value", [(0, 0, 300), "x", 5, (1,), None, b"\0" * 999])
def test_invalid_transparent_colour_is_ignored(value: object) -> None:
    for mode in ("RGB", "L", "P"):
        image = photo().convert(mode)
        image.info["transparency"] = value
        assert to_rgb(image).shape == (64, 96, 3)


@pytest.mark.parametrize("value", [0, 9, -1, 65535, "6", "", 1.5, float("nan"), float("inf"), (6, 6), None, b"\6"])
def test_invalid_orientation_counts_as_upright(value: object) -> None:
    image = photo()
    image.getexif()[0x0112] = value
    assert read_orientation(image)[0] == 1
    assert to_rgb(image).shape == (64, 96, 3)


def test_damaged_reference_of_the_api_is_named() -> None:
    image = Image.open(io.BytesIO(FILES["rgb"]()[:2000]))
    with pytest.raises(InputError, match="a reference cannot be decoded"):
        pair_references([image], 1)
