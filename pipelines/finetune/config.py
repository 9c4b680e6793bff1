"""The configurations of `jobs/finetune.py`, one for each subcommand."""

from dataclasses import field
from typing import Any

from lookalike.config import IDENTITY_IF_SET, NOT_IDENTITY
from lookalike.errors import ConfigError
from lookalike.evaluation.gate import GateConfig
from lookalike.models.presets import LoraConfig
from lookalike.training.curriculum import PhaseConfig
from lookalike.training.workers import WorkerConfig
from lookalike.values import Count, NonNegative, Seed, configuration
from pipelines.actors import ActorConfig
from pipelines.curate.filters import FiltersConfig
from pipelines.curate.filters.no_pair import NoPair

_HELD_OUT = 2  # photos


def default_stages() -> list[PhaseConfig]:
    """One phase with both conditions, as at the end of the base's curriculum.

    The learning rate suits photos that differ from what the base was trained on, as a customer's do
    (tests/bench/results/finetune-settings.json): at 1e-3 the images stay close to the base's.
    """
    return [PhaseConfig(name="personal", steps=40, conditions="mllm+references", learning_rate=1e-2, warmup_steps=5)]


def default_evaluation() -> dict[str, Any]:
    """Images of the one subject, enough to see copies among them, and its loss at many noise levels."""
    return {"max_samples": 64, "subjects": 1, "prompts_per_subject": 8, "stages": ["preset"], "steps": 16}


def default_filters() -> FiltersConfig:
    """The filters of curation without those that look for misfiled photos."""
    return FiltersConfig(skip=["off_subject"], no_pair=NoPair(min_similarity=-1.0))


@configuration()
class FinetuneConfig:
    """Train a personal adapter on a few photos. The same command again resumes, or returns the finished result."""

    customer: str
    """Id of the tenant: lower-case letters, digits, ``_`` and ``-``."""
    subject: str
    """Id of the subject, of the same letters."""
    photos: str = field(metadata=NOT_IDENTITY)
    """URI with 4 to 20 photos of the subject: raw shards, or ``<subject>/<nn>.jpg``."""
    store: str = field(metadata=NOT_IDENTITY)
    """URI of the store; everything is written below ``customers/CUSTOMER/SUBJECT/`` in it."""
    model: str = field(default="models:/lookalike-mini@champion", metadata=NOT_IDENTITY)
    """The model to start from: a registered model, or a bundle's URI."""
    base: str | None = field(default=None, metadata=NOT_IDENTITY)
    """URI of that model's bundle, if it was moved since it was registered."""
    distractors: str | None = field(default=None, metadata=NOT_IDENTITY)
    """URI of a data set of other subjects, whose conditions the evaluation uses as the wrong ones."""
    filters: FiltersConfig = field(default_factory=default_filters, metadata=NOT_IDENTITY)
    """Filters of the photos. By default a photo that does not resemble the others is kept, since the customer names the
    subject."""
    adapter: LoraConfig = field(default_factory=LoraConfig)
    """LoRA on the DiT."""
    stages: list[PhaseConfig] = field(default_factory=default_stages)
    """The curriculum's phases."""
    batch_size: Count = 8
    """Samples per optimizer step over all workers."""
    micro_batch_size: Count = field(default=4, metadata=NOT_IDENTITY)
    """Samples per forward pass of one worker."""
    evaluation: dict[str, Any] = field(default_factory=default_evaluation)
    """Settings of the evaluation before and after (see ``jobs/evaluate.py run --help``)."""
    gate: GateConfig = field(default_factory=lambda: GateConfig(preset="personal"))
    """The checks that the personal model has to pass to become its subject's champion."""
    holdout: NonNegative | None = field(default=None, metadata=IDENTITY_IF_SET)
    """Photos that are kept from training, so that the model is judged on photos it has never seen; null: 2. Of 4 photos
    or fewer it is one at most. 0 trains on all photos and judges on the same ones, and the gate says so."""
    workers: WorkerConfig = field(default_factory=WorkerConfig, metadata=NOT_IDENTITY)
    """The worker group."""
    actors: ActorConfig = field(default_factory=ActorConfig, metadata=NOT_IDENTITY)
    """The actors that curate and evaluate; they change no result."""
    seed: Seed = 0
    """Seeds order, noise and the initial adapter."""
    tracking: str | None = field(default=None, metadata=NOT_IDENTITY)
    """MLflow tracking URI; by default MLFLOW_TRACKING_URI."""
    isolated: bool = field(default=False, metadata=NOT_IDENTITY)
    """Refuse to start unless this job's S3 credentials reach ``customers/CUSTOMER/`` of the store and nothing beside it
    (SECURITY.md)."""

    def __post_init__(self) -> None:
        if self.filters.held_out is not None:
            raise ConfigError(
                "a finetune sets filters.held_out itself", value=self.filters.held_out, fix="use --holdout in its place"
            )

    @property
    def held_out_photos(self) -> int:
        """Photos to hold out, if there are enough."""
        return _HELD_OUT if self.holdout is None else self.holdout


@configuration()
class CheckConfig:
    """Check a customer's photos as a finetune does before any work: layout, number and formats. Changes nothing."""

    photos: str
    """URI with 4 to 20 photos of one subject: raw shards, or ``<subject>/<nn>.jpg``."""
