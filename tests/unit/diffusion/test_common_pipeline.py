"""What diffusers' own common tests ask of every pipeline, and what its users do with one."""

import inspect
import io
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.callbacks import PipelineCallback
from diffusers.pipelines.pipeline_utils import ImagePipelineOutput
from PIL import Image

from lookalike.diffusion.pipeline import SubjectPipeline
from lookalike.diffusion.schedule import ConditionWeights
from lookalike.errors import ConfigError, InputError, LookalikeError

FAST: dict[str, Any] = {"num_inference_steps": 3, "output_type": "latent", "stages": "both", "seeds": [5]}


def test_components_rebuild_the_pipeline(pipe, photos) -> None:
    assert set(pipe.components) == {"mllm", "aggregator", "transformer", "vae", "scheduler", "preprocessor"}
    expected = pipe("a mug", photos[:1], **FAST).images
    for other in (SubjectPipeline(**pipe.components), SubjectPipeline.from_pipe(pipe)):
        other.set_progress_bar_config(disable=True)
        assert other.transformer is pipe.transformer
        assert other.preprocessor is pipe.preprocessor
        assert torch.equal(other("a mug", photos[:1], **FAST).images, expected)
    assert "preprocessor" not in pipe.config  # a bundle's model_index.json names its folders


def test_a_pipeline_without_a_preprocessor_is_refused(pipe) -> None:
    parts = {name: part for name, part in pipe.components.items() if name != "preprocessor"}
    with pytest.raises(TypeError, match="preprocessor"):
        SubjectPipeline(**parts)


def test_the_signature_has_what_every_pipeline_has() -> None:
    parameters = inspect.signature(SubjectPipeline.__call__).parameters
    names = {"prompt", "negative_prompt", "num_inference_steps", "num_images_per_prompt", "generator", "latents"}
    names |= {"output_type", "return_dict", "guidance_scale", "height", "width"}
    assert names | {"callback_on_step_end", "callback_on_step_end_tensor_inputs"} <= set(parameters)


def test_dictionary_and_tuple_hold_the_same(pipe, photos) -> None:
    output = pipe("a mug", photos[:1], **FAST)
    assert isinstance(output, ImagePipelineOutput)
    assert torch.equal(pipe("a mug", photos[:1], return_dict=False, **FAST)[0], output[0])


@pytest.mark.parametrize(("prompts", "images"), [(1, 1), (1, 2), (2, 1), (2, 2)])
def test_numbers_of_images_follow_prompts(pipe, photos, prompts, images) -> None:
    options = {**FAST, "seeds": range(prompts * images), "num_inference_steps": 1}
    found = pipe(["a mug"] * prompts, photos[:1], num_images_per_prompt=images, **options).images
    assert len(found) == prompts * images
    generators = [torch.Generator().manual_seed(seed) for seed in range(prompts * images)]
    options = {**options, "seeds": None, "generator": tuple(generators)}
    assert torch.equal(pipe(["a mug"] * prompts, photos[:1], num_images_per_prompt=images, **options).images, found)


def test_output_types_are_those_of_diffusers(pipe, photos) -> None:
    options = {**FAST, "num_inference_steps": 1}
    found = {kind: pipe("a mug", photos[:1], **{**options, "output_type": kind}).images for kind in ("pil", "np", "pt")}
    assert found["np"].dtype == np.float32
    assert found["pt"].dtype == torch.float32
    assert found["np"].shape == (1, 64, 64, 3)
    assert found["pt"].shape == (1, 3, 64, 64)
    assert found["np"].min() >= 0
    assert found["np"].max() <= 1
    np.testing.assert_array_equal(found["pt"].permute(0, 2, 3, 1).numpy(), found["np"])
    assert np.abs(found["np"][0] * 255 - np.asarray(found["pil"][0])).max() <= 0.51
    with pytest.raises(ConfigError, match=r"unknown output_type \('tensor'\); use one of pil, np, pt, latent"):
        pipe("a mug", photos[:1], **{**options, "output_type": "tensor"})


