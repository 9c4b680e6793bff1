"""A reference is the same pixels as a file, an array or a tensor, whatever door it comes by, or is refused by name."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lookalike.data.images import decode
from lookalike.diffusion.inputs import pair_references
from lookalike.errors import InputError


def photo() -> Image.Image:
    values = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(np.repeat(np.repeat(values, 8, 0), 8, 1))


def mask() -> Image.Image:
    return Image.linear_gradient("L").resize((64, 48))


def with_alpha(mode: str) -> Image.Image:
    image = photo().convert(mode)
    image.putalpha(mask())
    return image


def files() -> dict[str, bytes]:
    turned = Image.Exif()
    turned[0x0112] = 6
    palette = photo().quantize(16)
    grey = np.asarray(photo().convert("L"))
    images = {
        "rgb": (photo(), "PNG", {}),
        "rgba": (with_alpha("RGBA"), "PNG", {}),
        "grey with alpha": (with_alpha("LA"), "PNG", {}),
        "grey": (photo().convert("L"), "PNG", {}),
        "1 bit": (photo().convert("1"), "PNG", {}),
        "16 bit": (Image.fromarray(grey.astype(np.uint16) * 257), "PNG", {}),
        "palette": (palette, "PNG", {}),
        "transparent palette": (palette, "PNG", {"transparency": 3}),
        "transparent colour": (photo(), "PNG", {"transparency": photo().getpixel((0, 0))}),
        "cmyk": (photo().convert("CMYK"), "JPEG", {"quality": 95}),
        "turned": (photo(), "JPEG", {"exif": turned, "quality": 95}),
        "webp with alpha": (with_alpha("RGBA"), "WEBP", {"lossless": True}),
    }
    result = {}
    for name, (image, kind, options) in images.items():
        buffer = io.BytesIO()
        image.save(buffer, format=kind, **options)
        result[name] = buffer.getvalue()
    return result


@pytest.mark.parametrize("kind", files())
def test_the_pipeline_sees_a_file_as_the_jobs_do(kind) -> None:
    data = files()[kind]
    opened = pair_references([Image.open(io.BytesIO(data))], 1)[0][0]
    np.testing.assert_array_equal(opened, decode(data))


def test_arrays_and_tensors_are_the_image_that_they_came_from() -> None:
    rgb = np.asarray(photo())
    grey, alpha = np.asarray(photo().convert("L")), np.asarray(with_alpha("RGBA"))
    flat = np.repeat(grey[..., None], 3, axis=2)
    on_white = pair_references(with_alpha("RGBA"), 1)[0][0]
    floats = rgb.astype(np.float32) / 255
    for given, expected in [
        (rgb, rgb),
        (grey, flat),
        (grey[..., None], flat),
        (alpha, on_white),
        (np.asarray(with_alpha("LA")), pair_references(with_alpha("LA"), 1)[0][0]),
        (floats, rgb),
        (floats.astype(np.float64), rgb),
        (grey.astype(np.uint16) * 257, flat),
        (grey > 127, np.where(flat > 127, 255, 0)),
        (rgb[:, ::-1], rgb[:, ::-1]),
        (torch.from_numpy(floats).permute(2, 0, 1), rgb),
        (torch.from_numpy(rgb.copy()).permute(2, 0, 1), rgb),
        (torch.from_numpy(grey.copy()), flat),
        (torch.from_numpy(alpha.copy()).permute(2, 0, 1), on_white),
        (torch.from_numpy(floats).permute(2, 0, 1).requires_grad_(), rgb),
    ]:
        for found in (pair_references(given, 1), pair_references([given], 1), pair_references([[given]], 1)):
            assert found[0][0].dtype == np.uint8
            np.testing.assert_array_equal(found[0][0], expected)
    half = pair_references(torch.from_numpy(floats).permute(2, 0, 1).bfloat16(), 1)[0][0]
    assert np.abs(half.astype(int) - rgb).max() <= 1
    for batch in (np.stack([rgb, rgb]), torch.from_numpy(np.stack([floats, floats])).permute(0, 3, 1, 2)):
        assert [len(images) for images in pair_references(batch, 2)] == [2, 2]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (np.random.default_rng(0).random((64, 64, 3)) * 255, r"floats from \S+ to 25\d; scale them to \[0, 1\]"),
        (np.random.default_rng(0).random((64, 64, 3)) * 2 - 1, r"floats from -\S+ to"),
        (np.full((64, 64, 3), np.nan), "floats from nan"),
        (np.zeros((64, 64, 3), np.int64), "an unsupported number format .*int64.*; use uint8"),
        (np.zeros((64, 64, 3), complex), "an unsupported number format"),
        (np.full((2, 2), None), "an unsupported number format"),
        (np.zeros((3, 64, 64), np.uint8), r"shape .*3, 64, 64.*transpose\(1, 2, 0\)"),
        (np.zeros((64, 64, 5), np.uint8), "does not have the shape of an image"),
        (np.zeros((0, 64, 3), np.uint8), "does not have the shape of an image"),
        (np.zeros(64, np.uint8), "does not have the shape of an image"),
        (torch.zeros(64, 64, 3), r"pass tensors as \[C, H, W\]"),
        (torch.zeros(()), "does not have the shape of an image"),
        ("a.jpg", r"is not an image \('str'\); open it with PIL.Image.open"),
        (Path("a.jpg"), r"is not an image .*; open it with PIL.Image.open"),
        (b"\xff\xd8", "is not an image"),
        (None, "is not an image"),
        (7, "is not an image"),
        ({"image": 1}, "is not an image"),
    ],
)  # fmt: skip
def test_invalid_arguments_are_rejected_by_name(given, message) -> None:
    with pytest.raises(InputError, match=message):
        pair_references([given], 1)
    if given is not None:
        with pytest.raises(InputError, match=message):
            pair_references(given, 1)


def test_lists_of_references_follow_prompts() -> None:
    assert pair_references(None, 3) == [[], [], []]
    assert [len(images) for images in pair_references((photo() for _ in range(2)), 3)] == [2, 2, 2]
    for empty in ([], [[]], (), [[photo()], []]):
        with pytest.raises(InputError, match="list of references is empty"):
            pair_references(empty, 2)
