"""Measure the share of Dual Layer Aggregation in a training step at the paper's widths: FLOPs, memory and time.

    python -m pytest tests/bench/test_dla_cost.py -s        # eight minutes on two cores

FLOPs of the whole system are counted on the meta device, memory on fake tensors. Time is that of the aggregator
(forward and backward), of two double and two single blocks of the DiT with their LoRA (the same), of two blocks of the
language model and of the vision tower (forward): random weights, bfloat16, interleaved, each slice counted as often as
it goes into the whole. Latents are cached in training, so the VAE is in none of them. Writes results/dla-cost.json
after every round.
"""

import statistics
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from lookalike.models.costs import Sample, aggregator_flops, denoising_flops, meta_model, mllm_flops
from lookalike.models.dit import Context, References, velocity
from lookalike.models.presets import Preset, load_preset
from lookalike.models.subject import SubjectModel
from lookalike.training.footprint import LiveBytes, activation_bytes, pretend
from tests.bench.measured import keep

STAGES = {"mllm": False, "mllm+references": True}  # of training: whether the DiT sees the references' latents
BLOCKS, ROUNDS = 2, 3  # blocks of each kind in a slice
STEPS = {"mllm": 25_000, "mllm+references": 10_000}  # of the paper's training
LIMIT = 0.08
DTYPE = torch.bfloat16

pytestmark = pytest.mark.timeout(7200)


@pytest.fixture
def preset() -> Preset:
    return load_preset("flux-internvl3-8b")


def test_flops(preset: Preset) -> None:
    """Of a step of either stage with one reference, and of the mean step of the paper's training with any number."""
    model, record = meta_model(preset), {}
    for references in range(1, preset.references.max_references + 1):
        sample = Sample.of(preset, references)
        own, encoder = aggregator_flops(model, sample, backward=True), mllm_flops(model, sample)
        whole = 0
        for stage, seen in STAGES.items():
            dit = denoising_flops(model, sample, mllm=True, references=seen, backward=True)
            parts = {"aggregator": own, "mllm": encoder, "transformer": dit}
            whole += STEPS[stage] * sum(parts.values())
            record[f"{references} references, {stage}"] = {
                "tflops": {name: round(flops / 1e12, 2) for name, flops in parts.items()},
                "share": round(own / sum(parts.values()), 4),
            }
        record[f"{references} references, the paper's training"] = {
            "share": round(sum(STEPS.values()) * own / whole, 4)
        }
    keep("dla-cost", record, "flops of a training step")
    assert max(record[f"1 references, {stage}"]["share"] for stage in STAGES) <= LIMIT
    assert max(found["share"] for name, found in record.items() if name.endswith("training")) <= LIMIT


@pytest.mark.parametrize("checkpointing", [False, True], ids=["stored", "checkpointed"])
def test_memory(preset: Preset, checkpointing: bool) -> None:
    model, sample = meta_model(preset, DTYPE), Sample.of(preset, 1)
    if checkpointing:
        model.enable_gradient_checkpointing()
    pretend(model)
    mib: dict[str, float] = {}
    for gradients in (False, True):
        with next(model.parameters()).fake_mode, torch.set_grad_enabled(gradients), LiveBytes(model) as live:
            inputs = _hidden_states(model, sample)
            before = live.live
            tokens = model.aggregator(*inputs)
            name = "forward, for the backward pass" if gradients else "forward, without gradients"
            mib |= {
                "hidden states": before,
                f"peak of {name}": live.peak - before,
                f"left by {name}": live.live - before,
            }
        del inputs, tokens
    mib["peak of a training step, mllm"] = activation_bytes(model, sample, 1, references=False)
    record = {"mib": {name: round(size / 2**20, 1) for name, size in mib.items()}}
    keep("dla-cost", record, f"memory of a sample, {'with' if checkpointing else 'without'} activation checkpointing")
    left = ["left by forward, without gradients", *(["left by forward, for the backward pass"] * checkpointing)]
    assert max(mib[name] for name in left) < mib["hidden states"] / 10  # no copy of them, as they were or normalised


