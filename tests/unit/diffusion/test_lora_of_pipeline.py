"""LoRA of a pipeline: a bundle holds what it generates, the export computes the same in diffusers, errors help."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import FluxPipeline, FluxTransformer2DModel
from peft import LoraConfig, get_peft_model
from torch import Tensor

from lookalike.diffusion.pipeline import SubjectPipeline
from lookalike.errors import ConfigError, InputError
from lookalike.models.adapter_state import adapter_state, effective_loras, without_loras
from lookalike.models.adapters import ADAPTER_NAME, load_adapter, lora_layers

OPTIONS = {"num_inference_steps": 1, "output_type": "latent", "seeds": [4], "stages": "both", "guidance_scale": 1}
TARGETS = ["to_q", "to_k", "to_v", "to_out.0"]


@pytest.fixture(scope="module")
def whole(bundle_dir, perturb, tmp_path_factory) -> Path:
    """A bundle whose DiT has no gate that is zero."""
    pipe = SubjectPipeline.from_pretrained(bundle_dir)
    perturb(pipe.transformer)
    folder = tmp_path_factory.mktemp("whole") / "bundle"
    pipe.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def make_lora(whole, tmp_path_factory) -> Callable[..., Path]:
    """``make_lora(r=4, ...)``: a folder of diffusers' format, of a DiT that peft's own class was added to."""

    def make(seed: int = 1, **values: Any) -> Path:
        torch.manual_seed(seed)
        transformer = FluxTransformer2DModel.from_pretrained(whole / "transformer")
        transformer.add_adapter(LoraConfig(**{"r": 4, "lora_alpha": 8, "target_modules": TARGETS, **values}))
        for name, parameter in transformer.named_parameters():
            if ".lora_B." in name or "magnitude" in name:
                parameter.data += 0.1 * torch.randn_like(parameter)
        folder = tmp_path_factory.mktemp("lora")
        transformer.save_lora_adapter(folder)
        return folder

    return make


@pytest.fixture
def load(whole) -> Callable[..., SubjectPipeline]:
    def make(folder: Path = whole, **options: Any) -> SubjectPipeline:
        pipe = SubjectPipeline.from_pretrained(folder, **options)
        pipe.set_progress_bar_config(disable=True)
        return pipe

    return make


@pytest.fixture
def run(photos) -> Callable[[SubjectPipeline], Tensor]:
    return lambda pipe: pipe("a mug", photos[:1], **OPTIONS).images


def mostly_off(pipe: SubjectPipeline) -> None:
    for name, module in pipe.transformer.named_modules():
        if hasattr(module, "set_scale") and not name.endswith("transformer_blocks.0.attn.to_q"):
            module.set_scale(ADAPTER_NAME, 0.0)


def partly(pipe: SubjectPipeline) -> None:
    for name, module in pipe.transformer.named_modules():
        if hasattr(module, "set_scale") and ".single" in f".{name}":
            module.set_scale(ADAPTER_NAME, 0.3)


STATES: dict[str, Callable[[SubjectPipeline], Any]] = {
    "as_loaded": lambda pipe: None,
    "weighted": lambda pipe: pipe.set_adapters([ADAPTER_NAME], [0.3]),
    "negative_weight": lambda pipe: pipe.set_adapters(ADAPTER_NAME, -1.5),
    "weight_zero": lambda pipe: pipe.set_adapters([ADAPTER_NAME], [0.0]),
    "weighted_by_layer": partly,
    "most_layers_off": mostly_off,
    "fused": lambda pipe: pipe.fuse_lora(),
    "fused_half": lambda pipe: pipe.fuse_lora(lora_scale=0.5),
    "fused_and_weighted": lambda pipe: (pipe.set_adapters([ADAPTER_NAME], [0.3]), pipe.fuse_lora(lora_scale=0.5)),
    "fused_twice": lambda pipe: (pipe.fuse_lora(), pipe.fuse_lora()),
    "fused_unfused": lambda pipe: (pipe.fuse_lora(), pipe.unfuse_lora()),
    "fused_unloaded": lambda pipe: (pipe.fuse_lora(), pipe.unload_lora_weights()),
    "disabled": lambda pipe: pipe.disable_lora(),
    "fused_disabled": lambda pipe: (pipe.fuse_lora(), pipe.disable_lora()),
    "deleted": lambda pipe: pipe.delete_adapters(ADAPTER_NAME),
    "unloaded": lambda pipe: pipe.unload_lora_weights(),
}


@pytest.fixture(scope="module")
def shared(whole) -> SubjectPipeline:
    """A pipeline that tests load a LoRA onto, and unload."""
    pipe = SubjectPipeline.from_pretrained(whole)
    pipe.set_progress_bar_config(disable=True)
    return pipe


KINDS: dict[str, dict[str, Any]] = {
    "patterns": {"alpha_pattern": {"to_q": 20}, "rank_pattern": {"to_k": 2}, "use_rslora": True},
    "dora": {"use_dora": True},
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("state", STATES)
def test_the_saved_lora_is_the_one_in_effect(whole, make_lora, load, shared, kind, state, dit_output) -> None:
    pipe = load() if "fused" in state else shared  # fusing and unfusing leaves rounding errors in the weights
    base = dit_output(pipe.transformer)
    pipe.load_lora_weights(make_lora(**KINDS[kind]))
    size = float((dit_output(pipe.transformer) - base).norm())
    assert size > 1e-3 * float(base.norm())
    STATES[state](pipe)
    expected, names = dit_output(pipe.transformer), list(pipe.transformer.state_dict())
    for _ in range(2):
        drawn = effective_loras(pipe.transformer)
        plain = without_loras(pipe.transformer)
        assert not list(lora_layers(plain))
        if drawn:
            load_adapter(plain, adapter_state(pipe.transformer, *drawn))
        assert float((dit_output(plain) - expected).norm()) < 1e-3 * size
        assert float((dit_output(pipe.transformer) - expected).norm()) < 1e-3 * size
        assert list(pipe.transformer.state_dict()) == names
    pipe.unload_lora_weights()


@pytest.mark.parametrize(
    ("kind", "state"), [("patterns", "weighted"), ("patterns", "fused_half"), ("dora", "weighted"), ("dora", "deleted")]
)
def test_a_saved_bundle_generates_what_the_pipeline_does(make_lora, load, run, tmp_path, kind, state) -> None:
    pipe = load()
    base = run(pipe)
    pipe.load_lora_weights(make_lora(**KINDS[kind]))
    size = float((run(pipe) - base).norm())
    STATES[state](pipe)
    expected = run(pipe)
    pipe.save_pretrained(tmp_path / "saved")
    assert float((run(pipe) - expected).norm()) < 1e-3 * size
    assert float((run(load(tmp_path / "saved")) - expected).norm()) < 1e-3 * size
    pipe.unload_lora_weights()
    expected = run(pipe)
    pipe.save_pretrained(tmp_path / "saved")  # over the bundle that is there
    assert float((run(load(tmp_path / "saved")) - expected).norm()) < 1e-3 * size


def test_a_saved_bundle_can_be_saved_over_itself(make_lora, load, run, tmp_path) -> None:
    pipe = load()
    pipe.load_lora_weights(make_lora())
    pipe.save_pretrained(tmp_path / "saved")
    again = load(tmp_path / "saved")
    again.fuse_lora()
    expected = run(again)
    again.save_pretrained(tmp_path / "saved")
    assert not (tmp_path / "saved" / "transformer_lora").exists()
    torch.testing.assert_close(run(again), expected)
    torch.testing.assert_close(run(load(tmp_path / "saved")), expected)
    assert [path.name for path in tmp_path.iterdir()] == ["saved"]


def test_several_loras_are_saved_after_following_the_error(make_lora, load, run, tmp_path) -> None:
    pipe = load()
    pipe.load_lora_weights(make_lora(1))
    pipe.load_lora_weights(make_lora(2, r=2), adapter_name="style")
    pipe.set_adapters([ADAPTER_NAME, "style"], [0.7, 0.4])
    expected = run(pipe)
    with pytest.raises(ConfigError, match="call fuse_lora first"):
        pipe.save_pretrained(tmp_path / "saved")
    assert not (tmp_path / "saved").exists()
    pipe.fuse_lora()
    pipe.save_pretrained(tmp_path / "saved")
    torch.testing.assert_close(run(load(tmp_path / "saved")), expected, rtol=1e-3, atol=1e-3)
    pipe.unfuse_lora()
    pipe.set_adapters([ADAPTER_NAME])
    expected = run(pipe)
    pipe.save_pretrained(tmp_path / "one")
    torch.testing.assert_close(run(load(tmp_path / "one")), expected, rtol=1e-3, atol=1e-3)


EXPORTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "rslora": {"use_rslora": True, "r": 9, "lora_alpha": 5},
    "patterns": {"alpha_pattern": {"to_q": 32}, "rank_pattern": {"to_k": 2}},
    "regex": {"target_modules": r".*attn\.(to_q|to_k)", "exclude_modules": r".*single.*"},
    "names_that_end_alike": {"target_modules": ["proj_out", "proj_mlp"]},
    "dora": {"use_dora": True, "lora_alpha": 3},
    "bias": {"lora_bias": True, "lora_alpha": 3},
}


@pytest.mark.parametrize("kind", EXPORTS)
@pytest.mark.parametrize("weight", [1.0, 0.3])
def test_an_export_has_the_same_effect_in_plain_diffusers(
    whole, make_lora, shared, tmp_path, kind, weight, dit_output
) -> None:
    pipe = shared
    base = dit_output(pipe.transformer)
    pipe.load_lora_weights(make_lora(**EXPORTS[kind]))
    pipe.set_adapters([ADAPTER_NAME], [weight])
    expected = dit_output(pipe.transformer)
    effect = float((expected - base).norm())
    assert effect > 1e-3 * float(base.norm())
    pipe.save_lora_weights(tmp_path)
    assert torch.equal(dit_output(pipe.transformer), expected)

    def theirs() -> Any:
        return FluxTransformer2DModel.from_pretrained(whole / "transformer").eval()

    by_model = theirs()
    by_model.load_lora_adapter(tmp_path, prefix="transformer", use_safetensors=True)
    none = dict.fromkeys(("scheduler", "vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"))
    flux = FluxPipeline(transformer=theirs(), **none)
    flux.load_lora_weights(tmp_path)
    pipe.unload_lora_weights()
    pipe.load_lora_weights(tmp_path)
    for transformer in (by_model, flux.transformer, pipe.transformer):
        assert float((dit_output(transformer.eval()) - expected).norm()) < 1e-3 * effect
    pipe.unload_lora_weights()


def test_the_methods_of_diffusers_still_work(make_lora, load, run, tmp_path) -> None:
    pipe = load()
    with pytest.raises(ConfigError, match="no LoRA is loaded; call load_lora_weights first"):
        pipe.save_lora_weights(tmp_path)
    pipe.load_lora_weights(make_lora(1))
    pipe.load_lora_weights(make_lora(2), adapter_name="style")
    pipe.set_adapters([ADAPTER_NAME, "style"])
    with pytest.raises(ConfigError, match=r"several LoRAs are loaded.*adapter_name"):
        pipe.save_lora_weights(tmp_path)
    with pytest.raises(ConfigError, match="no LoRA of this name"):
        pipe.save_lora_weights(tmp_path, adapter_name="nobody")
    pipe.save_lora_weights(tmp_path, adapter_name="style", weight_name="style.safetensors")
    layers = {"proj_out.lora_A.weight": torch.ones(1, 2), "proj_out.lora_B.weight": torch.ones(2, 1)}
    SubjectPipeline.save_lora_weights(tmp_path / "theirs", transformer_lora_layers=layers)
    assert (tmp_path / "theirs" / "pytorch_lora_weights.safetensors").is_file()
    pipe.set_adapters(["style"])
    expected = run(pipe)
    pipe.unload_lora_weights()
    pipe.load_lora_weights(tmp_path, weight_name="style.safetensors")
    torch.testing.assert_close(run(pipe), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["attn", "to_q", "0", "weight", "lora_A", "mug (red)", "übung"])
def test_loras_of_different_names_are_kept_apart(make_lora, shared, name, dit_output) -> None:
    pipe = shared
    base = dit_output(pipe.transformer)
    pipe.load_lora_weights(make_lora(2), adapter_name=name)
    expected = dit_output(pipe.transformer)
    pipe.load_lora_weights(make_lora(1))
    state = adapter_state(pipe.transformer, name)
    pipe.delete_adapters(ADAPTER_NAME)
    pipe.unload_lora_weights()
    load_adapter(pipe.transformer, state)
    found = dit_output(pipe.transformer)
    pipe.unload_lora_weights()
    assert float((found - expected).norm()) < 1e-3 * float((expected - base).norm())


def test_a_lora_is_swapped_in_place(make_lora, load, run) -> None:
    first, second = make_lora(1), make_lora(2, lora_alpha=3)
    pipe = load()
    pipe.load_lora_weights(second)
    expected = run(pipe)
    pipe.unload_lora_weights()
    with pytest.raises(ConfigError, match="hotswap found no LoRA of this name"):
        pipe.load_lora_weights(second, hotswap=True)
    pipe.load_lora_weights(first, adapter_name="mug")
    layer = pipe.transformer.transformer_blocks[0].attn.to_q
    pipe.load_lora_weights(second, adapter_name="mug", hotswap=True)
    assert pipe.transformer.transformer_blocks[0].attn.to_q is layer
    torch.testing.assert_close(run(pipe), expected, rtol=1e-4, atol=1e-4)
    with pytest.raises(InputError, match="cannot replace"):
        pipe.load_lora_weights(make_lora(3, target_modules=["proj_mlp"]), adapter_name="mug", hotswap=True)
    torch.testing.assert_close(run(pipe), expected, rtol=1e-4, atol=1e-4)


def test_loading_onto_fused_weights_is_refused(make_lora, load, run) -> None:
    pipe = load()
    pipe.load_lora_weights(make_lora(1))
    pipe.fuse_lora()
    fused = run(pipe)
    for call in (
        lambda: pipe.load_lora_weights(make_lora(2), adapter_name="style"),
        lambda: pipe.set_adapters([ADAPTER_NAME], [0.5]),
        lambda: pipe.delete_adapters(ADAPTER_NAME),
    ):
        with pytest.raises(ConfigError, match=r"fused.*call unfuse_lora first, or unload_lora_weights"):
            call()
    pipe.unload_lora_weights()
    pipe.load_lora_weights(make_lora(2), adapter_name="style")
    assert (run(pipe) - fused).abs().max() > 1e-3


@pytest.mark.parametrize("name", ["a.b", "", 3, "keys", "forward"])
def test_a_name_that_torch_cannot_hold_is_refused(make_lora, load, name) -> None:
    pipe = load()
    with pytest.raises(ConfigError, match="text without dots"):
        pipe.load_lora_weights(make_lora(), adapter_name=name)


def test_missing_sources_are_rejected(load, tmp_path) -> None:
    pipe = load()
    with pytest.raises(InputError, match="neither a file, nor a folder"):
        pipe.load_lora_weights(tmp_path / "nowhere")
    with pytest.raises(InputError, match="neither a file, nor a folder, nor a Hub id"):
        pipe.load_lora_weights("loras/of/mine")
    with pytest.raises(InputError, match="neither a local folder nor a Hub id"):
        pipe.load_lora_weights("someone/some-lora", local_files_only=True)
    with pytest.raises(InputError, match="a pickle"):
        pipe.load_lora_weights(tmp_path, use_safetensors=False)
    with pytest.raises(TypeError, match="weight_nam"):
        pipe.load_lora_weights(tmp_path, weight_nam="x")


def test_a_dit_that_peft_wrapped_is_saved_after_following_the_error(whole, load, run, tmp_path) -> None:
    pipe = load()
    wrapped = get_peft_model(pipe.transformer, LoraConfig(r=2, lora_alpha=6, target_modules=TARGETS))
    for name, parameter in wrapped.named_parameters():
        if ".lora_B." in name:
            parameter.data += 0.1
    pipe.transformer = wrapped
    for call in (pipe.save_pretrained, pipe.load_lora_weights, pipe.save_lora_weights):
        with pytest.raises(ConfigError, match=r"a PeftModel.*set pipe.transformer = .*get_base_model\(\)"):
            call(tmp_path / "saved")
    pipe.transformer = wrapped.get_base_model()
    expected = run(pipe)
    pipe.save_pretrained(tmp_path / "saved")
    torch.testing.assert_close(run(load(tmp_path / "saved")), expected)
    assert (run(load()) - expected).abs().max() > 1e-3
    with pytest.raises(InputError):
        pipe.load_lora_weights({"x.lora_A.weight": torch.ones(1, 1)}, adapter_name="other")
    assert torch.equal(run(pipe), expected)


def test_a_lora_with_dropout_generates_the_same_twice(make_lora, load, run) -> None:
    pipe = load()
    pipe.load_lora_weights(make_lora(lora_dropout=0.5))
    assert torch.equal(run(pipe), run(pipe))


def test_a_lora_is_loaded_while_offloaded(make_lora, load, run) -> None:
    pipe, folder = load(), make_lora()
    pipe.load_lora_weights(folder)
    expected = run(pipe)
    pipe.unload_lora_weights()
    pipe.enable_model_cpu_offload(device="cpu")
    pipe.load_lora_weights(folder)
    torch.testing.assert_close(run(pipe), expected)
