"""LoRA files of peft, diffusers, kohya and XLabs have exactly their effect on the DiT, or are refused by name."""

from typing import Any

import pytest
import torch
from diffusers import FluxPipeline
from peft.utils import get_peft_model_state_dict
from safetensors.torch import load_file, save_file
from torch import Tensor

from lookalike.errors import InputError
from lookalike.models.adapter_files import read_adapter
from lookalike.models.adapters import load_adapter, load_lora

ATTENTION = ["to_q", "to_k", "to_v", "to_out.0"]
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {"r": 4, "lora_alpha": 8, "target_modules": ATTENTION},
    "rslora": {"r": 16, "lora_alpha": 16, "use_rslora": True, "target_modules": ATTENTION},
    "alpha_pattern": {"r": 4, "lora_alpha": 4, "alpha_pattern": {"to_q": 32}, "target_modules": ATTENTION},
    "rank_pattern": {"r": 4, "lora_alpha": 4, "rank_pattern": {"to_q": 8}, "target_modules": ATTENTION},
    "rank_and_alpha_by_regex": {
        "r": 4,
        "lora_alpha": 6,
        "use_rslora": True,
        "rank_pattern": {r"^transformer_blocks\.0\.attn\.to_q": 2, "single_transformer_blocks.*to_k": 5},
        "alpha_pattern": {r"transformer_blocks\.[01]\..*": 3.5},
        "target_modules": ATTENTION,
    },
    "regex_targets": {"r": 4, "lora_alpha": 4, "target_modules": r".*attn\.(to_q|to_k|to_v)"},
    "names_that_end_alike": {"r": 4, "lora_alpha": 4, "target_modules": ["proj_out", "proj_mlp", "norm.linear"]},
    "some_layers": {
        "r": 4,
        "lora_alpha": 4,
        "target_modules": ATTENTION,
        "layers_to_transform": [0],
        "layers_pattern": "single_transformer_blocks",
    },
    "exclude": {
        "r": 4,
        "lora_alpha": 4,
        "target_modules": ATTENTION,
        "exclude_modules": r".*single_transformer_blocks.*",
    },
    "dora": {"r": 4, "lora_alpha": 4, "target_modules": ATTENTION, "use_dora": True},
    "dora_rslora": {"r": 4, "lora_alpha": 4, "target_modules": ATTENTION, "use_dora": True, "use_rslora": True},
    "bias": {"r": 4, "lora_alpha": 4, "target_modules": ATTENTION, "lora_bias": True},
    "embedders": {"r": 4, "lora_alpha": 4, "target_modules": ["x_embedder", "context_embedder", "ff.net.2"]},
    "dropout": {"r": 4, "lora_alpha": 4, "target_modules": ATTENTION, "lora_dropout": 0.5},
}


def assert_same_effect(found: Tensor, expected: Tensor, base: Tensor) -> None:
    effect = float((expected - base).norm())
    assert effect > 1e-3 * float(base.norm())
    assert float((found - expected).norm()) < 1e-3 * effect


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_peft_folder_has_the_effect_that_peft_gives_it(plain, tmp_path, variant, dit_output, trained) -> None:
    model = trained(plain(), **VARIANTS[variant])
    model.save_pretrained(str(tmp_path))
    expected = dit_output(model.merge_and_unload())
    found = plain()
    count = load_lora(found, tmp_path)
    assert count == len(load_file(tmp_path / "adapter_model.safetensors"))
    assert_same_effect(dit_output(found), expected, dit_output(plain()))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_files_are_read(plain, tmp_path, dtype, dit_output, trained) -> None:
    model = trained(plain(), **VARIANTS["plain"])
    for name, parameter in model.named_parameters():
        if ".lora_" in name:
            parameter.data = parameter.data.to(dtype).float()
    model.save_pretrained(str(tmp_path))
    path = tmp_path / "adapter_model.safetensors"
    save_file({name: tensor.to(dtype) for name, tensor in load_file(path).items()}, path)
    found = plain()
    load_lora(found, tmp_path)
    assert_same_effect(dit_output(found), dit_output(model.merge_and_unload()), dit_output(plain()))


