import numpy as np
import pytest
from PIL import Image, ImageFilter
from skimage import data as photographs

from pipelines.curate.features import features
from pipelines.curate.filters.blurry import Blurry
from pipelines.curate.filters.flat import Flat


@pytest.fixture(scope="module")
def coffee() -> np.ndarray:
    return np.asarray(photographs.coffee())


def test_sharpness_is_lower_for_blurred_images(coffee: np.ndarray) -> None:
    small = Image.fromarray(coffee).resize((384, 256))
    blurred = np.asarray(small.filter(ImageFilter.GaussianBlur(3)))
    threshold = Blurry().min_sharpness
    assert features(np.asarray(small))["sharpness"] > 4 * threshold
    assert features(blurred)["sharpness"] < threshold / 2


def test_sharpness_does_not_depend_on_the_resolution(coffee: np.ndarray) -> None:
    full, half = features(coffee), features(np.asarray(Image.fromarray(coffee).resize((450, 300))))
    assert full["sharpness"] == pytest.approx(half["sharpness"], rel=0.4)


def test_brightness_and_contrast() -> None:
    grey = features(np.full((64, 64, 3), 90, np.uint8))
    assert grey["luma_mean"] == pytest.approx(90, abs=1e-3)
    assert grey["luma_std"] < Flat().min_luma_std


def test_an_image_of_two_pixels_has_no_sharpness() -> None:
    line = np.arange(2 * 600 * 3, dtype=np.uint8).reshape(2, 600, 3)
    assert features(line)["sharpness"] == 0
    assert features(line)["luma_std"] > 10


def test_hashes_of_copies_are_near_and_of_others_far(coffee: np.ndarray) -> None:
    def distance(first: np.ndarray, second: np.ndarray) -> int:
        return (int(features(first)["phash"]) ^ int(features(second)["phash"])).bit_count()

    assert distance(coffee, np.asarray(Image.fromarray(coffee).resize((300, 200)))) <= 4
    assert distance(coffee, np.asarray(photographs.chelsea())) > 16
