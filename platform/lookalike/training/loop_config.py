"""Configurations of the training loop: dropout, validation, images, checkpoints, and when a run ends early."""

from lookalike.values import Count, Fraction, NonNegative, Positive, Share, configuration


@configuration("dropout")
class DropoutConfig:
    """Independent dropout of the two conditions per sample, so that a model can generate without either."""

    mllm: Fraction = 0.1
    """Probability that a sample trains without the MLLM's tokens."""
    references: Fraction = 0.1
    """Probability that a sample trains without reference latents, in phases that use them."""


@configuration("validation")
class ValidationConfig:
    """Held-out loss during training, with right and with shuffled conditions, on fixed noise."""

    every: Count = 50
    """Steps between validations; the last step of each phase always validates."""
    samples: NonNegative = 64
    """Triplets of the validation split, the same each time; 0 skips validation, as for a personal set."""


@configuration("images")
class ImagesConfig:
    """Images of held-out samples, generated during training and kept by the tracker."""

    count: NonNegative = 0
    """Number of images; 0 by default, as each costs ``steps`` forward passes, twice that with guidance."""
    every: Count = 500
    """Steps between them; the last step of each phase always generates them."""
    steps: Count = 25
    """Sampler steps."""
    guidance: float = 2.5
    """Scale of classifier-free guidance; 1 turns it off."""


@configuration("checkpoint")
class CheckpointConfig:
    """How often the state is saved, and how much of it is kept."""

    every: Count = 50
    """Steps between checkpoints."""
    keep: Count = 2
    """Newest checkpoints kept."""
    keep_every: Count | None = None
    """Checkpoints at multiples of this many steps are kept as well; by default none."""


@configuration("safety")
class SafetyConfig:
    """When a run ends early."""

    grace_s: Positive = 60.0
    """After SIGTERM (``ray job stop``) the job waits this long for the ranks' checkpoint, then ends without one. The
    current step is finished, with its validation if one is due."""
    step_timeout_s: Positive = 1800.0
    """A rank whose step (with its validation, images and checkpoint) takes longer is considered hung: it writes its
    threads' stacks to the run's ``hangs/`` and ends, and the group restarts from the last checkpoint."""
    max_loss: Positive = 100.0
    """A step with a larger mean loss has diverged; with latents of unit variance the loss starts near 2."""
    max_quarantined: NonNegative = 100
    """Samples that may be left out of a run because they cannot be read or prepared (a damaged image, a broken row).
    The run's ``quarantine.jsonl`` names them; one more ends the run. With 0 the first one ends it."""
    max_quarantined_share: Share = 0.5
    """Share of the training samples that may be left out; the lower of the two limits counts."""

    def quarantine_limit(self, samples: int) -> int:
        """Return how many of ``samples`` samples a run may leave out."""
        return min(self.max_quarantined, int(samples * self.max_quarantined_share))
