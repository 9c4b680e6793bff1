"""What a training run is: the typed configuration of ``jobs/train.py``, resolved and saved beside its results."""

from dataclasses import dataclass, field
from typing import Literal

from lookalike.config import NOT_IDENTITY
from lookalike.errors import ConfigError
from lookalike.models.presets import LoraConfig
from lookalike.values import check_values

Conditions = Literal["mllm", "mllm+references"]
Precision = Literal["float32", "bfloat16"]
Offload = Literal["none", "optimizer", "optimizer+parameters"]


@dataclass(frozen=True)
class StageConfig:
    """One stage of the curriculum."""

    name: str
    """How the stage is called in logs and plots."""
    steps: int
    """Optimizer steps."""
    conditions: Conditions
    """``mllm``: the DiT sees the MLLM's tokens alone. ``mllm+references``: also the references' clean VAE latents."""
    learning_rate: float = 1e-3
    """Peak learning rate of AdamW."""
    warmup_steps: int = 10
    """Steps of linear warm-up at the start of the stage; a cosine to ``final_lr_share`` follows."""
    final_lr_share: float = 0.1
    """Learning rate at the end of the stage, as a share of the peak."""

    def __post_init__(self) -> None:
        check_values(self)
        if self.steps < 1:
            raise ConfigError(
                "a stage needs at least one step", value=f"{self.name}: steps={self.steps}", fix="raise it"
            )
        if not 0 <= self.warmup_steps <= self.steps:
            raise ConfigError(
                "warm-up does not fit into its stage",
                value=f"{self.name}: warmup_steps={self.warmup_steps}, steps={self.steps}",
                fix="lower warmup_steps",
            )
        if self.learning_rate <= 0:
            raise ConfigError("learning rate must be above 0", value=self.learning_rate, fix="try 1e-3 (mini) or 1e-4")


def default_stages() -> list[StageConfig]:
    """The paper's curriculum (MLLM first, then MLLM + VAE), in the numbers of ``mini``."""
    return [
        StageConfig(name="mllm", steps=150, conditions="mllm", learning_rate=2e-3),
        StageConfig(name="mllm+references", steps=100, conditions="mllm+references", learning_rate=1e-3),
    ]


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW and what protects it."""

    betas: tuple[float, float] = (0.9, 0.99)
    """Decay rates of the two moments."""
    weight_decay: float = 0.01
    """Decoupled weight decay."""
    max_grad_norm: float = 1.0
    """Global gradient norm is clipped here."""
    epsilon: float = 1e-8
    """Added to the denominator."""

    def __post_init__(self) -> None:
        check_values(self)


@dataclass(frozen=True)
class EmaConfig:
    """An exponential moving average of the trained weights."""

    decay: float | None = None
    """Its decay, such as 0.999; by default none is kept. The paper names none, the figures in this repository are of
    runs without it, and it costs one more fp32 copy. Early on it is ``(1 + steps) / (10 + steps)``, so that the initial
    weights do not linger. Where it is kept, it is what is validated and exported."""

    def __post_init__(self) -> None:
        check_values(self)
        if self.decay is not None and not 0 < self.decay < 1:
            raise ConfigError("ema.decay lies between 0 and 1", value=self.decay, fix="try 0.999")

    def decay_after(self, steps: int) -> float:
        """The decay of the update that follows the ``steps``-th optimizer step, counted from 1."""
        return min(self.decay or 0.0, (1 + steps) / (10 + steps))


@dataclass(frozen=True)
class DropoutConfig:
    """Independent dropout of the two conditions, per sample, so that either may be absent when generating."""

    mllm: float = 0.1
    """Probability that a sample trains without the MLLM's tokens."""
    references: float = 0.1
    """Probability that a sample trains without reference latents (stages that use them)."""

    def __post_init__(self) -> None:
        check_values(self)
        for name, value in (("mllm", self.mllm), ("references", self.references)):
            if not 0 <= value < 1:
                raise ConfigError(f"dropout.{name} is a probability below 1", value=value, fix="try 0.1")


