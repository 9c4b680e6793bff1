import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from skimage import data as photographs

from lookalike.data.images import ImageError, decode, decode_noted, encode_jpeg, fit_within, short_side
from lookalike.pixels import crop_resize


def file_of(image: Image.Image, kind: str = "JPEG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def cat() -> Image.Image:
    return Image.fromarray(photographs.chelsea())  # 300 x 451


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("scaled", [False, True])
def test_exif_orientation_is_undone(cat: Image.Image, orientation: int, scaled: bool) -> None:
    turns = {
        1: None, 2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_90, 7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }  # fmt: skip
    stored = cat if turns[orientation] is None else cat.transpose(turns[orientation])
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = file_of(stored, quality=95, exif=exif)
    if scaled:
        noted = decode_noted(data, 128)
        upright = noted.pixels
        assert (noted.height, noted.width) == (300, 451)
        expected = np.asarray(cat.resize((upright.shape[1], upright.shape[0]), Image.Resampling.BOX))
    else:
        upright, expected = decode(data), np.asarray(cat)
    assert upright.shape == expected.shape
    assert np.abs(upright.astype(int) - expected).mean() < 4


def test_jpegs_are_decoded_at_a_reduced_scale(cat: Image.Image) -> None:
    small = decode_noted(file_of(cat), 100)
    assert (small.height, small.width) == (300, 451)
    assert 100 <= min(small.pixels.shape[:2]) < 150
    assert decode(file_of(cat), 1000).shape == (300, 451, 3)
    assert short_side(file_of(cat)) == 300


def test_other_kinds_of_images_become_rgb(cat: Image.Image) -> None:
    reference = np.asarray(cat).astype(int)
    grey16 = Image.fromarray(np.asarray(cat.convert("L")).astype(np.uint16) * 257)
    glass = cat.convert("RGBA")
    glass.putalpha(Image.new("L", cat.size, 0))
    kinds = {
        "png": (file_of(cat, "PNG"), reference),
        "webp": (file_of(cat, "WEBP", lossless=True), reference),
        "cmyk": (file_of(cat.convert("CMYK"), quality=95), reference),
        "grey": (file_of(cat.convert("L"), quality=95), np.asarray(cat.convert("L").convert("RGB"))),
        "16 bits": (file_of(grey16, "PNG"), np.asarray(cat.convert("L").convert("RGB"))),
        "palette": (file_of(cat.quantize(256), "PNG"), reference),
        "animated": (file_of(cat, "WEBP", save_all=True, append_images=[cat.rotate(90)], lossless=True), reference),
        "transparent": (file_of(glass, "PNG"), np.full_like(reference, 255)),
    }
    for name, (data, expected) in kinds.items():
        for image in (decode(data), decode(data, 400)):
            assert (image.dtype, image.shape) == (np.uint8, (300, 451, 3)), name
            assert np.abs(image.astype(int) - expected).mean() < 8, name


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_truncated_image_is_an_error(cat: Image.Image, kind: str) -> None:
    data = file_of(cat, kind)
    for half in (data[: len(data) // 2], data[:300], data[:20], b"", b"<html>404</html>"):
        with pytest.raises(ImageError):
            decode(half, 64)
        with pytest.raises(ImageError):
            decode(half)


def test_noise_inside_a_jpeg_is_an_error(cat: Image.Image) -> None:
    data = file_of(cat)
    noise = np.random.default_rng(0).bytes(len(data))
    with pytest.raises(ImageError):
        decode(data[:700] + noise[700:], 64)


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("subsampling", ["4:2:0", "4:4:4"])
def test_luma_of_damaged_files_is_refused_as_their_rgb_is(
    cat: Image.Image, subsampling: str, progressive: bool
) -> None:
    buffer = io.BytesIO()
    cat.resize((80, 64)).save(buffer, "JPEG", quality=90, subsampling=subsampling, progressive=progressive)
    random, refused = np.random.default_rng(0), 0
    for number in range(100):
        data = bytearray(buffer.getvalue())
        place = int(random.integers(2, len(data)))
        data[place] ^= 1 << int(random.integers(8))
        damaged = bytes(data[:place] if number % 4 == 0 else data)
        errors = [_error(damaged, luma=luma) for luma in (False, True)]
        assert errors[0] == errors[1]
        refused += errors[0] != ""
    assert 20 < refused < 100


def _error(data: bytes, *, luma: bool) -> str:
    try:
        decode_noted(data, luma=luma)
    except ImageError as error:
        return error.what
    return ""


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_luma_is_that_of_the_rgb_pixels(cat: Image.Image, kind: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    cat.save(buffer, kind, exif=exif)
    luma = decode_noted(buffer.getvalue(), 100, luma=True)
    rgb = decode(buffer.getvalue(), 100)
    wanted = np.asarray(Image.fromarray(rgb).convert("L"))
    assert luma.pixels.shape == wanted.shape
    assert np.abs(luma.pixels.astype(int) - wanted).mean() < 0.1
    assert (luma.height, luma.width) == (cat.width, cat.height)
    assert (luma.rgb is None) == (kind == "JPEG")


def test_decompression_bomb_is_refused_by_its_header(cat: Image.Image) -> None:
    with pytest.raises(ImageError, match=r"too many pixels \(451x300; limits\.max_pixels is 135299"):
        decode_noted(file_of(cat), max_pixels=300 * 451 - 1)
    assert decode_noted(file_of(cat), max_pixels=300 * 451).width == 451


@settings(deadline=None)
@given(st.integers(1, 200), st.integers(1, 200), st.integers(1, 64), st.integers(1, 64))
def test_crop_has_the_requested_size(height: int, width: int, to_height: int, to_width: int) -> None:
    assert crop_resize(np.zeros((height, width, 3), np.uint8), to_height, to_width).shape == (to_height, to_width, 3)


def test_crop_is_centred_and_keeps_the_aspect() -> None:
    image = np.zeros((100, 300, 3), np.uint8)
    image[:, 100:200] = 255
    assert (crop_resize(image, 50, 50)[:, 1:-1] == 255).all()
    assert crop_resize(image, 10, 60)[:, 21:39].min() == 255  # 100 x 300 cut to 50 x 300


def test_fitting_only_scales_down() -> None:
    image = np.zeros((100, 300, 3), np.uint8)
    assert fit_within(image, 50).shape == (50, 150, 3)
    assert fit_within(image, 100) is image


def test_equal_pixels_give_equal_jpegs(cat: Image.Image) -> None:
    pixels = np.asarray(cat)
    assert encode_jpeg(pixels) == encode_jpeg(pixels.copy())
    assert np.abs(decode(encode_jpeg(pixels)).astype(int) - pixels).mean() < 2