@pytest.mark.parametrize("variant", ["plain", "rslora", "alpha_pattern", "rank_pattern", "dora", "bias"])
def test_a_file_of_diffusers_is_read_with_its_metadata(plain, tmp_path, variant, dit_output, trained) -> None:
    model = trained(plain(), **VARIANTS[variant])
    FluxPipeline.save_lora_weights(
        tmp_path / "flux",
        transformer_lora_layers=get_peft_model_state_dict(model),
        transformer_lora_adapter_metadata=model.peft_config["default"].to_dict(),
    )
    own = model.get_base_model()
    own._hf_peft_config_loaded, own.peft_config = True, model.peft_config
    own.save_lora_adapter(tmp_path / "alone")
    expected = dit_output(model.merge_and_unload())
    for folder in ("flux", "alone"):
        found = plain()
        load_lora(found, tmp_path / folder)
        assert_same_effect(dit_output(found), expected, dit_output(plain()))


def fused_loras(transformer: Any, rank: int = 3) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """A LoRA by Black Forest Labs' names (without suffixes), and the weights of the DiT that it gives."""
    width = transformer.config.num_attention_heads * transformer.config.attention_head_dim
    weights = {name: tensor.clone() for name, tensor in transformer.state_dict().items()}
    names = {
        "double_blocks.0.img_attn.qkv": [f"transformer_blocks.0.attn.to_{part}" for part in "qkv"],
        "double_blocks.1.txt_attn.qkv": [f"transformer_blocks.1.attn.add_{part}_proj" for part in "qkv"],
        "double_blocks.0.img_attn.proj": ["transformer_blocks.0.attn.to_out.0"],
        "double_blocks.0.txt_mlp.2": ["transformer_blocks.0.ff_context.net.2"],
        "double_blocks.0.img_mlp.0": ["transformer_blocks.0.ff.net.0.proj"],
        "double_blocks.0.img_mod.lin": ["transformer_blocks.0.norm1.linear"],
        "single_blocks.1.linear1": [
            *(f"single_transformer_blocks.1.attn.to_{part}" for part in "qkv"),
            "single_transformer_blocks.1.proj_mlp",
        ],
        "single_blocks.0.linear2": ["single_transformer_blocks.0.proj_out"],
        "single_blocks.0.modulation.lin": ["single_transformer_blocks.0.norm.linear"],
        "final_layer.linear": ["proj_out"],
        "final_layer.adaLN_modulation.1": ["norm_out.linear"],
        "img_in": ["x_embedder"],
    }
    tensors = {}
    generator = torch.Generator().manual_seed(5)
    for number, (theirs, ours) in enumerate(names.items()):
        alpha = 1.0 + number
        rows = [weights[f"{name}.weight"].shape[0] for name in ours]
        down = torch.randn(rank, weights[f"{ours[0]}.weight"].shape[1], generator=generator)
        up = 0.02 * torch.randn(sum(rows), rank, generator=generator)
        tensors.update({f"{theirs}.down": down, f"{theirs}.up": up, f"{theirs}.alpha": torch.tensor(alpha)})
        change = alpha / rank * (up @ down)
        if theirs == "final_layer.adaLN_modulation.1":
            change = torch.cat([change[width:], change[:width]])  # shift and scale change places
        for name, part in zip(ours, change.split(rows), strict=True):
            weights[f"{name}.weight"] += part
    return tensors, weights


def named(tensors: dict[str, Tensor], kind: str) -> dict[str, Tensor]:
    """Tensors of :func:`fused_loras` as a program writes them."""
    result = {}
    for key, tensor in tensors.items():
        layer, _, part = key.rpartition(".")
        if kind == "kohya":
            suffix = {"down": "lora_down.weight", "up": "lora_up.weight", "alpha": "alpha"}[part]
            result[f"lora_unet_{layer.replace('.', '_')}.{suffix}"] = tensor
        else:
            suffix = {"down": "lora_A.weight", "up": "lora_B.weight", "alpha": "alpha"}[part]
            result[f"diffusion_model.{layer}.{suffix}"] = tensor
    return result


