"""What users of diffusers' pipelines expect of one: dtype and device moves, offloading, LoRA."""

import dataclasses
from pathlib import Path

import pytest
import torch
from diffusers import FluxPipeline

from lookalike.bundles.load import load_model
from lookalike.diffusion.pipeline import SubjectPipeline
from lookalike.errors import ConfigError, InputError
from lookalike.models.adapters import ADAPTER_NAME, lora_parameters, save_lora
from lookalike.models.preprocess import Preprocessor
from lookalike.models.presets import LoraConfig

OPTIONS = {"num_inference_steps": 3, "output_type": "latent", "seeds": [4], "stages": "0.95/0.7"}


@pytest.fixture
def own(bundle_dir, perturb) -> SubjectPipeline:
    """A pipeline that a test may change."""
    pipe = SubjectPipeline.from_pretrained(bundle_dir)
    pipe.set_progress_bar_config(disable=True)
    perturb(pipe.transformer)
    return pipe


@pytest.fixture
def lora(bundle_dir, tmp_path) -> Path:
    """A peft folder with a LoRA that changes much."""
    model, config = load_model(bundle_dir), LoraConfig(rank=4, alpha=2.0)
    model.add_lora(config)
    generator = torch.Generator().manual_seed(0)
    weights = {
        name: 0.3 * torch.randn(parameter.shape, generator=generator)
        for name, parameter in model.transformer.named_parameters()
        if ".lora_" in name
    }
    save_lora(tmp_path / "lora", config, weights)
    return tmp_path / "lora"


def test_half_precision_follows_full(own, photos) -> None:
    full = own("a mug", photos[:1], **OPTIONS).images
    half = own.to(torch.bfloat16)("a mug", photos[:1], **OPTIONS).images
    assert half.dtype == torch.bfloat16
    assert (
        half.float() - full
    ).square().mean().sqrt() < 0.1 * full.std()  # guidance multiplies the rounding of its branches


@pytest.mark.parametrize("attention", ["full", "cached"])
def test_offloading_changes_nothing(own, photos, attention: str) -> None:
    preset = own.preprocessor.preset
    changed = dataclasses.replace(preset, references=dataclasses.replace(preset.references, attention=attention))
    own.preprocessor = Preprocessor(changed, own.preprocessor.tokenizer_file)
    before = own("a mug", photos[:1], **OPTIONS).images
    own.enable_model_cpu_offload(device="cpu")  # accelerate's hooks, without an accelerator to go to
    assert own.transformer._hf_hook is not None
    assert torch.equal(own("a mug", photos[:1], **OPTIONS).images, before)


def test_a_lora_is_loaded_and_unloaded(own, photos, lora, tmp_path) -> None:
    def run() -> torch.Tensor:
        return own("a mug", photos[:1], **OPTIONS).images

    before = run()
    own.load_lora_weights(lora)
    with_lora = run()
    assert (with_lora - before).abs().max() > 1e-2
    with pytest.raises(ConfigError, match="a LoRA of this name is loaded"):
        own.load_lora_weights(lora)
    own.disable_lora()
    torch.testing.assert_close(run(), before, rtol=0, atol=1e-5)
    own.enable_lora()
    own.unload_lora_weights()
    assert torch.equal(run(), before)
    own.load_lora_weights(str(lora), adapter_name="mug")
    own.set_adapters(["mug"], [1.0])
    torch.testing.assert_close(run(), with_lora)
    with pytest.raises(ConfigError, match="a bundle holds one LoRA"):
        own.save_pretrained(tmp_path / "saved")
    own.unload_lora_weights()
    wide = tmp_path / "wide"
    save_lora(wide, LoraConfig(rank=1), {f"nowhere.lora_B.{ADAPTER_NAME}.weight": torch.ones(1, 1)})
    with pytest.raises(InputError, match="lacks"):
        own.load_lora_weights(wide)


def test_a_lora_in_diffusers_format_is_the_same_lora(own, photos, lora, tmp_path) -> None:
    own.load_lora_weights(lora)
    expected = own("a mug", photos[:1], **OPTIONS).images
    scale, named = 2.0 / 4, lora_parameters(own.transformer)
    layers = {name: parameter * (scale if ".lora_B." in name else 1) for name, parameter in named.items()}
    FluxPipeline.save_lora_weights(tmp_path / "flux", transformer_lora_layers=layers)
    own.unload_lora_weights()
    own.load_lora_weights(tmp_path / "flux")
    torch.testing.assert_close(own("a mug", photos[:1], **OPTIONS).images, expected, rtol=1e-4, atol=1e-4)
    own.save_pretrained(tmp_path / "saved")
    again = SubjectPipeline.from_pretrained(tmp_path / "saved")
    torch.testing.assert_close(again("a mug", photos[:1], **OPTIONS).images, expected, rtol=1e-4, atol=1e-4)
