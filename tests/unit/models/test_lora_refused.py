"""LoRA files that cannot be applied exactly are refused by name, and the DiT stays as it was."""

import pytest
import torch
from diffusers import FluxPipeline
from peft.utils import get_peft_model_state_dict
from safetensors.torch import load_file, save_file
from torch import Tensor

from lookalike.errors import InputError
from lookalike.models.adapter_files import read_adapter
from lookalike.models.adapters import load_lora

ATTENTION = ["to_q", "to_k", "to_v", "to_out.0"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"peft_type": "LOHA"}, "method is LOHA"),
        ({"bias": "all"}, r"needs bias \(all\), which is not supported"),
        ({"modules_to_save": ["proj_out"]}, "needs modules_to_save"),
        ({"init_lora_weights": "pissa"}, "needs init_lora_weights"),
        ({"init_lora_weights": "pissa_niter_4"}, "needs init_lora_weights"),
        ({"init_lora_weights": "olora"}, "needs init_lora_weights"),
        ({"layer_replication": [[0, 2]]}, "needs layer_replication"),
        ({"target_parameters": ["weight"]}, "needs target_parameters"),
        ({"trainable_token_indices": [1]}, "needs trainable_token_indices"),
        ({"use_qalora": True}, "needs use_qalora"),
        ({"alora_invocation_tokens": [1]}, "needs alora_invocation_tokens"),
        ({"use_a_method_of_2031": {"depth": 3}}, r"needs use_a_method_of_2031 \(\{'depth': 3\}\)"),
        ({"r": None}, "the settings of the LoRA have no r"),
        ({"r": 0}, "the settings of the LoRA have no r"),
        ({"lora_alpha": None}, "settings of the LoRA have no lora_alpha"),
        ({"lora_alpha": 0}, "alpha of the LoRA is 0: it has no effect"),
        ({"r": "many"}, "settings of the LoRA are invalid"),
        ({"r": 2.5}, "settings of the LoRA are invalid"),
        ({"lora_alpha": float("nan")}, "settings of the LoRA are invalid"),
        ({"rank_pattern": {"to_q": 0}}, "settings of the LoRA are invalid"),
        ({"rank_pattern": ["to_q"]}, "settings of the LoRA are invalid"),
        ({"r": 8}, r"lora_A.weight has shape \(4, \d+\), its settings give \(8, \d+\)"),
        ({"target_modules": []}, "no target_modules"),
        ({"target_modules": ["q_proj"]}, "settings of the LoRA do not fit the DiT"),
        ({"target_modules": ["to_q"]}, r"holds an unknown tensor .* \(\d+ of \d+ tensors\)"),
        ({"target_modules": [*ATTENTION, "proj_mlp"]}, r"lacks .*proj_mlp.* \(\d+ of \d+ tensors\)"),
        ({"use_dora": True}, "lacks .*lora_magnitude_vector"),
        ({"lora_bias": True}, r"lacks .*lora_B\.bias"),
    ],
    ids=lambda value: str(value)[:40] if isinstance(value, dict) else "",
)
def test_settings_that_cannot_be_applied_are_refused_and_nothing_changes(
    plain, tmp_path, changes, message, dit_output, peft_folder
) -> None:
    found = plain()
    with pytest.raises(InputError, match=message):
        load_lora(found, peft_folder(tmp_path, changes))
    assert not any(".lora_" in name or ".base_layer" in name for name in found.state_dict())
    assert torch.equal(dit_output(found), dit_output(plain()))


def test_fields_of_a_newer_peft_without_effect_are_ignored(plain, tmp_path, peft_folder) -> None:
    newer = {
        "use_new_thing": False,
        "new_config": None,
        "new_list": [],
        "peft_version": "9.1",
        "base_model_name_or_path": "x/y",
    }
    found = plain()
    assert load_lora(found, peft_folder(tmp_path, newer)) > 0


def drop(tensors: dict[str, Tensor], part: str) -> dict[str, Tensor]:
    first = next(name for name in sorted(tensors) if part in name)
    return {name: tensor for name, tensor in tensors.items() if name != first}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: drop(t, "lora_A"), r"lacks .*lora_A\.weight"),
        (lambda t: drop(t, "lora_B"), r"lacks .*lora_B\.weight"),
        (lambda t: {n: v for n, v in t.items() if "single" in n or "0.attn.to_q" in n}, r"lacks .* of \d+ tensors\)"),
        (lambda t: {n.replace("transformer_blocks", "layers"): v for n, v in t.items()}, "the DiT lacks the layers"),
        (lambda t: {n.replace("attn.to_q", "attn.q_proj"): v for n, v in t.items()}, "the DiT lacks the layers"),
        (lambda t: {**t, "base_model.model.transformer_blocks.99.attn.to_q.lora_A.weight": t[min(t)]}, "blocks.99"),
        (lambda t: {n: torch.cat([v, v], -1) if "lora_A" in n else v for n, v in t.items()}, "the DiT expects"),
        (lambda t: {n: torch.cat([v, v]) if "lora_B" in n else v for n, v in t.items()}, "the DiT expects"),
        (lambda t: {n: v * float("nan") for n, v in t.items()}, "not finite"),
        (lambda t: {n: v * 0 if "lora_B" in n else v for n, v in t.items()}, "no effect"),
        (lambda t: {**t, "base_model.model.proj_out.weight": torch.ones(2)}, "the first is .*proj_out.weight"),
        (lambda t: {**t, "extra.lokr_w1": torch.ones(2)}, "lokr_w1"),
        (lambda t: {}, "no LoRA"),
    ],
)  # fmt: skip
def test_tensors_that_do_not_fit_are_named(plain, tmp_path, change, message, dit_output, peft_folder) -> None:
    folder = peft_folder(tmp_path)
    tensors = load_file(folder / "adapter_model.safetensors")
    changed = {name: tensor.clone() for name, tensor in change(tensors).items()}
    save_file(changed, folder / "adapter_model.safetensors")
    found = plain()
    with pytest.raises(InputError, match=message):
        load_lora(found, folder)
    assert torch.equal(dit_output(found), dit_output(plain()))


