"""Estimated memory against what PyTorch's profiler measures."""

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from lookalike.bundles.load import load_model
from lookalike.errors import ConfigError
from lookalike.models.batch import Batch
from lookalike.models.costs import Sample, meta_model, meta_vae
from lookalike.models.dit import References
from lookalike.models.presets import load_preset
from lookalike.models.vae import load_vae
from lookalike.training.budget import GB, Cluster, fit
from lookalike.training.footprint import activation_bytes, encoding_bytes, pretend, zero3_states
from lookalike.training.workers import ZeroConfig

SAMPLES = 3


def profiled_peak(run) -> int:
    """Most bytes that PyTorch's allocator held at once during ``run``, above what it held before."""
    run()  # whatever is made once
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        run()
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    live = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        live += event.nbytes()
        peak = max(peak, live)
    return peak


@pytest.fixture(scope="module")
def sample() -> Sample:
    return Sample.of(load_preset("mini"), 2, text_tokens=20)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_peak_of_a_pass_equals_the_profilers(bundle_dir, sample, checkpointing: bool) -> None:
    """The real pass, MLLM included; gradients leave at once, as ZeRO-3 scatters them."""
    model = load_model(bundle_dir)
    trainable = model.set_trainable(("aggregator", "transformer"))
    model.train()
    for parameter in trainable.values():
        parameter.register_post_accumulate_grad_hook(lambda parameter: setattr(parameter, "grad", None))
    estimated = meta_model(load_preset("mini"))
    if checkpointing:
        model.enable_gradient_checkpointing()
        estimated.enable_gradient_checkpointing()

    ids = torch.full((SAMPLES, sample.context), 9)
    ids[:, : 2 * sample.tokens_per_image] = model.mllm.config.image_token_id
    ones = torch.ones(SAMPLES, sample.context, dtype=torch.bool)
    is_image = ids == model.mllm.config.image_token_id
    pixels, present = torch.zeros(SAMPLES, 2, 3, 64, 64, dtype=torch.uint8), torch.ones(SAMPLES, 2, dtype=torch.bool)
    batch = Batch(ids, ones, is_image, pixels, torch.ones(SAMPLES, 2, 3), pixels, present)

    def step() -> None:
        latents = torch.randn(SAMPLES, 2, 64, 16)
        noisy, sigma = torch.randn(SAMPLES, 64, 16), torch.full((SAMPLES,), 0.5)
        references = References(latents, batch.reference_mask, (8, 8))
        model(batch, noisy, sigma, references, (8, 8)).square().mean().backward()

    measured = profiled_peak(step)
    assert activation_bytes(pretend(estimated), sample, SAMPLES, references=True) == pytest.approx(measured, rel=0.1)
    # a real pass on the same shapes, whole and not by depth
    assert activation_bytes(model, sample, SAMPLES, references=True) == pytest.approx(measured, rel=0.1)


def test_peak_of_encoding_equals_the_profilers(bundle_dir) -> None:
    vae, image = load_vae(bundle_dir), torch.zeros(1, 3, 64, 64)
    with torch.no_grad():
        measured = profiled_peak(lambda: vae.encode(image))
    estimated = encoding_bytes(pretend(meta_vae(load_preset("mini"))), 64, 64)
    assert estimated - image.nbytes == pytest.approx(measured, rel=0.1)


def test_states_scale_as_zero3_shares_them() -> None:
    parameters = list(meta_model(load_preset("flux-internvl3-8b"), torch.bfloat16).parameters())
    keep_whole = ZeroConfig().keep_whole
    eight, one = (zero3_states(parameters, ranks, torch.bfloat16, keep_whole) for ranks in (8, 1))
    trainable = sum(parameter.numel() for parameter in parameters if parameter.requires_grad)
    assert one["trainable parameters"] == 2 * trainable
    assert one["gradients"] == 4 * trainable  # accumulated in float32
    assert one["master weights, moments"] == 12 * trainable
    averaged = zero3_states(parameters, 1, torch.bfloat16, keep_whole, average=True)
    assert averaged["master weights, moments"] == 16 * trainable
    assert eight.pop("small parameters, whole") == one.pop("small parameters, whole") < 50e6
    for name, size in eight.items():
        assert size == pytest.approx(one[name] / 8, rel=1e-3)


@pytest.mark.parametrize(
    ("gb", "offload", "micro_batch"),
    [(8.5, "none", 2), (7.5, "none", 1), (7.4, "optimizer", 3), (4, "optimizer+parameters", 3), (1, None, 0)],
)
def test_offload_is_chosen_if_a_sample_does_not_fit(gb: float, offload: str | None, micro_batch: int) -> None:
    rows = {"frozen parameters": 3 * GB, "master weights, moments": 2 * GB, "gradients": GB, "reserve": int(0.5 * GB)}
    plan = fit(rows, GB, Cluster(8, gb, reserve_gb=0.5))
    assert plan.micro_batch == micro_batch
    if offload is not None:
        assert plan.offload == offload
        held = sum(plan.rows.values())
        assert held + micro_batch * plan.activation <= gb * GB < held + (micro_batch + 1) * plan.activation


def test_impossible_cluster_is_rejected() -> None:
    with pytest.raises(ConfigError, match="gpus is below 1"):
        Cluster(0, 80)
    with pytest.raises(ConfigError, match="no more memory than the reserve"):
        Cluster(1, 4)
    with pytest.raises(ConfigError, match="utilisation is above 1"):
        Cluster(8, 80, utilisation=35)


def test_configured_offload_frees_memory() -> None:
    rows = {"gradients": GB, "reserve": GB}
    plan = fit(rows, GB, Cluster(8, 3, reserve_gb=0.5), least="optimizer")
    assert (plan.offload, plan.micro_batch, plan.host) == ("optimizer", 2, GB)
