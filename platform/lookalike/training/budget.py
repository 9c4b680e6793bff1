"""Estimate what a training run needs: memory per GPU, the largest micro batch, FLOPs and days."""

from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Gt, Le

from lookalike.errors import ConfigError
from lookalike.models.costs import Sample, meta_model, meta_vae, vae_flops
from lookalike.models.presets import Preset
from lookalike.training.config import TrainConfig
from lookalike.training.footprint import (
    activation_bytes,
    communication_bytes,
    encoding_bytes,
    pretend,
    zero3_states,
)
from lookalike.training.workers import Offload
from lookalike.training.workload import step_flops
from lookalike.values import Count, configuration

GB = 10**9
_STATES = ("master weights, moments", "gradients")
_OFFLOADED: dict[Offload, tuple[str, ...]] = {
    "none": (),
    "optimizer": _STATES,
    "optimizer+parameters": (*_STATES, "frozen parameters", "trainable parameters"),
}


@configuration()
class Cluster:
    """The GPUs of a training run, and the assumptions about them."""

    gpus: Count
    """Number of GPUs; one rank of ZeRO-3 each."""
    memory_gb: float
    """Memory of one GPU, in 10⁹ bytes."""
    reserve_gb: float = 4.0
    """Kept free on each GPU for the CUDA context, NCCL, workspaces and fragmentation."""
    peak_tflops: float = 989.0
    """Peak of one GPU in the precision of the training run."""
    utilisation: Annotated[float, Gt(0), Le(1)] = 0.35
    """Share of the peak that the model's FLOPs reach."""

    def __post_init__(self) -> None:
        if self.memory_gb <= self.reserve_gb:
            raise ConfigError(
                "a GPU of the cluster has no more memory than the reserve",
                value=f"{self.gpus}x{self.memory_gb:g}",
                fix="try 8x80",
            )


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes of one GPU by what holds them."""

    rows: dict[str, int]
    """All memory except activations."""
    activation: int
    """Peak of the activations of one sample; that of a micro batch is proportional within 2 %."""
    offload: Offload
    """What must move to the host's memory so that one sample fits."""
    micro_batch: int
    """The largest that fits with that offload; 0 if none does."""
    host: int
    """Bytes that this rank keeps in the host's memory with that offload."""


@dataclass(frozen=True)
class PhaseCost:
    """Cost of one phase of the curriculum."""

    tokens: int
    """Tokens of one sample in the DiT."""
    flops: int
    """The model's FLOPs for one sample: forward and backward, without what checkpointing computes again."""
    days: float
    """Days on the cluster."""


def plan_memory(config: TrainConfig, preset: Preset, sample: Sample, cluster: Cluster) -> MemoryPlan:
    """Estimate the memory of one rank of ZeRO-3 that trains ``preset`` with at least the offload of ``config.zero``.

    Exact for tensors that PyTorch and DeepSpeed keep (tests compare it with a real run); gathered layers are
    DeepSpeed's own bound. The VAE is whole and float32 on each GPU.
    """
    dtype, zero = getattr(torch, config.precision), config.zero
    model, vae = meta_model(preset, dtype), meta_vae(preset)
    if config.activation_checkpointing:
        model.enable_gradient_checkpointing()
    average = config.ema.decay is not None
    states = zero3_states(model.parameters(), cluster.gpus, dtype, zero.keep_whole, average=average)
    communication = communication_bytes(model.parameters(), dtype, zero)
    pretend(model)
    pretend(vae)
    rows = {
        **states,
        "VAE and its pass": sum(p.nbytes for p in vae.parameters()) + encoding_bytes(vae, preset.height, preset.width),
        "layers in flight, bucket": communication,
        "reserve": int(cluster.reserve_gb * GB),
    }
    references = any(phase.conditions == "mllm+references" for phase in config.stages)
    return fit(rows, activation_bytes(model, sample, 1, references=references), cluster, zero.offload)


def fit(rows: dict[str, int], activation: int, cluster: Cluster, least: Offload = "none") -> MemoryPlan:
    """Find the largest micro batch beside ``rows``, and the least offload with which one sample fits.

    What ``least`` names is offloaded in any case.
    """
    plans = []
    for offload in list(_OFFLOADED)[list(_OFFLOADED).index(least) :]:
        kept = {name: 0 if name in _OFFLOADED[offload] else size for name, size in rows.items()}
        room = int(cluster.memory_gb * GB) - sum(kept.values())
        away = sum(rows.values()) - sum(kept.values())
        plans.append(MemoryPlan(kept, activation, offload, max(0, room // activation), away))
    return next((plan for plan in plans if plan.micro_batch), plans[-1])


def phase_costs(config: TrainConfig, preset: Preset, sample: Sample, cluster: Cluster) -> list[PhaseCost]:
    """Estimate FLOPs, tokens and days of each phase of ``config``."""
    model, vae = meta_model(preset), meta_vae(preset)
    encode, _ = vae_flops(vae, preset.height, preset.width)
    rate = cluster.gpus * cluster.peak_tflops * 1e12 * cluster.utilisation
    costs = []
    for phase in config.stages:
        references = phase.conditions == "mllm+references"
        images = 1 + references * sample.references
        flops = encode * images + step_flops(model, sample, references=references)
        seconds = phase.steps * config.batch_size * flops / rate
        costs.append(PhaseCost(sample.tokens(mllm=True, references=references), flops, seconds / 86400))
    return costs
