"""Pretraining of the miniature's parts, from rendered shards to folders that diffusers and transformers load."""

from pathlib import Path

import pytest

from lookalike.errors import ConflictError, InputError
from lookalike.training.history import METRICS
from lookalike.training.parts import FitConfig
from pipelines.ingest import IngestConfig, SampleWorldConfig, ingest
from pipelines.pretrain import PretrainConfig, pretrain

SHORT = FitConfig(steps=5, batch_size=2, save_every=2)


@pytest.fixture(scope="module")
def raw(ray_local: None, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = str(tmp_path_factory.mktemp("world"))
    world = SampleWorldConfig(subjects=40, views=2, seed=90, size_px=64, defects=False)
    ingest(IngestConfig(source="sample", raw=folder, sample=world))
    return folder


@pytest.mark.parametrize("part", ["vae", "mllm"])
def test_a_part_is_trained_measured_and_saved(raw: str, tmp_path: Path, part: str) -> None:
    from diffusers import AutoencoderKL
    from transformers import InternVLForConditionalGeneration

    config = PretrainConfig(part=part, raw=raw, out=str(tmp_path), photographs=0, fit=SHORT)  # type: ignore[arg-type]
    result = pretrain(config)
    assert result["parameters"] < 3_000_000
    assert len((tmp_path / f"{part}-run" / METRICS).read_text().splitlines()) == SHORT.steps
    loader = AutoencoderKL if part == "vae" else InternVLForConditionalGeneration
    model = loader.from_pretrained(tmp_path / part)
    assert str(model.dtype) == "torch.float32"
    assert pretrain(config) == result
    other = PretrainConfig(part=part, raw=raw, out=str(tmp_path), photographs=0, fit=FitConfig(steps=6))  # type: ignore[arg-type]
    with pytest.raises(ConflictError, match="fit"):
        pretrain(other)


def test_no_shards_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="too few subjects"):
        pretrain(PretrainConfig(part="vae", raw=str(tmp_path / "none"), out=str(tmp_path / "out"), fit=SHORT))