@pytest.mark.parametrize("kind", ["kohya", "dotted"])
def test_names_and_fused_layers_of_other_trainers_are_read(plain, tmp_path, kind, dit_output) -> None:
    reference = plain()
    base = dit_output(reference)
    tensors, weights = fused_loras(reference)
    save_file(named(tensors, kind), tmp_path / "lora.safetensors", {"ss_network_dim": "3"})
    reference.load_state_dict(weights)
    found = plain()
    assert load_lora(found, tmp_path / "lora.safetensors") == 2 * 19
    assert_same_effect(dit_output(found), dit_output(reference), base)


def test_xlabs_and_old_diffusers_names_are_read(plain, dit_output) -> None:
    generator = torch.Generator().manual_seed(2)
    reference = plain()
    base = dit_output(reference)
    width = reference.config.num_attention_heads * reference.config.attention_head_dim
    keys = {
        "double_blocks.0.processor.qkv_lora1": [f"transformer_blocks.0.attn.to_{part}" for part in "qkv"],
        "double_blocks.1.processor.proj_lora2": ["transformer_blocks.1.attn.to_add_out"],
        "transformer.transformer_blocks.1.attn.processor.to_q_lora": ["transformer_blocks.1.attn.to_q"],
        "transformer.transformer_blocks.1.attn.to_out.0.lora": ["transformer_blocks.1.attn.to_out.0"],
    }
    tensors, weights = {}, reference.state_dict()
    for key, layers in keys.items():
        down, up = (torch.randn(*shape, generator=generator) for shape in ((2, width), (width * len(layers), 2)))
        tensors[f"{key}.down.weight"], tensors[f"{key}.up.weight"] = down, 0.1 * up
        for name, part in zip(layers, (0.1 * up @ down).chunk(len(layers)), strict=True):
            weights[f"{name}.weight"] = weights[f"{name}.weight"] + part
    found = plain()
    assert load_adapter(found, read_adapter(tensors, found)) == 2 * 6
    reference.load_state_dict(weights)
    assert_same_effect(dit_output(found), dit_output(reference), base)


def test_a_dora_of_kohya_and_a_doubled_alpha_are_refused(plain) -> None:
    found = plain()
    tensors = named(fused_loras(found)[0], "kohya")
    with pytest.raises(InputError, match="dora_scale"):
        read_adapter({**tensors, "lora_unet_img_in.dora_scale": torch.ones(2, 1)}, found)
    with pytest.raises(InputError, match=r"has shape \(\d+, 3\), and the DiT expects"):
        read_adapter({name: tensor[1:] if "qkv.lora_up" in name else tensor for name, tensor in tensors.items()}, found)
    with pytest.raises(InputError, match="lora_unet_double_blocks_77"):
        read_adapter({name.replace("blocks_1", "blocks_77"): tensor for name, tensor in tensors.items()}, found)
    both = {**tensors, "diffusion_model.img_in.lora_A.weight": tensors["lora_unet_img_in.lora_down.weight"]}
    with pytest.raises(InputError, match="the file has the down of x_embedder twice"):
        read_adapter(both, found)


def test_tensors_of_a_text_encoder_are_ignored_with_a_warning(plain, caplog) -> None:
    found = plain()
    tensors = named(fused_loras(found)[0], "kohya")
    read_adapter({**tensors, "lora_te1_text_model_encoder_layers_0_mlp_fc1.alpha": torch.tensor(1.0)}, found)
    assert "1 tensors belong to a text encoder" in caplog.text
    with pytest.raises(InputError, match="no LoRA of the DiT"):
        read_adapter({"text_encoder.x.lora_A.weight": torch.ones(2, 2)}, found)
