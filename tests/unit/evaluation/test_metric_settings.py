"""Settings of metrics are refused by name, and embeddings do not depend on the other images of a call."""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from lookalike.errors import ConfigError
from lookalike.evaluation.metrics import METRICS, check_settings
from lookalike.evaluation.metrics.base import Pixels
from lookalike.evaluation.metrics.likeness import Embeddings
from pipelines.evaluate import EvaluateConfig


def _settings(**changes: Any) -> Any:
    return SimpleNamespace(
        **{"embedder": "efficientnet-lite0-colour", "clip": None, "dino": None, "metrics": {}} | changes
    )


@pytest.mark.parametrize(
    ("metrics", "message"),
    [
        ({"dino": {}}, r"not a metric of images \('dino'\).*dino_i"),
        ({"dino_i": {"layers": 3}}, r"metrics.dino_i has no such setting \('layers'\).*'layer'"),
        ({"dino_i": {"pooling": "max"}}, r"metrics.dino_i.pooling does not take this value .*'cls', 'mean', 'pooler'"),
        ({"dino_i": {"resize": 0}}, r"metrics.dino_i.resize is below 1"),
        ({"dino_i": {"resize": 200}}, r"metrics.dino_i.crop is larger than resize \(224\); use 200 or less"),
        ({"dino_i": {"pooling": "pooler", "layer": 1}}, r"metrics.dino_i.a pooler reads the last layer"),
        ({"dino_i": {"std": [0, 1, 1]}}, r"metrics.dino_i.std\[0\] is not above 0"),
        ({"dino_i": {"mean": [0.5]}}, r"metrics.dino_i.mean is not a list of 3"),
        ({"dino_i": [1]}, r"metrics.dino_i is not a mapping"),
        ({"dino_i": None}, r"metrics.dino_i is not a mapping"),
        ({"clip_i": {"references": "some"}}, r"metrics.clip_i.references does not take this value"),
        ({"clip_t": {"prompt": 3}}, r"metrics.clip_t.prompt does not take this value"),
        ({"clip_t_place": {"prompt": "plain"}}, r"metrics.clip_t_place has no settings .*\['clip_i', 'clip_t'\]"),
        ({"identity": {"photo_size": "large"}}, r"metrics.identity.photo_size does not take this value"),
    ],
)
def test_settings_that_are_not_valid_are_refused_by_name(metrics: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_settings(_settings(dino="d", clip="c", metrics=metrics))
    with pytest.raises(ConfigError, match=message):
        EvaluateConfig(bundle="b", suite="s", out="o", dino="d", clip="c", metrics=metrics)


def test_settings_of_a_metric_without_its_model_are_refused() -> None:
    for name, flag in (("dino_i", "dino"), ("clip_i", "clip"), ("clip_t", "clip")):
        with pytest.raises(
            ConfigError, match=f"metrics.{name} has settings, but no model .*name a model with --{flag}"
        ):
            check_settings(_settings(metrics={name: {}}))
    check_settings(_settings(metrics={"identity": {"references": "all"}}))


def test_images_are_embedded_once_in_batches_of_one_length() -> None:
    """On a GPU, where kernels of other batch lengths may round otherwise."""
    lengths: list[int] = []

    def embed(images: Sequence[Pixels]) -> np.ndarray:
        lengths.append(len(images))
        return np.array([[image.mean(), 1.0] for image in images])

    images = [np.full((4, 4, 3), value, np.uint8) for value in range(9)]
    embeddings = Embeddings(embed, "cuda", batch=4)
    rows = embeddings([*images, *images[:3]])
    assert rows[:, 0].tolist() == [*range(9), 0, 1, 2]
    assert lengths == [4, 4, 4]
    assert embeddings(images[4:5])[:, 0].tolist() == [4]
    assert lengths == [4, 4, 4]
    other_shape = np.full((2, 8, 3), 4, np.uint8)  # the same bytes
    embeddings([other_shape])
    assert lengths == [4, 4, 4, 4]
    lengths.clear()
    Embeddings(embed, "cpu")(images)
    assert lengths == [1] * 9


def test_only_so_many_embeddings_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lookalike.evaluation.metrics.likeness._MOST_KEPT", 3)
    embeddings = Embeddings(lambda images: np.array([[image.mean(), 1.0] for image in images]))
    images = [np.full((4, 4, 3), value, np.uint8) for value in range(9)]
    assert embeddings(images)[:, 0].tolist() == list(range(9))
    assert len(embeddings._kept) == 3
    assert embeddings(images)[:, 0].tolist() == list(range(9))


def test_likeness_names_are_labels() -> None:
    for metric in METRICS:
        assert set(metric.likeness) <= metric.labels.keys()