def test_a_callback_gets_the_tensors_that_it_asks_for(pipe, photos) -> None:
    def check(pipe: Any, step: int, timestep: Any, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        assert set(inputs) == asked
        assert (pipe.num_timesteps, pipe.guidance_scale) == (3, 2.0)
        if step == pipe.num_timesteps - 1 and inputs:
            inputs["latents"] = torch.zeros_like(inputs["latents"])
        return inputs

    for asked in (set(), {"latents"}):
        images = pipe(
            "a mug",
            photos[:1],
            guidance_scale=2.0,
            callback_on_step_end=check,
            callback_on_step_end_tensor_inputs=list(asked),
            **FAST,
        ).images
        assert bool(images.any()) is not bool(asked)
    with pytest.raises(ConfigError, match="unknown tensor of callback_on_step_end_tensor_inputs"):
        pipe("a mug", photos[:1], callback_on_step_end_tensor_inputs=["prompt_embeds"], **FAST)
    assert pipe("a mug", photos[:1], callback_on_step_end=lambda *_: None, **FAST).images.any()


def test_a_callback_changes_the_guidance_and_interrupts(pipe, photos) -> None:
    class Cutoff(PipelineCallback):
        tensor_inputs = ["latents"]  # noqa: RUF012

        def callback_fn(self, pipeline, step_index, timestep, callback_kwargs):
            if step_index == 0:
                pipeline._guidance_scale = 1.0
            return callback_kwargs

    full = pipe("a mug", photos[:1], guidance_scale=4.0, **FAST).images
    cut = pipe("a mug", photos[:1], guidance_scale=4.0, callback_on_step_end=Cutoff(), **FAST).images
    assert not torch.allclose(full, cut)

    seen = []

    def stop(pipe: Any, step: int, timestep: Any, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        seen.append(inputs["latents"])
        pipe._interrupt = step == 1
        return inputs

    stopped = pipe("a mug", photos[:1], callback_on_step_end=stop, **FAST).images
    assert len(seen) == 2
    assert torch.equal(stopped, seen[1])
    assert pipe.interrupt
    pipe("a mug", photos[:1], **FAST)
    assert not pipe.interrupt


def test_dtype_device_and_slicing(pipe, photos) -> None:
    assert pipe.device == torch.device("cpu")
    assert pipe.dtype == torch.float32
    expected = pipe("a mug", photos[:1], **FAST).images
    pipe.enable_attention_slicing()
    torch.testing.assert_close(pipe("a mug", photos[:1], **FAST).images, expected)
    pipe.disable_attention_slicing()
    assert torch.equal(pipe.to("cpu")("a mug", photos[:1], **FAST).images, expected)


def test_a_negative_prompt_is_read_in_the_negative_branch(pipe, photos, flux_calls) -> None:
    options = {**FAST, "num_inference_steps": 1, "guidance_scale": 3.0}
    plain = pipe("a mug", photos[:1], **options).images
    lengths = [call["encoder_hidden_states"].shape[1] for call in flux_calls]
    assert lengths == [22, 0]
    flux_calls.clear()
    guided = pipe("a mug", photos[:1], negative_prompt="a red box on the sand", **options).images
    lengths = [call["encoder_hidden_states"].shape[1] for call in flux_calls]
    assert lengths[0] == 22
    assert lengths[1] > 0
    assert not torch.allclose(guided, plain)
    positive = pipe("a mug", photos[:1], **{**options, "guidance_scale": 1}).images
    start = torch.randn(1, 64, 16, generator=torch.Generator().manual_seed(5))
    against = pipe(
        "a red box on the sand", None, latents=start, **{**options, "guidance_scale": 1, "seeds": None}
    ).images
    torch.testing.assert_close(guided, against + 3 * (positive - against), rtol=1e-3, atol=1e-3)
    for empty in (None, "", [" "]):
        assert torch.equal(pipe("a mug", photos[:1], negative_prompt=empty, **options).images, plain)
    two = pipe(["a mug"] * 2, photos[:1], negative_prompt=["a red box on the sand", ""], **{**options, "seeds": [5, 5]})
    torch.testing.assert_close(two.images, torch.cat([guided, plain]), rtol=1e-3, atol=1e-3)
    with pytest.raises(InputError, match="2 negative prompts for 1 prompts"):
        pipe("a mug", photos[:1], negative_prompt=["a", "b"], **options)


def test_without_references_the_text_alone_is_seen(pipe, flux_calls) -> None:
    options = {"num_inference_steps": 4, "output_type": "latent", "seeds": [5], "guidance_scale": 1}
    images = pipe("a mug", **options).images
    assert [call["hidden_states"].shape[1] for call in flux_calls] == [64] * 4
    assert all(call["encoder_hidden_states"].shape[1] > 0 for call in flux_calls)
    assert torch.equal(pipe("a mug", None, stages="mllm_only", **options).images, images)
    assert not torch.equal(pipe("a blue box", None, **options).images, images)
    flux_calls.clear()
    pipe("a mug", None, stages="0.95/0.7", **options)
    assert [call["hidden_states"].shape[1] for call in flux_calls] == [64] * 4
    assert [call["encoder_hidden_states"].shape[1] > 0 for call in flux_calls] == [True, True, False, False]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"width": 0}, "0x64 pixels is not supported; use multiples of 8"),
        ({"height": 0}, "64x0 pixels is not supported; use multiples of 8"),
        ({"height": -64}, "multiples of 8"),
        ({"height": 64.0}, "multiples of 8"),
        ({"height": True}, "multiples of 8"),
        ({"height": "64"}, "multiples of 8"),
        ({"width": 80_000}, "use at most 16384 pixels"),
        ({"num_inference_steps": 0}, "num_inference_steps is not a whole number of 1 or more"),
        ({"num_inference_steps": 2.5}, "num_inference_steps"),
        ({"num_inference_steps": None}, "num_inference_steps"),
        ({"num_images_per_prompt": 0}, "num_images_per_prompt is not a whole number of 1 or more"),
        ({"num_images_per_prompt": -1}, "num_images_per_prompt"),
        ({"seeds": []}, "0 seeds or generators for 1 images"),
        ({"seeds": [1, 2]}, "2 seeds or generators for 1 images"),
        ({"seeds": [2**64]}, "not a whole number of 64 bits"),
        ({"seeds": [0.5]}, "not a whole number of 64 bits"),
        ({"seeds": "7"}, "not a whole number of 64 bits"),
        ({"seeds": None, "generator": []}, "0 seeds or generators for 1 images"),
        ({"seeds": None, "generator": 7}, "not a torch.Generator"),
        ({"generator": torch.Generator()}, "both seeds and generator"),
        ({"latents": torch.zeros(1, 4, 16)}, r"not a tensor of shape \[1, 64, 16\] \(\(1, 4, 16\)\)"),
        ({"latents": [0]}, "not a tensor"),
        ({"guidance_scale": None}, "guidance_scale is not a finite number"),
        ({"guidance_scale": float("nan")}, "guidance_scale is not a finite number"),
        ({"distilled_guidance": float("inf")}, "distilled_guidance is not a finite number"),
        ({"negative": "nothing"}, "unknown negative"),
        ({"output_type": None}, "unknown output_type"),
        ({"stages": ""}, "unknown denoising schedule"),
        ({"prompt": []}, "list of prompts is empty"),
        ({"prompt": None}, "a prompt is not text"),
        ({"prompt": [b"a mug"]}, "a prompt is not text"),
        ({"prompt": 7}, "a prompt is not text"),
    ],
)  # fmt: skip
def test_falsy_arguments_are_not_treated_as_unset(pipe, photos, monkeypatch, change, message) -> None:
    monkeypatch.setattr(pipe.transformer, "forward", None)
    with pytest.raises(LookalikeError, match=message):
        pipe(**{"prompt": "a mug", "references": photos[:1], **FAST, **change})


