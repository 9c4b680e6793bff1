"""Variety of the images of one subject, against the variety of its photos."""

from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from lookalike.evaluation.metrics.base import Task
from lookalike.evaluation.metrics.variety import Variety, background, mean_distance, pose
from pipelines.ingest.sample.scene import render
from pipelines.ingest.sample.world import body, photo, subject


class _Colours:
    """Embeds an image as its mean colour."""

    revision = "colours"
    dim = 3

    def __call__(self, images: Sequence[np.ndarray]) -> np.ndarray:
        rows = np.stack([image.reshape(-1, 3).mean(axis=0) for image in images]).astype(np.float32)
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)


THING = subject(43, 3)
VIEWS = [photo(THING, index, 6) for index in range(4)]
PLACES = ("snow", "night", "grass", "carpet")


def _render(view: int, place: str) -> np.ndarray:
    return render(body(THING), VIEWS[view].view, place, 128)[0]


@pytest.fixture(scope="module")
def renders() -> dict[str, list[np.ndarray]]:
    return {
        "photos": [_render(view, place) for view, place in enumerate(PLACES)],
        "one view": [_render(0, place) for place in PLACES],
        "one place": [_render(view, PLACES[0]) for view in range(4)],
        "one image": [_render(0, PLACES[0])] * 4,
    }


def _values(images: list[np.ndarray], photos: list[np.ndarray], references: int = 1) -> dict[str, float]:
    task = Task("case", "subject", "prompt", photos[:references], [], photos)
    return Variety(_Colours())(images, [replace(task, case=str(number)) for number in range(len(images))])


def test_images_as_various_as_the_photos_have_a_half(renders: dict[str, list[np.ndarray]]) -> None:
    values = _values(renders["photos"][::-1], renders["photos"])
    assert values["variety_pose"] == pytest.approx(0.5)
    assert values["variety_background"] == pytest.approx(0.5)


def test_one_view_on_many_places_lacks_variety_of_poses_only(renders: dict[str, list[np.ndarray]]) -> None:
    values = _values(renders["one view"], renders["photos"])
    assert values["variety_pose"] < 0.45
    assert values["variety_background"] > 0.45


def test_many_views_on_one_place_lack_variety_of_backgrounds_only(renders: dict[str, list[np.ndarray]]) -> None:
    values = _values(renders["one place"], renders["photos"])
    assert values["variety_background"] < 0.3
    assert values["variety_pose"] > 0.45


def test_one_repeated_image_has_no_variety(renders: dict[str, list[np.ndarray]]) -> None:
    values = _values(renders["one image"], renders["photos"])
    assert values["variety_pose"] == pytest.approx(0, abs=1e-6)
    assert values["variety_background"] == pytest.approx(0, abs=1e-6)
    assert values["diversity"] == pytest.approx(0, abs=1e-6)


def test_nearer_than_real_counts_images_nearer_to_a_reference_than_two_photos_are() -> None:
    photos = [_flat(200, 0, 0), _flat(200, 100, 0), _flat(200, 0, 100)]  # cosines to the first: 0.894
    near, far = _flat(200, 40, 0), _flat(100, 100, 0)
    assert _values([near, far, far, far], photos)["nearer_than_real"] == 0.25
    assert _values([near, far], photos)["nearer_than_real"] == 0.5
    again = [*photos, photos[0].copy()]  # a photo that is there twice does not make all pairs equal
    assert _values([near, far], again)["nearer_than_real"] == 0.5


def test_diversity_is_the_mean_distance_of_pairs() -> None:
    vectors = np.eye(3, dtype=np.float32)
    assert mean_distance(vectors) == pytest.approx(1)
    assert mean_distance(vectors[[0, 0, 1]]) == pytest.approx(2 / 3)
    assert mean_distance(np.stack([vectors[0], -vectors[0]])) == pytest.approx(2)
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(6, 8)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    pairs = [1 - float(rows[i] @ rows[j]) for i in range(6) for j in range(i)]
    assert mean_distance(rows) == pytest.approx(np.mean(pairs), abs=1e-6)


def test_what_cannot_be_measured_is_left_out(renders: dict[str, list[np.ndarray]]) -> None:
    photos = renders["photos"]
    assert _values(photos[:1], photos) == {}
    assert set(_values(photos[:2], photos[:1])) == {"diversity"}
    assert set(_values(photos[:2], [photos[0], photos[0].copy()])) == {"diversity"}
    assert "nearer_than_real" in _values(photos[:2], photos, references=0)
    grey = [_flat(127, 127, 127), _flat(127, 127, 128)]
    assert "variety_pose" not in _values([grey[0], grey[0]], grey)  # nothing to see


def test_order_of_images_and_photos_does_not_matter(renders: dict[str, list[np.ndarray]]) -> None:
    images, photos = renders["one view"], renders["photos"]
    forwards = _values(images, photos)
    task = Task("case", "subject", "prompt", photos[:1], [], photos[::-1])
    backwards = Variety(_Colours())(images[::-1], [task] * 4)
    assert backwards == pytest.approx(forwards, abs=1e-6)


def test_images_of_two_subjects_are_rejected() -> None:
    task = Task("case", "subject", "prompt", [], [])
    with pytest.raises(ValueError, match="one subject"):
        Variety(_Colours())([_flat(1, 2, 3)] * 2, [task, replace(task, subject="other")])


@pytest.mark.parametrize("shape", [(1, 1), (7, 300), (300, 7)])
def test_images_of_any_shape_are_described(shape: tuple[int, int]) -> None:
    image = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
    assert np.linalg.norm(background(image)) == pytest.approx(1, abs=1e-5)
    assert pose(image).shape == (72,)
    assert np.isfinite(pose(image)).all()


def test_false_turns_it_off() -> None:
    settings: Any = SimpleNamespace(embedder="efficientnet-lite0", clip=None, dino=None, metrics={"diversity": False})
    assert Variety.create(settings, "cpu") is None


def _flat(*colour: int) -> np.ndarray:
    return np.full((32, 32, 3), colour, np.uint8)
