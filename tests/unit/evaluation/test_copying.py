"""Copies of a reference are flagged, new images of its subject are not."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from skimage.metrics import structural_similarity

from lookalike.annotators.foreground import foreground_weight
from lookalike.errors import ConfigError
from lookalike.evaluation.metrics.base import Task
from lookalike.evaluation.metrics.copying import Copying
from lookalike.evaluation.metrics.matching import Subject, SubjectCache, best_match
from lookalike.evaluation.metrics.memorisation import Memorisation
from lookalike.evaluation.metrics.structure import agreement, orientations
from pipelines.ingest.sample.world import subject
from tests.planted_copies import PLANTS, empty_place, mirrored, pasted, rendered, resized

THING, OTHER = subject(41, 10), subject(41, 0)


@pytest.fixture(scope="module")
def photos() -> list[tuple[np.ndarray, np.ndarray]]:
    return [rendered(THING, index, 256) for index in range(4)]


@pytest.fixture(scope="module")
def place() -> np.ndarray:
    return empty_place(OTHER, 1, 256)


def _task(references: list[np.ndarray], photos: list[np.ndarray] | None = None) -> Task:
    return Task("case", "subject", "prompt", references, [], photos or [])


@pytest.mark.parametrize("size", [64, 256])
@pytest.mark.parametrize("kind", list(PLANTS))
def test_planted_copy_is_flagged(
    photos: list[tuple[np.ndarray, np.ndarray]], place: np.ndarray, kind: str, size: int
) -> None:
    photo, mask = photos[0]
    image = PLANTS[kind](photo, mask, place, np.random.default_rng(3), size)
    row = Copying()([image], [_task([resized(photo, size)])])[0]
    assert row["copying"] == 1, row["copying_similarity"]


@pytest.mark.parametrize("size", [64, 256])
def test_new_images_are_not_flagged(photos: list[tuple[np.ndarray, np.ndarray]], size: int) -> None:
    images = [resized(photo, size) for photo, _ in photos[1:]]
    images += [resized(rendered(OTHER, 0, 256)[0], size), np.full((size, size, 3), 127, np.uint8)]
    images.append(np.random.default_rng(0).integers(0, 256, (size, size, 3), np.uint8))
    rows = Copying()(images, [_task([resized(photos[0][0], size)])] * len(images))
    assert [row["copying"] for row in rows] == [0] * len(images), rows


def test_match_says_where_the_subject_is(photos: list[tuple[np.ndarray, np.ndarray]], place: np.ndarray) -> None:
    photo, mask = photos[0]
    image = pasted(photo, mask, place, np.random.default_rng(0), 0.6)
    found = {flipped: best_match(Subject(photo), mirrored(image) if flipped else image) for flipped in (False, True)}
    assert not found[False].mirrored
    assert found[True].mirrored
    shown = np.argwhere(np.abs(image.astype(int) - place).max(2) > 9)
    centre = (shown.min(0) + shown.max(0)) / 2 / 256
    for match in found.values():
        assert (match.y, match.x) == pytest.approx(centre, abs=0.06)


def test_value_depends_neither_on_the_other_images_nor_on_what_was_measured_before(
    photos: list[tuple[np.ndarray, np.ndarray]],
) -> None:
    images = [resized(photo, 64) for photo, _ in photos]
    task = _task(images[:2])
    metric = Copying()
    together = metric(images, [task] * 4)
    assert together == [metric([image], [task])[0] for image in images[::-1]][::-1]
    assert together == Copying()(images, [task] * 4)
    assert [row["copying"] for row in together] == [1, 1, 0, 0]  # either reference counts


def test_without_references_there_is_no_value() -> None:
    assert Copying()([np.zeros((64, 64, 3), np.uint8)], [_task([])]) == [{}]


@pytest.mark.parametrize("shape", [(1, 1), (4, 300), (300, 9), (64, 200), (500, 333), (20, 9000)])
@pytest.mark.parametrize("filled", [0, 255, None])
def test_images_and_photos_of_any_shape_have_a_similarity(shape: tuple[int, int], filled: int | None) -> None:
    rng = np.random.default_rng(0)
    odd = rng.integers(0, 256, (*shape, 3), np.uint8) if filled is None else np.full((*shape, 3), filled, np.uint8)
    usual = rng.integers(0, 256, (64, 64, 3), np.uint8)
    rows = Copying()([odd, usual], [_task([usual]), _task([odd])])
    assert all(0 <= row["copying_similarity"] <= 1 for row in rows)


def test_repeated_flat_image_is_not_called_a_copy() -> None:
    grey = np.full((64, 64, 3), 127, np.uint8)
    assert Copying()([grey], [_task([grey])])[0]["copying"] == 0  # it has no structure


@pytest.mark.parametrize("value", [0, 1.5, "0.9", True, float("nan"), None, [0.9]])
def test_threshold_that_is_not_a_similarity_is_rejected(value: Any) -> None:
    with pytest.raises(ConfigError, match=r"metrics\.copying"):
        Copying.create(_settings(copying={"threshold": value}), "cpu")


@pytest.mark.parametrize("value", [{"treshold": 0.9}, 0.9, [0.9], "on", {1: 2}])
def test_settings_that_do_not_exist_are_rejected(value: Any) -> None:
    with pytest.raises(ConfigError, match=r"metrics\.copying"):
        Copying.create(_settings(copying=value), "cpu")


def test_threshold_is_a_setting_and_false_turns_the_metrics_off(photos: list[tuple[np.ndarray, np.ndarray]]) -> None:
    strict = Copying.create(_settings(copying={"threshold": 1}), "cpu")
    loose = Copying.create(_settings(copying={"threshold": 0.1}), "cpu")
    assert strict is not None
    assert loose is not None
    task = _task([resized(photos[0][0], 64)])
    assert strict([resized(photos[1][0], 64)], [task])[0]["copying"] == 0
    assert loose([resized(photos[1][0], 64)], [task])[0]["copying"] == 1
    assert Copying.create(_settings(copying=False), "cpu") is None
    assert Memorisation.create(_settings(memorisation=False), "cpu") is None
    assert Memorisation.create(_settings(), "cpu") is None
    assert Memorisation.create(_settings(memorisation={}), "cpu") is not None


def test_repeated_photo_that_was_not_given_is_memorised(photos: list[tuple[np.ndarray, np.ndarray]]) -> None:
    given, hidden, new, _ = (resized(photo, 128) for photo, _ in photos)
    task = _task([given], [given.copy(), hidden])
    repeated, other, reference = (Memorisation()([image], [task])[0]["memorisation"] for image in (hidden, new, given))
    assert repeated > 0.95
    assert other < 0.91
    assert reference < 0.91  # copying, which is another metric
    assert Memorisation()([new], [_task([given], [given.copy()])]) == [{}]
    assert Memorisation()([new], [_task([given])]) == [{}]


def test_cache_holds_a_bounded_number_of_subjects() -> None:
    cache = SubjectCache(2)
    photos = [np.random.default_rng(seed).integers(0, 256, (32, 32, 3), np.uint8) for seed in range(3)]
    first = cache(photos[0])
    assert cache(photos[0].copy()) is first
    for photo in photos[1:]:
        cache(photo)
    assert cache(photos[0]) is not first


def test_agreement_is_one_of_an_image_in_other_colours_and_near_none_of_another_image() -> None:
    rng = np.random.default_rng(0)
    a, b = (np.asarray(rng.uniform(0, 255, (3, 32, 32)), np.float32) for _ in range(2))
    even = np.ones((32, 32), np.float32)
    assert agreement(a, a, even) == pytest.approx(1, abs=1e-3)
    assert agreement(a, 255 - a[[2, 0, 1]], even) == pytest.approx(1, abs=1e-3)
    assert agreement(a, 0.5 * a + 90, even) == pytest.approx(1, abs=5e-3)
    assert agreement(a, b, even) < 0.4
    assert agreement(a, a, 0 * even) == 0


def test_agreement_is_the_squared_structure_of_ssim_for_grey_images() -> None:
    rng = np.random.default_rng(1)
    a = np.asarray(rng.uniform(60, 200, (9, 9)), np.float32)
    b = np.asarray(0.7 * (a - a.mean()) + rng.normal(0, 20, (9, 9)), np.float32)
    b += a.mean() - b[2:7, 2:7].mean() + (a[2:7, 2:7].mean() - a.mean())  # equal means: no luminance term
    window = a[2:7, 2:7], b[2:7, 2:7]
    ssim = structural_similarity(*window, win_size=5, data_range=1.0, K1=1e-9, K2=1e-9, use_sample_covariance=False)
    deviations = window[0].std(), window[1].std()
    contrast = 2 * deviations[0] * deviations[1] / (deviations[0] ** 2 + deviations[1] ** 2)
    only = np.zeros((9, 9), np.float32)
    only[4, 4] = 1
    grey = [np.repeat(layer[None], 3, axis=0) for layer in (a, b)]
    assert agreement(grey[0], grey[1], only) == pytest.approx((ssim / contrast) ** 2, abs=0.01)


def test_orientations_do_not_depend_on_colours_or_the_sign_of_contrast() -> None:
    image = np.random.default_rng(0).integers(0, 256, (24, 24, 3), np.uint8)
    field = orientations(image)
    assert np.abs(field).max() <= 1
    assert orientations(255 - image[..., [1, 2, 0]]) == pytest.approx(field, abs=1e-3)
    turned = orientations(np.ascontiguousarray(np.rot90(image)))
    assert turned == pytest.approx(-np.rot90(field), abs=1e-3)  # twice 90 degrees


def test_foreground_weighs_more_than_its_background(photos: list[tuple[np.ndarray, np.ndarray]]) -> None:
    photo, mask = photos[0]
    weight = foreground_weight(photo)
    inside = resized(np.repeat(mask[..., None], 3, 2), 48)[..., 0] > 127
    assert weight[inside].mean() > 4 * weight[~inside].mean()
    assert 0 < weight.min() <= weight.max() <= 1


def _settings(**metrics: Any) -> Any:
    return SimpleNamespace(embedder="efficientnet-lite0", clip=None, dino=None, metrics=metrics)