@dataclass(frozen=True)
class ValidationConfig:
    """Held-out loss in the loop, with right and with shuffled conditions, on fixed noise."""

    every: int = 50
    """Steps between validations; the last step of each stage validates in any case."""
    samples: int = 64
    """Triplets of the validation split, the same each time; 0 skips it (a personal set holds none out)."""

    def __post_init__(self) -> None:
        check_values(self)


@dataclass(frozen=True)
class ImagesConfig:
    """Images of held-out samples, drawn while training and kept by the tracker."""

    count: int = 0
    """How many; none by default, as each costs ``steps`` forward passes, twice that with guidance."""
    every: int = 500
    """Steps between them; the last step of each stage draws in any case."""
    steps: int = 25
    """Of the sampler."""
    guidance: float = 2.5
    """Scale of classifier-free guidance; 1 turns it off."""

    def __post_init__(self) -> None:
        check_values(self)
        for name, value, least in (("count", self.count, 0), ("every", self.every, 1), ("steps", self.steps, 1)):
            if value < least:
                raise ConfigError(f"images.{name} is below {least}", value=value, fix="raise it")


@dataclass(frozen=True)
class CheckpointConfig:
    """How often the state is saved, and how much of it is kept."""

    every: int = 50
    """Steps between checkpoints."""
    keep: int = 2
    """Newest checkpoints kept."""
    keep_every: int | None = None
    """Checkpoints at multiples of this many steps are kept as well; by default none."""

    def __post_init__(self) -> None:
        check_values(self)
        for name, value in (("every", self.every), ("keep", self.keep), ("keep_every", self.keep_every)):
            if value is not None and value < 1:
                raise ConfigError(f"checkpoint.{name} counts from 1", value=value, fix="raise it")


@dataclass(frozen=True)
class SafetyConfig:
    """When a run ends before its time."""

    grace_s: float = 60.0
    """After SIGTERM (``ray job stop``) the job waits this long for the ranks' checkpoint, then ends without one. The
    step that runs is finished, with its validation where one is due."""
    step_timeout_s: float = 1800.0
    """A rank whose step (with its validation, images and checkpoint) takes longer hangs: it leaves its threads' stacks
    in the run's ``hangs/`` and ends, and the group restarts from the last checkpoint."""
    max_loss: float = 100.0
    """A step's mean loss above it has diverged; in latents of unit variance it starts near 2."""
    max_quarantined: int = 100
    """Samples that may be left out of a run because they cannot be read or prepared (a damaged image, a broken row).
    They are named in the run's ``quarantine.jsonl``; one more ends the run. 0: the first ends it."""
    max_quarantined_share: float = 0.5
    """Share of the training samples that may be left out; the lower of the two limits counts."""

    def __post_init__(self) -> None:
        check_values(self)
        if self.max_quarantined < 0:
            raise ConfigError("safety.max_quarantined is negative", value=self.max_quarantined, fix="use 0 or more")
        if not 0 <= self.max_quarantined_share <= 1:
            raise ConfigError(
                "safety.max_quarantined_share is not between 0 and 1", value=self.max_quarantined_share, fix="try 0.5"
            )
        for name, value in (
            ("grace_s", self.grace_s),
            ("step_timeout_s", self.step_timeout_s),
            ("max_loss", self.max_loss),
        ):
            if value <= 0:
                raise ConfigError(f"safety.{name} must be above 0", value=value, fix="raise it")

    def quarantine_limit(self, samples: int) -> int:
        """Samples that a training on ``samples`` of them may leave out."""
        return min(self.max_quarantined, int(samples * self.max_quarantined_share))


