"""Exports: in the libraries' formats, with or without a LoRA of their own, verified after writing."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from lookalike.bundles.load import load_model
from lookalike.bundles.manifest import ADAPTER, read_manifest, read_preset, write_manifest
from lookalike.errors import ConfigError, InputError, LookalikeError
from lookalike.models.adapters import save_lora
from lookalike.models.presets import LoraConfig
from lookalike.models.subject import SubjectModel
from lookalike.storage import open_store
from lookalike.training import checkpoint, export
from lookalike.training.config import TrainConfig
from lookalike.training.export import export_bundle
from lookalike.training.run_bundles import initial_bundle
from lookalike.training.trainable import add_loras, trainable_parts

LORA = LoraConfig(rank=2)
DIT_FILE = "transformer/diffusion_pytorch_model.safetensors"

Perturb = Callable[..., Any]


def config_of(folder: Path, **changes: Any) -> TrainConfig:
    return TrainConfig(dataset="none", run=str(folder / "run"), **changes)


@pytest.fixture(scope="module")
def base_dir(bundle_dir: Path, perturb: Perturb, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base whose DiT has learned something: from a seed its output is zero, with or without a LoRA."""
    folder = shutil.copytree(bundle_dir, tmp_path_factory.mktemp("base") / "bundle")
    transformer: Any = perturb(load_model(bundle_dir).transformer)
    transformer.save_pretrained(folder / "transformer")
    write_manifest(folder, read_preset(folder))
    return folder


def trained(config: TrainConfig, bundle_dir: Path, perturb: Perturb) -> SubjectModel:
    """The initial model with seeded noise added to its trained weights."""
    model = load_model(bundle_dir)
    add_loras(config, model)
    learns = model.set_trainable(trainable_parts(config))
    perturb(torch.nn.ParameterList(learns.values()))
    return model.eval()


def export_of(config: TrainConfig, model: SubjectModel, bundle_dir: Path, **changed: Tensor) -> Path:
    """The bundle of a run that ends with the weights of ``model``, or with those ``changed`` by name."""
    run = Path(config.run)
    if config.base is None:
        shutil.copytree(bundle_dir, run / "initial")
    weights = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad} | changed
    state = checkpoint.CheckpointState(step=1, fingerprint="run", base_sha256="base")
    store = open_store(config.run)
    tensors = {f"master/{name}": weight.contiguous() for name, weight in weights.items()}
    checkpoint.write(store.child(checkpoint.CHECKPOINTS), state, [tensors])
    return Path(export_bundle(config, store, 1).uri.removeprefix("file://"))


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_a_base_training_exports_a_whole_bundle(bundle_dir: Path, tmp_path: Path, perturb: Perturb, dtype: str) -> None:
    config = config_of(tmp_path, export_dtype=dtype)
    model = trained(config, bundle_dir, perturb)
    folder = export_of(config, model, bundle_dir)
    again = load_model(folder)
    expected = dict(model.named_parameters())
    for name, found in again.named_parameters():
        torch.testing.assert_close(found, expected[name], rtol=1e-3, atol=1e-5)
    assert load_file(folder / DIT_FILE)["proj_out.weight"].dtype == getattr(torch, dtype)


def test_a_personal_adapter_is_the_lora_alone(base_dir: Path, tmp_path: Path, perturb: Perturb) -> None:
    config = config_of(tmp_path, base=str(base_dir), adapter=LORA)
    model = trained(config, base_dir, perturb)
    folder = export_of(config, model, base_dir)
    assert sorted(path.name for path in folder.iterdir()) == ["bundle.json", "transformer_lora"]
    torch.testing.assert_close(export._output(load_model(folder, base_dir)), export._output(model), rtol=0, atol=0)


def test_a_merged_adapter_exports_a_whole_bundle(base_dir: Path, tmp_path: Path, perturb: Perturb) -> None:
    config = config_of(tmp_path, base=str(base_dir), adapter=LORA, export_lora="merged")
    model = trained(config, base_dir, perturb)
    expected = export._output(model)
    folder = export_of(config, model, base_dir)
    assert not (folder / ADAPTER).exists()
    assert read_manifest(folder)["base"] is None
    torch.testing.assert_close(export._output(load_model(folder)), expected, rtol=1e-4, atol=1e-5)
    assert (export._output(load_model(base_dir)) - expected).norm() > 1e-2 * expected.norm()
    initial_bundle(config_of(tmp_path, base=str(folder), adapter=LORA), open_store(config.run))


