"""The configuration of `jobs/evaluate.py`."""

from dataclasses import field
from typing import Annotated, Any, Literal

from annotated_types import Le

from lookalike.annotators.embedder import NO_EMBEDDER
from lookalike.config import IDENTITY_IF_SET, NOT_IDENTITY
from lookalike.diffusion.schedule import denoising_schedule
from lookalike.errors import ConfigError
from lookalike.evaluation.metrics import check_settings
from lookalike.evaluation.scores import ConditionMode
from lookalike.evaluation.suites import FORMATS
from lookalike.values import Count, NonNegative, Seed, configuration
from pipelines.actors import ActorConfig

CURATED = "curated"
"""The format of a data set that ``jobs/curate.py`` wrote."""


@configuration()
class EvaluateConfig:
    """Measure a bundle on a suite. The same command again returns the finished result."""

    bundle: str = field(metadata=NOT_IDENTITY)
    """URI of the bundle, full or personal."""
    suite: str = field(metadata=NOT_IDENTITY)
    """URI of a curated data set, whose newest snapshot holds the subjects and prompts, or of a folder: a DreamBench
    checkout, a DreamBench++ folder, or a list of prompts with references (``suite.yaml``). Of a split with more than
    65,536 triplets and ``max_samples``, about as many are chosen, in runs spread over it by the seed."""
    out: str = field(metadata=NOT_IDENTITY)
    """URI that receives scores.json (last), grid.png, measurements.parquet and images/."""
    suite_format: str | None = field(default=None, metadata=IDENTITY_IF_SET)
    """``curated``, ``dreambench``, ``dreambench_plus`` or ``prompts``; by default it is recognised by its files."""
    base: str | None = field(default=None, metadata=NOT_IDENTITY)
    """URI of a second bundle to measure beside it, as the state before (an adapter's base)."""
    split: Literal["validation", "train"] = "validation"
    """Which subjects of a curated data set; by default those that training never used."""
    distractors: str | None = field(default=None, metadata=NOT_IDENTITY)
    """URI of a data set with other subjects, for a suite that holds one subject only."""
    conditions: ConditionMode = "right"
    """``shuffled`` gives every sample another subject's conditions: a probe that a gate has to refuse."""
    max_samples: Annotated[Count, Le(10_000_000)] = 256
    """Held-out losses to measure; a suite with fewer triplets is measured at more noise levels."""
    subjects: Annotated[Count, Le(100_000)] = 8
    """Number of subjects to generate images of."""
    prompts_per_subject: Annotated[Count, Le(10_000)] = 2
    """Prompts of each subject; a curated data set has one for each triplet, DreamBench 25."""
    prompts: Literal["suite", "dreambench"] | None = field(default=None, metadata=IDENTITY_IF_SET)
    """What images are generated of: the ``suite``'s own prompts (by default), which of a curated data set are captions
    of its photos; or ``dreambench``: the 25 published prompts for live subjects or for objects, with the subject's
    class. Losses have the captions in both cases, since they need photos of what the prompt says."""
    images_per_prompt: Annotated[Count, Le(1_000)] | None = field(default=None, metadata=IDENTITY_IF_SET)
    """Images of each prompt by each denoising schedule, from different noise; by default 4 for DreamBench, else 1."""
    stand_ins: Annotated[NonNegative, Le(1_000)] | None = field(default=None, metadata=IDENTITY_IF_SET)
    """Real photos that are measured in place of images, for each subject: of itself (ceiling), of others (floor), and
    of others of its class (hard floor). By default 4 of each; 0 measures none."""
    stages: list[str] = field(default_factory=lambda: ["preset", "mllm_only", "reference_only"])
    """Denoising schedules (preset, paper, mllm_only, both, reference_only, TAU1/TAU2 or TAU1/TAU2/BLEND); metrics of
    the first have no prefix."""
    steps: Annotated[Count, Le(10_000)] = 20
    """Denoising steps of an image."""
    guidance_scale: float = 2.5
    """Classifier-free guidance."""
    embedder: str = "efficientnet-lite0-colour"
    """Image embedder of ``identity``: packaged, or a Hub id or folder of a transformers vision model."""
    clip: str | None = None
    """Hub id or folder of a CLIP model for CLIP-I and CLIP-T; by default these are not measured."""
    dino: str | None = None
    """Hub id or folder of a DINO model for DINO-I; by default it is not measured."""
    metrics: dict[str, Any] = field(default_factory=dict, metadata=IDENTITY_IF_SET)
    """Settings of metrics that have any, by the metric's name in scores.json."""
    loss_batch_size: Annotated[Count, Le(4_096)] = 16
    """Samples of a forward pass."""
    image_batch_size: Annotated[Count, Le(4_096)] = 8
    """Images generated at once."""
    seed: Seed = 0
    """Seeds noise, noise levels and the choice of other subjects."""
    actors: ActorConfig = field(default_factory=ActorConfig, metadata=NOT_IDENTITY)
    """The actors that measure."""

    def __post_init__(self) -> None:
        if self.embedder == NO_EMBEDDER:
            raise ConfigError(
                "identity cannot be measured without an embedder", value=self.embedder, fix="name one with --embedder"
            )
        formats = [CURATED, *FORMATS]
        if self.suite_format is not None and self.suite_format not in formats:
            raise ConfigError(
                "suite_format is not a format of suites", value=self.suite_format, fix=f"use one of {formats}"
            )
        if not self.stages or len(set(self.stages)) != len(self.stages):
            raise ConfigError(
                "stages is empty or names a denoising schedule twice", value=self.stages, fix="use --stages preset"
            )
        for name in self.stages:
            denoising_schedule(name)
        check_settings(self)
