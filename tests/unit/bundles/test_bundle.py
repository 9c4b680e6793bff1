import dataclasses
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from lookalike.bundles.build import materialise
from lookalike.bundles.load import build_model, load_model
from lookalike.bundles.manifest import (
    ADAPTER,
    MANIFEST,
    BundleReference,
    bundle_sha256,
    check_preset,
    files_in,
    read_manifest,
    read_preset,
    write_manifest,
)
from lookalike.bundles.verification import open_bundle, verify
from lookalike.config import fingerprint
from lookalike.errors import ConfigError, InputError
from lookalike.models.adapter_tensors import PEFT_PREFIX
from lookalike.models.adapters import load_lora, lora_parameters, save_lora
from lookalike.models.components import token_shape
from lookalike.models.presets import LoraConfig, load_preset
from lookalike.models.weights import component_weights, load_weights


@pytest.fixture
def copy(bundle_dir, tmp_path) -> Path:
    return Path(shutil.copytree(bundle_dir, tmp_path / "copy"))


def test_equal_seeds_give_equal_files_and_others_do_not(bundle_dir, tmp_path) -> None:
    preset = read_preset(bundle_dir)
    again, other = (materialise(preset, tmp_path / str(seed), seed) for seed in (0, 1))
    assert read_manifest(again) == read_manifest(bundle_dir)
    changed = {n for n, h in read_manifest(other)["components"].items() if h != read_manifest(again)["components"][n]}
    assert changed == {f"{part}/{name}" for part, name in WEIGHTS.items()}


WEIGHTS = {
    "mllm": "model.safetensors",
    "vae": "diffusion_pytorch_model.safetensors",
    "transformer": "diffusion_pytorch_model.safetensors",
    "aggregator": "diffusion_pytorch_model.safetensors",
}


def test_the_family_is_small_enough(bundle_dir) -> None:
    total = sum(
        tensor.numel() for part, name in WEIGHTS.items() for tensor in load_file(bundle_dir / part / name).values()
    )
    assert total <= 10_000_000


def test_verify_names_what_changed(copy) -> None:
    verify(copy)
    (copy / "vae" / "config.json").write_text("{}")
    with pytest.raises(InputError, match=r"damaged bundle: vae/config.json has changed .*manifest lists"):
        verify(copy)
    (copy / "vae" / "config.json").unlink()
    with pytest.raises(InputError, match=r"incomplete bundle: vae/config.json is missing"):
        verify(copy)


def test_verify_refuses_what_is_not_listed(copy) -> None:
    (copy / "extra.bin").write_bytes(b"")
    with pytest.raises(InputError, match=r"holds extra.bin, which its manifest does not list"):
        verify(copy)


def test_an_incomplete_bundle_is_refused(copy, tmp_path) -> None:
    shutil.rmtree(copy / "vae")
    with pytest.raises(InputError, match=r"incomplete bundle: vae/config.json is missing .*/copy'"):
        open_bundle(copy)
    with pytest.raises(InputError, match="incomplete bundle"):
        write_manifest(copy, read_preset(copy))
    with pytest.raises(InputError, match="not a bundle"):
        open_bundle(tmp_path)


def test_another_preset_is_refused(bundle_dir) -> None:
    check_preset(bundle_dir, "mini")
    with pytest.raises(InputError, match="made from the preset mini, not midi"):
        check_preset(bundle_dir, "midi")


@pytest.mark.parametrize("part", ["mllm", "aggregator", "transformer"])
def test_missing_extra_and_misshapen_tensors_are_named(copy, part) -> None:
    path = copy / part / WEIGHTS[part]
    tensors = load_file(path)
    name = sorted(tensors)[3]
    model = build_model(copy)
    own = next(n for n, _ in component_weights(copy) if n.startswith(part) and n.endswith(name.split(".")[-1]))

    save_file({k: v for k, v in tensors.items() if k != name}, path, {"format": "pt"})
    with pytest.raises(InputError, match=rf"1 tensors are missing, the first is {part}\."):
        load_weights(model, copy)
    prefix = "language_model.model." if part == "mllm" else ""
    save_file({**tensors, f"{prefix}bogus.weight": torch.zeros(2)}, path, {"format": "pt"})
    with pytest.raises(InputError, match=r"tensor .*bogus\.weight is unknown or repeated"):
        load_weights(model, copy)
    save_file({**tensors, name: torch.zeros(1, 1, 1)}, path, {"format": "pt"})
    with pytest.raises(InputError, match=r"has shape \(1, 1, 1\), the configuration gives"):
        load_weights(model, copy)
    assert own


