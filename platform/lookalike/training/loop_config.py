"""Configurations of the training loop: dropout, validation, images, checkpoints, and when a run ends early."""

from dataclasses import dataclass

from lookalike.errors import ConfigError
from lookalike.values import check_values


@dataclass(frozen=True)
class DropoutConfig:
    """Independent dropout of the two conditions per sample, so that a model can generate without either."""

    mllm: float = 0.1
    """Probability that a sample trains without the MLLM's tokens."""
    references: float = 0.1
    """Probability that a sample trains without reference latents, in phases that use them."""

    def __post_init__(self) -> None:
        check_values(self)
        for name, value in (("mllm", self.mllm), ("references", self.references)):
            if not 0 <= value < 1:
                raise ConfigError(f"dropout.{name} is not a probability below 1", value=value, fix="try 0.1")


@dataclass(frozen=True)
class ValidationConfig:
    """Held-out loss during training, with right and with shuffled conditions, on fixed noise."""

    every: int = 50
    """Steps between validations; the last step of each phase always validates."""
    samples: int = 64
    """Triplets of the validation split, the same each time; 0 skips validation, as for a personal set."""

    def __post_init__(self) -> None:
        check_values(self)


@dataclass(frozen=True)
class ImagesConfig:
    """Images of held-out samples, generated during training and kept by the tracker."""

    count: int = 0
    """Number of images; 0 by default, as each costs ``steps`` forward passes, twice that with guidance."""
    every: int = 500
    """Steps between them; the last step of each phase always generates them."""
    steps: int = 25
    """Sampler steps."""
    guidance: float = 2.5
    """Scale of classifier-free guidance; 1 turns it off."""

    def __post_init__(self) -> None:
        check_values(self)
        for name, value, least in (("count", self.count, 0), ("every", self.every, 1), ("steps", self.steps, 1)):
            if value < least:
                raise ConfigError(f"images.{name} is below {least}", value=value, fix=f"use {least} or more")


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
                raise ConfigError(f"checkpoint.{name} is below 1", value=value, fix="use 1 or more")


@dataclass(frozen=True)
class SafetyConfig:
    """When a run ends early."""

    grace_s: float = 60.0
    """After SIGTERM (``ray job stop``) the job waits this long for the ranks' checkpoint, then ends without one. The
    current step is finished, with its validation if one is due."""
    step_timeout_s: float = 1800.0
    """A rank whose step (with its validation, images and checkpoint) takes longer is considered hung: it writes its
    threads' stacks to the run's ``hangs/`` and ends, and the group restarts from the last checkpoint."""
    max_loss: float = 100.0
    """A step with a larger mean loss has diverged; with latents of unit variance the loss starts near 2."""
    max_quarantined: int = 100
    """Samples that may be left out of a run because they cannot be read or prepared (a damaged image, a broken row).
    The run's ``quarantine.jsonl`` names them; one more ends the run. With 0 the first one ends it."""
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
                raise ConfigError(f"safety.{name} must be above 0", value=value, fix="use a positive number")

    def quarantine_limit(self, samples: int) -> int:
        """Return how many of ``samples`` samples a run may leave out."""
        return min(self.max_quarantined, int(samples * self.max_quarantined_share))
