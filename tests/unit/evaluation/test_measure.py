import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from lookalike.evaluation.measurements import Measurement, summarise, with_prefix
from lookalike.evaluation.metrics import METRICS, Task, measure
from lookalike.evaluation.metrics.identity import Identity
from lookalike.evaluation.metrics.likeness import Embeddings, Likeness, LikenessConfig


class _Colours:
    """Embeds an image as its mean colour."""

    revision = "colours"
    dim = 3

    def __call__(self, images: Sequence[np.ndarray]) -> np.ndarray:
        rows = np.stack([image.reshape(-1, 3).mean(axis=0) for image in images]).astype(np.float32)
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def _flat(*colour: int) -> np.ndarray:
    return np.full((8, 8, 3), colour, np.uint8)


RED, GREEN, YELLOW = _flat(200, 0, 0), _flat(0, 200, 0), _flat(200, 200, 0)


def similarity(embed: _Colours, image: np.ndarray, photos: list[np.ndarray], **config: Any) -> float | None:
    return Likeness(Embeddings(embed), LikenessConfig(**config)).to([image], [photos])[0]


def test_similarity_is_the_mean_cosine_to_the_photos() -> None:
    assert similarity(_Colours(), RED, [RED]) == pytest.approx(1)
    assert similarity(_Colours(), RED, [GREEN]) == pytest.approx(0, abs=1e-6)
    assert similarity(_Colours(), RED, [RED, GREEN]) == pytest.approx(0.5)
    assert similarity(_Colours(), YELLOW, [RED]) == pytest.approx(0.5**0.5)
    assert similarity(_Colours(), RED, []) is None


def test_similarity_to_the_mean_embedding_is_that_to_their_direction() -> None:
    assert similarity(_Colours(), RED, [RED, GREEN], aggregation="mean_embedding") == pytest.approx(0.5**0.5)
    assert similarity(_Colours(), YELLOW, [RED, GREEN], aggregation="mean_embedding") == pytest.approx(1)


def test_the_margin_is_over_another_subject() -> None:
    tasks = [Task("own", "s", "p", [RED], [GREEN]), Task("swapped", "s", "p", [GREEN], [RED])]
    found = {(row.case, row.metric): row.value for row in measure([Identity(_Colours())], [RED, RED], tasks)}
    assert found["own", "identity_margin"] == pytest.approx(1, abs=1e-6)
    assert found["swapped", "identity_margin"] == pytest.approx(-1, abs=1e-6)
    assert found["own", "identity"] == pytest.approx(1)


def test_without_another_subject_there_is_no_margin() -> None:
    rows = measure([Identity(_Colours())], [YELLOW], [Task("c", "s", "p", [RED], [])])
    assert {row.metric for row in rows} == {"identity"}


def test_summaries_do_not_depend_on_the_order_of_rows() -> None:
    rng = np.random.default_rng(0)
    rows = [Measurement(f"{s}-{i}", s, m, float(rng.normal())) for s in "abcde" for i in range(6) for m in ("x", "y")]
    mixed = random.Random(1).sample(rows, len(rows))
    found = summarise(rows)
    assert summarise(mixed) == found
    assert found["x"].n == 30
    assert found["x"].mean == pytest.approx(np.mean([row.value for row in rows if row.metric == "x"]))


def test_a_prefix_changes_the_name_only() -> None:
    row = Measurement("c", "s", "identity", 0.5)
    assert with_prefix([row], "before/") == [Measurement("c", "s", "before/identity", 0.5)]


def test_names_of_metrics_are_unique() -> None:
    names = [name for metric in METRICS for name in metric.labels]
    assert sorted(set(names)) == sorted(names)
    assert not any("/" in name for name in names)  # which divides the setting from the metric
