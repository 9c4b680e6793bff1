"""The worker group, and how DeepSpeed's ZeRO-3 shards the model over it: their configurations."""

from typing import Literal

from lookalike.errors import ConfigError
from lookalike.values import Count, NonNegative, configuration

Precision = Literal["float32", "bfloat16"]
Offload = Literal["none", "optimizer", "optimizer+parameters"]


@configuration("workers")
class WorkerConfig:
    """Ray Train's worker group."""

    num_workers: NonNegative = 2
    """Ray Train workers (ZeRO-3 ranks). 0 runs the same loop in this process without DeepSpeed: for debugging, and
    for small models on one GPU."""
    min_workers: Count | None = None
    """If set, the run is elastic: it continues with as many workers as the cluster has room for, but at least
    this number, and from its last checkpoint with more, up to ``num_workers``, when there is room again."""
    resize_every_s: float = 60.0
    """Seconds between two checks for more room."""
    cpus_per_worker: float = 0.5
    """Logical CPUs a worker reserves; below 1 so that Ray Data keeps some on a small machine."""
    threads_per_worker: int = 1
    """Threads of PyTorch in each worker (CPU training)."""
    use_gpu: bool = False
    """One GPU for each worker; with ``num_workers=0`` the machine's first."""
    tf32: bool = False
    """Let GPUs multiply float32 matrices with 10 bits of mantissa (TensorFloat-32): less exact."""
    max_failures: int = 2
    """Restarts from the last checkpoint before the run gives up."""
    peak_tflops: float | None = None
    """Dense peak of one worker's device in the run's precision, for the model FLOPs utilisation. By default known for
    A100, H100, H200 and L40S; without a value the utilisation of other devices is not reported."""

    def __post_init__(self) -> None:
        if self.min_workers is not None and self.min_workers > self.num_workers:
            raise ConfigError(
                "workers.min_workers exceeds workers.num_workers",
                value=[self.min_workers, self.num_workers],
                fix="lower min_workers, or raise num_workers",
            )


@configuration("zero")
class ZeroConfig:
    """How DeepSpeed's ZeRO-3 stores and moves the sharded state. Sizes are in elements; they change no result."""

    offload: Offload = "none"
    """What is kept in the host's memory instead of the GPU's: nothing; master weights, optimizer state and gradients
    (the optimizer steps there); or also the parameters between their uses."""
    reduce_bucket: Count = 500_000_000
    """Gradients reduced at once; a buffer of this size is allocated."""
    prefetch_bucket: NonNegative = 50_000_000
    """Parameters fetched before their use."""
    max_live: NonNegative = 1_000_000_000
    """Maximum of gathered parameters that a rank keeps for the next use."""
    keep_whole: NonNegative = 1_000_000
    """Parameters up to this size are kept whole on every rank: gathering small ones takes longer than it saves."""
    overlap: bool | None = None
    """Reduce gradients during the backward pass; by default with GPUs."""

    def __post_init__(self) -> None:
        if self.prefetch_bucket > self.max_live:
            raise ConfigError(
                f"zero.prefetch_bucket={self.prefetch_bucket} exceeds zero.max_live={self.max_live}",
                fix="lower zero.prefetch_bucket or raise zero.max_live",
            )