def test_weights_equal_what_the_libraries_load_and_shards_are_read(copy, bundle_dir) -> None:
    from diffusers import FluxTransformer2DModel
    from transformers import InternVLForConditionalGeneration

    transformer = FluxTransformer2DModel.from_pretrained(bundle_dir / "transformer")
    mllm = InternVLForConditionalGeneration.from_pretrained(bundle_dir / "mllm")
    for part in ("transformer", "mllm"):
        shutil.rmtree(copy / part)
    transformer.save_pretrained(copy / "transformer", max_shard_size="4MB")
    mllm.save_pretrained(copy / "mllm", max_shard_size="2MB")
    assert len(list((copy / "transformer").glob("*.safetensors"))) > 1
    assert len(list((copy / "mllm").glob("*.safetensors"))) > 1
    found = dict(component_weights(copy))
    for name, tensor in transformer.state_dict().items():
        assert torch.equal(found[f"transformer.{name}"], tensor)
    for name, tensor in mllm.model.state_dict().items():
        assert torch.equal(found[f"mllm.{name}"], tensor)
    load_weights(build_model(copy), copy)
    next((copy / "mllm").glob("*2-of*.safetensors")).unlink()
    with pytest.raises(InputError, match="weight file that the index names is missing"):
        list(component_weights(copy))


def test_a_personal_bundle_is_an_adapter_on_its_base(bundle_dir, tmp_path) -> None:
    model = load_model(bundle_dir)
    lora = LoraConfig(rank=4, target_modules=("to_q", "add_q_proj"))
    model.add_lora(lora)
    trained = {name: torch.randn_like(p) for name, p in model.transformer.named_parameters() if ".lora_" in name}
    personal = tmp_path / "personal"
    save_lora(personal / ADAPTER, lora, trained)
    base = BundleReference("file:///base", bundle_sha256(read_manifest(bundle_dir)))
    write_manifest(personal, read_preset(bundle_dir), base)

    loaded = dict(load_model(personal, bundle_dir).transformer.named_parameters())
    assert all(torch.equal(loaded[name], tensor) for name, tensor in trained.items())
    with pytest.raises(InputError, match=r"needs its base \('file:///base'\)"):
        open_bundle(personal)
    other = materialise(read_preset(bundle_dir), tmp_path / "other", seed=1)
    with pytest.raises(InputError, match="the adapter was trained on the base"):
        open_bundle(personal, other)


def test_adapters_are_peft_folders_and_strict(bundle_dir, tmp_path) -> None:
    from diffusers import FluxTransformer2DModel
    from peft import PeftModel

    model = load_model(bundle_dir)
    lora = LoraConfig(rank=4, alpha=8.0)
    model.add_lora(lora)
    trained = {name: torch.randn_like(p) for name, p in model.transformer.named_parameters() if ".lora_" in name}
    save_lora(tmp_path, lora, trained)
    by_peft = PeftModel.from_pretrained(
        FluxTransformer2DModel.from_pretrained(bundle_dir / "transformer"), str(tmp_path)
    )
    found = dict(by_peft.get_base_model().named_parameters())
    assert all(torch.equal(found[name], tensor) for name, tensor in trained.items())
    assert json.loads((tmp_path / "adapter_config.json").read_text())["lora_alpha"] == 8.0

    plain = FluxTransformer2DModel.from_pretrained(bundle_dir / "transformer")
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    first = sorted(tensors)[0]
    save_file(
        {name: tensor for name, tensor in tensors.items() if name != first}, tmp_path / "adapter_model.safetensors"
    )
    with pytest.raises(InputError, match=r"the adapter lacks base_model\.model"):
        load_lora(plain, tmp_path)
    assert first.removeprefix(PEFT_PREFIX) in lora_parameters(model.transformer)


def test_an_adapter_that_learned_nothing_is_not_written(bundle_dir, tmp_path) -> None:
    model = load_model(bundle_dir)
    model.add_lora(LoraConfig(rank=4))
    weights = {name: p for name, p in model.transformer.named_parameters() if ".lora_" in name}
    with pytest.raises(InputError, match="all zero"):
        save_lora(tmp_path, LoraConfig(rank=4), weights)
    with pytest.raises(InputError, match="adapter has empty tensors"):
        save_lora(tmp_path, LoraConfig(rank=4), {name: torch.empty(0) for name in weights})


def test_missing_sources_are_refused(bundle_dir, tmp_path) -> None:
    preset = read_preset(bundle_dir)
    broken = dataclasses.replace(preset, vae=dataclasses.replace(preset.vae, source="package:no/such"))
    with pytest.raises(InputError, match=r"source of a component is not a folder \('package:no/such'\)"):
        materialise(broken, tmp_path / "a")
    empty = dataclasses.replace(preset, vae=dataclasses.replace(preset.vae, config={}))
    with pytest.raises(ConfigError, match="vae has neither source nor config"):
        materialise(empty, tmp_path / "b")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / MANIFEST).write_text("{}")
    with pytest.raises(InputError, match="not empty"):
        materialise(preset, tmp_path / "full")


def test_a_component_from_a_local_folder_is_copied(bundle_dir, tmp_path) -> None:
    preset = read_preset(bundle_dir)
    parts = {
        name: dataclasses.replace(getattr(preset, name), source=str(bundle_dir / name))
        for name in ("mllm", "vae", "transformer", "aggregator")
    }
    copy = materialise(dataclasses.replace(preset, **parts), tmp_path / "copy", seed=5)
    assert read_manifest(copy)["components"] == read_manifest(bundle_dir)["components"]