@pytest.mark.parametrize("alpha", [float("nan"), float("inf"), 0.0])
def test_alpha_tensor_without_a_finite_scale_is_refused(plain, alpha: float) -> None:
    found, layer = plain(), "transformer_blocks.0.attn.to_q"
    width = found.get_submodule(layer).in_features
    tensors = {
        f"{layer}.lora_A.weight": torch.ones(2, width),
        f"{layer}.lora_B.weight": torch.ones(width, 2),
        f"{layer}.alpha": torch.tensor(alpha),
    }
    with pytest.raises(InputError, match=r"alpha is not a finite number|the alpha of the LoRA is 0"):
        read_adapter(tensors, found)


class TestWhichFile:
    """A folder or a file is one LoRA, or an error that says what to pass."""

    def test_a_file_of_peft_is_read_with_the_settings_beside_it(self, plain, tmp_path, peft_folder) -> None:
        folder = peft_folder(tmp_path)
        file = read_adapter(folder / "adapter_model.safetensors", plain())
        assert file.settings["lora_alpha"] == 8
        (folder / "adapter_config.json").unlink()
        with pytest.raises(InputError, match=r"tensors of peft without adapter_config.json, which has their alpha"):
            read_adapter(folder / "adapter_model.safetensors", plain())

    def test_of_both_formats_in_a_folder_weight_name_chooses(self, plain, tmp_path, trained, peft_folder) -> None:
        folder = peft_folder(tmp_path)
        other = trained(plain(), r=2, lora_alpha=2, target_modules=["to_q"])
        FluxPipeline.save_lora_weights(folder, transformer_lora_layers=get_peft_model_state_dict(other))
        assert read_adapter(folder, plain()).settings["r"] == 4
        assert read_adapter(folder, plain(), "pytorch_lora_weights.safetensors").settings["r"] == 2

    @pytest.mark.parametrize("name", ["adapter_model.bin", "lora.pt", "lora.ckpt", "lora.pth"])
    def test_a_pickle_is_never_read(self, plain, tmp_path, name) -> None:
        (tmp_path / "adapter_config.json").write_text("{}")
        (tmp_path / name).write_bytes(b"cos\nsystem\n(S'exit 1'\ntR.")
        for source, weight_name in ((tmp_path, None), (tmp_path / name, None), (tmp_path, name)):
            with pytest.raises(InputError, match="is a pickle, which can run any code and is not read"):
                read_adapter(source, plain(), weight_name)

    def test_folders_without_exactly_one_lora_are_refused(self, plain, tmp_path, peft_folder) -> None:
        transformer = plain()
        with pytest.raises(InputError, match="no such file or folder"):
            read_adapter(tmp_path / "nowhere", transformer)
        with pytest.raises(InputError, match=r"no \.safetensors file"):
            read_adapter(tmp_path, transformer)
        peft_folder(tmp_path / "mug")
        with pytest.raises(InputError, match=r"its folders \['mug'\]"):
            read_adapter(tmp_path, transformer)
        for name in ("a", "b"):
            (tmp_path / f"{name}.safetensors").write_bytes(b"\xff" * 50)
        with pytest.raises(InputError, match=r"\['a.safetensors', 'b.safetensors'\].*weight_name"):
            read_adapter(tmp_path, transformer)
        with pytest.raises(InputError, match="not a safetensors file"):
            read_adapter(tmp_path, transformer, "a.safetensors")
        (tmp_path / "mug" / "adapter_config.json").write_text('{"r": ')
        with pytest.raises(InputError, match=r"not valid JSON.*adapter_config.json.*copy the file again"):
            read_adapter(tmp_path / "mug", transformer)


def test_a_failed_load_leaves_the_other_lora_active(plain, tmp_path, dit_output, peft_folder) -> None:
    found = plain()
    load_lora(found, peft_folder(tmp_path / "a"))
    before = dit_output(found)
    with pytest.raises(InputError, match="lacks"):
        load_lora(found, peft_folder(tmp_path / "b", {"target_modules": [*ATTENTION, "proj_mlp"]}), "other")
    assert torch.equal(dit_output(found), before)
    assert list(found.peft_config) == ["default"]
    load_lora(found, peft_folder(tmp_path / "c", r=2), "other")
    assert not torch.equal(dit_output(found), before)
