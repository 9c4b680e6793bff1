import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import FluxPipeline
from diffusers.configuration_utils import FrozenDict
from PIL import Image
from safetensors.torch import load_file, save_file

from lookalike.bundles.load import load_model
from lookalike.bundles.manifest import (
    ADAPTER,
    BundleReference,
    bundle_sha256,
    read_manifest,
    read_preset,
    write_manifest,
)
from lookalike.bundles.verification import verify
from lookalike.diffusion.pipeline import SubjectPipeline
from lookalike.diffusion.schedule import DenoisingSchedule
from lookalike.errors import ConfigError, InputError
from lookalike.models.adapters import load_lora, save_lora
from lookalike.models.batch import to_batch
from lookalike.models.dit import References
from lookalike.models.preprocess import Preprocessor
from lookalike.models.presets import LoraConfig
from lookalike.models.subject import SubjectModel, encode_context
from lookalike.models.vae import encode, load_vae

FAST = {"num_inference_steps": 4, "output_type": "latent"}


def test_all_output_types(pipe, photos) -> None:
    images = pipe("a red mug", photos[:1], num_inference_steps=2, num_images_per_prompt=2, seeds=[1, 2]).images
    assert [image.size for image in images] == [(64, 64)] * 2
    arrays = pipe("a red mug", photos[:1], num_inference_steps=2, seeds=[1], output_type="np").images
    assert (arrays.shape, arrays.dtype) == ((1, 64, 64, 3), np.float32)
    assert arrays.min() >= 0
    assert arrays.max() <= 1
    np.testing.assert_allclose(255 * arrays[0], np.asarray(images[0]).astype(float), atol=1)
    tensors = pipe("a red mug", photos[:1], num_inference_steps=2, seeds=[1], output_type="pt").images
    assert (tensors.shape, tensors.dtype) == ((1, 3, 64, 64), torch.float32)
    np.testing.assert_array_equal(tensors[0].permute(1, 2, 0).numpy(), arrays[0])
    wide = pipe("a red mug", photos[:1], num_inference_steps=2, height=32, width=64).images
    assert wide[0].size == (64, 32)


def test_the_same_seed_is_the_same_image_in_any_batch(pipe, photos) -> None:
    prompts, references = ["a red mug", "a blue box on the sand"], [photos[:1], photos[1:3]]
    together = pipe(prompts, references, seeds=[7, 8, 9, 10], num_images_per_prompt=2, **FAST).images
    alone = pipe(prompts[1], references[1], seeds=[10], **FAST).images
    torch.testing.assert_close(together[3:], alone, rtol=0, atol=1e-4)
    generators = [torch.Generator().manual_seed(10)]
    assert torch.equal(pipe(prompts[1], references[1], generator=generators, **FAST).images, alone)
    assert (together[2] - together[3]).abs().max() > 0.1


def test_the_presets_denoising_schedule_is_the_default(pipe, photos) -> None:
    own = pipe.preprocessor.preset.stages
    assert own != "paper"
    assert pipe.plan(num_inference_steps=25) == pipe.plan(own, 25) != pipe.plan("paper", 25)
    options = {"num_inference_steps": 8, "seeds": [3], "output_type": "latent"}
    expected = pipe("a mug", photos[:1], stages=own, **options).images
    assert torch.equal(pipe("a mug", photos[:1], **options).images, expected)
    assert not torch.equal(pipe("a mug", photos[:1], stages="paper", **options).images, expected)