def test_a_folder_of_diffusers_flux_pipeline_is_a_source(bundle_dir, tmp_path) -> None:
    from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel

    parts = {
        "transformer": FluxTransformer2DModel.from_pretrained(bundle_dir / "transformer"),
        "vae": AutoencoderKL.from_pretrained(bundle_dir / "vae"),
        "scheduler": FlowMatchEulerDiscreteScheduler(shift=2.0),
    }
    texts = dict.fromkeys(("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2"))
    FluxPipeline(**parts, **texts).save_pretrained(tmp_path / "flux", max_shard_size="4MB")
    assert len(list((tmp_path / "flux" / "transformer").glob("*.safetensors"))) > 1
    preset = read_preset(bundle_dir)
    sources = {
        name: dataclasses.replace(getattr(preset, name), source=str(tmp_path / "flux"), subfolder=name, config={})
        for name in parts
    }
    copy = materialise(dataclasses.replace(preset, **sources), tmp_path / "bundle", seed=0)
    assert json.loads((copy / "scheduler" / "scheduler_config.json").read_text())["shift"] == 2.0
    found, expected = (dict(component_weights(folder)) for folder in (copy, bundle_dir))
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    vae = load_file(copy / "vae" / WEIGHTS["vae"])
    assert all(
        torch.equal(vae[name], tensor) for name, tensor in load_file(bundle_dir / "vae" / WEIGHTS["vae"]).items()
    )
    absent = dataclasses.replace(sources["vae"], subfolder="vae_2")
    with pytest.raises(InputError, match=r"source of a component is not a folder \('.*flux/vae_2'\)"):
        materialise(dataclasses.replace(preset, vae=absent), tmp_path / "no")


def test_licences_are_logged_when_a_bundle_is_built(bundle_dir, tmp_path, caplog) -> None:
    mini, paper = load_preset("mini"), load_preset("flux-internvl3-8b")
    assert mini.notice is None
    with caplog.at_level("INFO"):
        folder = materialise(dataclasses.replace(mini, notice=paper.notice), tmp_path / "bundle")
    assert "licences of its weights: mllm Apache-2.0, vae Apache-2.0, transformer Apache-2.0" in caplog.text
    assert [record.levelname for record in caplog.records if "NON-COMMERCIAL" in record.message] == ["WARNING"]
    assert read_preset(folder).notice == paper.notice
    assert "Non-Commercial" in paper.licences["transformer"]
    assert set(load_preset("flux-schnell-qwen3-vl").licences.values()) == {"Apache-2.0"}


def test_an_aggregator_of_another_kind_than_its_source_is_refused(tmp_path) -> None:
    preset = load_preset("mini")
    other = dataclasses.replace(preset, aggregator=dataclasses.replace(preset.aggregator, kind="single_lap"))
    with pytest.raises(ConfigError, match=r"holds an aggregator of kind dla, and aggregator\.kind is single_lap"):
        materialise(other, tmp_path / "bundle")


@pytest.mark.parametrize(
    ("change", "same"),
    [
        ({"stages": "both"}, False),
        ({"height": 128}, False),
        ({"description": "Another."}, True),
        ({"notice": "!"}, True),
    ],
)
def test_settings_that_change_images_are_part_of_a_bundles_identity(
    bundle_dir: Path, change: dict[str, object], same: bool
) -> None:
    manifest = read_manifest(bundle_dir)
    changed = bundle_sha256({**manifest, "preset": {**manifest["preset"], **change}})
    assert (changed == bundle_sha256(manifest)) is same


def test_a_bundle_from_before_presets_had_stages_keeps_its_identity(bundle_dir: Path) -> None:
    manifest = read_manifest(bundle_dir)
    preset = {name: value for name, value in manifest["preset"].items() if name != "stages"}
    assert bundle_sha256({**manifest, "preset": preset}) == fingerprint(manifest["components"])


@pytest.mark.parametrize("value", ["models:/x@y", None, [], {}])
def test_vae_with_an_invalid_channel_count_is_named(tmp_path: Path, value: object) -> None:
    (tmp_path / "vae").mkdir()
    config = {"block_out_channels": [8, 16], "latent_channels": value}
    (tmp_path / "vae" / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=r"not a configuration of a VAE.*vae/config\.json"):
        token_shape(tmp_path)


def test_folder_that_cannot_be_read_is_named(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scandir = os.scandir

    def refusing(path: str) -> Any:
        if Path(path).name == "vae":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    with pytest.raises(InputError, match="cannot read a folder of the bundle: Permission denied"):
        files_in(copy)


def test_two_links_to_one_folder_are_followed_and_a_link_to_a_parent_is_not(tmp_path: Path) -> None:
    (tmp_path / "bundle" / "a").mkdir(parents=True)
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "x").write_bytes(b"x")
    for name in ("one", "two"):
        (tmp_path / "bundle" / "a" / name).symlink_to(tmp_path / "real")
    (tmp_path / "bundle" / "a" / "parent").symlink_to(tmp_path / "bundle")
    assert files_in(tmp_path / "bundle") == ["a/one/x", "a/parent", "a/two/x"]


def test_base_for_a_whole_bundle_is_refused(copy: Path) -> None:
    with pytest.raises(InputError, match="takes no base"):
        open_bundle(copy, copy)