@dataclass(frozen=True)
class WorkerConfig:
    """The worker group."""

    num_workers: int = 2
    """Ray Train workers (ZeRO-3 ranks). 0 runs the same loop in this process without DeepSpeed: for debugging, and
    for small models on one GPU."""
    min_workers: int | None = None
    """If set, the run is elastic: it continues with as many workers as the cluster has room for, no fewer than these,
    and from its last checkpoint with more, up to ``num_workers``, when there is room again."""
    resize_every_s: float = 60.0
    """Seconds between two looks for more room."""
    cpus_per_worker: float = 0.5
    """Logical CPUs a worker reserves; below 1 so that Ray Data keeps some on a small machine."""
    threads_per_worker: int = 1
    """Threads of PyTorch in each worker (CPU training)."""
    use_gpu: bool = False
    """One GPU for each worker; without workers, the machine's first."""
    tf32: bool = False
    """Let GPUs multiply float32 matrices with 10 bits of mantissa (TensorFloat-32): less exact."""
    max_failures: int = 2
    """Restarts from the last checkpoint before the run gives up."""
    peak_tflops: float | None = None
    """Dense peak of one worker's device in the training's precision, for the model FLOPs utilisation; known without for
    A100, H100, H200 and L40S, and not estimated for others."""

    def __post_init__(self) -> None:
        check_values(self)
        if self.num_workers < 0:
            raise ConfigError("num_workers is negative", value=self.num_workers, fix="use 0 for one plain process")
        if self.min_workers is not None and not 1 <= self.min_workers <= self.num_workers:
            raise ConfigError(
                "no range of workers", value=[self.min_workers, self.num_workers], fix="1 <= min_workers <= num_workers"
            )


@dataclass(frozen=True)
class ZeroConfig:
    """How DeepSpeed's ZeRO-3 keeps and moves what ranks share. Sizes count elements; none of it changes a result."""

    offload: Offload = "none"
    """What lies in the host's memory and not on the GPU: nothing; master weights, moments and gradients (AdamW steps
    there); or the parameters between their uses as well."""
    reduce_bucket: int = 500_000_000
    """Gradients that travel at once; a buffer of this size is allocated."""
    prefetch_bucket: int = 50_000_000
    """Parameters fetched ahead of their use."""
    max_live: int = 1_000_000_000
    """Most gathered parameters that a rank keeps for a next use."""
    keep_whole: int = 1_000_000
    """Parameters up to this size stay whole on every rank: gathering small ones costs more than they weigh."""
    overlap: bool | None = None
    """Reduce gradients during the backward pass; by default where there are GPUs."""

    def __post_init__(self) -> None:
        check_values(self)
        for name in ("reduce_bucket", "prefetch_bucket", "max_live", "keep_whole"):
            if getattr(self, name) < (name == "reduce_bucket"):
                raise ConfigError(f"zero.{name} counts elements", value=getattr(self, name), fix="raise it")
        if self.prefetch_bucket > self.max_live:
            raise ConfigError(
                f"zero.prefetch_bucket={self.prefetch_bucket} exceeds zero.max_live={self.max_live}",
                fix="lower prefetch_bucket: what is fetched ahead has to be kept",
            )


