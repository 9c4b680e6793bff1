from pathlib import Path

import numpy as np
import pytest
import torch
from skimage import data as photographs
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, Dinov2Config, Dinov2Model, ViTImageProcessor

from lookalike.annotators.base import Embedder
from lookalike.annotators.embedder import load_embedder, revision_of
from lookalike.annotators.foreground import ForegroundColour
from lookalike.errors import ConfigError


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def joined() -> Embedder:
    return load_embedder("efficientnet-lite0-colour")


@pytest.fixture(scope="module")
def pictures() -> list[np.ndarray]:
    cat, coffee, rocket = photographs.chelsea(), photographs.coffee(), photographs.rocket()
    return [cat, cat[20:280, 60:400], coffee, coffee[20:, 30:560], rocket]


def test_crops_of_one_photograph_are_most_alike(joined: Embedder, pictures: list[np.ndarray]) -> None:
    vectors = joined(pictures)
    assert (vectors.shape, vectors.dtype) == ((5, joined.dim), np.float32)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    similarity = vectors @ vectors.T - 2 * np.eye(5)
    assert similarity.argmax(1).tolist()[:4] == [1, 0, 3, 2]
    assert similarity[0, 1] > 0.8
    assert similarity[0, 2:].max() < 0.5


def test_a_vector_does_not_depend_on_its_neighbours(joined: Embedder, pictures: list[np.ndarray]) -> None:
    together = joined(pictures)
    alone = np.concatenate([joined([picture]) for picture in pictures])
    np.testing.assert_array_equal(together, alone)


def thing(colour: tuple[int, int, int], ground: tuple[int, int, int]) -> np.ndarray:
    image = np.full((96, 96, 3), ground, np.uint8)
    image[28:68, 28:68] = colour
    return image


def test_colour_is_that_of_the_foreground() -> None:
    embed = ForegroundColour()
    red_on_green, red_on_blue, blue_on_green = embed(
        [thing((220, 30, 30), (40, 140, 60)), thing((220, 30, 30), (60, 90, 200)), thing((60, 90, 200), (40, 140, 60))]
    )
    assert red_on_green @ red_on_blue > 0.95
    assert red_on_green @ blue_on_green < 0.3


def test_a_plain_image_has_a_colour_too() -> None:
    (vector,) = ForegroundColour()([np.full((50, 80, 3), 128, np.uint8)])
    assert np.linalg.norm(vector) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("name", ["efficientnet-lite0", "efficientnet-lite0-colour"])
def test_a_revision_is_known_without_loading(name: str) -> None:
    assert revision_of(name) == load_embedder(name).revision


def test_a_transformers_model_of_either_kind_loads_from_a_folder(tmp_path: Path) -> None:
    torch.manual_seed(0)
    size = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 28, "patch_size": 14}
    Dinov2Model(Dinov2Config(**size)).save_pretrained(tmp_path / "dino")
    ViTImageProcessor(size={"height": 28, "width": 28}).save_pretrained(tmp_path / "dino")
    vision = {**size, "intermediate_size": 32}
    text = {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "vocab_size": 50,
    }
    CLIPModel(CLIPConfig(vision_config=vision, text_config=text, projection_dim=8)).save_pretrained(tmp_path / "clip")
    CLIPImageProcessor(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}).save_pretrained(
        tmp_path / "clip"
    )
    for folder, dim in (("dino", 16), ("clip", 8)):
        embed = load_embedder(str(tmp_path / folder))
        vectors = embed([photographs.chelsea(), photographs.coffee()[:100]])
        assert (vectors.shape, embed.dim) == ((2, dim), dim)
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
        assert embed.revision == revision_of(str(tmp_path / folder))
        assert embed.revision.startswith(f"{folder}@")


def test_another_folder_has_another_revision(tmp_path: Path) -> None:
    size = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 28, "patch_size": 14}
    revisions = set()
    for seed in range(2):
        torch.manual_seed(seed)
        Dinov2Model(Dinov2Config(**size)).save_pretrained(tmp_path / "model")
        revisions.add(revision_of(str(tmp_path / "model")))
    assert len(revisions) == 2


def test_name_that_is_not_an_embedder_is_refused(tmp_path: Path) -> None:
    for name in ("", str(tmp_path)):
        with pytest.raises(ConfigError, match="no such embedder"):
            load_embedder(name)