def test_time(preset: Preset) -> None:
    model, sample = meta_model(preset, DTYPE), Sample.of(preset, 1)
    counted = {"aggregator": 1.0, "vision tower": 1.0}
    counted["language model"] = len(model.mllm.language_model.layers) / BLOCKS
    whole = _denoising_flops(model, sample)
    _cut(model)
    counted |= {stage: whole[stage] / flops for stage, flops in _denoising_flops(model, sample).items()}
    runs = _runs(_with_weights(model), sample)
    times: dict[str, list[float]] = {name: [] for name in runs}
    for run in runs.values():
        run()  # the first call of a shape is slower
    for _ in range(ROUNDS):
        for name, run in runs.items():
            started = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - started)
        record = {
            "rounds": len(times["aggregator"]),
            "threads": torch.get_num_threads(),
            "seconds": {name: round(statistics.median(values), 3) for name, values in times.items()},
            "counted": {name: round(factor, 2) for name, factor in counted.items()},
            "share": {stage: _spread(times, counted, stage) for stage in STAGES},
        }
        keep("dla-cost", record, "time of a training step, 1 reference")
    assert max(share["median"] for share in record["share"].values()) <= LIMIT


def _denoising_flops(model: SubjectModel, sample: Sample) -> dict[str, int]:
    return {s: denoising_flops(model, sample, mllm=True, references=r, backward=True) for s, r in STAGES.items()}


def _cut(model: Any) -> None:
    """Leave a slice of the DiT and of the language model."""
    model.transformer.transformer_blocks = model.transformer.transformer_blocks[:BLOCKS]
    model.transformer.single_transformer_blocks = model.transformer.single_transformer_blocks[:BLOCKS]
    model.mllm.language_model.layers = model.mllm.language_model.layers[:BLOCKS]
    model.mllm.language_model.embed_tokens = torch.nn.Identity()  # a look-up


def _with_weights(model: SubjectModel) -> SubjectModel:
    model.to_empty(device="cpu")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.02)
        for buffer in model.buffers():
            buffer.fill_(1)
    return model


def _hidden_states(model: SubjectModel, sample: Sample) -> tuple[list[Tensor], Tensor, Tensor, int]:
    """Arguments of the aggregator."""
    config, length, images = model.aggregator.config, sample.context, sample.references * sample.tokens_per_image
    layers = [torch.randn(1, length, config.mllm_width, dtype=DTYPE) for _ in range(config.num_layers)]
    return layers, torch.ones(1, length, dtype=torch.bool), (torch.arange(length) < images)[None], images


def _runs(model: SubjectModel, sample: Sample) -> dict[str, Callable[[], object]]:
    mllm: Any = model.mllm
    hidden = _hidden_states(model, sample)
    pixels = torch.randn(sample.references, 3, sample.tile, sample.tile, dtype=DTYPE)
    words = torch.randn(1, sample.context, mllm.config.get_text_config().hidden_size, dtype=DTYPE)
    causal = torch.ones(1, 1, sample.context, sample.context, dtype=torch.bool).tril()
    width, channels = model.transformer.config.joint_attention_dim, model.transformer.config.in_channels
    context = Context(torch.randn(1, sample.context, width, dtype=DTYPE, requires_grad=True), hidden[1])
    latents = torch.randn(1, sample.references, sample.reference // sample.references, channels, dtype=DTYPE)
    given = References(latents, torch.ones(1, sample.references, dtype=torch.bool), sample.reference_grid)
    noisy, sigma = torch.randn(1, sample.image, channels, dtype=DTYPE), torch.full((1,), 0.5)

    def learn(predicted: Tensor) -> None:
        predicted.float().square().mean().backward()

    def denoise(references: References | None) -> Callable[[], object]:
        return lambda: learn(
            velocity(model.transformer, noisy, sigma, sample.grid, context, references, "diagonal", 1.0)
        )

    return {
        "aggregator": lambda: learn(model.aggregator(*hidden)),
        "vision tower": torch.no_grad()(lambda: mllm.get_image_features(pixel_values=pixels)),
        "language model": torch.no_grad()(
            lambda: mllm.language_model(inputs_embeds=words, attention_mask=causal, use_cache=False)
        ),
        **{stage: denoise(given if seen else None) for stage, seen in STAGES.items()},
    }


def _spread(times: dict[str, list[float]], counted: dict[str, float], stage: str) -> dict[str, float]:
    """The aggregator's share of a step, round by round."""
    parts = ("aggregator", "vision tower", "language model", stage)
    rounds = zip(*(times[part] for part in parts), strict=True)
    shares = [s[0] / sum(t * counted[part] for t, part in zip(s, parts, strict=True)) for s in rounds]
    found = {"median": statistics.median(shares), "least": min(shares), "most": max(shares)}
    return {name: round(value, 4) for name, value in found.items()}