@dataclass(frozen=True)
class TrainConfig:
    """Train a model on a snapshot. Same command again: resumes, or says that it is done."""

    dataset: str = field(metadata=NOT_IDENTITY)
    """URI of a curated data set; its newest snapshot is used and recorded."""
    run: str = field(metadata=NOT_IDENTITY)
    """URI that receives checkpoints, metrics and the exported bundle. One run, one prefix."""
    preset: str = "mini"
    """Name of a preset, or a path to a preset's YAML file."""
    base: str | None = field(default=None, metadata=NOT_IDENTITY)
    """URI of a bundle to start from (a finetune); by default the preset's own sources."""
    from_seed: bool = False
    """Start the DiT and the aggregator from the seed, whatever weights the preset ships. Not with ``base``."""
    adapter: LoraConfig | None = None
    """LoRA on the transformer; its export is a personal bundle that names its base. Needs ``base``."""
    stages: list[StageConfig] = field(default_factory=default_stages)
    """The curriculum, in order."""
    batch_size: int = 32
    """Samples per optimizer step over all workers."""
    micro_batch_size: int = field(default=16, metadata=NOT_IDENTITY)
    """Samples per forward pass of one worker; the rest of the batch is accumulated."""
    activation_checkpointing: bool = field(default=False, metadata=NOT_IDENTITY)
    """Compute the activations of DiT and aggregator once more in the backward pass instead of keeping them."""
    precision: Precision = "float32"
    """Of weights and passes. ``bfloat16`` keeps master weights, moments and accumulated gradients in float32
    (DeepSpeed's mixed precision), and starts from the base's weights rounded to it; the VAE computes in float32. In a
    plain process it is PyTorch's autocast: weights stay in float32, so a run that changes between the two rounds a
    little differently from there on."""
    keep_samples: bool = field(default=False, metadata=NOT_IDENTITY)
    """Prepare each sample once and keep it in every worker's memory, where Ray Data would prepare it anew each time it
    is due (0.14 MB a sample of ``mini``, more with larger images). Same order, same values."""
    zero: ZeroConfig = field(default_factory=ZeroConfig, metadata=NOT_IDENTITY)
    """What DeepSpeed offloads, and the sizes of its communication."""
    seed: int = 0
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
    """When a run ends before its time."""
    workers: WorkerConfig = field(default_factory=WorkerConfig, metadata=NOT_IDENTITY)
    """The worker group."""
    export_dtype: Literal["float32", "float16"] = field(default="float32", metadata=NOT_IDENTITY)
    """Precision of the trained parts in the bundle; whoever loads them computes in its own."""
    export_lora: Literal["separate", "merged"] = field(default="separate", metadata=NOT_IDENTITY)
    """Whether a LoRA lies beside the DiT in the bundle (a personal bundle is the LoRA alone) or is added into its
    weights, for a bundle that stands by itself and that others can be trained on."""
    log_every: int = field(default=10, metadata=NOT_IDENTITY)
    """Steps between log lines and metric points."""
    tracking: str | None = field(default=None, metadata=NOT_IDENTITY)
    """MLflow tracking URI; by default MLFLOW_TRACKING_URI."""
    experiment: str = field(default="lookalike", metadata=NOT_IDENTITY)
    """MLflow experiment."""
    owner: str | None = field(default=None, metadata=NOT_IDENTITY)
    """CUSTOMER--SUBJECT that the bundle is made for: it becomes champion of no other model."""

    def __post_init__(self) -> None:
        check_values(self)
        if not self.stages:
            raise ConfigError("the curriculum is empty", fix="name at least one stage")
        if self.adapter is not None and self.base is None:
            raise ConfigError("an adapter needs a base to sit on", value=self.adapter, fix="set base to a bundle's URI")
        if self.from_seed and self.base is not None:
            raise ConfigError("a run starts from a base or from a seed", value=self.base, fix="drop base or from_seed")
        if self.images.count and not self.validation.samples:
            raise ConfigError(
                "images are of held-out samples, and there are none", value=self.images, fix="raise validation.samples"
            )
        if self.workers.num_workers == 0 and self.zero.offload != "none":
            raise ConfigError(
                f"zero.offload={self.zero.offload} needs DeepSpeed, which workers.num_workers=0 does without",
                fix="use num_workers=1 or more, or zero.offload=none",
            )
        if self.zero.overlap and not self.workers.use_gpu:
            raise ConfigError(
                "zero.overlap needs GPUs: Gloo has no streams to overlap on", fix="leave it to its default"
            )
        ranks = max(1, self.workers.num_workers)
        if self.batch_size < 1 or self.micro_batch_size < 1 or self.batch_size % (ranks * self.micro_batch_size):
            raise ConfigError(
                "batch_size is no multiple of workers × micro_batch_size",
                value=f"batch_size={self.batch_size}, num_workers={ranks}, micro_batch_size={self.micro_batch_size}",
                fix=f"use a batch_size divisible by {ranks * max(1, self.micro_batch_size)}, or a smaller micro batch",
            )

    def accumulation(self, ranks: int) -> int:
        """Micro batches of each rank in a step; with a number of ranks that divides no batch, some are padded."""
        return -(-self.batch_size // (ranks * self.micro_batch_size))

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the whole curriculum."""
        return sum(stage.steps for stage in self.stages)
