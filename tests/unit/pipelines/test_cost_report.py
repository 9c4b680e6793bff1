"""``jobs/train.py plan``."""

import re

import pytest

from lookalike import config as configs
from lookalike.errors import ConfigError
from lookalike.models.presets import load_preset
from pipelines.train.cost_report import PlanConfig, plan, steps_by_conditions
from pipelines.train.loader_cost import measure

PAPER = "jobs/configs/train-paper.yaml"


def test_cost_of_training_mini() -> None:
    text = plan(configs.parse(PlanConfig, ["--gpus=2x8", "--precision=float32", "--preset=mini"]))
    assert "| 1.9 | 0.9 | 0.1 | 5.2 | 0.0 | 6.2 |" in text  # millions of parameters by part
    assert "| 64² | 1 | 144 | 208 | 128 |" in text  # tokens of the DiT: MLLM, both, VAE
    assert "Offload to the host: none needed." in text
    assert "The batch of 32 is 2 GPUs x 1 accumulated x 16." in text
    assert "| mllm+references | 100 | 6,656 |" in text
    loaders = re.search(r"a sample takes (\d+) ms of a CPU core \(measured on this machine.*has 0\.04 MB", text)
    assert loaders is not None
    rows = re.findall(r"^\| ([\d.]+) \| [\d.]+ \| ([\d.]+) \| mllm(?:\+references)? \|$", text, re.MULTILINE)
    assert len(rows) == 2
    for cores, rate in rows:
        assert float(cores) == pytest.approx(float(rate) * int(loaders[1]) / 1e3, rel=0.1)


def test_size_of_a_sample_of_the_papers_model() -> None:
    """Tile 448², reference and target 512², and about 10 kB of tokens."""
    preset = load_preset("flux-internvl3-8b")
    for references in (1, 2, 4):
        pixels = 3 * (references * (448**2 + 512**2) + 512**2)
        assert measure(preset, references).megabytes == pytest.approx(pixels / 1e6, abs=0.015)
    assert measure(preset, 1).megabytes < 3


def test_plan_reads_the_papers_configuration() -> None:
    config = configs.parse(PlanConfig, [f"--config={PAPER}", "--gpus", "64x80", "--references", "2"])
    assert (config.cluster.gpus, config.cluster.memory_gb, config.cluster.peak_tflops) == (64, 80, 989)
    assert config.total_steps == 35_000
    assert config.activation_checkpointing
    for bad in ("eight", "8", "8x"):
        with pytest.raises(ConfigError, match="gpus does not have the form NUMBERxMEMORY"):
            _ = configs.parse(PlanConfig, [f"--gpus={bad}"]).cluster
    with pytest.raises(ConfigError, match="batch_size=32 is not a multiple of 5 GPUs"):
        plan(PlanConfig(gpus="5x80"))


def test_sampler_steps_by_conditions_of_the_papers_schedule() -> None:
    """3 early, 4 middle and 18 late steps at 512² (the spec sheet's count), by the shifted noise level."""
    steps = steps_by_conditions(load_preset("flux-internvl3-8b"), 1024)
    assert steps == {(True, False): 3, (True, True): 4, (False, True): 18}