def test_a_base_with_a_lora_is_rejected_as_the_base_of_an_adapter(
    base_dir: Path, tmp_path: Path, perturb: Perturb
) -> None:
    base = shutil.copytree(base_dir, tmp_path / "base")
    model = trained(config_of(tmp_path, base=str(base_dir), adapter=LORA), base_dir, perturb)
    weights = {n.removeprefix("transformer."): p for n, p in model.named_parameters() if ".lora_" in n}
    save_lora(base / ADAPTER, LORA, weights)
    write_manifest(base, read_preset(base))
    with pytest.raises(InputError, match=r"LoRA that is not merged.*export_lora: merged"):
        initial_bundle(config_of(tmp_path, base=str(base)), open_store(str(tmp_path / "run")))


@pytest.mark.parametrize(
    ("value", "said"), [(0.0, "a trained tensor is all zero"), (float("nan"), "empty or not finite")]
)
def test_implausible_weights_are_not_exported(
    bundle_dir: Path, tmp_path: Path, perturb: Perturb, value: float, said: str
) -> None:
    config, name = config_of(tmp_path), "transformer.proj_out.weight"
    model = trained(config, bundle_dir, perturb)
    weight = dict(model.named_parameters())[name]
    with pytest.raises(LookalikeError, match=rf"{said}.*{name}"):
        export_of(config, model, bundle_dir, **{name: torch.full_like(weight, value)})
    assert not (tmp_path / "run" / "bundle").exists()


@pytest.mark.parametrize(
    ("name", "factor", "said"),
    [
        ("proj_out.weight", None, "1 tensors are missing, the first is transformer.proj_out.weight"),
        ("proj_out.weight", 1.01, "other values in the export"),
        ("time_text_embed.timestep_embedder.linear_1.weight", 1.5, "other values in the export"),
    ],
)
def test_wrongly_written_tensors_are_detected(
    bundle_dir: Path, tmp_path: Path, perturb: Perturb, name: str, factor: float | None, said: str
) -> None:
    model = trained(config_of(tmp_path), bundle_dir, perturb)
    weights = {n: p.detach() for n, p in model.named_parameters() if p.requires_grad}
    folder = export_of(config_of(tmp_path), model, bundle_dir)
    tensors = load_file(folder / DIT_FILE)
    tensor = tensors.pop(name)
    save_file(tensors if factor is None else {**tensors, name: tensor * factor}, folder / DIT_FILE)
    write_manifest(folder, read_preset(folder))
    with pytest.raises(LookalikeError, match=said):
        export._verify(config_of(tmp_path), folder, None, weights, export._output(model))


def test_an_export_with_other_outputs_is_detected(base_dir: Path, tmp_path: Path, perturb: Perturb) -> None:
    """Of a merged LoRA there are no weights to compare: here it was left out."""
    config = config_of(tmp_path, base=str(base_dir), adapter=LORA)
    model = trained(config, base_dir, perturb)
    weights = {n: p.detach() for n, p in model.named_parameters() if p.requires_grad}
    with pytest.raises(LookalikeError, match="output differs from the trained"):
        export._verify(replace(config, export_lora="merged"), base_dir, None, weights, export._output(model))


def test_a_lora_on_the_mllm_goes_into_its_weights(
    bundle_dir: Path, tmp_path: Path, perturb: Perturb, mllm_lora_preset: Callable[..., str]
) -> None:
    config = config_of(tmp_path, preset=mllm_lora_preset(rank=2, target_modules=["q_proj", "down_proj"]))
    model = trained(config, bundle_dir, perturb)
    learned = [name for name, p in model.mllm.named_parameters() if p.requires_grad]
    layers = model.mllm.config.get_text_config().num_hidden_layers
    assert len(learned) == 2 * 2 * layers  # up and down, of two layers of each block
    assert all(name.startswith("language_model.") for name in learned)
    folder = export_of(config, model, bundle_dir)
    found = load_model(folder)
    assert not any(".lora_" in name for name, _ in found.named_parameters())
    tokens = {"input_ids": torch.arange(1, 9)[None], "attention_mask": torch.ones(1, 8, dtype=torch.bool)}
    states = [m.mllm.language_model(**tokens).last_hidden_state for m in (found, model)]
    torch.testing.assert_close(*states, rtol=1e-4, atol=1e-4)
    before = load_model(bundle_dir).mllm.language_model(**tokens).last_hidden_state
    assert (states[0] - before).abs().max() > 1e-2


def test_a_lora_on_missing_mllm_layers_is_rejected(
    bundle_dir: Path, tmp_path: Path, mllm_lora_preset: Callable[..., str]
) -> None:
    config = config_of(tmp_path, preset=mllm_lora_preset(target_modules=["to_q"]))
    with pytest.raises(ConfigError, match=r"no layers with these names \(\['to_q'\]\)"):
        add_loras(config, load_model(bundle_dir))
