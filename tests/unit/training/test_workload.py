"""Tokens and FLOPs of a batch, against the plan's own counting."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from lookalike.bundles.load import load_preprocessor
from lookalike.bundles.manifest import read_preset
from lookalike.models.costs import Sample, meta_model, mllm_flops
from lookalike.models.presets import LoraConfig, load_preset
from lookalike.training.curriculum import PhaseConfig
from lookalike.training.workload import Workload, peak_tflops, step_flops

BOTH = PhaseConfig(name="both", steps=10, conditions="mllm+references")
MLLM = PhaseConfig(name="mllm", steps=10, conditions="mllm")


@pytest.fixture(scope="module")
def columns(bundle_dir: Path) -> dict[str, np.ndarray]:
    """Three samples of two references, and one that only fills the batch."""
    photos = list(np.zeros((4, 64, 64, 3), dtype=np.uint8))
    found = load_preprocessor(bundle_dir)(["a red mug on a beach"] * 4, [photos[:2]] * 4, photos)
    return {**found, "weight": np.array([1, 1, 1, 0], dtype=np.float32)}


def text_of(columns: dict[str, np.ndarray], sample: Sample) -> int:
    return int(columns["attention_mask"][0].sum()) - 2 * sample.tokens_per_image


@pytest.mark.parametrize(("phase", "latents"), [(BOTH, True), (MLLM, False)])
def test_tokens_and_flops_equal_those_of_the_cost_plan(
    bundle_dir: Path, columns: dict[str, np.ndarray], phase: PhaseConfig, latents: bool
) -> None:
    preset = read_preset(bundle_dir)
    workload = Workload(preset, None, ("aggregator", "transformer"), peak_tflops=1.0)
    tokens, flops = workload(columns, phase)
    text = text_of(columns, Sample.of(preset))
    sample = Sample.of(preset, 2, text_tokens=text)
    assert text not in (8, 16, 24)  # where it is counted; all else is interpolated
    assert tokens == 3 * sample.tokens(mllm=True, references=latents)
    assert flops == pytest.approx(4 * step_flops(meta_model(preset), sample, references=latents), rel=1e-9)
    unknown = Workload(preset, None, ("aggregator", "transformer"), peak_tflops=None)
    assert unknown(columns, phase) == (tokens, 0.0)


def test_training_an_adapter_alone_costs_fewer_flops(bundle_dir: Path, columns: dict[str, np.ndarray]) -> None:
    preset = read_preset(bundle_dir)
    whole = Workload(preset, None, ("aggregator", "transformer"), peak_tflops=1.0)(columns, BOTH)[1]
    adapter = Workload(preset, LoraConfig(rank=2), ("transformer_lora",), peak_tflops=1.0)(columns, BOTH)[1]
    assert 0.4 * whole < adapter < 0.8 * whole


def test_peak_is_looked_up_by_cuda_device_name() -> None:
    assert peak_tflops("NVIDIA H100 80GB HBM3", "bfloat16") == 989
    assert peak_tflops("NVIDIA H100 PCIe", "bfloat16") == 756
    assert peak_tflops("NVIDIA A100-SXM4-80GB", "float32") == 19.5
    assert peak_tflops("NVIDIA GeForce GTX 1080", "float32") is None


def test_a_lora_on_the_mllm_counts_its_backward_pass() -> None:
    frozen = load_preset("mini")
    lora = LoraConfig(rank=4, target_modules=("q_proj", "v_proj"))
    learning = dataclasses.replace(frozen, mllm=dataclasses.replace(frozen.mllm, lora=lora))
    models = [meta_model(preset) for preset in (frozen, learning)]
    sample = Sample.of(frozen)
    less, more = (step_flops(model, sample, references=True) for model in models)
    forward = mllm_flops(models[0], sample)
    assert less + 0.5 * forward < more < less + 2 * forward  # gradients of activations, of few weights
