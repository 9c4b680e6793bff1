"""Fixtures: a seeded bundle of ``mini``, and a function that perturbs its zero-initialised weights."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest


@pytest.fixture(scope="session")
def bundle_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of ``mini`` with every component made from seed 0. Read only."""
    import torch

    from lookalike.bundles.build import materialise
    from lookalike.models.presets import load_preset

    torch.set_num_threads(1)
    return materialise(from_seed(load_preset("mini")), tmp_path_factory.mktemp("bundles") / "mini", seed=0)


@pytest.fixture(scope="session")
def perturb() -> Callable[..., Any]:
    """``perturb(module, scale)`` adds seeded noise to every parameter, so that no gate is zero and no norm is one."""
    import torch

    def change(module: Any, scale: float = 0.05, seed: int = 0) -> Any:
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in module.parameters():
                parameter += scale * torch.randn(parameter.shape, generator=generator)
        return module

    return change


@pytest.fixture(scope="session")
def dit_output() -> Callable[[Any], Any]:
    """``dit_output(transformer)``: the output of a DiT for constant inputs."""
    import torch

    @torch.no_grad()
    def run(transformer: Any) -> Any:
        generator, config = torch.Generator().manual_seed(3), transformer.config
        return transformer(
            hidden_states=torch.randn(1, 16, config.in_channels, generator=generator),
            encoder_hidden_states=torch.randn(1, 6, config.joint_attention_dim, generator=generator),
            pooled_projections=torch.zeros(1, config.pooled_projection_dim),
            timestep=torch.tensor([0.5]),
            guidance=torch.ones(1) if config.guidance_embeds else None,
            img_ids=torch.zeros(16, 3),
            txt_ids=torch.zeros(6, 3),
            return_dict=False,
        )[0]

    return run


@pytest.fixture
def pictures() -> Callable[..., list[np.ndarray]]:
    """``pictures(n)``: n different uint8 RGB images."""

    def make(count: int, height: int = 80, width: int = 64, seed: int = 0) -> list[np.ndarray]:
        random = np.random.default_rng(seed)
        coarse = random.integers(0, 256, (count, 4, 4, 3), dtype=np.uint8)
        rows, columns = np.arange(height) * 4 // height, np.arange(width) * 4 // width
        return [image[rows][:, columns] for image in coarse]

    return make


@pytest.fixture
def without_heic(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Behave as without the extra ``heic``."""
    from lookalike.data import images
    from lookalike.data.formats import HEIC_EXTENSIONS
    from pipelines.finetune import photos
    from pipelines.ingest import folder

    plain = tuple(extension for extension in images.EXTENSIONS if extension not in HEIC_EXTENSIONS)
    monkeypatch.setattr(images, "HEIC_INSTALLED", False)
    for module in (images, folder, photos):
        monkeypatch.setattr(module, "EXTENSIONS", plain)
    images._formats.cache_clear()
    yield
    images._formats.cache_clear()


def from_seed(preset: Any) -> Any:
    """``preset`` without its sources: every component is made from its configuration."""
    import dataclasses

    parts = ("mllm", "vae", "transformer", "aggregator")
    return dataclasses.replace(
        preset, **{part: dataclasses.replace(getattr(preset, part), source=None) for part in parts}
    )


@pytest.fixture(scope="session")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CLIPModel of random weights, with a tokenizer that knows some words."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, PreTrainedTokenizerFast

    words = ["<pad>", "<unk>", "<end>", "a", "sks", "cat", "in", "the", "snow", "red", "wearing", "hat"]
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tower = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = CLIPConfig(
        text_config=tower | {"vocab_size": len(words), "max_position_embeddings": 16, "eos_token_id": 2},
        vision_config=tower | {"image_size": 64, "patch_size": 16},
        projection_dim=24,
    )
    config.text_config.initializer_factor = config.vision_config.initializer_factor = 8.0
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("clip")
    CLIPModel(config).save_pretrained(folder)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", pad_token="<pad>", eos_token="<end>", model_max_length=16
    ).save_pretrained(folder)
    CLIPImageProcessorPil(size={"shortest_edge": 64}, crop_size={"height": 64, "width": 64}).save_pretrained(folder)
    return folder
