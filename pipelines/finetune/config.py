"""The configurations of `jobs/finetune.py`, one for each subcommand."""

import re
from dataclasses import field
from typing import Any, Literal

from lookalike.config import IDENTITY_IF_SET, NOT_IDENTITY, POSITIONAL
from lookalike.errors import ConfigError
from lookalike.evaluation.gate import GateConfig
from lookalike.models.presets import LoraConfig
from lookalike.training.curriculum import PhaseConfig
from lookalike.training.workers import WorkerConfig
from lookalike.values import Count, NonNegative, Positive, Seed, configuration
from pipelines.actors import ActorConfig
from pipelines.curate.filters import FiltersConfig
from pipelines.curate.filters.no_pair import NoPair

_HELD_OUT = 2  # photos

Budget = Literal["fast", "standard", "best"]
_BUDGETS: dict[Budget, tuple[float, float, float, float]] = {
    "fast": (0.5, 0.25, 0.5, 0.5),
    "standard": (1, 1, 1, 1),
    "best": (2, 4, 2, 1),
}
"""Factors of the steps of training, of the losses, prompts and sampler steps of the evaluation."""
_STEPS, _WARMUP_STEPS = 40, 5
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
_DURATION = re.compile(r"([1-9][0-9]{0,8})([smhd])")


def duration_s(text: str) -> int:
    """Return the seconds of ``30d``, ``12h``, ``5m`` or ``90s``. Raises ConfigError for other text."""
    match = _DURATION.fullmatch(text)
    if match is None or (seconds := int(match[1]) * _UNITS[match[2]]) > 100 * 365 * 86_400:
        raise ConfigError("not a duration of up to 100 years", value=text, fix="write a number and s, m, h or d: 30d")
    return seconds


def default_evaluation() -> dict[str, Any]:
    """Images of the one subject, enough to tell them from its base's and to see copies; losses at many noise levels."""
    images = {"subjects": 1, "prompts_per_subject": 8, "images_per_prompt": 2, "stages": ["preset"], "steps": 16}
    return {"max_samples": 64, **images}


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
    """URI with 4 to 20 photos of the subject: a folder, a zip archive, or raw shards. Beside ``01.jpg`` may lie a
    caption ``01.txt``, labels ``01.json`` and a mask ``01.mask.png``. EXIF and other metadata are not stored."""
    store: str = field(metadata=NOT_IDENTITY)
    """URI of the store; everything is written below ``customers/CUSTOMER/SUBJECT/`` in it."""
    class_name: str | None = field(default=None, metadata=IDENTITY_IF_SET)
    """What the subject is, such as ``dog``, for prompts and the comparison with its class; by default from the photos'
    labels, or the name of their folder, or the subject's id."""
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
    stages: list[PhaseConfig] | None = None
    """The curriculum's phases; null: one of 40 steps, or what the budget says, with both conditions, at the learning
    rate of the base's preset for personal adapters (``mini``: 5e-3)."""
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

    budget: Budget | None = field(default=None, metadata=IDENTITY_IF_SET)
    """``fast`` halves the steps of training and of each image, and measures a quarter; ``standard`` is the default;
    ``best`` doubles the steps of training and measures four times as many samples and twice as many prompts. It sets
    ``stages`` and ``evaluation``, which then cannot be given."""
    allow_several_subjects: bool = field(default=False, metadata=NOT_IDENTITY)
    """Accept photos that look like those of two subjects, which are an error otherwise."""
    key: str | None = field(default=None, metadata=NOT_IDENTITY)
    """Idempotency key of the request, unique for the customer: the same request with it gives the same job, another
    request with it is refused."""
    expires_after: str | None = field(default=None, metadata=NOT_IDENTITY)
    """How long what is stored of the request may be kept from now, such as ``30d`` or ``12h``; null: for ever."""
    webhook: str | None = field(default=None, metadata=NOT_IDENTITY)
    """URL that receives each event as a signed POST by the Standard Webhooks. The secret comes from the environment
    (pipelines/finetune/README.md)."""
    resume: bool = field(default=False, metadata=NOT_IDENTITY)
    """Continue a finetune that was cancelled, from its last checkpoint."""

    def __post_init__(self) -> None:
        if self.expires_after is not None:
            duration_s(self.expires_after)
        if self.budget is not None:
            self._spend(self.budget)
        if self.filters.held_out is not None:
            raise ConfigError(
                "a finetune sets filters.held_out itself", value=self.filters.held_out, fix="use --holdout in its place"
            )

    def _spend(self, budget: Budget) -> None:
        """Set what the budget decides."""
        _, measured, prompts, sampler = _BUDGETS[budget]
        evaluation = default_evaluation()
        for name, factor in (("max_samples", measured), ("prompts_per_subject", prompts), ("steps", sampler)):
            evaluation[name] = round(evaluation[name] * factor)
        if self.stages is not None or self.evaluation not in (default_evaluation(), evaluation):
            fix = "leave out budget, or stages and evaluation"
            raise ConfigError("budget sets stages and evaluation, which are given too", value=budget, fix=fix)
        object.__setattr__(self, "evaluation", evaluation)
        if budget == "standard":
            object.__setattr__(self, "budget", None)

    def phases(self, learning_rate: float) -> list[PhaseConfig]:
        """The curriculum; where the settings leave it open, at ``learning_rate``, as at the end of the base's."""
        if self.stages is not None:
            return self.stages
        share = _BUDGETS[self.budget or "standard"][0]
        steps, warmup = round(_STEPS * share), round(_WARMUP_STEPS * min(1, share))
        return [PhaseConfig("personal", steps, "mllm+references", learning_rate=learning_rate, warmup_steps=warmup)]

    @property
    def held_out_photos(self) -> int:
        """Photos to hold out, if there are enough."""
        return _HELD_OUT if self.holdout is None else self.holdout


