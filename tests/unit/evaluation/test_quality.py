"""Blur, lost contrast and grids lower the quality of an image."""

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageFilter
from skimage import data as photographs

from lookalike.evaluation.metrics.base import Task
from lookalike.evaluation.metrics.quality import Quality, artefacts, contrast, sharpness
from lookalike.pixels import crop_resize

PHOTOS = {name: getattr(photographs, name)() for name in ("astronaut", "coffee", "chelsea", "rocket")}


def _measured(image: np.ndarray, *references: np.ndarray) -> dict[str, float]:
    return Quality()([image], [Task("case", "subject", "prompt", references, [])])[0]


@pytest.mark.parametrize("name", sorted(PHOTOS))
@pytest.mark.parametrize("size", [64, 256])
def test_blurred_image_is_less_sharp_than_its_reference(name: str, size: int) -> None:
    image = crop_resize(PHOTOS[name], size, size)
    assert _measured(image, PHOTOS[name])["quality_sharpness"] == pytest.approx(0.5)
    values = [
        _measured(_changed(image, ImageFilter.GaussianBlur(radius)), PHOTOS[name])["quality_sharpness"]
        for radius in (0.5, 1.5, 3)
    ]
    assert 0.5 > values[0] > values[1] > values[2]
    assert values[1] < 0.3


def test_sharpness_does_not_depend_on_contrast() -> None:
    image = crop_resize(PHOTOS["coffee"], 128, 128)
    faded = (image * 0.4 + 80).astype(np.uint8)
    assert sharpness(faded) == pytest.approx(sharpness(image), rel=0.05)


@pytest.mark.parametrize("name", sorted(PHOTOS))
def test_faded_image_has_less_contrast_and_a_grey_one_none(name: str) -> None:
    image = crop_resize(PHOTOS[name], 128, 128)
    assert contrast((image * 0.3 + 90).astype(np.uint8)) == pytest.approx(0.3 * contrast(image), abs=0.01)
    grey = _measured(np.full((64, 64, 3), 127, np.uint8), PHOTOS[name])
    assert grey == {"quality_contrast": 0.0, "quality_artefacts": 0.0, "quality_sharpness": 0.0}


@pytest.mark.parametrize("name", sorted(PHOTOS))
@pytest.mark.parametrize("size", [64, 256])
def test_checkerboards_of_upsampling_are_artefacts(name: str, size: int) -> None:
    image = crop_resize(PHOTOS[name], size, size)
    rows, columns = np.indices((size, size))
    plain = artefacts(image)
    assert plain < 0.5
    for period in (2, 4):
        sign = ((rows // (period // 2) + columns // (period // 2)) % 2)[..., None] * 2.0 - 1
        assert artefacts(np.clip(image + 10 * sign, 0, 255).astype(np.uint8)) > plain + 0.3


def test_strongly_compressed_photo_has_artefacts() -> None:
    image = crop_resize(PHOTOS["astronaut"], 256, 256)
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=8)
    assert artefacts(np.asarray(Image.open(buffer))) > artefacts(image) + 0.3


def test_image_too_small_for_a_grid_has_contrast_only() -> None:
    assert set(_measured(np.zeros((16, 64, 3), np.uint8), PHOTOS["coffee"])) == {"quality_contrast"}
    assert set(_measured(np.zeros((64, 64, 3), np.uint8))) == {"quality_contrast", "quality_artefacts"}


@pytest.mark.parametrize("shape", [(1, 1), (33, 200), (200, 33), (32, 32)])
def test_values_of_noise_of_any_shape_are_in_range(shape: tuple[int, int]) -> None:
    image = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
    assert all(0 <= value <= 1 for value in _measured(image, PHOTOS["rocket"]).values())


def _changed(image: np.ndarray, change: Any) -> np.ndarray:
    return np.asarray(Image.fromarray(image).filter(change))
