"""The configuration of a training run (``jobs/train.py``), which is saved resolved beside its results."""

from dataclasses import field
from typing import Literal

from lookalike.config import NOT_IDENTITY
from lookalike.errors import ConfigError
from lookalike.models.presets import LoraConfig
from lookalike.training.average import EmaConfig
from lookalike.training.curriculum import PhaseConfig, default_phases
from lookalike.training.loop_config import CheckpointConfig, DropoutConfig, ImagesConfig, SafetyConfig, ValidationConfig
from lookalike.training.optimizer import OptimizerConfig
from lookalike.training.workers import Precision, WorkerConfig, ZeroConfig
from lookalike.values import Count, Seed, configuration


@configuration()
class TrainConfig:
    """Train a model on a snapshot. The same command again resumes, or returns the finished result."""

    dataset: str = field(metadata=NOT_IDENTITY)
    """URI of a curated data set; its newest snapshot is used and recorded."""
    run: str = field(metadata=NOT_IDENTITY)
    """URI that receives checkpoints, metrics and the exported bundle. One run, one prefix."""
    preset: str = "mini"
    """Name of a preset, or a path to a preset's YAML file."""
    base: str | None = field(default=None, metadata=NOT_IDENTITY)
    """URI of a bundle to start from (a finetune); by default the preset's own sources."""
    from_seed: bool = False
    """Start the DiT and the aggregator from the seed, even if the preset ships weights. Not with ``base``."""
    adapter: LoraConfig | None = None
    """LoRA on the transformer; its export is a personal bundle that names its base. Needs ``base``."""
    stages: list[PhaseConfig] = field(default_factory=default_phases)
    """The curriculum, in order."""
    batch_size: Count = 32
    """Samples per optimizer step over all workers."""
    micro_batch_size: Count = field(default=16, metadata=NOT_IDENTITY)
    """Samples per forward pass of one worker; the rest of the batch is accumulated."""
    activation_checkpointing: bool = field(default=False, metadata=NOT_IDENTITY)
    """Compute the activations of DiT and aggregator once more in the backward pass instead of keeping them."""
    precision: Precision = "float32"
    """Precision of weights and passes. ``bfloat16`` keeps master weights, moments and accumulated gradients in float32
    (DeepSpeed's mixed precision), and starts from the base's weights rounded to it; the VAE computes in float32. In a
    plain process it is PyTorch's autocast: weights stay in float32, so a run that changes between the two rounds a
    little differently from there on."""
    keep_samples: bool = field(default=False, metadata=NOT_IDENTITY)
    """Prepare each sample once and keep it in every worker's memory, where Ray Data would prepare it anew each time it
    is due (for ``mini`` with one reference 0.04 MB a sample, larger images more). Order and values stay the same."""
    zero: ZeroConfig = field(default_factory=ZeroConfig, metadata=NOT_IDENTITY)
    """What DeepSpeed offloads, and the sizes of its communication."""
    seed: Seed = 0
    """Decides initial weights, order, noise and dropout."""
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    """AdamW's settings."""
    ema: EmaConfig = field(default_factory=EmaConfig)
    """Moving average of the trained weights."""
    dropout: DropoutConfig = field(default_factory=DropoutConfig)
    """Condition dropout."""
    validation: ValidationConfig = field(default_factory=ValidationConfig)
    """Held-out loss in the loop."""
    images: ImagesConfig = field(default_factory=ImagesConfig, metadata=NOT_IDENTITY)
    """Images of held-out samples in the loop."""
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig, metadata=NOT_IDENTITY)
    """Saving and keeping state."""
    safety: SafetyConfig = field(default_factory=SafetyConfig, metadata=NOT_IDENTITY)
    """When a run ends early."""
    workers: WorkerConfig = field(default_factory=WorkerConfig, metadata=NOT_IDENTITY)
    """The worker group."""
    export_dtype: Literal["float32", "float16"] = field(default="float32", metadata=NOT_IDENTITY)
    """Precision of the trained parts in the bundle; a loaded model may compute in another."""
    export_lora: Literal["separate", "merged"] = field(default="separate", metadata=NOT_IDENTITY)
    """Whether a LoRA lies beside the DiT in the bundle (a personal bundle is the LoRA alone) or is added into its
    weights, for a bundle that stands by itself and that others can be trained on."""
    log_every: Count = field(default=10, metadata=NOT_IDENTITY)
    """Steps between log lines and metric points."""
    tracking: str | None = field(default=None, metadata=NOT_IDENTITY)
    """MLflow tracking URI; by default MLFLOW_TRACKING_URI."""
    experiment: str = field(default="lookalike", metadata=NOT_IDENTITY)
    """MLflow experiment."""
    events: str | None = field(default=None, metadata=NOT_IDENTITY)
    """URI of the place of a request, whose log of events gets about twenty steps of the run; null: no log."""
    owner: str | None = field(default=None, metadata=NOT_IDENTITY)
    """CUSTOMER--SUBJECT that the bundle is made for: it becomes champion of no other model."""

    def __post_init__(self) -> None:
        if not self.stages:
            raise ConfigError("the curriculum is empty", fix="add at least one phase to stages")
        if self.adapter is not None and self.base is None:
            raise ConfigError(
                "a run with an adapter needs a base", value=self.adapter, fix="set base to a bundle's URI"
            )
        if self.from_seed and self.base is not None:
            raise ConfigError("base and from_seed exclude each other", value=self.base, fix="drop base or from_seed")
        if self.images.count and not self.validation.samples:
            raise ConfigError(
                "images are generated for held-out samples, but validation.samples is 0",
                value=self.images,
                fix="raise validation.samples",
            )
        if self.workers.num_workers == 0 and self.zero.offload != "none":
            raise ConfigError(
                f"zero.offload={self.zero.offload} needs DeepSpeed, which workers.num_workers=0 does not use",
                fix="use num_workers=1 or more, or zero.offload=none",
            )
        if self.zero.overlap and not self.workers.use_gpu:
            raise ConfigError(
                "zero.overlap needs GPUs: Gloo has no streams to overlap on", fix="leave zero.overlap unset"
            )
        ranks = max(1, self.workers.num_workers)
        if self.batch_size % (ranks * self.micro_batch_size):
            raise ConfigError(
                "batch_size is not a multiple of workers × micro_batch_size",
                value=f"batch_size={self.batch_size}, num_workers={ranks}, micro_batch_size={self.micro_batch_size}",
                fix=f"use a batch_size divisible by {ranks * self.micro_batch_size}, or a smaller micro batch",
            )

    def accumulation(self, ranks: int) -> int:
        """Micro batches of each rank in a step; with a number of ranks that divides no batch, some are padded."""
        return -(-self.batch_size // (ranks * self.micro_batch_size))

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the whole curriculum."""
        return sum(stage.steps for stage in self.stages)
