"""Qwen3-VL in the MLLM's slot: the same small protocol, other pixels, other positions."""

import dataclasses
import shutil
from pathlib import Path

import pytest
import torch

from lookalike.bundles.build import materialise
from lookalike.bundles.load import build_model, load_model, load_preprocessor
from lookalike.diffusion.flow import FlowConfig
from lookalike.diffusion.objective import denoising_loss
from lookalike.errors import ConfigError, InputError
from lookalike.models.batch import Batch, to_batch
from lookalike.models.families import family_of
from lookalike.models.joint import encoder_inputs, hidden_states
from lookalike.models.presets import MllmConfig, Preset, load_preset
from lookalike.models.subject import SubjectModel
from lookalike.models.vae import load_vae
from lookalike.models.weights import load_weights

PROMPTS = ["a red mug", "a blue box on the wet sand of a beach", "a dog"]


def tiny_preset() -> Preset:
    mini = load_preset("mini").from_seed("mllm", "vae", "transformer", "aggregator")
    mllm = dataclasses.replace(
        mini.mllm,
        architecture="Qwen3VLForConditionalGeneration",
        tokens_per_image=16,  # (64 / 8 / 2)^2
        config={
            "video_token_id": 7,
            "vision_config": {
                "depth": 3,
                "hidden_size": 64,
                "intermediate_size": 128,
                "num_heads": 4,
                "patch_size": 8,
                "out_hidden_size": 128,
                "num_position_embeddings": 36,
                "deepstack_visual_indexes": [0, 1],
            },
            "text_config": {
                "vocab_size": 2048,
                "hidden_size": 128,
                "intermediate_size": 256,
                "num_hidden_layers": 4,
                "num_attention_heads": 4,
                "num_key_value_heads": 2,
                "head_dim": 32,
                "max_position_embeddings": 256,
                "rope_parameters": {
                    "rope_type": "default",
                    "rope_theta": 10000.0,
                    "mrope_interleaved": True,
                    "mrope_section": [6, 5, 5],
                },
            },
        },
    )
    return dataclasses.replace(mini, name="mini-qwen3-vl", mllm=mllm)


@pytest.fixture(scope="module")
def qwen_dir(tmp_path_factory) -> Path:
    return materialise(tiny_preset(), tmp_path_factory.mktemp("bundles") / "qwen", seed=0)


@pytest.fixture(scope="module")
def model(qwen_dir, perturb) -> SubjectModel:
    model = load_model(qwen_dir)
    perturb(model.transformer)
    perturb(model.mllm)
    return model


@pytest.fixture
def batch(qwen_dir, pictures) -> Batch:
    images = pictures(5)
    return to_batch(load_preprocessor(qwen_dir)(PROMPTS, [images[:1], images[1:3], []], images[2:5]))


def test_patches_equal_transformers_own_image_processor(qwen_dir, model, pictures) -> None:
    from transformers import Qwen2VLImageProcessorPil

    processor = Qwen2VLImageProcessorPil.from_pretrained(qwen_dir / "mllm")
    images = pictures(2, 64, 64)
    expected = processor(images, return_tensors="pt")
    batch = to_batch(load_preprocessor(qwen_dir)(["a"], [images]))
    found = encoder_inputs(model.mllm.config, batch)
    torch.testing.assert_close(found["pixel_values"], expected["pixel_values"], rtol=0, atol=1e-6)
    assert torch.equal(found["image_grid_thw"], expected["image_grid_thw"])
    upscaled = load_preprocessor(qwen_dir)(["a"], [[images[0][:32, :32]]])  # resized: as PIL does it
    found = encoder_inputs(model.mllm.config, to_batch(upscaled))["pixel_values"]
    torch.testing.assert_close(found, processor(images[0][:32, :32], return_tensors="pt")["pixel_values"])


@torch.no_grad()
def test_hidden_states_equal_transformers_own_way_in(model, batch) -> None:
    """Positions that transformers counts token by token, and what it reads back from the grid."""
    row = batch.rows([1])
    types = row.image_mask.int()
    grid = encoder_inputs(model.mllm.config, row)["image_grid_thw"]
    expected = model.mllm(
        input_ids=row.input_ids,
        attention_mask=row.attention_mask,
        mm_token_type_ids=types,
        pixel_values=encoder_inputs(model.mllm.config, row)["pixel_values"],
        image_grid_thw=grid,
        output_hidden_states=True,
        use_cache=False,
    ).hidden_states
    found = hidden_states(model.mllm, row)
    assert len(found) == len(expected) == 5
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours[row.attention_mask], theirs[row.attention_mask], rtol=1e-5, atol=1e-5)
    flat = dataclasses.replace(row, image_mask=torch.zeros_like(row.image_mask))
    text_positions = encoder_inputs(model.mllm.config, flat)["position_ids"]
    assert torch.equal(text_positions, torch.arange(row.input_ids.shape[1]).expand(3, 1, -1))
    two = encoder_inputs(model.mllm.config, batch.rows([0, 1]))  # an image behind the text, and two before it
    expected_positions, _ = model.mllm.get_rope_index(
        two["input_ids"], batch.image_mask[:2].int(), image_grid_thw=two["image_grid_thw"]
    )
    assert torch.equal(two["position_ids"], expected_positions)