def test_a_step_computes_only_the_conditions_it_sees(pipe, photos, monkeypatch) -> None:
    calls = {"mllm": 0, "vae": 0, "lengths": []}
    forward, encode, flux = pipe.mllm.forward, pipe.vae.encode, pipe.transformer.forward

    def count(name, function):
        def run(*args, **kwargs):
            calls[name] += 1
            return function(*args, **kwargs)

        return run

    def record(*args, **kwargs):
        calls["lengths"].append((kwargs["encoder_hidden_states"].shape[1], kwargs["hidden_states"].shape[1]))
        return flux(*args, **kwargs)

    monkeypatch.setattr(pipe.mllm, "forward", count("mllm", forward))
    monkeypatch.setattr(pipe.vae, "encode", count("vae", encode))
    monkeypatch.setattr(pipe.transformer, "forward", record)
    # 21 tokens: <|im_start|> <img> 16 </img> a mug <|im_end|> is 22
    pipe("a mug", photos[:1], stages="0.95/0.7", guidance_scale=1, **FAST)
    assert calls == {"mllm": 1, "vae": 1, "lengths": [(22, 64), (22, 128), (0, 128), (0, 128)]}
    calls.update(mllm=0, vae=0, lengths=[])
    pipe("a mug", photos[:1], stages="mllm_only", guidance_scale=1, **FAST)
    assert (calls["mllm"], calls["vae"]) == (1, 0)
    calls.update(mllm=0, vae=0, lengths=[])
    pipe("a mug", photos[:1], stages="reference_only", guidance_scale=2, **FAST)
    assert (calls["mllm"], calls["vae"]) == (0, 1)
    assert calls["lengths"] == [(0, 128), (0, 64)] * 4


def test_sampling_is_eulers_method_on_the_models_velocity(pipe, photos) -> None:
    start = torch.randn(1, 64, 16, generator=torch.Generator().manual_seed(3))
    found = pipe("a mug", photos[:1], latents=start, guidance_scale=1, stages="mllm_only", **FAST).images
    model = SubjectModel(pipe.mllm, pipe.aggregator, pipe.transformer, pipe.preprocessor.preset.references).eval()
    batch = to_batch(pipe.preprocessor(["a mug"], [[np.asarray(photos[0])]]))
    current = start
    with torch.no_grad():
        for sigma, after in zip(pipe.scheduler.sigmas[:-1], pipe.scheduler.sigmas[1:], strict=True):
            current = current + (after - sigma) * model(batch, current, sigma[None], None, (8, 8))
    torch.testing.assert_close(found, current, rtol=1e-4, atol=1e-4)


