"""What the driver sends to every rank; light at import, since Ray's own actors import it, too."""

from dataclasses import dataclass

from lookalike.training.config import TrainConfig
from lookalike.training.epoch_plan import EpochPlan
from pipelines.train.samples import TripletSource

LEASE = "lease"  # of a run, below its prefix


@dataclass(frozen=True)
class WorkerSettings:
    """Settings of one run for its ranks."""

    config: TrainConfig
    source: TripletSource
    plan: EpochPlan
    fingerprint: str
    base_sha256: str
    """SHA-256 of the initial bundle."""
    tracking_run: str
    """Id of the tracker's run."""
    submitted: float
    """When the run was first submitted, in seconds since 1970."""
    terminal: bool
    """Whether the driver's stderr is a terminal, which shows a progress bar."""
    lease: int
    """Number of the driver's lease of the run."""