@torch.no_grad()
def test_deepstack_reaches_the_image_tokens(model, batch) -> None:
    before = hidden_states(model.mllm, batch)
    removed, model.mllm.visual.deepstack_visual_indexes = model.mllm.visual.deepstack_visual_indexes, []
    try:
        after = hidden_states(model.mllm, batch)
    finally:
        model.mllm.visual.deepstack_visual_indexes = removed
    assert torch.equal(before[1], after[1])  # the first block's own output
    assert (before[2] - after[2])[batch.image_mask].abs().max() > 1e-3


@torch.no_grad()
def test_mixed_reference_counts_equal_one_by_one(model, batch, qwen_dir, pictures) -> None:
    together = model.encode(batch)
    images, preprocessor = pictures(5), load_preprocessor(qwen_dir)
    for row, references in enumerate([images[:1], images[1:3], []]):
        alone = model.encode(to_batch(preprocessor([PROMPTS[row]], [references])))
        torch.testing.assert_close(
            alone.tokens[alone.mask], together.tokens[row][together.mask[row]], rtol=0, atol=1e-4
        )


def test_trains_end_to_end(model, batch, qwen_dir) -> None:
    named = model.set_trainable(("aggregator", "transformer"))
    model.train()
    losses = denoising_loss(
        model, load_vae(qwen_dir), batch, sample_ids=["a", "b", "c"], seed=0, flow=FlowConfig.from_bundle(qwen_dir)
    )
    losses.mean().backward()
    assert torch.isfinite(losses).all()
    assert {n for n, p in model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0} >= {
        name for name in named if "aggregator" in name and "weight" in name
    }
    assert not any(p.grad is not None for p in model.mllm.parameters())


def test_a_sharded_folder_of_transformers_is_a_source_and_strict(qwen_dir, tmp_path) -> None:
    from safetensors.torch import load_file, save_file
    from transformers import Qwen3VLForConditionalGeneration

    hub = Path(shutil.copytree(qwen_dir / "mllm", tmp_path / "hub"))
    (hub / "model.safetensors").unlink()
    Qwen3VLForConditionalGeneration.from_pretrained(qwen_dir / "mllm").save_pretrained(hub, max_shard_size="1MB")
    shards = sorted(hub.glob("*.safetensors"))
    assert len(shards) > 2
    preset = tiny_preset()
    preset = dataclasses.replace(preset, mllm=dataclasses.replace(preset.mllm, source=str(hub), vocabulary=None))
    bundle = materialise(preset, tmp_path / "bundle", seed=0)
    model = build_model(bundle)
    load_weights(model, bundle)
    seeded = load_model(qwen_dir).mllm.state_dict()
    assert all(torch.equal(tensor, seeded[name]) for name, tensor in model.mllm.state_dict().items())

    shard = bundle / "mllm" / shards[-1].name
    tensors = load_file(shard)
    lost = min(tensors)
    save_file({name: tensor for name, tensor in tensors.items() if name != lost}, shard, {"format": "pt"})
    with pytest.raises(InputError, match=rf"1 tensors are missing, the first is mllm\.{lost.removeprefix('model.')}"):
        load_weights(model, bundle)
    save_file({**tensors, "model.visual.bogus": torch.zeros(1)}, shard, {"format": "pt"})
    with pytest.raises(InputError, match=r"tensor mllm\.visual\.bogus is unknown or repeated"):
        load_weights(model, bundle)


@pytest.mark.parametrize("name", ["mini", "flux-internvl3-8b", "flux-schnell-qwen3-vl"])
def test_presets_say_how_many_tokens_their_encoder_makes(name: str) -> None:
    import transformers

    mllm: MllmConfig = load_preset(name).mllm
    config = getattr(transformers, mllm.architecture).config_class(**mllm.config)
    assert family_of(config.model_type).tokens_per_image(config.to_dict(), mllm.image_size) == mllm.tokens_per_image
    with pytest.raises(ConfigError, match="family of multimodal models is not supported"):
        family_of("llava")


def test_pixels_are_numbers_of_one_tile(qwen_dir, pictures) -> None:
    columns = load_preprocessor(qwen_dir)(["a"], [pictures(1, 30, 90)])
    assert columns["tiles"][0].shape == (1, 3, 64, 64)