def test_without_references_it_is_diffusers_flux_pipeline(pipe, photos, monkeypatch) -> None:
    """Our context in T5's place: rotary ids, shift, schedule, guidance embedding, unpacking and decoding."""
    scaled = FrozenDict({**pipe.vae.config, "shift_factor": 0.1, "scaling_factor": 0.4})
    monkeypatch.setattr(pipe.vae, "_internal_dict", scaled)
    prompts, size = ["a red mug", "a blue mug"], {"height": 32, "width": 64}  # as many tokens: nothing is masked
    batch = to_batch(pipe.preprocessor(prompts, [[np.asarray(photos[0])]] * 2))
    assert batch.attention_mask.all()
    none = dict.fromkeys(("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"))
    flux = FluxPipeline(scheduler=pipe.scheduler, vae=pipe.vae, transformer=pipe.transformer, **none)
    flux.set_progress_bar_config(disable=True)
    start = torch.randn(2, 32, 16, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        context = encode_context(pipe.mllm, pipe.aggregator, batch)

    def theirs(output_type: str) -> torch.Tensor:
        return flux(
            prompt_embeds=context.tokens,
            pooled_prompt_embeds=torch.zeros(2, pipe.transformer.config.pooled_projection_dim),
            latents=start,
            guidance_scale=2.0,
            num_inference_steps=4,
            output_type=output_type,
            **size,
        ).images

    def ours(output_type: str) -> torch.Tensor:
        return pipe(
            prompts,
            photos[:1],
            latents=start,
            stages="mllm_only",
            guidance_scale=1,
            distilled_guidance=2.0,
            num_inference_steps=4,
            output_type=output_type,
            **size,
        ).images

    expected = theirs("latent")
    assert (expected[0] - expected[1]).abs().max() > 1e-3
    torch.testing.assert_close(ours("latent"), expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(ours("pt"), theirs("pt"), rtol=0, atol=1e-5)


def test_cached_references_are_computed_once_and_change_nothing(pipe, photos, monkeypatch) -> None:
    preset = pipe.preprocessor.preset
    references = dataclasses.replace(preset.references, attention="cached")
    cached = Preprocessor(dataclasses.replace(preset, references=references), pipe.preprocessor.tokenizer_file)
    monkeypatch.setattr(pipe, "preprocessor", cached)
    calls, flux = [], pipe.transformer.forward

    def record(*args, **kwargs):
        lengths = kwargs["encoder_hidden_states"].shape[1], kwargs["hidden_states"].shape[1]
        calls.append((float(kwargs["timestep"][0]), *lengths))
        return flux(*args, **kwargs)

    start = torch.randn(2, 64, 16, generator=torch.Generator().manual_seed(3))
    prompts, given = ["a mug", "a blue box on sand"], [photos[:1], photos[1:3]]
    options = {"guidance_scale": 1, "stages": "0.95/0.7", **FAST}
    with monkeypatch.context() as patch:
        patch.setattr(pipe.transformer, "forward", record)
        found = pipe(prompts, given, latents=start, **options).images
    levels = pipe.scheduler.sigmas.tolist()[:4]
    lengths = [(43, 64), (43, 64), (0, 64), (0, 64)]
    assert calls == [(0, 0, 128), *((s, *n) for s, n in zip(levels, lengths, strict=True))]
    torch.testing.assert_close(pipe(*prompts[:1], given[0], latents=start[:1], **options).images, found[:1])

    model = SubjectModel(pipe.mllm, pipe.aggregator, pipe.transformer, references).eval()
    batch = to_batch(cached(prompts, [[np.asarray(photo) for photo in row] for row in given]))
    latents = encode(pipe.vae, batch.references.flatten(0, 1)).unflatten(0, (2, 2))
    current, plan = start, map(DenoisingSchedule(0.95, 0.7), levels)
    with torch.no_grad():
        for step, seen in enumerate(plan):  # keys and values anew in every step, as in training
            change = pipe.scheduler.sigmas[step + 1] - pipe.scheduler.sigmas[step]
            sigma = pipe.scheduler.sigmas[step].expand(2)
            shown = References(latents, batch.reference_mask, (8, 8)) if seen.references else None
            current = current + change * model(batch, current, sigma, shown, (8, 8), use_mllm=bool(seen.mllm))
    torch.testing.assert_close(found, current, rtol=1e-4, atol=1e-4)
    monkeypatch.undo()
    assert (pipe(prompts, given, latents=start, **options).images - found).abs().max() > 1e-2


def test_saves_and_loads_as_a_bundle(pipe, photos, tmp_path) -> None:
    pipe.save_pretrained(tmp_path / "saved")
    verify(tmp_path / "saved")
    again = SubjectPipeline.from_pretrained(tmp_path / "saved")
    again.set_progress_bar_config(disable=True)
    options = dict(seeds=[1], **FAST)
    assert torch.equal(again("a mug", photos[:1], **options).images, pipe("a mug", photos[:1], **options).images)
    load_model(tmp_path / "saved")


@pytest.mark.parametrize("part", ["mllm", "vae"])
def test_a_missing_and_an_extra_tensor_are_named(bundle_dir, tmp_path, part) -> None:
    """diffusers' own loading draws the one at random and leaves the other, with a warning."""
    copy = Path(shutil.copytree(bundle_dir, tmp_path / "copy"))
    (path,) = (copy / part).glob("*.safetensors")
    tensors = load_file(path)
    missing = next(name for name in sorted(tensors) if "norm" in name and name.endswith("weight"))
    save_file({name: tensor for name, tensor in tensors.items() if name != missing}, path, {"format": "pt"})
    write_manifest(copy, read_preset(copy))
    with pytest.raises(InputError, match=rf"1 tensors are missing, the first is {part}\..*norm"):
        SubjectPipeline.from_pretrained(copy)
    prefix = "language_model.model." if part == "mllm" else ""
    save_file({**tensors, f"{prefix}bogus.weight": torch.zeros(2)}, path, {"format": "pt"})
    write_manifest(copy, read_preset(copy))
    with pytest.raises(InputError, match=rf"1 tensors are unknown, the first is {part}\..*bogus\.weight"):
        SubjectPipeline.from_pretrained(copy)
    if part == "vae":
        with pytest.raises(InputError, match="unknown"):
            load_vae(copy)


def test_a_personal_bundle_changes_the_image_and_survives_saving(bundle_dir, photos, tmp_path, perturb) -> None:
    whole = tmp_path / "whole"
    pipe = SubjectPipeline.from_pretrained(bundle_dir)
    perturb(pipe.transformer)
    pipe.save_pretrained(whole)
    model = load_model(whole)
    lora = LoraConfig(rank=4)
    model.add_lora(lora)
    weights = {n: 0.3 * torch.randn_like(p) for n, p in model.transformer.named_parameters() if ".lora_" in n}
    personal = tmp_path / "personal"
    save_lora(personal / ADAPTER, lora, weights)
    write_manifest(personal, read_preset(whole), BundleReference("whole", bundle_sha256(read_manifest(whole))))

    def run(pipe: SubjectPipeline) -> torch.Tensor:
        pipe.set_progress_bar_config(disable=True)
        return pipe("a mug", photos[:1], seeds=[1], **FAST).images

    adapted = SubjectPipeline.from_pretrained(personal, base=whole)
    image = run(adapted)
    assert (image - run(SubjectPipeline.from_pretrained(whole))).abs().max() > 1e-2
    adapted.save_pretrained(tmp_path / "merged")
    assert torch.equal(run(adapted), image)
    assert torch.equal(run(SubjectPipeline.from_pretrained(tmp_path / "merged")), image)
    load_lora(load_model(whole).transformer, tmp_path / "merged" / ADAPTER)


def test_a_callback_sees_and_changes_every_step(pipe, photos) -> None:
    seen = []

    def watch(_pipe, step, timestep, values):
        seen.append((step, float(timestep)))
        return {"latents": torch.zeros_like(values["latents"])} if step == 3 else {}

    images = pipe("a mug", photos[:1], callback_on_step_end=watch, **FAST).images
    assert [step for step, _ in seen] == [0, 1, 2, 3]
    assert not images.any()


def test_invalid_input_is_rejected_before_the_model_runs(pipe, photos, monkeypatch) -> None:
    monkeypatch.setattr(pipe.transformer, "forward", None)
    tiny = Image.new("RGB", (8, 8))
    cases = [
        (InputError, "list of references is empty", {"references": []}),
        (InputError, "list of references is empty", {"prompt": ["a", "b"], "references": [photos[:1], []]}),
        (InputError, "3 references are more than the preset mini takes", {"references": photos[:3]}),
        (InputError, "1 lists of references for 2 prompts", {"prompt": ["a", "b"], "references": [photos[:1]]}),
        (InputError, "mix images and lists", {"references": [photos[0], photos[1:2]]}),
        (InputError, "8x8 pixels", {"references": [tiny]}),
        (InputError, "20000x16 pixels", {"references": [Image.new("RGB", (20_000, 16))]}),
        (InputError, "is not an image", {"references": ["photo.jpg"]}),
        (InputError, "a prompt is not text", {"prompt": ["a mug", None], "references": photos[:1]}),
        (ConfigError, "70x64 pixels is not supported; use multiples of 8", {"width": 70}),
        (ConfigError, "64x60 pixels is not supported; use multiples of 8", {"height": 60}),
        (ConfigError, "denoising schedule are out of order", {"stages": "0.2/0.9"}),
        (ConfigError, "2 seeds or generators for 1 images", {"seeds": [1, 2]}),
    ]
    for error, message, change in cases:
        with pytest.raises(error, match=message):
            pipe(**{"prompt": "a mug", "references": photos[:1], **FAST, **change})
    with pytest.raises(InputError, match="not a bundle"):
        SubjectPipeline.from_pretrained(Path("/nonexistent"))


def test_a_long_prompt_is_cut_with_a_warning(pipe, photos, caplog) -> None:
    """As in diffusers; names of control tokens are text."""
    cut = pipe("red " * 60, photos[:1], seeds=[0], **FAST).images
    assert "The following part of your input was truncated" in caplog.text
    assert torch.equal(cut, pipe("red " * 40, photos[:1], seeds=[0], **FAST).images)
    marked = pipe("red <IMG_CONTEXT><|im_end|>", photos[:1], seeds=[0], **FAST).images
    assert marked.isfinite().all()
