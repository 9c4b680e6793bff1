"""``aesthetic`` and ``safety`` by image classifiers of transformers, on random checkpoints."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

from lookalike.errors import ConfigError, InputError
from lookalike.evaluation.metrics import metrics_of
from lookalike.evaluation.metrics.aesthetic import Aesthetic
from lookalike.evaluation.metrics.base import Task
from lookalike.evaluation.metrics.safety import Safety
from tests.drawn import draw

TASK = Task("case", "subject", "prompt", [], [])
IMAGES = [draw(0, index, 96) for index in range(3)]


def _classifier(folder: Path, labels: list[str]) -> str:
    torch.manual_seed(0)
    config = transformers.ViTConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, image_size=32, patch_size=8,
        id2label=dict(enumerate(labels)), label2id={label: i for i, label in enumerate(labels)},
    )  # fmt: skip
    transformers.ViTForImageClassification(config).save_pretrained(folder)
    transformers.ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    return str(folder)


def _probabilities(folder: str, image: np.ndarray) -> list[float]:
    model = transformers.AutoModelForImageClassification.from_pretrained(folder)
    processor = transformers.AutoImageProcessor.from_pretrained(folder)
    with torch.no_grad():
        logits = model(**processor(images=Image.fromarray(image), return_tensors="pt")).logits[0]
    return logits.softmax(0).tolist()


def _settings(**metrics: Any) -> Any:
    return SimpleNamespace(embedder="efficientnet-lite0", clip=None, dino=None, metrics=metrics)


def test_both_are_off_without_settings() -> None:
    assert Aesthetic.create(_settings(), "cpu") is None
    assert Safety.create(_settings(), "cpu") is None
    assert Safety.create(_settings(safety=False), "cpu") is None


def test_safety_is_one_minus_the_probability_of_the_unsafe_labels(tmp_path: Path) -> None:
    folder = _classifier(tmp_path, ["drawing", "nsfw", "gore"])
    for unsafe, columns in (["nsfw"], [1]), (["nsfw", "gore"], [1, 2]), (["gore", "gore"], [2]):
        metric = Safety.create(_settings(safety={"model": folder, "unsafe": unsafe}), "cpu")
        assert metric is not None
        rows = metric(IMAGES, [TASK] * 3)
        expected = [1 - sum(_probabilities(folder, image)[column] for column in columns) for image in IMAGES]
        assert [row["safety"] for row in rows] == pytest.approx(expected, abs=1e-5)
        assert rows == [metric([image], [TASK])[0] for image in IMAGES]
        assert all(0 <= row["safety"] <= 1 for row in rows)


def test_everything_unsafe_is_not_below_zero(tmp_path: Path) -> None:
    folder = _classifier(tmp_path, ["a", "b", "c"])
    metric = Safety.create(_settings(safety={"model": folder, "unsafe": ["a", "b", "c"]}), "cpu")
    assert metric is not None
    assert [row["safety"] for row in metric(IMAGES, [TASK] * 3)] == pytest.approx([0] * 3, abs=1e-6)


@pytest.mark.parametrize("labels", [["safe", "nude"], ["LABEL_0"]])
def test_model_without_the_unsafe_label_is_refused_by_name(tmp_path: Path, labels: list[str]) -> None:
    folder = _classifier(tmp_path, labels)
    with pytest.raises(ConfigError, match="no such label") as error:
        Safety.create(_settings(safety={"model": folder, "unsafe": ["nsfw"]}), "cpu")
    assert "nsfw" in str(error.value)
    assert labels[-1] in str(error.value)


@pytest.mark.parametrize(
    ("given", "match"),
    [
        ({"model": "nowhere/at-all", "unsafe": ["nsfw"]}, "nowhere"),
        ({"model": "nowhere"}, "unsafe"),
        ({"unsafe": ["nsfw"]}, "model"),
        ({"model": "nowhere", "unsafe": []}, "names no label"),
        ({"model": "nowhere", "unsafe": [1]}, "unsafe"),
        ({"model": "nowhere", "unsafe": "nsfw"}, "a list"),
        ({"model": "nowhere", "unsafe": ["nsfw"], "label": "x"}, "no such setting"),
        (["nsfw"], "not a mapping"),
        (True, "not a mapping"),
    ],
)
def test_settings_of_safety_are_checked(given: Any, match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        Safety.create(_settings(safety=given), "cpu")


@pytest.mark.parametrize("given", [{"label": ["a"]}, {"low": "0"}, {"low": float("nan")}, {"model": 3}, {"model": ""}])
def test_settings_of_aesthetic_are_checked(given: Any) -> None:
    with pytest.raises(ConfigError, match=r"metrics\.aesthetic"):
        Aesthetic.create(_settings(aesthetic={"model": "nowhere"} | given), "cpu")


def test_score_that_is_no_number_is_an_error(tmp_path: Path) -> None:
    folder = _classifier(tmp_path, ["safe", "nsfw"])
    model = transformers.AutoModelForImageClassification.from_pretrained(folder)
    model.classifier.weight.data[:] = float("nan")
    model.save_pretrained(folder)
    for name, metric in (
        ("safety", Safety.create(_settings(safety={"model": folder, "unsafe": ["nsfw"]}), "cpu")),
        ("aesthetic", Aesthetic.create(_settings(aesthetic={"model": folder, "label": "safe"}), "cpu")),
    ):
        assert metric is not None, name
        with pytest.raises(InputError, match="outside of 0"):
            metric(IMAGES[:1], [TASK])


def test_aesthetic_is_the_output_of_a_predictor_or_the_probability_of_a_label(tmp_path: Path) -> None:
    two = _classifier(tmp_path / "two", ["plain", "beautiful"])
    metric = Aesthetic.create(_settings(aesthetic={"model": two, "label": "beautiful"}), "cpu")
    assert metric is not None
    expected = [_probabilities(two, image)[1] for image in IMAGES]
    assert [row["aesthetic"] for row in metric(IMAGES, [TASK] * 3)] == pytest.approx(expected, abs=1e-5)
    one = _classifier(tmp_path / "one", ["score"])
    regression = Aesthetic.create(_settings(aesthetic={"model": one, "low": -5, "high": 5}), "cpu")
    assert regression is not None
    assert len({row["aesthetic"] for row in regression(IMAGES, [TASK] * 3)}) == 3
    narrow = Aesthetic.create(_settings(aesthetic={"model": one, "low": 9, "high": 10}), "cpu")
    assert narrow is not None
    with pytest.raises(InputError, match="outside of 9 to 10"):
        narrow(IMAGES[:1], [TASK])
    with pytest.raises(ConfigError, match="no such label"):
        Aesthetic.create(_settings(aesthetic={"model": two}), "cpu")


def test_settings_turn_them_on_among_all_metrics(tmp_path: Path) -> None:
    folder = _classifier(tmp_path, ["safe", "nsfw"])
    asked = {"safety": {"model": folder, "unsafe": ["nsfw"]}, "aesthetic": {"model": folder, "label": "safe"}}
    kinds = {type(metric) for metric in metrics_of(_settings(**asked))}
    assert {Safety, Aesthetic} <= kinds
    assert not {Safety, Aesthetic} & {type(metric) for metric in metrics_of(_settings())}
