"""The parts that `mini` ships with: small, of the preset's architecture, and they know the sample world."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from lookalike.bundles.build import materialise
from lookalike.bundles.load import load_preprocessor
from lookalike.models.batch import to_batch
from lookalike.models.presets import ASSETS_DIR, load_preset
from lookalike.models.vae import encode, load_vae
from lookalike.models.weights import read_tensors
from lookalike.pixels import crop_resize
from lookalike.training import parts
from pipelines.ingest.sample import vocabulary, world

Photos = list[tuple[np.ndarray, str]]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return materialise(load_preset("mini"), tmp_path_factory.mktemp("mini") / "bundle")


@pytest.fixture(scope="module")
def photos() -> Photos:
    """Two views of subjects of a world that nothing was trained on: picture and caption."""
    from pipelines.ingest.sample.scene import render

    taken = [world.photo(world.subject(98, number), view, 6) for number in range(16) for view in (0, 2)]
    pictures = [render(world.body(p.subject), p.view, p.place, 128)[0] for p in taken]
    return [(crop_resize(picture, 64, 64), p.caption) for picture, p in zip(pictures, taken, strict=True)]


def test_shipped_weights_are_small_and_fit_the_preset(bundle: Path, tmp_path: Path) -> None:
    files = [path for path in ASSETS_DIR.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 20e6
    assert not [path for path in ASSETS_DIR.rglob("config.json") if "_name_or_path" in path.read_text()]
    preset = load_preset("mini")
    anew = materialise(preset.from_seed("mllm", "vae", "transformer", "aggregator"), tmp_path / "anew")
    for name in ("vae", "mllm", "transformer", "aggregator"):
        assert getattr(preset, name).source == f"package:mini/{name}"
        assert _shapes(bundle / name) == _shapes(anew / name)


def _shapes(folder: Path) -> dict[str, list[int]]:
    return {name: list(tensor.shape) for name, tensor in read_tensors(folder)}


def test_the_shipped_tokenizer_equals_one_built_from_the_preset(bundle: Path, tmp_path: Path) -> None:
    materialise(load_preset("mini").from_seed("mllm"), tmp_path / "anew")
    for name in ("tokenizer.json", "preprocessor_config.json"):
        assert (bundle / "mllm" / name).read_bytes() == (tmp_path / "anew" / "mllm" / name).read_bytes()


def test_the_vae_reconstructs_unseen_subjects(bundle: Path, photos: Photos) -> None:
    vae = load_vae(bundle)
    images = torch.from_numpy(np.stack([picture for picture, _ in photos]).transpose(0, 3, 1, 2).copy())
    assert parts.psnr(images, parts.reconstruct(vae, images)) > 26
    latents = encode(vae, images)
    assert latents.std().item() == pytest.approx(1, abs=0.15)
    assert latents.mean().item() == pytest.approx(0, abs=0.2)


def test_the_mllm_describes_unseen_photos(bundle: Path, photos: Photos) -> None:
    from transformers import AutoTokenizer, InternVLForConditionalGeneration

    mllm = InternVLForConditionalGeneration.from_pretrained(bundle / "mllm").eval()
    assert mllm.dtype == torch.float32
    tokenizer = AutoTokenizer.from_pretrained(bundle / "mllm")
    preprocessor = load_preprocessor(bundle)
    right = to_batch(preprocessor([caption for _, caption in photos], [[picture] for picture, _ in photos]))
    shuffled = right.with_conditions_of(range(len(photos)))
    shuffled = dataclasses.replace(shuffled, tiles=right.tiles.roll(5, 0))
    colours = {"colour": set(tokenizer.convert_tokens_to_ids(list(vocabulary.COLOURS)))}
    seen = parts.caption_accuracy(mllm, [right], colours)
    guessed = parts.caption_accuracy(mllm, [shuffled], colours)
    assert seen["colour"] > 0.7
    assert seen["colour"] > guessed["colour"] + 0.3