def test_guidance_of_zero_is_the_negative_branch(pipe, photos) -> None:
    options = {**FAST, "num_inference_steps": 1}
    found = pipe("a mug", photos[:1], **{**options, "guidance_scale": 0}).images
    options = {**options, "guidance_scale": 1, "stages": lambda sigma: ConditionWeights(0, 0)}
    torch.testing.assert_close(found, pipe("a box", **options).images)


def test_one_seed_is_accepted_without_a_list(pipe, photos) -> None:
    options = {**FAST, "num_inference_steps": 1}
    expected = pipe("a mug", photos[:1], **options).images
    assert torch.equal(pipe("a mug", photos[:1], **{**options, "seeds": 5}).images, expected)
    assert torch.equal(pipe("a mug", photos[:1], **{**options, "seeds": np.array([5])}).images, expected)
    assert torch.equal(pipe("a mug", photos[0], **options).images, expected)


def test_a_damaged_file_that_pil_opened_is_refused(pipe) -> None:
    buffer = io.BytesIO()
    Image.effect_noise((64, 64), 50).save(buffer, format="PNG")
    broken = Image.open(io.BytesIO(buffer.getvalue()[:1500]))
    with pytest.raises(InputError, match="cannot be decoded"):
        pipe("a mug", [broken], **FAST)