@configuration("price")
class PriceConfig:
    """The machine that a finetune runs on: what an hour of it costs, and how fast it is."""

    table: str | None = None
    """A YAML file with a row for each machine (jobs/configs/prices.yaml is one). Settings given here win over it."""
    machine: str | None = None
    """The row of the table; may be left out if it has one row."""
    per_hour: Positive | None = None
    """Price of the machine for an hour, in ``currency``; null: no price is given."""
    currency: str | None = None
    """Of the price."""
    seconds_per_step: Positive | None = None
    """Seconds of an optimizer step of ``batch_size`` samples."""
    measured_run: str | None = None
    """URI of an earlier training run on this machine (``…/photos-…/run``): the median of its step times replaces
    ``seconds_per_step``."""
    seconds_per_image_step: Positive | None = None
    """Seconds of one sampler step of one image in the evaluation."""
    seconds_per_loss: Positive | None = None
    """Seconds of one held-out loss in the evaluation."""
    seconds_before: Positive | None = None
    """Seconds of everything else: start, photos, export, registration."""


@configuration()
class CheckConfig(FinetuneConfig):
    """Check the photos as a finetune with the same settings would, and give its time and price. Changes nothing."""

    customer: str = "customer"
    """Id of the tenant."""
    subject: str = "subject"
    """Id of the subject."""
    photos: str = ""
    """URI with 4 to 20 photos of the subject, as for a finetune."""
    store: str = ""
    """URI of the store, which is not used."""
    price: PriceConfig = field(default_factory=PriceConfig)
    """The machine: its speed, and what an hour costs."""
    json: bool = False
    """Print one JSON document in place of the table."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.photos:
            raise ConfigError("photos is missing", fix="name them with --photos URI")


@configuration()
class PlaceConfig:
    """A finetune, by its customer and subject."""

    customer: str = field(metadata=POSITIONAL)
    """Id of the tenant."""
    subject: str = field(metadata=POSITIONAL)
    """Id of the subject."""
    store: str
    """URI of the store."""


@configuration()
class StatusConfig(PlaceConfig):
    """Show the state of the subject's newest finetune, its events, and its webhooks that are not delivered."""

    json: bool = False
    """Print one JSON document in place of the table."""


@configuration()
class CancelConfig(PlaceConfig):
    """Stop the subject's newest finetune: training ends within a step and keeps its last checkpoint."""


@configuration()
class DeliverConfig(PlaceConfig):
    """Deliver the webhooks of the subject's newest finetune that are due, and end when none is left to try."""

    webhook: str
    """URL that receives them."""
