"""What the driver sends to every rank; light at import, since Ray's own actors import it, too."""

from dataclasses import dataclass

from lookalike.training.config import TrainConfig
from lookalike.training.epoch_plan import EpochPlan
from pipelines.train.samples import TripletSource

LEASE = "lease"  # of a run, below its prefix


@dataclass(frozen=True)
class WorkerSettings:
    """One run, as its ranks need to know it."""

    config: TrainConfig
    """The resolved configuration."""
    source: TripletSource
    """Where samples come from."""
    plan: EpochPlan
    """Which sample each slot of a step gets."""
    fingerprint: str
    """Of the run."""
    base_sha256: str
    """Identity of the initial bundle."""
    tracking_run: str
    """Id of the tracker's run."""
    submitted: float
    """When the run was first submitted, in seconds since 1970."""
    terminal: bool
    """Whether somebody looks on in a terminal."""
    lease: int
    """Number of the driver's lease of the run."""
